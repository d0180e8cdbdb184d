"""Compare every scheme with onnxruntime's quantizers on published models: size, error, speed and memory.

    python -m benchmarks.quantization --json OUT [--models DIR] [--only MODEL]... [--scheme SCHEME]... [--markdown FILE]

Models come from wheels with pinned digests (benchmarks.published_models), or from DIR (`NAME.onnx`, with inputs in
`NAME.npz`, else random ones). Of the samples, half calibrate, and every figure is measured on the other half:

- bytes: of the model with its external data.
- error: relative RMS of the worst output that varies.
- speed: processor time over float's, one thread, runs in turn with the float model.
- load memory: peak memory above that of an empty process while the model loads.

`ort-static` is onnxruntime's `quantize_static` (QDQ, per channel, the other settings at their defaults, after its
pre-processing), `ort-dynamic` its `quantize_dynamic` (per channel). Ours are the first candidate of the scheme, without
the gate and without repairs, so that both are what the method gives. Each row has a process and LIMIT_S seconds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from packager.models.samples import Samples

OURS: Final = ("int8-weights", "int8-static", "int8-dynamic", "int4", "fp16")
THEIRS: Final = ("ort-static", "ort-dynamic")
LIMIT_S: Final = 900.0
RANDOM_SAMPLES: Final = 32
MAX_CALIBRATION: Final = 32  # samples for both kinds, since onnxruntime keeps all activations of all samples in memory
FIGURES: Final = ("bytes", "float_bytes", "relative_rms", "latency_ratio", "load_bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--models", type=Path, metavar="DIR")
    parser.add_argument("--only", action="append", metavar="MODEL")
    parser.add_argument("--scheme", action="append", choices=(*OURS, *THEIRS))
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--row", nargs=3, metavar=("MODEL", "SCHEME", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        model, scheme, out = arguments.row
        Path(out).write_text(json.dumps(measure(Path(model), scheme), allow_nan=False))
        return 0
    if arguments.json is None:
        parser.error("--json OUT is required")
    folder = arguments.models or arguments.json.parent / "quantization-models"
    if arguments.models is None:
        from benchmarks import published_models

        published_models.write_models(folder, arguments.only or list(published_models.MODELS))
    rows = []
    for model in sorted(folder.glob("*.onnx")):
        if arguments.only and model.stem not in arguments.only:
            continue
        for scheme in arguments.scheme or (*OURS, *THEIRS):
            rows.append(_run_row(model, scheme))
            print(_format_row(rows[-1]), flush=True)
            arguments.json.write_text(json.dumps({"rows": rows}, indent=2, allow_nan=False) + "\n")
            if arguments.markdown is not None:
                arguments.markdown.write_text(format_markdown(rows))
    return 0


def measure(model: Path, scheme: str) -> dict[str, Any]:
    """Quantize a model with one scheme, and return its row; runs in the row's process."""
    from packager.models.inputs import ModelInterface
    from packager.models.model_files import model_bytes
    from packager.models.random_inputs import random_samples
    from packager.models.samples import load_samples
    from packager.models.sessions import ONE_THREAD_SETTINGS, open_session
    from packager.models.trial_run import run_trial
    from packager.quantize.agreement import finite_or_none
    from packager.quantize.gate import run_gate
    from packager.quantize.latency import measure_latency

    inputs = model.with_suffix(".npz")
    interface = ModelInterface.from_file(model)
    samples = load_samples(inputs, interface) if inputs.exists() else random_samples(model, RANDOM_SAMPLES)
    calibration, held_out = samples.split_halves()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        reason = (_quantize_theirs if scheme in THEIRS else _quantize_ours)(model, out, scheme, samples, calibration)
        if reason is not None:
            return _make_row(model, scheme, reason)
        gate = run_gate(model, out, held_out)
        left, right = (open_session(each, ONE_THREAD_SETTINGS) for each in (model, out))
        return _make_row(model, scheme, "") | {
            "bytes": model_bytes(out),
            "float_bytes": model_bytes(model),
            "relative_rms": finite_or_none(gate.relative_rms),
            "latency_ratio": measure_latency(left, right, held_out, 1.0).ratio,
            "load_bytes": run_trial(out, held_out).load_bytes,
        }


def _quantize_ours(model: Path, out: Path, scheme: str, samples: "Samples", _calibration: "Samples") -> str | None:
    """Quantize with our method; return why it is impossible, or None."""
    from bundle.errors import AirweightsError
    from packager.quantize.gate import Thresholds
    from packager.quantize.schemes import QuantizeOptions, quantize_model

    inf = float("inf")
    limits = Thresholds(inf, 0.0, -1.0, inf, inf, inf, inf)
    options = QuantizeOptions(thresholds=limits, measure_latency=False, max_calibration_samples=MAX_CALIBRATION)
    try:
        report = quantize_model(model, out, scheme, samples, options)
    except AirweightsError as error:
        return f"{error.reason}: {error.message}"
    return None if out.exists() else report.reason


def _quantize_theirs(model: Path, out: Path, scheme: str, _samples: "Samples", calibration: "Samples") -> str | None:
    """Quantize with onnxruntime's method; return why it fails, or None."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    rows = iter([dict(sample) for sample in calibration.take(MAX_CALIBRATION)])

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> "dict[str, Any] | None":
            return next(rows, None)

    prepared = out.with_name("prepared.onnx")
    try:
        try:
            quant_pre_process(str(model), str(prepared))
        except Exception:  # noqa: BLE001  # symbolic shape inference does not know every operator
            prepared = model
        if scheme == "ort-dynamic":
            quantize_dynamic(str(prepared), str(out), per_channel=True)
        else:
            quantize_static(str(prepared), str(out), Reader(), per_channel=True)
    except Exception as error:  # noqa: BLE001  # the failure of another tool is a row of the table
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return None


def _run_row(model: Path, scheme: str) -> dict[str, Any]:
    """Measure one row in a process of its own; a failure becomes its reason."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.quantization", "--row", str(model), scheme, str(out)]
        child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
        try:
            _, stderr = child.communicate(timeout=LIMIT_S)
            reason = f"exit code {child.returncode}: {(stderr.strip().splitlines() or [''])[-1][:160]}"
        except subprocess.TimeoutExpired:
            reason = f"it took more than {LIMIT_S:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else _make_row(model, scheme, reason)
    return found


def _make_row(model: Path, scheme: str, reason: str) -> dict[str, Any]:
    return {"model": model.stem, "scheme": scheme, "reason": reason, **dict.fromkeys(FIGURES)}


def _format_row(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['scheme']}: " + (row["reason"] or " ".join(f"{n}={row[n]}" for n in FIGURES))


def format_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table for a documentation page: one line for each model, one cell for each scheme.

    Args:
        rows: the rows of `main`, in its order.
    """
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    lines = ["| model | " + " | ".join(schemes) + " |", "| --- |" + " ---: |" * len(schemes)]
    for model in dict.fromkeys(row["model"] for row in rows):
        by_scheme = {row["scheme"]: row for row in rows if row["model"] == model}
        lines.append(f"| {model} | " + " | ".join(_cell(by_scheme.get(scheme)) for scheme in schemes) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["bytes"] is None:
        return "-"
    error = "-" if row["relative_rms"] is None else f"{row['relative_rms']:.4f}"
    return (
        f"{row['bytes'] / row['float_bytes']:.2f}, {error}, {row['latency_ratio']:.2f} x, {row['load_bytes'] >> 20} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
