"""Measure what the LiteRT backend adds to a bare interpreter.

    python -m benchmarks.litert_overhead [--runs N] [--json OUT]

A dense model of one layer runs in a bare `ai_edge_litert` interpreter, in ModelRuntime in this process, and in
ModelRuntime with a jailed worker. The three take turns, run by run, so that other load meets all of them. Printed are
the medians of the runs, in milliseconds, and of the differences to the bare run of the same turn.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from airweights import ModelRuntime, bundle_from_files
from tests.support.tflite_models import dense

INPUTS = 256


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.tflite"
        path.write_bytes(dense(1, INPUTS, 64))
        text = json.dumps(measure(path, options.runs), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def measure(path: Path, runs: int) -> dict[str, float]:
    """Return the medians, in milliseconds.

    Args:
        path: the model.
        runs: number of turns.
    """
    x = np.ones((1, INPUTS), np.float32)
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def bare() -> object:
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(found["index"])

    with ModelRuntime(threads=1) as inproc, ModelRuntime(isolation="worker", threads=1) as worker:
        ways: dict[str, Callable[[], object]] = {"bare": bare}
        for name, runtime in (("inproc", inproc), ("worker", worker)):
            bundle = bundle_from_files(path)
            runtime.swap(bundle)
            bundle.close()
            (input_name,) = (given["name"].split(":")[0].removeprefix("serving_default_"),)
            ways[name] = lambda runtime=runtime, name=input_name: runtime.run({name: x})  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                times[name].append(1000 * (time.perf_counter() - started))
    out = {f"{name}_ms": round(statistics.median(values), 4) for name, values in times.items()}
    for name in ("inproc", "worker"):
        added = [took - base for took, base in zip(times[name], times["bare"], strict=True)]
        out[f"{name}_overhead_ms"] = round(statistics.median(added), 4)
    return out


if __name__ == "__main__":
    main()
