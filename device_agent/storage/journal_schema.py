"""The schema of the journal's file: its table, its version and the migrations from older versions.

`PRAGMA user_version` holds the version. What each version changed:

1. Records have a kind, a key and a body of canonical JSON.
2. Each record has a checksum.
3. Records, fields and states have the names of the glossary; the tables below list the old ones, and field `verdict`
   became `rejection`. Records of kind `report` keep their bytes, because each report contains the digest of the
   previous one. Reasons in quarantine and history keep the names that the agent used when it wrote them.
4. Attempts and the persistent state name the rollout that they followed; those of older agents name none. Reports of
   older agents name no repository, which `airweights.report/2` requires: they are deleted, and a new log begins.

A migration runs inside one transaction, which its caller opens.

Every later schema keeps the table `record` with its columns kind, key and body, the record `machine/pointers` and the
records `bundle/DIGEST` with the fields that they have now; they may have further fields. From these an older agent
serves what is active (device_agent.storage.newer_journal).
"""

import hashlib
import sqlite3
from collections.abc import Callable
from typing import Final

from bundle import strict_json
from bundle.errors import Malformed
from bundle.strict_json import JSON

SCHEMA_VERSION: Final = 4
MAX_RECORD_BYTES: Final = 1024 * 1024  # a manifest is at most 256 KiB; as a JSON string its escapes can double that

_OLD_STATES: Final = {"armed": "staged", "refusing": "rejecting"}
_OLD_KEYS: Final = {("machine", "remembered"): "persistent-state", ("machine", "witness"): "tpm-counter"}
_OLD_KINDS: Final = {"kills": "crashes"}


def checksum(kind: str, key: str, body: str) -> str:
    """Return the SHA-256, hexadecimal, of a record's kind, key and body, joined by NUL.

    Args:
        kind: group of the record, such as "history".
        key: unique within the kind.
        body: canonical JSON text.
    """
    return hashlib.sha256(f"{kind}\0{key}\0{body}".encode()).hexdigest()


def create_table(db: sqlite3.Connection) -> None:
    """Create the table of the current schema."""
    db.execute(
        "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, sha256 TEXT NOT NULL, "
        "PRIMARY KEY (kind, key)) WITHOUT ROWID"
    )


def _add_checksums(db: sqlite3.Connection) -> None:
    rows = db.execute("SELECT kind, key, body FROM record").fetchall()
    db.execute("DROP TABLE record")
    create_table(db)
    for kind, key, body in rows:
        db.execute("INSERT INTO record VALUES (?, ?, ?, ?)", (kind, key, body, checksum(kind, key, body)))


def _rename_to_glossary(db: sqlite3.Connection) -> None:
    rows = db.execute("SELECT kind, key, body, sha256 FROM record WHERE kind != 'report'").fetchall()
    for kind, key, body, sha256 in rows:
        # a new checksum over a damaged body would hide the damage
        if sha256 != checksum(kind, key, body):
            raise Malformed(f"record {kind}/{key} does not match its checksum")
    for kind, key, body, _ in rows:
        new_kind, new_key = _OLD_KINDS.get(kind, kind), _OLD_KEYS.get((kind, key), key)
        new_body = _rename_in_body(kind, key, body)
        if (new_kind, new_key, new_body) != (kind, key, body):
            db.execute("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))
            row = (new_kind, new_key, new_body, checksum(new_kind, new_key, new_body))
            db.execute("INSERT INTO record VALUES (?, ?, ?, ?)", row)


def _rename_in_body(kind: str, key: str, body: str) -> str:
    if kind != "history" and (kind, key) not in (("machine", "state"), ("machine", "attempt")):
        return body
    record = strict_json.decode(body.encode(), what=f"journal record {kind}/{key}", max_bytes=MAX_RECORD_BYTES)
    if not isinstance(record, dict):
        raise Malformed(f"journal record {kind}/{key}: found {type(record).__name__}, expected an object")
    if key == "state":
        record["state"] = _OLD_STATES.get(str(record.get("state")), record.get("state"))
    else:
        attempt = record.get("attempt") if kind == "history" else record
        if isinstance(attempt, dict):
            _rename_in_attempt(attempt)
    return strict_json.encode(record).decode()


def _rename_in_attempt(attempt: dict[str, JSON]) -> None:
    if "verdict" in attempt:
        attempt["rejection"] = attempt.pop("verdict")
    if "download_bytes" in attempt:
        # a file of schema 2 counted the bytes of blobs alone, and not by kind
        blobs = attempt.pop("download_bytes")
        attempt["downloaded"] = {"metadata": 0, "envelope": 0, "patch": 0, "full": blobs, "wasted": 0}
    states = attempt.get("states")
    if isinstance(states, list):
        attempt["states"] = [_OLD_STATES.get(str(state), state) for state in states]


def _name_rollouts(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM record WHERE kind = 'report'")
    rows = db.execute("SELECT kind, key, body, sha256 FROM record").fetchall()
    for kind, key, body, sha256 in rows:
        if sha256 != checksum(kind, key, body):
            raise Malformed(f"record {kind}/{key} does not match its checksum")
        if kind != "history" and (kind, key) not in (("machine", "attempt"), ("machine", "persistent-state")):
            continue
        record = strict_json.decode(body.encode(), what=f"journal record {kind}/{key}", max_bytes=MAX_RECORD_BYTES)
        target = record.get("attempt") if isinstance(record, dict) and kind == "history" else record
        if not isinstance(target, dict):
            raise Malformed(f"journal record {kind}/{key}: found no object")
        target["followed"] = None
        if key != "persistent-state":
            target["from_release"] = None
        new_body = strict_json.encode(record).decode()
        row = (new_body, checksum(kind, key, new_body), kind, key)
        db.execute("UPDATE record SET body = ?, sha256 = ? WHERE kind = ? AND key = ?", row)


# version of the file → (version afterwards, step); version 0 is an empty file
MIGRATIONS: Final[dict[int, tuple[int, Callable[[sqlite3.Connection], None]]]] = {
    0: (SCHEMA_VERSION, create_table),
    1: (2, _add_checksums),
    2: (3, _rename_to_glossary),
    3: (4, _name_rollouts),
}
