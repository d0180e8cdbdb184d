"""The next vital of a family, from the journal and from counts of the daemon (bundle.vital)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bundle.version import VERSION
from bundle.vital import MAX_DAY, MAX_SERVED_DAYS, Vital, magnitude
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.policy.journal_records import BundleRecord, PersistentState
from device_agent.policy.state_machine import State

DAY_MS: Final = 86_400_000
STATE_OF_OUTCOME: Final = {
    Outcome.WAITING: "waiting",
    Outcome.UNAVAILABLE: "unavailable",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.INTERRUPTED: "interrupted",
    Outcome.STAGED: "trying",
    Outcome.REFUSED: "rejected",
    Outcome.UNFIT: "rejected",
    Outcome.ROLLED_BACK: "rejected",
}


@dataclass(frozen=True, slots=True)
class ServedCounts:
    """Counts of a family since the vital before, or since the daemon started.

    Attributes:
        restarts: unexpected ends of the model process.
        requests: answered requests.
        failed: failed ones among them.
        is_down: whether a release is active and nothing serves it.
    """

    restarts: int = 0
    requests: int = 0
    failed: int = 0
    is_down: bool = False


@dataclass(frozen=True, slots=True)
class VitalSources:
    """The sources of a vital.

    Attributes:
        log: the log of the device's reports.
        number: number of the vital.
        reports: number of the newest report, or 0.
        state: state of the update state machine.
        persistent: the persistent state.
        is_paused: whether updates of the device are paused.
        active: the active bundle, or None.
        history: finished attempts, the newest first.
        counts: counts of the daemon.
        free_bytes: free bytes of the device directory's file system.
        cpu: class of the processor.
        runtime: version of onnxruntime.
        served_days: whole days for which the active bundle has served (policy.served_time).
        now_ms: the time, Unix milliseconds.
    """

    log: str
    number: int
    reports: int
    state: State
    persistent: PersistentState
    is_paused: bool
    active: BundleRecord | None
    history: Sequence[UpdateResult]
    counts: ServedCounts
    free_bytes: int
    cpu: str
    runtime: str
    served_days: int
    now_ms: int


def next_vital(sources: VitalSources) -> Vital | None:
    """Create the next vital, or return None before the first successful check: no repository is known."""
    followed, active, counts = sources.persistent.followed, sources.active, sources.counts
    if followed is None:
        return None
    state, reason = _state(sources)
    change = next((row for row in sources.history if row.is_change), None)
    return Vital(
        log=sources.log,
        number=sources.number,
        reports=sources.reports,
        day=min(max(sources.now_ms // DAY_MS, 0), MAX_DAY),
        repository=followed.repository,
        family=followed.family,
        channel=followed.channel,
        rollout=followed.rollout,
        offered=sources.persistent.offered_release,
        state=state,
        reason=reason,
        release=None if active is None else active.version,
        counter_epoch=0 if active is None else active.counter_epoch,
        counter=0 if active is None else active.counter,
        variant=None if active is None else active.variant,
        probation=_probation(change, active),
        served_days=0 if active is None else min(sources.served_days, MAX_SERVED_DAYS),
        restarts=magnitude(counts.restarts),
        requests=magnitude(counts.requests),
        failed=magnitude(counts.failed),
        free_storage=magnitude(sources.free_bytes),
        cpu=sources.cpu,
        agent=VERSION,
        runtime=sources.runtime,
    )


def _state(sources: VitalSources) -> tuple[str, str]:
    """Return state and reason.

    1. A release is active, and nothing serves it: stopped.
    2. Updates are paused: paused.
    3. An attempt runs, or a bundle is staged: trying.
    4. The offered release is active: serving.
    5. The newest attempt for the offered release, or before a release was found, ended: its outcome.
    6. Otherwise: serving, or stopped without an active release.
    """
    offered, active = sources.persistent.offered_release, sources.active
    if active is not None and sources.counts.is_down:
        return "stopped", ""
    if sources.is_paused:
        return "paused", ""
    if sources.state is not State.IDLE:
        return "trying", ""
    if active is not None and active.version == offered:
        return "serving", ""
    for row in sources.history:
        if row.attempt.release in (None, offered) and row.outcome in STATE_OF_OUTCOME:
            return STATE_OF_OUTCOME[row.outcome], row.reason[:64]
    return ("stopped" if active is None else "serving"), ""


def _probation(change: UpdateResult | None, active: BundleRecord | None) -> str:
    if change is None or active is None or change.outcome is not Outcome.UPDATED:
        return "none"
    probation = change.attempt.probation
    return "none" if probation is None else "passed" if probation.is_passed else probation.verdict.value
