"""Makes the vectors of this folder: `python -m tests.vectors.journal.generate`. Files of old schemas are written by the
statements of then, never by today's code.

- schema-1.db: as an agent of schema 1 left it, with 1.0.0 active; records had no checksum yet.
- schema-99.db: of an agent that is newer than this one.
- record-flipped.db: schema 2, one character of a record's body changed.
- not-a-database.db: text.
"""

import json
import sqlite3
from pathlib import Path

from device_agent.storage.database import checksum

FOLDER = Path(__file__).parent
DIGEST = "5e" * 32
RECORDS = {
    ("machine", "pointers"): {"active": DIGEST, "candidate": None, "previous": None},
    ("machine", "state"): {"state": "idle"},
    ("kills", f"{DIGEST}:probing"): {"count": 2},
}


def main() -> None:
    """Write all files."""
    for path in FOLDER.glob("*.db"):
        path.unlink()
    rows = [(*key, json.dumps(body, sort_keys=True, separators=(",", ":"))) for key, body in RECORDS.items()]
    with sqlite3.connect(FOLDER / "schema-1.db") as db:
        db.execute(
            "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, key))"
        )
        db.executemany("INSERT INTO record VALUES (?, ?, ?)", rows)
        db.execute("PRAGMA user_version = 1")
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
