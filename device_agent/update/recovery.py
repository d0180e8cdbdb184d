"""Recovery after a start: open the journal, then finish or undo the step that it names.

Theory of operation:

    open_journal()     the journal, or a rebuilt one if it is damaged
    recover_journal()  1 read the state and map it with RECOVERY (policy.state_machine), counting a crash
                       2 COMMITTING: move the pointers to the candidate
                         ROLLING_BACK, REJECTING: end the attempt with the recorded rejection
                         all other states: nothing is left to do; STAGED waits for the daemon

    Step 1 and step 2 are one transaction of the journal each, so a crash between them is repaired by the next start.
    The files of an unfinished step need no repair: they have names that no reader opens, and garbage collection
    deletes them.

    A damaged journal is renamed, and a new one is filled from the sealed bundles, each of which contains its manifest.
    The pointers are lost. The oldest intact bundle becomes active: it served here before a newer one was installed,
    whereas the newest may be a candidate that was never tried. The next update continues from there. The rollback
    floor is not lost, because the trust state stores it too.
"""

import logging
from collections.abc import Callable

from bundle.errors import Bug
from device_agent.errors import JournalDamaged, StoreDamaged
from device_agent.policy.journal_records import BundlePointers
from device_agent.policy.state_machine import State
from device_agent.storage.bundle_store import BundleStore, sync_directory
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.context import release_order
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

DAMAGED_JOURNAL_NAME = "state.db.damaged"


def open_journal(device: DeviceDirectory, store: BundleStore, open_workers: Callable[[], WorkerPool]) -> Journal:
    """Open a family's journal for writing; rebuild it if it is damaged.

    Args:
        device: directory of the family.
        store: bundle store of the family.
        open_workers: returns workers, which read the sealed bundles of a rebuild.

    Raises:
        JournalUnreadable: it cannot be opened for another reason, such as a newer schema.
        Unavailable: a worker of the rebuild crashed or timed out.
    """
    device.create_family_directory()
    try:
        journal = Journal(device.journal_path)
        try:
            journal.check()
        except JournalDamaged:
            journal.close()
            raise
    except JournalDamaged as error:
        logger.error("journal damaged, rebuilding it: %s", error.message)
        return _rebuild_journal(device, store, open_workers)
    return journal


def recover_journal(journal: Journal, runtime: str) -> State:
    """Bring the journal to IDLE, or leave it STAGED, and return the state that was found.

    Args:
        journal: open for writing.
        runtime: version of onnxruntime; a quarantine is for that version.

    Raises:
        Bug: a decision is recorded without an attempt.
        JournalUnreadable: the journal cannot be written.
    """
    found, now = journal.recover()
    attempt = journal.attempt
    if now in (State.COMMITTING, State.ROLLING_BACK, State.REJECTING):
        if attempt is None:
            raise Bug(f"the journal is in state {now.value!r} without an attempt")
        result = journal.commit(attempt) if now is State.COMMITTING else journal.finish_rejection(attempt, runtime)
        logger.info("recovered", extra={"from": found.value, "outcome": result.outcome.value, "reason": result.reason})
    elif found is not State.IDLE:
        logger.info("recovered", extra={"from": found.value, "to": now.value})
    return found


def _rebuild_journal(device: DeviceDirectory, store: BundleStore, open_workers: Callable[[], WorkerPool]) -> Journal:
    intact = []
    with open_workers() as workers:
        for digest in sorted(store.digests()):
            try:
                intact.append(workers.patcher.read_sealed_header(digest))
            except StoreDamaged as error:
                logger.error("bundle in the store is damaged: %s", error.message)
    device.journal_path.replace(device.family_directory / DAMAGED_JOURNAL_NAME)
    device.journal_path.with_name("state.db-journal").unlink(missing_ok=True)  # SQLite would apply it to the new file
    sync_directory(device.family_directory)
    intact.sort(key=release_order)
    journal = Journal(device.journal_path)
    journal.rebuild(intact, BundlePointers(active=intact[0].digest) if intact else BundlePointers())
    return journal
