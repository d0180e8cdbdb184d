"""Records in an SQLite file: kind, key, body (canonical JSON) and a SHA-256 over the three.

Rules:
- A record that does not match its checksum is never returned: SQLite itself does not notice a flipped bit in a value.
- `synchronous=FULL` and a rollback journal: when no transaction is open, one file contains everything.
- An older file is migrated in one transaction when it is opened for writing (device_agent.storage.journal_schema). A
  newer file is refused and left unchanged, and so is an older one that is opened for reading.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import AirweightsError
from bundle.strict_json import JSON, StrictObject
from device_agent.errors import JournalDamaged, JournalTooNew, JournalUnreadable
from device_agent.storage.journal_schema import MAX_RECORD_BYTES, MIGRATIONS, SCHEMA_VERSION, checksum

BUSY_TIMEOUT_S: Final = 60.0  # a transaction takes milliseconds, but its fsync seconds where the disk is busy


def open_database(path: Path, mode: str) -> sqlite3.Connection:
    """Open a database file in autocommit mode.

    Args:
        path: the file.
        mode: "rw", or "rwc" to create a missing file. Reading also needs "rw": after a power cut SQLite has to roll
            back its own journal.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)


class RecordDatabase:
    """An open file of records.

    Args:
        path: the database file; created if missing, unless `read_only`.
        read_only: refuse a file of an older schema instead of migrating it.

    Raises:
        JournalDamaged: the file is not a database, or a record does not match its checksum. Any method can raise it.
        JournalTooNew: the file has a newer schema.
        JournalUnreadable: the file cannot be opened or written, or has an older schema. Any method can raise it.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._mode = "rw" if read_only else "rwc"
        self._needs_reconnect = False
        try:
            self._db = self._connect()
            self._prepare(read_only=read_only)
        except sqlite3.Error as error:
            self._close_half_open()
            raise self._unavailable_error(error) from error
        except JournalUnreadable:
            self._close_half_open()
            raise

    def close(self) -> None:
        """Close the database file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one transaction: durable when the block ends, undone if it raises."""
        try:
            if self._needs_reconnect:
                self._reconnect()
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._unavailable_error(error) from error
        except BaseException:
            self._roll_back()
            raise

    def put(self, kind: str, key: str, body: JSON) -> None:
        """Write or replace one record, inside a transaction.

        Args:
            kind: group of the record, such as "history".
            key: unique within the kind; records of a kind are sorted by it.
            body: value that is stored as canonical JSON.
        """
        data = strict_json.encode(body).decode()
        row = (kind, key, data, checksum(kind, key, data))
        self._db.execute("INSERT OR REPLACE INTO record (kind, key, body, sha256) VALUES (?, ?, ?, ?)", row)

    def get(self, kind: str, key: str) -> StrictObject | None:
        """Return the body of one record, or None if there is no such record.

        Args:
            kind: group of the record.
            key: key within the kind.
        """
        found = self._select("SELECT kind, key, body, sha256 FROM record WHERE kind = ? AND key = ?", (kind, key))
        return found[0] if found else None

    def all(self, kind: str) -> list[StrictObject]:
        """Return all records of a kind, sorted by key."""
        return self._select("SELECT kind, key, body, sha256 FROM record WHERE kind = ? ORDER BY key", (kind,))

    def last(self, kind: str, limit: int) -> list[StrictObject]:
        """Return the records of a kind with the highest keys, the highest first.

        Args:
            kind: group of the records.
            limit: maximum number of records.
        """
        query = "SELECT kind, key, body, sha256 FROM record WHERE kind = ? ORDER BY key DESC LIMIT ?"
        return self._select(query, (kind, limit))

    def last_key(self, kind: str) -> str | None:
        """Return the highest key of a kind, or None if the kind has no record."""
        try:
            row = self._db.execute("SELECT max(key) FROM record WHERE kind = ?", (kind,)).fetchone()
        except sqlite3.Error as error:
            raise self._unavailable_error(error) from error
        return None if row[0] is None else str(row[0])

    def delete(self, kind: str, key: str) -> None:
        """Delete one record if it exists, inside a transaction.

        Args:
            kind: group of the record.
            key: key within the kind.
        """
        self._db.execute("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))

    def delete_prefix(self, kind: str, prefix: str) -> None:
        """Delete the records of a kind whose key starts with `prefix`, inside a transaction.

        Args:
            kind: group of the records.
            prefix: start of the keys.
        """
        self._db.execute("DELETE FROM record WHERE kind = ? AND substr(key, 1, ?) = ?", (kind, len(prefix), prefix))

    def check(self) -> None:
        """Read every record and compare its checksum.

        Raises:
            JournalDamaged: a record does not match its checksum.
        """
        self._select("SELECT kind, key, body, sha256 FROM record", ())

    def keep_last(self, kind: str, rows: int) -> None:
        """Delete the records of a kind with the lowest keys, inside a transaction.

        Args:
            kind: group of the records.
            rows: number of records with the highest keys that are kept.
        """
        kept = "SELECT key FROM record WHERE kind = ? ORDER BY key DESC LIMIT ?"
        self._db.execute(f"DELETE FROM record WHERE kind = ? AND key NOT IN ({kept})", (kind, kind, rows))  # noqa: S608  # a constant

    def _prepare(self, *, read_only: bool) -> None:
        self._db.execute("PRAGMA journal_mode = DELETE")
        findings = self._db.execute("PRAGMA quick_check").fetchone()[0]
        if findings != "ok":
            raise JournalDamaged(f"{self._path}: SQLite reports damage: {str(findings)[:200]}")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise JournalTooNew(
                f"{self._path}: schema {version}, this agent reads schemas up to {SCHEMA_VERSION}",
                hint="install the agent version that wrote it, or a newer one",
            )
        if version < SCHEMA_VERSION:
            if read_only:
                raise JournalUnreadable(
                    f"{self._path}: schema {version}, this agent reads {SCHEMA_VERSION}",
                    hint="start the daemon or run `device-agent update`: both migrate the file",
                )
            self._migrate()

    def _migrate(self) -> None:
        with self.transaction():
            # read again under the lock: another process may have migrated the file meanwhile
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            while version < SCHEMA_VERSION:
                version, step = MIGRATIONS[version]
                try:
                    step(self._db)
                except (AirweightsError, UnicodeDecodeError) as error:
                    raise self._unavailable_error(error) from error
            self._db.execute(f"PRAGMA user_version = {version}")

    def _select(self, query: str, values: tuple[str | int, ...]) -> list[StrictObject]:
        try:
            return [self._check_row(*row) for row in self._db.execute(query, values)]
        except (sqlite3.Error, AirweightsError, UnicodeDecodeError) as error:
            raise self._unavailable_error(error) from error

    def _check_row(self, kind: object, key: object, body: object, sha256: object) -> StrictObject:
        if not isinstance(body, str) or sha256 != checksum(str(kind), str(key), body):
            raise JournalDamaged(f"{self._path}: record {kind}/{key} does not match its checksum")
        decoded = strict_json.decode(body.encode(), what=f"journal record {kind}/{key}", max_bytes=MAX_RECORD_BYTES)
        return StrictObject(decoded, f"journal.{kind}.{key}")

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            # the disk fails for this too: the next connection rolls back the transaction
            self._needs_reconnect = True

    def _close_half_open(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def _connect(self) -> sqlite3.Connection:
        db = open_database(self._path, self._mode)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cell_size_check = ON")
        return db

    def _reconnect(self) -> None:
        self._db.close()
        self._db = self._connect()
        self._needs_reconnect = False

    def _unavailable_error(self, error: Exception) -> JournalUnreadable:
        if isinstance(error, JournalUnreadable):
            return error
        # these two classes do not concern the content: locked, disk full, no permission, connection closed
        is_system = isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError))
        is_damage = isinstance(error, (sqlite3.DatabaseError, AirweightsError, UnicodeDecodeError)) and not is_system
        return (JournalDamaged if is_damage else JournalUnreadable)(f"{self._path}: {error}")
