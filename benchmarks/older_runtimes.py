"""Check that a quantized model loads on the runtimes that it claims to support, with the same outputs.

    python -m benchmarks.older_runtimes --models DIR --json OUT [--runtime 1.17.3]... [--scheme int8]...

Every `DIR/NAME.onnx` is quantized by the installed runtime, with the inputs of `DIR/NAME.npz` or random ones. Each
older runtime gets its own environment under `--environments`, created by venv and pip in the first run, loads the
quantized models and runs them on a few samples. `relative_rms` is the relative difference between its outputs and those
of the installed runtime.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from bundle.errors import AirweightsError
from packager.models.inputs import ModelInterface
from packager.models.oldest_runtime import parse_version
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, load_samples
from packager.models.sessions import open_session, run_session
from packager.quantize.schemes import QuantizeOptions, quantize_model

RUNTIMES: Final = ("1.17.3", "1.20.1", "1.31.0")
SCHEMES: Final = ("int8", "int4", "fp16")
COMPARED_SAMPLES: Final = 4
# runs in the other environment, which has numpy and onnxruntime only
CHILD_PROGRAM: Final = """
import sys
import numpy, onnxruntime
model, inputs, outputs = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 2
running = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
arrays = numpy.load(inputs)
found = {}
for key in arrays.files:
    number, _, name = key.partition(":")
    found.setdefault(int(number), {})[name] = arrays[key]
answers = {}
for number, sample in found.items():
    for i, array in enumerate(running.run(None, sample)):
        answers[f"{number}:{i}"] = array
numpy.savez(outputs, **answers)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument(
        "--runtime", action="append", help=f"version of onnxruntime, may be repeated; default: {', '.join(RUNTIMES)}"
    )
    parser.add_argument("--scheme", action="append", choices=SCHEMES)
    parser.add_argument("--environments", type=Path, default=Path("build/runtimes"), metavar="DIR")
    arguments = parser.parse_args()
    pythons = {
        version: prepare_environment(arguments.environments, version) for version in arguments.runtime or RUNTIMES
    }
    rows: list[dict[str, object]] = []
    for model in sorted(arguments.models.glob("*.onnx")):
        for scheme in arguments.scheme or SCHEMES:
            for found in measure_model(model, scheme, pythons):
                rows.append(found)
                print({name: value for name, value in found.items() if value is not None}, flush=True)
                arguments.json.write_text(json.dumps({"here": onnxruntime.__version__, "rows": rows}, indent=2) + "\n")
    bad = [found for found in rows if found["verdict"] == "does not load"]
    return 1 if bad else 0


def prepare_environment(folder: Path, version: str) -> Path | None:
    """Return the Python of an environment with that runtime, or None if pip finds no build of it."""
    environment = folder / version
    python = environment / "bin" / "python"
    if not (environment / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        numpy_range = "numpy<2" if parse_version(version) < (1, 19) else "numpy"
        words = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", f"onnxruntime=={version}", numpy_range]
        done = subprocess.run([str(python), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"onnxruntime {version}: {done.stderr.strip().splitlines()[-1][:200]}", file=sys.stderr)
            return None
        (environment / "ready").touch()
    return python


def measure_model(model: Path, scheme: str, pythons: dict[str, Path | None]) -> list[dict[str, object]]:
    """Quantize a model and return one row for each runtime, or one row with the reason if it was not quantized."""
    row: dict[str, object] = {"model": model.name, "scheme": scheme, "runtime": None, "oldest": None}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "quantized.onnx"
        try:
            samples = load_inputs(model)
            report = quantize_model(model, out, scheme, samples, QuantizeOptions(measure_latency=False))
        except AirweightsError as error:
            return [row | {"verdict": "not quantized", "reason": error.message}]
        if report.outcome != "quantized":
            return [row | {"verdict": "not quantized", "reason": report.reason}]
        row["oldest"] = report.oldest_runtime
        return [
            row | {"runtime": v} | compare_in_runtime(out, samples, v, p, report.oldest_runtime or "")
            for v, p in pythons.items()
        ]


def compare_in_runtime(
    model: Path, samples: Samples, version: str, python: Path | None, oldest: str
) -> dict[str, object]:
    """Load and run a model in another environment, and compare its outputs with those of the installed runtime.

    Args:
        model: the quantized file; input and output files are written beside it.
        samples: inputs, of which COMPARED_SAMPLES are used.
        version: of the other runtime.
        python: interpreter of the environment, or None if there is no build.
        oldest: oldest runtime that the model claims to support.
    """
    if python is None:
        return {"verdict": "no such build", "relative_rms": None, "reason": None}
    few = list(samples.take(COMPARED_SAMPLES))
    inputs, outputs = model.with_suffix(".in.npz"), model.with_suffix(f".{version}.npz")
    np.savez(inputs, allow_pickle=False, **{f"{i}:{name}": a for i, s in enumerate(few) for name, a in s.items()})
    command = [str(python), "-c", CHILD_PROGRAM, str(model), str(inputs), str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
        is_claimed = parse_version(oldest) <= parse_version(version)
        return {
            "verdict": "does not load" if is_claimed else "older than claimed",
            "relative_rms": None,
            "reason": reason,
        }
    here = open_session(model)
    worst = 0.0
    with np.load(outputs) as answers:
        for i, sample in enumerate(few):
            for j, ours in enumerate(run_session(here, sample)):
                if ours.dtype.kind == "f":
                    error = np.asarray(answers[f"{i}:{j}"], np.float64) - ours
                    size = float(np.sqrt(np.mean(np.square(ours.astype(np.float64)))))
                    worst = max(worst, float(np.sqrt(np.mean(np.square(error)))) / (size or 1.0))
    return {"verdict": "loads", "relative_rms": worst, "reason": None}


def load_inputs(model: Path) -> Samples:
    """Load the samples of the `.npz` file beside the model, or create random ones."""
    inputs = model.with_suffix(".npz")
    return load_samples(inputs, ModelInterface.from_file(model)) if inputs.exists() else random_samples(model, 32)


if __name__ == "__main__":
    sys.exit(main())
