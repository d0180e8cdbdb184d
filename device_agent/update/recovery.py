"""After a start: what the journal says was under way is finished or undone, as RECOVERY decides.

Every step here can be cut off and run again: each is one transaction of the journal, and removing what nobody names.

A journal that is damaged is set aside and made anew from the sealed bundles, each of which names its own release. What
was active is not known then: of the intact bundles the oldest is taken. It served here before a newer one came, whereas
the newest may be a candidate that was never tried; the next update goes on from there. The floor is not lost with the
journal: it is in the trust memory's slots.
"""

import logging
from collections.abc import Callable

from bundle.errors import Bug
from device_agent.errors import JournalDamaged, StoreDamagedRefused
from device_agent.policy.journal_records import Holding, Pointers
from device_agent.policy.state_machine import State
from device_agent.storage.bundle_store import Store, sync_folder
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.workers.worker_pool import Errands

logger = logging.getLogger(__name__)

SET_ASIDE = "state.db.damaged"


def open_journal(device: DeviceDirectory, store: Store, errands: Callable[[], Errands]) -> Journal:
    """The journal, made anew where it is damaged. Raises JournalUnavailable where it can not be opened otherwise."""
    device.make_place()
    try:
        journal = Journal(device.journal)
        try:
            journal.check()
        except JournalDamaged:
            journal.close()
            raise
    except JournalDamaged as error:
        logger.error("the journal is damaged and made anew: %s", error.message)
        return _rebuilt(device, store, errands)
    return journal


def recover(journal: Journal, runtime: str) -> State:
    """Bring the journal to IDLE, or leave it ARMED.

    Args:
        journal: open for writing.
        runtime: onnxruntime's version; a quarantine is for that version.

    Returns:
        the state that was found.
    """
    found, now = journal.recover()
    attempt = journal.attempt
    if now in (State.COMMITTING, State.ROLLING_BACK, State.REFUSING):
        if attempt is None:
            raise Bug(f"the journal is {now.value} without an attempt")
        ended = journal.commit(attempt) if now is State.COMMITTING else journal.give_back(attempt, runtime)
        logger.info("recovered", extra={"from": found.value, "outcome": ended.outcome.value, "reason": ended.reason})
    elif found is not State.IDLE:
        logger.info("recovered", extra={"from": found.value, "to": now.value})
    return found


def _rebuilt(device: DeviceDirectory, store: Store, errands: Callable[[], Errands]) -> Journal:
    intact = []
    with errands() as children:
        for digest in sorted(store.held()):
            try:
                intact.append(children.describe(digest))
            except StoreDamagedRefused as error:
                logger.error("a bundle in the store is damaged: %s", error.message)
    device.journal.replace(device.place / SET_ASIDE)
    device.journal.with_name("state.db-journal").unlink(missing_ok=True)  # it belongs to the damaged file
    sync_folder(device.place)
    intact.sort(key=_age)
    journal = Journal(device.journal)
    journal.rebuild(intact, Pointers(active=intact[0].digest) if intact else Pointers())
    return journal


def _age(holding: Holding) -> tuple[int, int]:
    return holding.counter_epoch, holding.counter
