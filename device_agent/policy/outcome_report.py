"""The device report that follows a result; the journal writes both in one transaction."""

from collections.abc import Callable
from typing import Final

from bundle.device_report import OUTCOMES, STATES, DeviceReport
from bundle.report_weights import Weight, weigh_reason
from bundle.version import VERSION
from device_agent.policy.attempt import UpdateResult
from device_agent.policy.state_machine import State

MAX_REPORTS: Final = 256  # kept in the journal of a family, some 800 bytes each


def next_report(
    result: UpdateResult, before: DeviceReport | None, runtime: str, open_log: Callable[[], str]
) -> DeviceReport | None:
    """Create the report of a result, or None if devices do not report it (bundle.device_report).

    Args:
        result: the finished attempt.
        before: the newest report of the log, or None for the first.
        runtime: version of onnxruntime.
        open_log: returns the id of the log, which its first call begins.
    """
    attempt = result.attempt
    state = _last_state(attempt.states)
    if result.outcome.value not in OUTCOMES or attempt.release is None or attempt.followed is None or state is None:
        return None
    if weigh_reason(result.reason, state) is Weight.SILENT:
        return None
    followed = attempt.followed
    return DeviceReport(
        log=open_log() if before is None else before.log,
        sequence=1 if before is None else before.sequence + 1,
        previous=None if before is None else before.digest(),
        outcome=result.outcome.value,
        reason=result.reason,
        state=state,
        repository=followed.repository,
        family=followed.family,
        channel=followed.channel,
        rollout=followed.rollout,
        release=attempt.release,
        counter_epoch=followed.counter_epoch,
        counter=attempt.counter,
        variant=attempt.variant,
        bundle=attempt.target,
        from_release=attempt.from_release,
        trigger=attempt.trigger,
        started_ms=attempt.started_ms,
        finished_ms=result.finished_ms,
        agent=VERSION,
        runtime=runtime,
    )


def _last_state(states: tuple[str, ...]) -> str | None:
    """Return the last state in which an attempt worked.

    ROLLING_BACK and REJECTING undo the work of another state; only an operator's rollback starts with the former.
    """
    worked = [state for state in states if state in STATES]
    return next((state for state in reversed(worked) if state != State.ROLLING_BACK), worked[-1] if worked else None)
