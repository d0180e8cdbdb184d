"""An operator's rollback to the previous release: whether it is allowed.

The rollback floor applies to every activation, so it applies to the previous release after its successor was committed.
In probation the previous release is still the active one, so ending a probation is always allowed.

device_agent.daemon.family_service (`roll_back`) carries it out. An automatic rollback is decided in
device_agent.policy.probation and carried out by `Candidate.revert`.
"""

from device_agent.errors import BelowRollbackFloor, NothingToRollBack, OperatorRollback
from device_agent.policy.attempt import Outcome, Rejection
from device_agent.policy.journal_records import BundleRecord
from device_agent.storage.journal import Journal


def check_rollback_allowed(
    active: BundleRecord | None, previous: BundleRecord | None, floor: tuple[int, int]
) -> Rejection:
    """Check that an operator may roll back, and return the rejection of the active release.

    Args:
        active: the active bundle, or None.
        previous: the previous bundle, or None.
        floor: rollback floor, as (epoch, counter).

    Raises:
        NothingToRollBack: there is no previous release of the same family.
        BelowRollbackFloor: the previous release is below the rollback floor.
    """
    if active is None or previous is None or active.family != previous.family:
        raise NothingToRollBack("no previous release is stored", hint="see the releases in `device-agent status`")
    if (previous.counter_epoch, previous.counter) < floor:
        raise BelowRollbackFloor(
            f"previous release {previous.version} has counter {previous.counter}, the rollback floor is {floor[1]}"
        )
    error = OperatorRollback(f"an operator rolled back from {active.version} to {previous.version}")
    return Rejection.from_error(error, Outcome.ROLLED_BACK, quarantines=True)


def prepare_rollback(journal: Journal) -> tuple[BundleRecord, BundleRecord, Rejection]:
    """Read the active bundle, the previous bundle, and the rejection of the active one.

    Raises:
        NothingToRollBack: there is no previous release of the same family.
        BelowRollbackFloor: the previous release is below the rollback floor.
        JournalUnreadable: the journal cannot be read.
    """
    pointers, facts = journal.pointers, journal.persistent_state
    active, previous = journal.bundle(pointers.active), journal.bundle(pointers.previous)
    rejection = check_rollback_allowed(active, previous, (facts.floor_epoch, facts.floor_counter))
    assert active is not None
    assert previous is not None
    return active, previous, rejection
