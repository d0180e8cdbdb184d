"""Quantizes every float model of a folder and tells what came out.

    python -m benchmarks.quantization --models DIR --json OUT [--scheme int8]

`DIR/NAME.onnx` is quantized with the inputs of `DIR/NAME.npz` (one array per model input, first axis = sample) where
that file is there, else with random ones; half of the samples are held back, and every figure is from that half. Each
model runs in a process of its own: its time and its peak memory are its own, and a crash is one row of the table.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bundle.errors import AirweightsError

RANDOM_SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--scheme", default="int8")
    arguments = parser.parse_args()
    rows = []
    for model in sorted(arguments.models.glob("*.onnx")):
        rows.append(measured(model, arguments.scheme))
        print(as_line(rows[-1]), flush=True)
        arguments.json.write_text(json.dumps({"models": rows}, indent=2) + "\n")


def measured(model: Path, scheme: str) -> dict[str, object]:
    """One row, from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(one, model, scheme).result()
        except BrokenProcessPool:
            return row(model, scheme, "refused", "the process that quantized it died")


def one(model: Path, scheme: str) -> dict[str, object]:
    """Quantize `model`; runs in the child."""
    from packager.inputs import ModelInterface, load_samples, random_samples
    from packager.quantize.schemes import quantize

    started = time.process_time()
    found: dict[str, object]
    try:
        inputs = model.with_suffix(".npz")
        if inputs.exists():
            samples = load_samples(inputs, ModelInterface.from_file(model))
        else:
            samples = random_samples(model, RANDOM_SAMPLES)
        with tempfile.TemporaryDirectory() as folder:
            report = quantize(model, Path(folder) / "out.onnx", scheme, samples)
        found = row(model, scheme, report.outcome, report.reason) | {
            "method": report.method,
            "numerics": report.numerics,
            "inputs": samples.origin,
            "bytes": report.bytes,
            "float_bytes": report.float_bytes,
            "kept_float": list(report.kept_float),
            "trials": [trial.as_json() for trial in report.trials],
            "notes": list(report.notes),
        }
        if report.gate is not None:
            found |= {name: getattr(report.gate, name) for name in ("relative_rms", "cosine_p1", "top1_agreement")}
            found |= {"gate": report.gate.as_json()}
        if report.latency is not None:
            found |= {"latency_ratio": report.latency.ratio, "latency": report.latency.as_json()}
    except AirweightsError as error:
        found = row(model, scheme, "refused", f"{error.reason}: {error.message}")
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["cpu_s"] = round(time.process_time() - started + children.ru_utime + children.ru_stime, 2)
    found["peak_bytes"] = peak_bytes()
    return found


def row(model: Path, scheme: str, verdict: str, reason: str) -> dict[str, object]:
    """A row with nothing measured."""
    figures = ("bytes", "relative_rms", "cosine_p1", "top1_agreement", "latency_ratio", "cpu_s", "peak_bytes")
    found: dict[str, object] = {"model": model.name, "scheme": scheme, "verdict": verdict, "reason": reason}
    return found | {"float_bytes": model.stat().st_size, "kept_float": []} | dict.fromkeys(figures)


def peak_bytes() -> int:
    """Peak resident memory of this process; `ru_maxrss` would count what the parent had before the fork."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def as_line(found: dict[str, object]) -> str:
    """One row for a person."""
    figures = []
    for name in ("relative_rms", "top1_agreement", "latency_ratio"):
        value = found[name]
        figures.append(f"{name} {value:.4f}" if isinstance(value, float) else "")
    return (
        f"{found['model']}: {found['verdict']} {found.get('method', '')} {found['bytes']}/{found['float_bytes']} "
        + (", ".join(figure for figure in figures if figure) + f" {found['cpu_s']} s: {found['reason']}")
    )


if __name__ == "__main__":
    main()
