"""The report that follows an outcome; written in the same transaction as the outcome."""

import os
from typing import Final

from bundle.device_report import OUTCOMES, DeviceReport
from bundle.version import VERSION
from device_agent.policy.attempt import UpdateResult

MAX_REPORTS: Final = 256


def next_report(
    result: UpdateResult, family: str | None, before: DeviceReport | None, runtime: str
) -> DeviceReport | None:
    """The report of an outcome, or None where it is not terminal (bundle.device_report rule 1).

    Args:
        ended: what there is to tell.
        family: of the release, where it is known.
        before: the newest report; None begins a log.
        runtime: onnxruntime's version.
    """
    if result.outcome.value not in OUTCOMES:
        return None
    attempt = result.attempt
    return DeviceReport(
        log=os.urandom(16).hex() if before is None else before.log,
        sequence=1 if before is None else before.sequence + 1,
        previous=None if before is None else before.digest(),
        outcome=result.outcome.value,
        reason=result.reason,
        family=family,
        release=attempt.release,
        counter=attempt.counter,
        variant=attempt.variant,
        bundle=attempt.target,
        trigger=attempt.trigger,
        finished_ms=result.finished_ms,
        agent=VERSION,
        runtime=runtime,
    )
