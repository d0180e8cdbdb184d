"""Serve from a journal that a newer agent wrote, without changing it.

Rules:
- The pointers and the records of the bundles that they name are copied into a journal of this agent's schema, which is
  created anew at each start. Fields that this agent does not know are ignored.
- A first release that the newer agent verified, probed and staged, but did not activate yet, is active in the copy.
- If they cannot be read, the copy is empty, and nothing serves.
- The newer journal and the bundle store stay as they are: no update, rollback, pause or garbage collection. Only
  SQLite rolls back a transaction that a power cut ended.
"""

import logging
import sqlite3

from bundle import strict_json
from bundle.errors import AirweightsError, Malformed
from bundle.files import BundleDigest
from bundle.strict_json import StrictObject
from device_agent.errors import system_error
from device_agent.policy.journal_records import BundlePointers, BundleRecord
from device_agent.policy.state_machine import State
from device_agent.storage.database import open_database
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.storage.journal_schema import MAX_RECORD_BYTES

logger = logging.getLogger(__name__)

COPY_NAME = "state.db.older"


class _KnownFields(StrictObject):
    """An object whose unknown fields are ignored."""

    def reject_unknown(self) -> None:
        """Ignore the fields that were not read."""


def copy_newer_journal(device: DeviceDirectory) -> Journal:
    """Return a journal of this agent's schema with what is active in a newer one.

    The device's `journal_path` names the copy from then on.

    Args:
        device: directory of the family, of which this object is used for nothing else.

    Raises:
        JournalUnreadable, OsFailure: the copy cannot be written.
    """
    newer = device.journal_path
    device.journal_path = newer.with_name(COPY_NAME)
    try:
        for path in (device.journal_path, device.journal_path.with_name(COPY_NAME + "-journal")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise system_error(error) from error
    journal = Journal(device.journal_path)
    try:
        db = open_database(newer, "rw")
        try:
            found = BundlePointers.parse(_read(db, "machine", "pointers"))
            active = found.active
            if active is None and _read(db, "machine", "state").text("state") == State.STAGED:
                active = found.candidate
            digests = [digest for digest in (active, found.previous) if digest is not None]
            bundles = [BundleRecord.parse(_read(db, "bundle", digest)) for digest in digests]
        finally:
            db.close()
    except (sqlite3.Error, AirweightsError, ValueError) as error:
        logger.error("a newer journal cannot be read, nothing serves: %s", error)
        return journal
    journal.rebuild(bundles, BundlePointers(active, found.previous, None))
    return journal


def _read(db: sqlite3.Connection, kind: str, key: str | BundleDigest) -> StrictObject:
    row = db.execute("SELECT body FROM record WHERE kind = ? AND key = ?", (kind, key)).fetchone()
    if row is None:
        raise Malformed(f"journal record {kind}/{key} is missing")
    body = strict_json.decode(str(row[0]).encode(), what=f"journal record {kind}/{key}", max_bytes=MAX_RECORD_BYTES)
    return _KnownFields(body, f"journal.{kind}.{key}")
