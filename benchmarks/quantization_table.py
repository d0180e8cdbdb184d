"""Quantize every float model of a folder and write a table of the results.

    python -m benchmarks.quantization_table --models DIR --json OUT [--scheme int8]... [--details FILE]

`DIR/NAME.onnx` is quantized with the inputs of `DIR/NAME.npz` (one array per model input, first axis = sample) if that
file exists, else with random ones. Half of the samples are held out, and every figure is measured on that half. Each
row has its own process, so that time and peak memory belong to one model, and a crash is the result of one row.
`--scheme all` measures int8, int4 and fp16. `--details` writes the full report of every row: candidates, node errors,
gate. `--markdown` writes a table.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from bundle.errors import AirweightsError

RANDOM_SAMPLES: Final = 32
LIMIT_S: Final = 3600.0  # per row; then its process is killed
SCHEMES: Final = ("int8", "int4", "fp16")
FIGURES: Final = (
    "bytes", "float_bytes", "relative_rms", "cosine_p1", "top1_agreement", "latency_ratio", "float_nodes", "cpu_s",
    "peak_bytes",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--scheme", action="append", choices=(*SCHEMES, "all"))
    parser.add_argument("--details", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if not arguments.models.is_dir():
        parser.error(f"--models {arguments.models}: no such folder")
    schemes = arguments.scheme or ["int8"]
    rows: list[dict[str, object]] = []
    details: list[dict[str, object]] = []
    models = sorted(arguments.models.glob("*.onnx"))
    if not models:
        print(f"{arguments.models}: found no .onnx file", file=sys.stderr)
        _write(arguments.json, rows)
    for model in models:
        for scheme in SCHEMES if "all" in schemes else schemes:
            details.append(measure_model(model, scheme))
            rows.append({name: details[-1][name] for name in ("model", "scheme", "verdict", "reason", *FIGURES)})
            print(format_line(details[-1]), flush=True)
            _write(arguments.json, rows)
            if arguments.details is not None:
                _write(arguments.details, details)
            if arguments.markdown is not None:
                arguments.markdown.write_text(format_markdown(details))
    return 0


def measure_model(model: Path, scheme: str) -> dict[str, object]:
    """Measure one row in a new process; a failure becomes the reason of the row."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.quantization_row", str(model), scheme, str(out)]
        child = subprocess.Popen(command, start_new_session=True)
        try:
            child.wait(timeout=LIMIT_S)
            why = f"the process that quantized it ended with exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            why = f"it took more than {LIMIT_S:.0f} s"
        finally:
            _kill_process_group(child)
        found = json.loads(out.read_text()) if out.exists() else make_row(model, scheme, "refused", why)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["cpu_s"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
    return found


def quantize_one(model: Path, scheme: str) -> dict[str, object]:
    """Quantize `model` and return its row; runs in the row's process."""
    from packager.models.inputs import ModelInterface
    from packager.models.model_files import model_bytes
    from packager.models.random_inputs import random_samples
    from packager.models.samples import load_samples
    from packager.quantize.agreement import finite_or_none
    from packager.quantize.schemes import quantize_model

    found = make_row(model, scheme, "refused", "")
    try:
        found["float_bytes"] = model_bytes(model)
        inputs = model.with_suffix(".npz")
        if inputs.exists():
            samples = load_samples(inputs, ModelInterface.from_file(model))
        else:
            samples = random_samples(model, RANDOM_SAMPLES)
        with tempfile.TemporaryDirectory() as folder:
            report = quantize_model(model, Path(folder) / "out.onnx", scheme, samples)
    except AirweightsError as error:
        return found | {"reason": f"{error.reason}: {error.message}"}
    gate = report.gate
    return found | {
        **report.as_json(),
        "verdict": report.outcome,
        "relative_rms": finite_or_none(gate.relative_rms) if gate else None,
        "cosine_p1": finite_or_none(gate.cosine_p1) if gate else None,
        "top1_agreement": gate.top1_agreement if gate else None,
        "latency_ratio": report.latency.ratio if report.latency else None,
    }


def make_row(model: Path, scheme: str, verdict: str, reason: str) -> dict[str, object]:
    """Return a row without figures."""
    found: dict[str, object] = {"model": model.name, "scheme": scheme, "verdict": verdict, "reason": reason}
    size = model.stat().st_size if model.exists() else None
    return found | dict.fromkeys(FIGURES) | {"float_bytes": size, "float_nodes": []}


def peak_bytes() -> int:
    """Return the peak resident memory of this process, in bytes.

    `ru_maxrss` would include the parent's before the fork.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def format_line(found: dict[str, object]) -> str:
    """Return one row as a line of text."""
    figures = []
    for name in ("relative_rms", "top1_agreement", "latency_ratio"):
        value = found[name]
        figures.append(f"{name} {value:.4f}" if isinstance(value, float) else "")
    return (
        f"{found['model']} {found['scheme']}: {found['verdict']} {found.get('method', '')} "
        f"{found['bytes']}/{found['float_bytes']} "
        + (", ".join(figure for figure in figures if figure) + f" {found['cpu_s']} s: {found['reason']}")
    )


def format_markdown(rows: list[dict[str, object]]) -> str:
    """Return the table for a documentation page."""
    head = ("model", "scheme", "method", "bytes", "of float", "relative RMS", "top-1", "latency", "more bits")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for found in rows:
        name, scheme = str(found["model"]).removesuffix(".onnx"), str(found["scheme"])
        if found["verdict"] != "quantized":
            lines.append(f"| {name} | {scheme} | {found['verdict']}: {found['reason']} " + "| " * 6 + "|")
            continue
        size, whole = found["bytes"], found["float_bytes"]
        assert isinstance(size, int)
        assert isinstance(whole, int)
        cells = (
            name,
            scheme,
            str(found["method"]),
            f"{size:,}",
            f"{size / whole:.2f}",
            _format_figure(found["relative_rms"]),
            _format_figure(found["top1_agreement"]),
            _format_figure(found["latency_ratio"], 2),
            _list_more_bits(found),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _format_figure(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else ""


def _list_more_bits(found: dict[str, object]) -> str:
    float_nodes, promoted_activations, promoted_weights = (
        found["float_nodes"],
        found.get("activations_16bit"),
        found.get("weights_8bit"),
    )
    counts = [(float_nodes, "float"), (promoted_activations, "16-bit"), (promoted_weights, "8-bit")]
    return ", ".join(f"{len(names)} {kind}" for names, kind in counts if isinstance(names, list) and names) or "none"


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text(json.dumps({"models": rows}, indent=2, allow_nan=False) + "\n")


def _kill_process_group(child: "subprocess.Popen[bytes]") -> None:
    """End the row's process group: the model may be running in a further process."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main())
