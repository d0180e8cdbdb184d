"""Write the vectors of this folder: `python -m tests.vectors.journal.generate`.

Files of old schemas are written by the statements and rows of the agent of that time, never by the current code.

- schema-1.db: written by an agent of schema 1, with 1.0.0 active; records had no checksum yet.
- schema-2.db: written by an agent of schema 2: three reports, five attempts in the history, one bundle in quarantine, a
  paused device, one crash while probing, and 1.3.0 in the state that was called `armed`, with a verdict. schema-2.jsonl
  contains its rows as that agent wrote them: kind, key, body, checksum.
- schema-99.db: claims a schema that is newer than this agent.
- record-flipped.db: schema 2, one character of a record's body changed.
- not-a-database.db: text.
"""

import json
import sqlite3
from pathlib import Path

from device_agent.storage.journal_schema import checksum

FOLDER = Path(__file__).parent
DIGEST = "5e" * 32
RECORDS = {
    ("machine", "pointers"): {"active": DIGEST, "candidate": None, "previous": None},
    ("machine", "state"): {"state": "idle"},
    ("kills", f"{DIGEST}:probing"): {"count": 2},
}


def schema_2_rows() -> list[tuple[str, str, str, str]]:
    """Return the rows of schema-2.db: kind, key, body, checksum."""
    return [tuple(json.loads(line)) for line in (FOLDER / "schema-2.jsonl").read_text().splitlines()]


def main() -> None:
    """Write all files of this folder."""
    for path in FOLDER.glob("*.db"):
        path.unlink()
    rows = [(*key, json.dumps(body, sort_keys=True, separators=(",", ":"))) for key, body in RECORDS.items()]
    with sqlite3.connect(FOLDER / "schema-1.db") as db:
        db.execute(
            "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key))"
        )
        db.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
        db.execute("PRAGMA user_version = 1")
    with sqlite3.connect(FOLDER / "schema-2.db") as db:
        db.execute(
            "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, sha256 TEXT NOT NULL, "
            "PRIMARY KEY (kind, key)) WITHOUT ROWID"
        )
        db.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", schema_2_rows())
        db.execute("PRAGMA user_version = 2")
    for name, version in (("schema-99.db", 99), ("record-flipped.db", 2)):
        with sqlite3.connect(FOLDER / name) as db:
            db.execute(
                "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, sha256 TEXT NOT NULL, "
                "PRIMARY KEY (kind, key)) WITHOUT ROWID"
            )
            checked = [(kind, key, body, checksum(kind, key, body)) for kind, key, body in rows]
            if name.startswith("record"):
                kind, key, body, digest = checked[0]
                checked[0] = (kind, key, body.replace("5e", "5d", 1), digest)
            db.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", checked)
            db.execute(f"PRAGMA user_version = {version}")
    (FOLDER / "not-a-database.db").write_text("this is not a database, whatever its name says\n" * 40)


if __name__ == "__main__":
    main()
