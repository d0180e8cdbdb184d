"""An index of the device registry: a SQLite file beside it, filled once for each content.

Reading a registry of a million devices takes a minute, most of it for parsing and for the device ids. Commands that
only count or look up devices read the index instead.

Rules:
- The registry decides; the index is a cache that can be deleted. It is rebuilt if the registry's size, time of change
  or inode differs from what was indexed, or if the index is damaged or of another schema.
- It is written under a temporary name, synced, and renamed.
- It has the digest of the registry, so that the content can be compared with the signed fleet document.
"""

import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle import strict_json
from keys.errors import RegistryDamaged
from keys.registry import RESTORE_HINT, Device, read_devices

SCHEMA_VERSION: Final = "1"
SUFFIX: Final = ".index"
ROWS_AT_ONCE: Final = 5_000


@dataclass(frozen=True, slots=True)
class IndexedDevice:
    """The part of a device that the index has.

    Attributes:
        device_id: id of the device, 64 hexadecimal digits.
        label: its label.
        cohort: its cohort.
        ed25519_public: the key that signs its reports, 32 bytes.
        is_revoked: whether it was revoked.
    """

    device_id: str
    label: str
    cohort: str
    ed25519_public: bytes
    is_revoked: bool


class RegistryIndex:
    """The index of a registry file; opened by `open_index`.

    Args:
        connection: a connection to the index.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def digest(self) -> str:
        """Return the digest of the registry, as the fleet document signs it."""
        return str(self._connection.execute("SELECT value FROM fact WHERE name = 'digest'").fetchone()[0])

    def count(self) -> int:
        """Return the number of devices that are not revoked."""
        return int(self._connection.execute("SELECT count(*) FROM device WHERE revoked = 0").fetchone()[0])

    def device_ids(self, cohorts: tuple[str, ...] = ()) -> Iterator[str]:
        """Iterate over the ids of the devices that are not revoked, of the cohorts or of all."""
        query = "SELECT id, cohort FROM device WHERE revoked = 0 ORDER BY id"
        for device_id, cohort in self._connection.execute(query):
            if not cohorts or cohort in cohorts:
                yield device_id.hex()

    def devices(self) -> Iterator[IndexedDevice]:
        """Iterate over all devices, sorted by id."""
        for row in self._connection.execute("SELECT id, label, cohort, ed25519, revoked FROM device ORDER BY id"):
            yield IndexedDevice(row[0].hex(), row[1], row[2], bytes(row[3]), bool(row[4]))

    def find(self, label_or_id: str) -> IndexedDevice | None:
        """Return a device by its label or id, or None."""
        raw = bytes.fromhex(label_or_id) if len(label_or_id) == 64 and _is_hex(label_or_id) else b""
        query = "SELECT id, label, cohort, ed25519, revoked FROM device WHERE label = ? OR id = ?"
        row = self._connection.execute(query, (label_or_id, raw)).fetchone()
        return None if row is None else IndexedDevice(row[0].hex(), row[1], row[2], bytes(row[3]), bool(row[4]))


@contextmanager
def open_index(registry: Path) -> Iterator[RegistryIndex]:
    """Open the index of a registry; create or rebuild it first if it is not of the registry's content.

    Args:
        registry: the registry file; a missing file is an empty registry.

    Raises:
        RegistryDamaged: the registry is damaged.
    """
    path = registry.with_name(registry.name + SUFFIX)
    connection = _open_current(path, registry_stamp(registry))
    if connection is None:
        connection = _build(registry, path)
    with closing(connection):
        yield RegistryIndex(connection)


def _open_current(path: Path, stamp: str) -> sqlite3.Connection | None:
    """Return a connection to the index if it is that of the registry with this stamp, else None."""
    if not path.is_file():
        return None
    connection = None
    try:
        connection = _connect(path)
        facts = dict(connection.execute("SELECT name, value FROM fact"))
        if facts.get("schema") == SCHEMA_VERSION and facts.get("stamp") == stamp:
            return connection
    except sqlite3.Error:
        pass
    if connection is not None:
        connection.close()
    return None


def _build(registry: Path, path: Path) -> sqlite3.Connection:
    """Build the index, and return a connection to it; one in memory if the folder cannot be written."""
    stamp = registry_stamp(registry)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".index-")
        os.close(descriptor)
    except OSError:
        connection = sqlite3.connect(":memory:")
        _fill(connection, registry, stamp)
        return connection
    try:
        connection = sqlite3.connect(name)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        with closing(connection):
            _fill(connection, registry, stamp)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    # as_uri, because a path can contain the characters ? # %
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _fill(connection: sqlite3.Connection, registry: Path, stamp: str) -> None:
    connection.execute("CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
    connection.execute(
        "CREATE TABLE device (id BLOB PRIMARY KEY, label TEXT NOT NULL, cohort TEXT NOT NULL, ed25519 BLOB NOT NULL,"
        " revoked INTEGER NOT NULL) WITHOUT ROWID"
    )
    hashed = hashlib.sha256()
    with connection:
        try:
            connection.executemany("INSERT INTO device VALUES (?, ?, ?, ?, ?)", _rows(registry, hashed))
            connection.execute("CREATE UNIQUE INDEX device_label ON device (label)")
        except sqlite3.IntegrityError as error:
            raise RegistryDamaged(f"{registry}: a label is listed twice", hint=RESTORE_HINT) from error
        facts = {"schema": SCHEMA_VERSION, "stamp": stamp, "digest": hashed.hexdigest()}
        connection.executemany("INSERT INTO fact VALUES (?, ?)", facts.items())


def _rows(registry: Path, hashed: "hashlib._Hash") -> Iterator[tuple[bytes, str, str, bytes, bool]]:
    for device in hashed_devices(registry, hashed):
        yield bytes.fromhex(device.device_id), device.label, device.cohort, device.ed25519_public, device.is_revoked


def hashed_devices(registry: Path, hashed: "hashlib._Hash") -> Iterator[Device]:
    """Iterate over the devices of a registry, and hash them as the fleet document signs their digest.

    Args:
        registry: the registry file; a missing file is an empty registry.
        hashed: SHA-256 of the devices so far.

    Raises:
        RegistryDamaged: the registry is damaged.
    """
    for device in read_devices(registry):
        hashed.update(strict_json.encode(device.as_json()) + b"\n")
        yield device


def registry_stamp(registry: Path) -> str:
    """Return size, time of change and inode of a registry: while they are equal, it is not read again."""
    try:
        found = registry.stat()
    except FileNotFoundError:
        return "no file"
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"


def _is_hex(text: str) -> bool:
    return all(char in "0123456789abcdef" for char in text)
