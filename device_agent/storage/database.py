"""Records in SQLite: kind, key, canonical JSON body, and a SHA-256 over the three.

Rules:
1. A record whose checksum does not hold is never returned: SQLite itself does not notice a flipped bit in a value.
2. `synchronous=FULL` and a rollback journal: at rest the whole truth is one file.
3. `PRAGMA user_version` is the schema's version. An older file is migrated in one transaction, step by step; a newer
   one is left alone.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import AirweightsError
from bundle.strict_json import JSON, StrictObject
from device_agent.errors import JournalDamaged, JournalUnreadable

SCHEMA_VERSION: Final = 2
MAX_RECORD_BYTES: Final = 1024 * 1024  # a manifest is at most 256 KiB; twice that as a JSON string with escapes
BUSY_TIMEOUT_S: Final = 10.0  # a reader holds its lock for milliseconds


def _create(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, sha256 TEXT NOT NULL, "
        "PRIMARY KEY (kind, key)) WITHOUT ROWID"
    )


def _add_checksums(db: sqlite3.Connection) -> None:
    rows = db.execute("SELECT kind, key, body FROM record").fetchall()
    db.execute("DROP TABLE record")
    _create(db)
    for kind, key, body in rows:
        db.execute("INSERT INTO record VALUES (?, ?, ?, ?)", (kind, key, body, checksum(kind, key, body)))


# version of the file → the step to the next version; 0 is an empty file
MIGRATIONS: Final[dict[int, tuple[int, Callable[[sqlite3.Connection], None]]]] = {
    0: (SCHEMA_VERSION, _create),
    1: (2, _add_checksums),
}


class RecordDatabase:
    """An open file of records.

    Args:
        path: made when missing, unless `read_only`.

    Raises:
        JournalUnavailable: it does not open, is damaged, or is newer. From any method.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        # a reader too opens for writing: after a power cut it is SQLite that rolls the journal back
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
        """Release the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what happens inside, or none of it; durable when it returns."""
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
        """Write or replace one record."""
        data = strict_json.encode(body).decode()
        row = (kind, key, data, checksum(kind, key, data))
        self._db.execute("INSERT OR REPLACE INTO record (kind, key, body, sha256) VALUES (?, ?, ?, ?)", row)

    def get(self, kind: str, key: str) -> StrictObject | None:
        """One record, or None."""
        found = self._select("SELECT kind, key, body, sha256 FROM record WHERE kind = ? AND key = ?", (kind, key))
        return found[0] if found else None

    def all(self, kind: str) -> list[StrictObject]:
        """The records of a kind, sorted by key."""
        return self._select("SELECT kind, key, body, sha256 FROM record WHERE kind = ? ORDER BY key", (kind,))

    def last(self, kind: str, limit: int) -> list[StrictObject]:
        """The records of a kind with the highest keys, highest first."""
        query = "SELECT kind, key, body, sha256 FROM record WHERE kind = ? ORDER BY key DESC LIMIT ?"
        return self._select(query, (kind, limit))

    def last_key(self, kind: str) -> str | None:
        """The highest key of a kind."""
        try:
            row = self._db.execute("SELECT max(key) FROM record WHERE kind = ?", (kind,)).fetchone()
        except sqlite3.Error as error:
            raise self._unavailable_error(error) from error
        return None if row[0] is None else str(row[0])

    def delete(self, kind: str, key: str) -> None:
        """Remove one record, if it is there."""
        self._db.execute("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))

    def delete_prefix(self, kind: str, prefix: str) -> None:
        """Remove the records of a kind whose key begins with `prefix`."""
        self._db.execute("DELETE FROM record WHERE kind = ? AND substr(key, 1, ?) = ?", (kind, len(prefix), prefix))

    def check(self) -> None:
        """Read every record. Raises JournalDamaged."""
        self._select("SELECT kind, key, body, sha256 FROM record", ())

    def keep_last(self, kind: str, rows: int) -> None:
        """Remove all but the records with the highest keys."""
        kept = "SELECT key FROM record WHERE kind = ? ORDER BY key DESC LIMIT ?"
        self._db.execute(f"DELETE FROM record WHERE kind = ? AND key NOT IN ({kept})", (kind, kind, rows))  # noqa: S608  # a constant

    def _prepare(self, *, read_only: bool) -> None:
        self._db.execute("PRAGMA journal_mode = DELETE")
        verdict = self._db.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise JournalDamaged(f"{self._path}: damaged: {str(verdict)[:200]}")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise JournalUnreadable(
                f"{self._path}: schema {version}, this agent knows {SCHEMA_VERSION}",
                hint="install the newer agent that wrote it",
            )
        if version < SCHEMA_VERSION and not read_only:
            self._migrate()

    def _migrate(self) -> None:
        with self.transaction():
            # read again under the lock: another process may have been first
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            while version < SCHEMA_VERSION:
                version, step = MIGRATIONS[version]
                step(self._db)
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
            # the medium refuses that too: what is on it is a hot journal, which the next connection rolls back
            self._needs_reconnect = True

    def _close_half_open(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{self._path.absolute().as_posix().replace('?', '%3f').replace('#', '%23')}?mode={self._mode}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
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
        # these two are not about the file's content: locked, full, no permission; a connection that is closed
        is_system = isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError))
        is_damage = isinstance(error, (sqlite3.DatabaseError, AirweightsError, UnicodeDecodeError)) and not is_system
        return (JournalDamaged if is_damage else JournalUnreadable)(f"{self._path}: {error}")


def checksum(kind: str, key: str, body: str) -> str:
    """SHA-256, hexadecimal, of the three joined by NUL."""
    return hashlib.sha256(f"{kind}\0{key}\0{body}".encode()).hexdigest()
