"""Golden runs on an execution provider that may fail at random (docs/providers.md).

Rules:
1. The golden inputs run in turn, at least RUNS times. A failure is an error of the run, NaN, or a wrong output.
2. MAX_FAILURES failures end the check. Fewer are tolerated if the same inputs also passed.
3. If no input that failed has ever passed, the failure is not random: it is raised as it is, also a single one.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from bundle.errors import GoldenMismatch
from bundle.golden.comparison import GoldenVector
from device_agent.errors import InferenceFailed, NanOutput, ProviderUnstable
from device_agent.runtime.golden_check import check_golden_samples
from device_agent.runtime.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

RUNS: Final = 20
MAX_FAILURES: Final = 3


def check_repeatedly(
    model: LoadedModel, samples: Sequence[GoldenVector], tolerance_ppm: int, on_sample: Callable[[str], object]
) -> float:
    """Run the golden inputs repeatedly, and compare the outputs.

    Args:
        model: the loaded model.
        samples: its golden samples.
        tolerance_ppm: maximum relative RMS error, in parts per million.
        on_sample: called with the name of each run before it starts.

    Returns:
        The largest relative RMS error of the runs that passed.

    Raises:
        ProviderUnstable: MAX_FAILURES runs failed, of inputs that also passed.
        GoldenMismatch, NanOutput, InferenceFailed: the error of an input that never passed.
    """
    worst, passed, errors = 0.0, set[int](), dict[int, GoldenMismatch | NanOutput | InferenceFailed]()
    failures = 0
    for run in range(max(RUNS, len(samples)) if samples else 0):
        index = run % len(samples)
        on_sample(f"golden {index}, run {run}")
        try:
            worst = max(worst, check_golden_samples(model, [samples[index]], tolerance_ppm))
            passed.add(index)
        except (GoldenMismatch, NanOutput, InferenceFailed) as error:
            errors[index] = error
            failures += 1
            if failures >= MAX_FAILURES and errors.keys() & passed:
                raise ProviderUnstable(
                    f"{failures} of {run + 1} runs failed, the last one: {error.reason}: {error.message}",
                    hint="the device's driver or the provider is faulty; a variant for the CPU runs without it",
                ) from error
            if failures >= MAX_FAILURES:
                raise
    for index in sorted(errors.keys() - passed):
        raise errors[index]
    if failures:
        logger.warning("%d of %d golden runs failed and passed again", failures, max(RUNS, len(samples)))
    return worst


class FailureShare:
    """Counts failed runs; more than MAX_FAILURES in RUNS are too many."""

    def __init__(self) -> None:
        self._failures = 0

    def record(self, error: InferenceFailed, runs: int) -> None:
        """Count a failed run of the measurement.

        Args:
            error: the failure.
            runs: runs so far, with this one.

        Raises:
            ProviderUnstable: there are too many.
        """
        self._failures += 1
        if self._failures * RUNS >= MAX_FAILURES * max(runs, RUNS):
            raise ProviderUnstable(f"{self._failures} of {runs} runs failed, the last one: {error.message}") from error
