"""The tables of the store.

Rules:
- `report` and `vital` hold the lines as they came; everything else follows from them and from the registry, and is
  changed in the same transaction.
- The primary key decides whether a line is new, also between several collectors.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, String, Table

SCHEMA_VERSION: Final = "1"

METADATA: Final = MetaData()

# schema version, repository id, digest and file stamp of the registry
FACT: Final = Table(
    "fact", METADATA, Column("name", String(32), primary_key=True), Column("value", String, nullable=False)
)

DEVICE: Final = Table(
    "device",
    METADATA,
    Column("device_id", String(64), primary_key=True),
    Column("label", String(64), nullable=False, index=True),
    Column("cohort", String(64), nullable=False),
    Column("ed25519_public", LargeBinary(32), nullable=False),
    Column("is_revoked", Boolean, nullable=False),
    Column("is_suspect", Boolean, nullable=False),
    Column("seen_s", BigInteger, nullable=False),  # receipt of the newest accepted line; 0 before the first
)

LOG: Final = Table(
    "log",
    METADATA,
    Column("device_id", String(64), primary_key=True),
    Column("log", String(32), primary_key=True),
    Column("family", String(64), primary_key=True),
    Column("contiguous_to", BigInteger, nullable=False),
    Column("highest", BigInteger, nullable=False),
    Column("highest_digest", String(64)),
    Column("vital_number", BigInteger, nullable=False),
    Column("vital_digest", String(64)),
    Column("started_s", BigInteger, nullable=False),
)

REPORT: Final = Table(
    "report",
    METADATA,
    Column("device_id", String(64), primary_key=True),
    Column("log", String(32), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("previous", String(64)),
    Column("family", String(64), nullable=False),
    Column("received_s", BigInteger, nullable=False),
    Column("line", LargeBinary, nullable=False),
    Index("report_by_time", "family", "received_s"),
)

VITAL: Final = Table(
    "vital",
    METADATA,
    Column("device_id", String(64), primary_key=True),
    Column("log", String(32), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("family", String(64), nullable=False),
    Column("received_s", BigInteger, nullable=False),
    Column("line", LargeBinary, nullable=False),
    Index("vital_by_time", "family", "received_s"),
)

STANDING: Final = Table(
    "standing",
    METADATA,
    Column("device_id", String(64), primary_key=True),
    Column("family", String(64), primary_key=True),
    Column("log", String(32), nullable=False),
    Column("log_started_s", BigInteger, nullable=False),
    Column("facts", String, nullable=False),  # newest report and vital (fleet.standing)
    Column("channel", String(64), nullable=False),
    Column("release", String(64), nullable=False),
    Column("state", String(32), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("outcome", String(32), nullable=False),
    Index("standing_by_release", "family", "channel", "release", "state"),
)

TALLY: Final = Table(
    "tally",
    METADATA,
    Column("family", String(64), primary_key=True),
    Column("channel", String(64), primary_key=True),
    Column("release", String(64), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("value", String(64), primary_key=True),
    Column("devices", BigInteger, nullable=False),
)

# lines of a day: kind "outcome" and value, of a release; kept when the lines are deleted
DAILY: Final = Table(
    "daily",
    METADATA,
    Column("day", Integer, primary_key=True),
    Column("family", String(64), primary_key=True),
    Column("channel", String(64), primary_key=True),
    Column("release", String(64), primary_key=True),
    Column("value", String(64), primary_key=True),
    Column("lines", BigInteger, nullable=False),
)

# lines that were refused, by day and reason
REFUSED: Final = Table(
    "refused",
    METADATA,
    Column("day", Integer, primary_key=True),
    Column("reason", String(64), primary_key=True),
    Column("lines", BigInteger, nullable=False),
)

# one row for each line that contradicts a stored one; bounded
FORK: Final = Table(
    "fork",
    METADATA,
    Column("device_id", String(64), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("family", String(64), nullable=False),
    Column("log", String(32), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("received_s", BigInteger, nullable=False),
    Column("line", LargeBinary, nullable=False),
)
