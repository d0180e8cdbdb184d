"""A strict parser of Prometheus' text format."""

import re
from dataclasses import dataclass, field

SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^{}]*\})? (-?[0-9.e+-]+|NaN|[+-]Inf)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count"), "counter": ("",), "gauge": ("",)}


@dataclass
class Metric:
    """The samples of one metric: values by suffix and labels."""

    kind: str = ""
    help_text: str = ""
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)


def parse_metrics(text: str) -> dict[str, Metric]:
    """Parse the text format strictly: HELP, TYPE, then all samples of the metric.

    Raises:
        AssertionError: the text breaks a rule of the format.
    """
    assert text.endswith("\n")
    found: dict[str, Metric] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, help_text = line.removeprefix("# HELP ").partition(" ")
            assert name not in found, f"{name} occurs twice"
            found[name] = Metric(help_text=help_text)
        elif line.startswith("# TYPE "):
            assert line.split()[2] == name
            found[name].kind = line.split()[3]
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1].startswith(name), f"{line} is among the samples of {name}"
            labels = tuple(LABEL.findall(match[2] or ""))
            assert "{" + ",".join(f'{key}="{value}"' for key, value in labels) + "}" == (match[2] or "{}"), line
            key = match[1].removeprefix(name), labels
            assert key not in found[name].samples, f"{line} occurs twice"
            found[name].samples[key] = float(match[3])
    return found
