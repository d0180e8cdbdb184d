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
from device_agent.errors import JournalDamaged, StoreDamaged
from device_agent.policy.journal_records import BundlePointers, BundleRecord
from device_agent.policy.state_machine import State
from device_agent.storage.bundle_store import BundleStore, sync_directory
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

DAMAGED_JOURNAL_NAME = "state.db.damaged"


def open_journal(device: DeviceDirectory, store: BundleStore, open_workers: Callable[[], WorkerPool]) -> Journal:
    """The journal, made anew where it is damaged. Raises JournalUnavailable where it cannot be opened otherwise."""
    device.create_family_directory()
    try:
        journal = Journal(device.journal_path)
        try:
            journal.check()
        except JournalDamaged:
            journal.close()
            raise
    except JournalDamaged as error:
        logger.error("the journal is damaged and made anew: %s", error.message)
        return _rebuild_journal(device, store, open_workers)
    return journal


def recover_journal(journal: Journal, runtime: str) -> State:
    """Bring the journal to IDLE, or leave it ARMED.

    Args:
        journal: open for writing.
        runtime: onnxruntime's version; a quarantine is for that version.

    Returns:
        the state that was found.
    """
    found, now = journal.recover()
    attempt = journal.attempt
    if now in (State.COMMITTING, State.ROLLING_BACK, State.REJECTING):
        if attempt is None:
            raise Bug(f"the journal is {now.value} without an attempt")
        ended = journal.commit(attempt) if now is State.COMMITTING else journal.finish_rejection(attempt, runtime)
        logger.info("recovered", extra={"from": found.value, "outcome": ended.outcome.value, "reason": ended.reason})
    elif found is not State.IDLE:
        logger.info("recovered", extra={"from": found.value, "to": now.value})
    return found


def _rebuild_journal(device: DeviceDirectory, store: BundleStore, open_workers: Callable[[], WorkerPool]) -> Journal:
    intact = []
    with open_workers() as children:
        for digest in sorted(store.digests()):
            try:
                intact.append(children.read_sealed_header(digest))
            except StoreDamaged as error:
                logger.error("a bundle in the store is damaged: %s", error.message)
    device.journal_path.replace(device.family_directory / DAMAGED_JOURNAL_NAME)
    device.journal_path.with_name("state.db-journal").unlink(missing_ok=True)  # it belongs to the damaged file
    sync_directory(device.family_directory)
    intact.sort(key=_release_order)
    journal = Journal(device.journal_path)
    journal.rebuild(intact, BundlePointers(active=intact[0].digest) if intact else BundlePointers())
    return journal


def _release_order(bundle: BundleRecord) -> tuple[int, int]:
    return bundle.counter_epoch, bundle.counter
