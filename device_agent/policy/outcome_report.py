"""The device report that follows a result; the journal writes both in one transaction."""

import os
from typing import Final

from bundle.device_report import OUTCOMES, DeviceReport
from bundle.version import VERSION
from device_agent.policy.attempt import UpdateResult

MAX_REPORTS: Final = 256  # kept in the journal of a family, some 500 bytes each


def next_report(
    result: UpdateResult, family: str | None, before: DeviceReport | None, runtime: str
) -> DeviceReport | None:
    """Create the report of a result, or None if devices do not report its outcome (bundle.device_report).

    Args:
        result: the finished attempt.
        family: family of the release, or None if it is unknown.
        before: the newest report of the log, or None to start a log.
        runtime: version of onnxruntime.
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
