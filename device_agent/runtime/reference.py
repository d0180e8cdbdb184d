"""Measure a model relative to the reference graph, a ratio that two machines can compare.

A latency in microseconds says nothing on another machine. The ratio to a fixed graph (a convolution and a matrix
product in float32, `reference.onnx`) says whether this machine runs the model about as well as the build machine did.

1. Both sessions have one thread. Processor time of that thread is measured, so other processes do not count.
2. Runs are paired and take turns as to which is first. Each side of a pair runs for about MIN_MEASURED_NS or longer.
   The ratio is the median of the pairs' ratios.
3. Pairs are added until BUDGET_NS is spent, at least MIN_PAIRS and at most MAX_PAIRS.

The file is read into a memory file at import, before the worker enters its jail, which can then write no file.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from bundle.contract import PPM
from bundle.providers import CPU
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.loaded_model import LoadedModel
from device_agent.runtime.model_backends import load_model
from device_agent.runtime.tensors import Array

GRAPH_NAME: Final = "reference.onnx"
REFERENCE_INPUT: Final = "image"
REFERENCE_SHAPE: Final = (1, 32, 56, 56)
MIN_PAIRS: Final = 5
MAX_PAIRS: Final = 41
BUDGET_NS: Final = 400_000_000
MIN_MEASURED_NS: Final = 2_000_000
WARM_UP_RUNS: Final = 2
_GRAPH_FD: Final = create_sealed_memfd("reference", Path(__file__).with_name(GRAPH_NAME).read_bytes())


@dataclass(frozen=True, slots=True)
class ReferenceRatio:
    """A model's processor time relative to the reference graph's.

    Attributes:
        ratio_ppm: median of the pairs' ratios, in parts per million, at least 1.
        model_us: median of the model's run, in microseconds.
        reference_us: median of the reference graph's run, in microseconds.
        pairs: number of pairs.
    """

    ratio_ppm: int
    model_us: int
    reference_us: int
    pairs: int

    def as_json(self) -> dict[str, int]:
        """Return the figures by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def measure_ratio(model: LoadedModel, inputs: Sequence[Mapping[str, Array]]) -> ReferenceRatio | None:
    """Return the ratio of a model with one thread; None without inputs.

    Args:
        model: a session with one thread.
        inputs: input tensors of each run, by name; the pairs take them in turn.

    Raises:
        InferenceFailed: a run failed.
    """
    if not inputs:
        return None
    reference = _load_reference()
    image = {REFERENCE_INPUT: np.ones(REFERENCE_SHAPE, np.float32)}
    longest = max(_time_runs(lambda each=each: model.infer(each), WARM_UP_RUNS) for each in inputs)  # type: ignore[misc]
    runs = _runs_for(longest)
    reference_runs = _runs_for(_time_runs(lambda: reference.infer(image), WARM_UP_RUNS))
    pairs: list[tuple[float, float]] = []
    started = time.monotonic_ns()
    while len(pairs) < MIN_PAIRS or (len(pairs) < MAX_PAIRS and time.monotonic_ns() - started < BUDGET_NS):
        chosen = inputs[len(pairs) % len(inputs)]
        sides: list[tuple[Callable[[], object], int]] = [
            (lambda chosen=chosen: model.infer(chosen), runs),  # type: ignore[misc]
            (lambda: reference.infer(image), reference_runs),
        ]
        if len(pairs) % 2:
            second = _time_runs(*sides[1])
            pairs.append((_time_runs(*sides[0]), second))
        else:
            pairs.append((_time_runs(*sides[0]), _time_runs(*sides[1])))
    ratio = median(left / max(right, 1.0) for left, right in pairs)
    own, other = (median(side) for side in zip(*pairs, strict=True))
    return ReferenceRatio(max(1, round(ratio * PPM)), round(own / 1000), round(other / 1000), len(pairs))


def run_reference(provider: str) -> dict[str, Any]:
    """Run the reference graph once on an execution provider, and return the facts of its session.

    Args:
        provider: name of the provider (bundle.providers).

    Raises:
        ProviderMissing: the provider does not run here.
        InferenceFailed: the run failed.
    """
    model = _load_reference(provider)
    model.infer({REFERENCE_INPUT: np.ones(REFERENCE_SHAPE, np.float32)})
    return model.process_facts()


def _load_reference(provider: str = CPU) -> LoadedModel:
    return load_model(BundleFds({GRAPH_NAME: _GRAPH_FD}, GRAPH_NAME, provider=provider), threads=1)


def _runs_for(run_ns: float) -> int:
    return max(1, round(MIN_MEASURED_NS / max(run_ns, 1.0)))


def _time_runs(run: Callable[[], object], count: int) -> float:
    """Return the processor time of one run, in nanoseconds."""
    start = time.thread_time_ns()
    for _ in range(count):
        run()
    return (time.thread_time_ns() - start) / count
