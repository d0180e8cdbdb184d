"""An operator's way back: whether it is allowed.

The floor gates every new activation, an operator's too: going back to the previous release after its successor was
committed is one. (In a probation the previous release still counts as the one that serves.)
"""

from device_agent.errors import BelowRollbackFloor, NothingToRollBack, OperatorRollback
from device_agent.policy.attempt import Outcome, Rejection
from device_agent.policy.journal_records import BundleRecord
from device_agent.storage.journal import Journal


def check_rollback_allowed(
    active: BundleRecord | None, previous: BundleRecord | None, floor: tuple[int, int]
) -> Rejection:
    """May an operator send the device back? The verdict on what it leaves. Pure.

    Raises:
        NothingToRollBack, BelowFloorRefused.
    """
    if active is None or previous is None or active.family != previous.family:
        raise NothingToRollBack("no previous release is held", hint="`device-agent status` shows what is")
    if (previous.counter_epoch, previous.counter) < floor:
        raise BelowRollbackFloor(
            f"previous release {previous.version} has counter {previous.counter}, the floor is {floor[1]}"
        )
    error = OperatorRollback(f"an operator went back from {active.version} to {previous.version}")
    return Rejection.from_error(error, Outcome.ROLLED_BACK, quarantines=True)


def prepare_rollback(journal: Journal) -> tuple[BundleRecord, BundleRecord, Rejection]:
    """The active release, the previous one, and the verdict on the first. Raises as `check_rollback`, and
    JournalUnavailable."""
    pointers, remembered = journal.pointers, journal.persistent_state
    active, previous = journal.bundle(pointers.active), journal.bundle(pointers.previous)
    verdict = check_rollback_allowed(active, previous, (remembered.floor_epoch, remembered.floor_counter))
    assert active is not None
    assert previous is not None
    return active, previous, verdict
