"""Measure how long a quantized model takes relative to float; a busy machine decides nothing.

1. Both models run with one thread, and processor time is measured: time that other processes take does not count.
2. Runs are paired: float and quantized, on the same sample, in turns as to which is first. Each pair gives one ratio;
   the figure is the median.
3. Each measured time is MIN_MEASURED_S or longer; shorter runs are repeated.
4. Pairs are added until the interval of the median (order statistics, three standard deviations) excludes the limit, at
   most for MAX_MEASURING_S. If it still contains the limit, the verdict is "undecided": a warning, never a failure.
5. A difference of less than NEGLIGIBLE_S a run is within every limit: such models are bound by the cost of a call.
"""

import math
import time
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnxruntime

from packager.models.inputs import Sample
from packager.models.samples import Samples
from packager.models.sessions import run_session

LatencyVerdict = Literal["within", "above", "undecided"]

MIN_PAIRS: Final = 12  # fewest pairs with an interval at three standard deviations
MAX_PAIRS: Final = 240
MAX_MEASURING_S: Final = 8.0  # wall-clock time
MIN_MEASURED_S: Final = 0.002  # of one side of a pair; shorter times are noise of the clock
WARM_UP_RUNS: Final = 2  # the first runs allocate memory and pack weights
TIMED_SAMPLES: Final = 5  # samples that the pairs take in turn
NEGLIGIBLE_S: Final = 50e-6
THREADS: Final = 1
DEVIATIONS: Final = 1.5  # of the binomial sqrt(n) / 2, that is three standard deviations of the median's rank


@dataclass(frozen=True, slots=True)
class Latency:
    """Processor time of one run with one thread on this machine: medians, and the ratio with its interval.

    Attributes:
        float_ms: median of the float model, in milliseconds.
        quantized_ms: median of the quantized model, in milliseconds.
        ratio: median of the pairs' ratios, quantized over float: below 1 is faster.
        low, high: interval of the ratio.
        pairs: number of pairs.
        threads: threads of both sessions.
    """

    float_ms: float
    quantized_ms: float
    ratio: float
    low: float
    high: float
    pairs: int
    threads: int = THREADS

    def verdict(self, limit: float) -> LatencyVerdict:
        """Return whether the ratio is certainly within, or certainly above, `limit`."""
        if self.quantized_ms - self.float_ms < 1000 * NEGLIGIBLE_S or self.high <= limit:
            return "within"
        return "above" if self.low > limit else "undecided"

    def describe(self) -> str:
        """Return the ratio with its interval, for messages."""
        return f"{self.ratio:.2f} times float's processor time ({self.low:.2f} to {self.high:.2f}, one thread)"

    def as_json(self) -> dict[str, object]:
        """Return plain values; times are in milliseconds."""
        return {name: getattr(self, name) for name in self.__slots__}


def measure_latency(
    left: onnxruntime.InferenceSession, right: onnxruntime.InferenceSession, samples: Samples, limit: float
) -> Latency:
    """Return the latency of two models, measured as the module describes.

    Args:
        left: session of the float model, with one thread.
        right: session of the quantized model, with one thread.
        samples: inputs; TIMED_SAMPLES of them are used.
        limit: ratio that the interval shall exclude; infinity measures MIN_PAIRS pairs.

    Raises:
        ModelDoesNotRun: a model does not run on a sample.
    """
    chosen = list(samples.take(TIMED_SAMPLES))
    longest = max(_time_runs(running, sample, 1) for running in (left, right) for sample in chosen * WARM_UP_RUNS)
    runs = max(1, math.ceil(MIN_MEASURED_S / max(longest, 1e-6)))
    times: list[tuple[float, float]] = []
    started = time.monotonic()
    while True:
        sample = chosen[len(times) % len(chosen)]
        if len(times) % 2:
            quantized = _time_runs(right, sample, runs)
            times.append((_time_runs(left, sample, runs), quantized))
        else:
            times.append((_time_runs(left, sample, runs), _time_runs(right, sample, runs)))
        if len(times) < MIN_PAIRS:
            continue
        found = _summarize(times)
        is_spent = len(times) >= MAX_PAIRS or time.monotonic() - started > MAX_MEASURING_S
        if is_spent or math.isinf(limit) or found.verdict(limit) != "undecided":
            return found


def _time_runs(running: onnxruntime.InferenceSession, sample: Sample, count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        run_session(running, sample)
    return (time.thread_time() - start) / count


def _summarize(times: list[tuple[float, float]]) -> Latency:
    ratios = sorted(right / max(left, 1e-9) for left, right in times)
    rank = max(0, math.floor(len(ratios) / 2 - DEVIATIONS * math.sqrt(len(ratios))))
    medians = [1000 * float(np.median(side)) for side in zip(*times, strict=True)]
    return Latency(
        medians[0], medians[1], float(np.median(ratios)), ratios[rank], ratios[len(ratios) - 1 - rank], len(ratios)
    )
