"""A metric of the user's own, beside the gate: a Python function or a command.

1. `python:MODULE:FUNCTION` is called with an iterator of `SampleOutput`, one for each held-out sample, computed as it
   is read; it returns a number. `position` is the sample's row in the inputs file, so that labels can be found.
2. Anything else is a command, split as a shell would, without a shell. The path of the model file is its last argument,
   and the last line that it prints is the number. It brings its own inputs.
3. Higher is better. A candidate may lose at most `max_metric_loss` of the float model's value.
4. A metric that cannot be called, fails, or gives no finite number is MetricUnusable, before anything is quantized.
"""

import importlib
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from packager.errors import MetricUnusable
from packager.models.inputs import Sample
from packager.models.provider_session import ON_CPU, Provider
from packager.models.samples import Samples
from packager.models.sessions import RunSettings, one_line_message, open_session, run_session

PYTHON_PREFIX: Final = "python:"
COMMAND_TIMEOUT_S: Final = 3600.0  # an hour, for a whole evaluation


class SampleOutput(NamedTuple):
    """One sample with the model's outputs for it.

    Attributes:
        position: its row in the inputs file.
        inputs: arrays by input name.
        outputs: arrays by output name.
    """

    position: int
    inputs: Sample
    outputs: dict[str, np.ndarray]


MetricFunction = Callable[[Iterator[SampleOutput]], float]


@dataclass(frozen=True, slots=True)
class MetricFigures:
    """The metric of the float model and of the candidate, and the smallest value that passes."""

    name: str
    float_value: float
    value: float
    minimum: float

    @property
    def is_passed(self) -> bool:
        """True if the candidate's value is not below the minimum."""
        return self.value >= self.minimum

    @property
    def explanation(self) -> str:
        """One sentence with both values and the minimum."""
        return f"metric {self.value:.4f}, float model {self.float_value:.4f}, at least {self.minimum:.4f} required"

    def as_json(self) -> dict[str, object]:
        """Return plain values for `--json` and reports."""
        return {"name": self.name, "float_value": self.float_value, "value": self.value, "minimum": self.minimum}


@dataclass(frozen=True, slots=True)
class Metric:
    """A user's metric, ready to be measured; `function` is None for a command."""

    name: str
    function: MetricFunction | None
    command: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Metric":
        """Parse `python:MODULE:FUNCTION` or a command line.

        Raises:
            MetricUnusable: the module or function cannot be imported, or the command cannot be split into words.
        """
        if text.startswith(PYTHON_PREFIX):
            return cls(text, _import_function(text), ())
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise MetricUnusable(f"metric {text!r} cannot be split into words: {error}") from error
        if not words:
            raise MetricUnusable("metric is empty", hint=METRIC_HINT)
        return cls(text, None, words)

    def measure(self, model: Path, samples: Samples, provider: Provider = ON_CPU) -> float:
        """Return the metric of one model.

        Args:
            model: an ONNX file.
            samples: held-out samples.
            provider: execution provider and session options; a command runs the model itself.

        Raises:
            MetricUnusable: the function or command fails, or gives no finite number.
            ModelDoesNotRun: the model does not run on a sample.
        """
        found = self._call_function(model, samples, provider) if self.function is not None else self._run_command(model)
        if not math.isfinite(found):
            raise MetricUnusable(f"metric {self.name!r} returned {found} for {model.name}, expected a finite number")
        return found

    def compare(
        self, reference: float, candidate: Path, samples: Samples, max_loss: float, provider: Provider = ON_CPU
    ) -> MetricFigures:
        """Return the candidate's value beside the float model's.

        Args:
            reference: the float model's value.
            candidate: an ONNX file.
            samples: held-out samples.
            max_loss: share of the float model's value that the candidate may lose.
            provider: execution provider and session options of the candidate.

        Raises:
            MetricUnusable: the function or command fails, or gives no finite number.
        """
        minimum = reference - max_loss * abs(reference)
        return MetricFigures(self.name, reference, self.measure(candidate, samples, provider), minimum)

    def _call_function(self, model: Path, samples: Samples, provider: Provider) -> float:
        assert self.function is not None
        try:
            return float(self.function(_sample_outputs(model, samples, provider)))
        except Exception as error:  # the user's function may raise anything
            raise MetricUnusable(
                f"metric {self.name!r} failed: {type(error).__name__}: {one_line_message(error)}"
            ) from error

    def _run_command(self, model: Path) -> float:
        try:
            done = subprocess.run(
                [*self.command, str(model)], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MetricUnusable(
                f"metric {self.name!r} cannot be run: {one_line_message(error)}", hint=METRIC_HINT
            ) from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
            raise MetricUnusable(f"metric {self.name!r} ended with exit status {done.returncode}: {last}")
        last = (done.stdout.strip().splitlines() or [""])[-1].strip()
        try:
            return float(last)
        except ValueError as error:
            raise MetricUnusable(
                f"metric {self.name!r} printed {last[:80]!r} as its last line, expected a number"
            ) from error


METRIC_HINT: Final = "give python:MODULE:FUNCTION, or a command whose last line is the number"


def _sample_outputs(model: Path, samples: Samples, provider: Provider) -> Iterator[SampleOutput]:
    running = open_session(model, RunSettings(provider=provider))
    names = [output.name for output in running.get_outputs()]
    for position, sample in zip(samples.indices, samples, strict=True):
        yield SampleOutput(
            position, sample, dict(zip(names, run_session(running, sample, where=str(model)), strict=True))
        )


def _import_function(text: str) -> MetricFunction:
    module, _, name = text.removeprefix(PYTHON_PREFIX).partition(":")
    if not module or not name:
        raise MetricUnusable(f"metric {text!r} does not name a module and a function", hint=METRIC_HINT)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # find a module in the working directory, as `python -m` does
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing the user's module may raise anything
        raise MetricUnusable(
            f"metric {text!r} cannot be imported: {type(error).__name__}: {one_line_message(error)}", hint=METRIC_HINT
        ) from error
    if not callable(found):
        raise MetricUnusable(f"metric {text!r} is {type(found).__name__}, expected a function", hint=METRIC_HINT)
    return found  # type: ignore[no-any-return]  # its result is checked after each call
