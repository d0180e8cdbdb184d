"""Measure serving: throughput and latency over HTTP, the overhead of a model process, and memory at rest.

    python -m benchmarks.serving_cost [--model MODEL.onnx] [--inputs X.npz] [--seconds S] [--json OUT]

Without `--model`, a small model is used. HTTP is compared with `benchmarks.bare_asgi`, with the same client and the
same requests. The overhead of a model process is `ModelRuntime(isolation="worker")` compared with
`InferenceSession.run`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benchmark_models import make_bundle, make_inputs
from benchmarks.open_loop_load import build_infer_request, run_closed_loop
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.handles import FrontHandle, GenerationSpec, ModelProcess, ServeConfig
from device_agent.runtime.model_runtime import ModelRuntime
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.tensors import Array

REST_S = 10.0
LARGE_ELEMENTS = 10 * 1024 * 1024 // 4


def measure_http(model: Path, bundle: BundleFds, inputs: list[dict[str, Array]], seconds: float) -> dict[str, Any]:
    """Measure requests per second with 4 connections and with 1, alternating between our endpoint and the bare handler.

    Args:
        model: file for the bare handler.
        bundle: the same model for our endpoint.
        inputs: samples, of which the first is sent.
        seconds: duration of each of three runs.
    """
    request = build_infer_request("/v2/models/m/infer", inputs[0])
    bare = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_asgi", str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert bare.stdout is not None
    bare_address = f"http://127.0.0.1:{int(bare.stdout.readline())}"
    front = FrontHandle.start(ServeConfig("tcp:127.0.0.1:0"))
    process = ModelProcess.start(bundle, GenerationSpec("m", 1, "1.0", "benchmark", None, threads=1))
    out: dict[str, Any] = {}
    try:
        front.publish("m", process)
        for connections in (4, 1):
            ours, theirs = [], []
            for _ in range(3):
                ours.append(run_closed_loop(front.address, request, connections, seconds))
                theirs.append(run_closed_loop(bare_address, request, connections, seconds))
            our_rate, bare_rate = (statistics.median(run[0] for run in runs) for runs in (ours, theirs))
            out[f"connections_{connections}"] = {
                "requests_per_s": round(our_rate),
                "bare_requests_per_s": round(bare_rate),
                "ratio": round(our_rate / bare_rate, 3),
                "p50_ms": round(statistics.median(run[1] for run in ours) * 1e3, 3),
                "bare_p50_ms": round(statistics.median(run[1] for run in theirs) * 1e3, 3),
            }
        out["at_rest"] = measure_at_rest(front, process)
    finally:
        front.stop()
        process.stop()
        bare.communicate()
    return out


def measure_at_rest(front: FrontHandle, process: ModelProcess) -> dict[str, Any]:
    """Return memory, CPU use and wake-ups of front and model process without requests."""
    time.sleep(1.0)  # the front's cleanup after the last request is over
    before = {
        name: (_count_context_switches(p.pid), _cpu_s(p.pid))
        for name, p in (("front", front), ("model_process", process))
    }
    time.sleep(REST_S)
    out: dict[str, Any] = {}
    for name, handle in (("front", front), ("model_process", process)):
        switches, cpu = before[name]
        out[name] = {
            "resident_mib": round(handle.resident_bytes() / 2**20, 1),
            "wake_ups": _count_context_switches(handle.pid) - switches,
            "cpu_percent": round((_cpu_s(handle.pid) - cpu) / REST_S * 100, 3),
            "seconds": REST_S,
        }
    return out


def measure_worker_overhead(bundle: BundleFds, sample: dict[str, Array], runs: int) -> dict[str, float]:
    """Measure the median run time in this process and in a worker, alternating, in milliseconds.

    Args:
        bundle: the model.
        sample: one input.
        runs: number of runs of each kind.
    """
    model = OnnxModel.load(bundle, threads=1)
    with ModelRuntime(isolation="worker", threads=1, tolerance_ppm=10**9) as runtime:
        runtime.swap(bundle)
        bare: list[float] = []
        worker: list[float] = []
        for _ in range(runs):
            bare.append(_time_call(lambda: model.run(sample)))
            worker.append(_time_call(lambda: runtime.run(sample)))
    bare_ms, worker_ms = statistics.median(bare) * 1e3, statistics.median(worker) * 1e3
    return {
        "bare_ms": round(bare_ms, 4),
        "worker_ms": round(worker_ms, 4),
        "overhead_ms": round(worker_ms - bare_ms, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from tests.support import tiny_models
    from tests.support.memfd_bundles import create_memfd_bundle, make_scale_model

    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or tiny_models.save(tiny_models.mlp(), Path(folder) / "mlp.onnx")
        inputs = make_inputs(model, arguments.inputs)
        bundle = make_bundle(model, inputs)
        result: dict[str, Any] = {"http": measure_http(model, bundle, inputs, arguments.seconds)}
        if any(array.dtype.kind not in "biuf" for array in inputs[0].values()):
            result["worker"] = {"skipped": "ModelRuntime does not send strings to a model process"}
        else:
            result["worker"] = measure_worker_overhead(bundle, inputs[0], 500)
        bundle.close()
    with create_memfd_bundle(make_scale_model(2.0, size="n")) as large:
        x = np.ones(LARGE_ELEMENTS, np.float32)
        result["worker_10_mb_in_and_out"] = measure_worker_overhead(large.fds, {"x": x}, 60)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _time_call(run: Callable[[], object]) -> float:
    before = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - before
    del result
    return elapsed


def _count_context_switches(pid: int) -> int:
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    main()
