"""Swap models under open-loop load and report the effect on requests.

    python -m benchmarks.swap_latency --model OLD.onnx --model NEW.onnx [--inputs X.npz] --swaps N --rate RPS
                              --isolation worker|inproc --json OUT [--plot OUT.png] [--gap S]

`inproc` measures `device_agent.runtime.ModelRuntime` in this process, called by threads. `worker` measures what the
agent runs: the front and a model process per generation, with requests over HTTP from a load process. The window of a
swap begins when the candidate starts to load and ends when the old generation is destroyed. Requests outside all
windows, after a warm-up, are the steady state for comparison. Latency is measured from the planned start of a request.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.benchmark_models import make_bundle, make_inputs
from benchmarks.open_loop_load import LoadProcess, OpenLoop, Row, build_infer_request
from benchmarks.scatter_plot import draw_latencies
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.handles import FrontHandle, GenerationSpec, ModelProcess, ServeConfig
from device_agent.runtime.model_runtime import ModelRuntime
from device_agent.runtime.tensors import Array

CLIENTS = 2
WARM_UP_S = 2.0
GAP_S = 0.25
ANY_ANSWER_PPM = 10**9  # golden vectors only warm up the candidate here; their accuracy is not measured


class SwapTarget(Protocol):
    """Something that serves a model and can swap it: one isolation level."""

    def start_load(self, rate: float) -> None: ...

    def stop_load(self) -> list[Row]: ...

    def swap(self, bundle: BundleFds) -> float: ...

    def swap_and_back(self, bundle: BundleFds) -> float: ...

    def resident_bytes(self) -> int: ...

    def close(self) -> None: ...


class InProcessTarget:
    """A ModelRuntime in this process."""

    def __init__(self, inputs: list[dict[str, Array]], threads: int) -> None:
        self._runtime = ModelRuntime(threads=threads, tolerance_ppm=ANY_ANSWER_PPM)
        self._inputs = inputs
        self._load: OpenLoop | None = None

    def start_load(self, rate: float) -> None:
        def client(sample: dict[str, Array]) -> Callable[[], bool]:
            return lambda: bool(self._runtime.run(sample))

        self._load = OpenLoop([client(self._inputs[n % len(self._inputs)]) for n in range(CLIENTS)], rate)
        self._load.start()

    def stop_load(self) -> list[Row]:
        assert self._load is not None
        return self._load.stop()

    def swap(self, bundle: BundleFds) -> float:
        return self._runtime.swap(bundle).publish_s

    def swap_and_back(self, bundle: BundleFds) -> float:
        self._runtime.swap(bundle)
        # measured until the switch: no request waits for the destruction of the rejected generation
        before = time.perf_counter()
        self._runtime.rollback()
        return time.perf_counter() - before

    def resident_bytes(self) -> int:
        return _read_resident_bytes(os.getpid())

    def close(self) -> None:
        self._runtime.close()


class WorkerTarget:
    """The front and one model process per generation, as in the agent."""

    def __init__(self, inputs: list[dict[str, Array]], threads: int) -> None:
        self._front = FrontHandle.start(ServeConfig("tcp:127.0.0.1:0"))
        self._requests = [build_infer_request("/v2/models/m/infer", inputs[n % len(inputs)]) for n in range(CLIENTS)]
        self._threads = threads
        self._number = 0
        self._resident: list[ModelProcess] = []
        self._load: LoadProcess | None = None

    def start_load(self, rate: float) -> None:
        self._load = LoadProcess(self._front.address, self._requests, rate)
        self._load.start()

    def stop_load(self) -> list[Row]:
        assert self._load is not None
        return self._load.stop()

    def swap(self, bundle: BundleFds) -> float:
        self._number += 1
        spec = GenerationSpec("m", self._number, f"1.{self._number}", "benchmark", None, threads=self._threads)
        self._resident.append(ModelProcess.start(bundle, spec, in_background=True))
        publish_s = self._front.publish("m", self._resident[-1])
        if len(self._resident) > 2:
            self._drop(0)
        return publish_s

    def swap_and_back(self, bundle: BundleFds) -> float:
        self.swap(bundle)
        before = time.perf_counter()
        self._front.publish("m", self._resident[0])
        elapsed = time.perf_counter() - before
        self._drop(1)
        return elapsed

    def resident_bytes(self) -> int:
        return _read_resident_bytes(os.getpid()) + self._front.resident_bytes() + self._resident[-1].resident_bytes()

    def close(self) -> None:
        self._front.stop()
        for process in self._resident:
            process.stop()

    def _drop(self, index: int) -> None:
        process = self._resident.pop(index)
        self._front.retire("m", process.spec.generation, 30)
        process.stop()


@dataclass
class SwapMeasurements:
    """Measurements of the swaps, in order."""

    windows: list[tuple[float, float]] = field(default_factory=list)
    publish_s: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    rollback_s: list[float] = field(default_factory=list)


def run_swaps(
    stage: SwapTarget, bundles: list[BundleFds], swaps: int, rate: float, gap_s: float = GAP_S
) -> tuple[SwapMeasurements, list[Row], float]:
    """Swap models under load.

    Args:
        stage: what serves the models; its load must not run yet.
        bundles: models that are swapped in turn.
        swaps: number of swaps.
        rate: requests per second.
        gap_s: seconds between two swaps.

    Returns:
        The measurements, all requests, and the time from which requests count.
    """
    measured = SwapMeasurements()
    stage.swap(bundles[0])
    stage.start_load(rate)
    time.sleep(WARM_UP_S)
    counted_from = time.monotonic()
    # a steady phase as long as all gaps together, at least one and at most three seconds
    time.sleep(min(3.0, max(1.0, swaps * gap_s)))
    for number in range(swaps):
        start = time.monotonic()
        measured.publish_s.append(stage.swap(bundles[(number + 1) % len(bundles)]))
        measured.windows.append((start, time.monotonic()))
        measured.resident_bytes.append(stage.resident_bytes())
        time.sleep(gap_s)
    start = time.monotonic()
    for number in range(min(5, swaps)):
        measured.rollback_s.append(stage.swap_and_back(bundles[(swaps + number + 1) % len(bundles)]))
    measured.windows.append((start, time.monotonic()))
    time.sleep(GAP_S)
    return measured, stage.stop_load(), counted_from


def summarize(measured: SwapMeasurements, rows: list[Row], counted_from: float) -> dict[str, Any]:
    """Return the figures of `--json`.

    Args:
        measured: the swaps.
        rows: all requests.
        counted_from: planned start of the first request that counts.
    """
    starts, ends = (np.array(times) for times in zip(*measured.windows, strict=True))
    counted = [row for row in rows if row[0] >= counted_from]
    planned = np.array([row[0] for row in counted])
    latency = np.array([row[1] for row in counted])
    began_in = ((planned[:, None] <= ends) & (planned[:, None] >= starts)).any(axis=1)
    touched = ((planned[:, None] <= ends) & ((planned + latency)[:, None] >= starts)).any(axis=1)
    # slow requests overlap a window more often: medians use the requests that began in one
    steady, swapping, worst = latency[~touched] * 1e3, latency[began_in] * 1e3, latency[touched] * 1e3
    if not len(swapping) or not len(worst):
        # the swaps were too short, or the requests too few, for an overlap
        swapping, worst = (values if len(values) else steady for values in (swapping, worst))
    # the same even number of swaps at both ends: the models alternate
    tenth = max(2, len(measured.resident_bytes) // 10 // 2 * 2)
    first, last = measured.resident_bytes[tenth : 2 * tenth], measured.resident_bytes[-tenth:]
    growth = statistics.mean(last) / statistics.mean(first) - 1 if first else 0.0
    return {
        "swaps_committed": len(measured.publish_s),
        "requests_sent": len(rows),
        "requests_failed": sum(not row[2] for row in rows),
        "publish_p99_us": round(float(np.percentile(measured.publish_s, 99)) * 1e6, 1),
        "p50_ratio": round(float(np.median(swapping) / np.median(steady)), 4),
        "worst_added_ms": round(float(worst.max() - steady.max()), 3),
        "rollback_resident_ms": round(statistics.median(measured.rollback_s) * 1e3, 3),
        "rss_growth_ratio": round(growth, 4),
        "steady_ms": _compute_quantiles(steady),
        "swapping_ms": _compute_quantiles(swapping),
        "swap_s": round(statistics.median(end - start for start, end in measured.windows[:-1]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True, dest="models")
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--isolation", choices=["worker", "inproc"], default="worker")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gap", type=float, default=GAP_S, help="seconds between two swaps")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    inputs = make_inputs(arguments.models[0], arguments.inputs)
    bundles = [make_bundle(model, inputs) for model in arguments.models]
    stage: SwapTarget = (InProcessTarget if arguments.isolation == "inproc" else WorkerTarget)(
        inputs, arguments.threads
    )
    try:
        measured, rows, counted_from = run_swaps(stage, bundles, arguments.swaps, arguments.rate, arguments.gap)
    finally:
        stage.close()
        for bundle in bundles:
            bundle.close()
    csv = arguments.json.with_suffix(".latencies.csv")
    windows = [(start, end) for start, end in measured.windows]
    with csv.open("w") as out:
        out.write("planned_s,latency_ms,answered,in_swap\n")
        for planned, latency, answered in rows:
            swapping = any(planned <= end and planned + latency >= start for start, end in windows)
            out.write(f"{planned - counted_from:.6f},{latency * 1e3:.4f},{int(answered)},{int(swapping)}\n")
    result = {**summarize(measured, rows, counted_from), "latencies_csv": str(csv)}
    if arguments.plot is not None:
        # only until the last swap: the rollbacks after it have no pauses
        shift, last = counted_from, windows[-1][0]
        draw_latencies(
            arguments.plot,
            [(planned - shift, latency) for planned, latency, _ in rows if shift <= planned < last],
            [(start - shift, end - shift) for start, end in windows[:-1]],
        )
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _compute_quantiles(values: Any) -> dict[str, float]:
    shares = {"p50": 50, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, share)), 3) for name, share in shares.items()}


def _read_resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
