"""The rows that a batch needs, read at once and written at once, in one transaction.

Rules:
- PostgreSQL: the rows of the batch's devices are locked in order of their ids before anything else is read, so that two
  collectors with lines of one device take turns, and cannot deadlock.
- A count is changed by adding to it in the database, never by writing a sum that was read before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, delete, select, tuple_, update

from bundle.device_report import SignedReport
from fleet.database import Database
from fleet.judge import LogState
from fleet.line import SignedLine
from fleet.standing import Standing, TallyRow, tally_rows
from fleet.tables import DAILY, DEVICE, FORK, LOG, REFUSED, REPORT, STANDING, TALLY, VITAL

MAX_FORKS: Final = 16  # stored for each device
IDS_IN_A_QUERY: Final = 500

LogKey = tuple[str, str, str]
"""A log: device id, log, family."""

StandingKey = tuple[str, str]
"""A standing: device id, family."""


class BatchRows:
    """The rows of one transaction.

    Args:
        database: the store.
        connection: connection in a transaction for writing.
    """

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database, self._connection = database, connection

    def read_devices(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of devices by id, locked until the end of the transaction."""
        query = select(DEVICE).where(DEVICE.c.device_id.in_(ids)).order_by(DEVICE.c.device_id)
        if not self._database.is_sqlite:
            query = query.with_for_update()
        return {row["device_id"]: {**row, "is_changed": False} for row in self._connection.execute(query).mappings()}

    def read_logs(self, ids: Sequence[str]) -> dict[LogKey, LogState]:
        """Return the state of all logs of devices."""
        rows = self._connection.execute(select(LOG).where(LOG.c.device_id.in_(ids))).all()
        return {
            (row.device_id, row.log, row.family): LogState(
                row.contiguous_to, row.highest, row.highest_digest, row.vital_number, row.vital_digest, row.started_s
            )
            for row in rows
        }

    def read_standings(self, ids: Sequence[str]) -> dict[StandingKey, Standing]:
        """Return the standings of devices."""
        names = (STANDING.c.device_id, STANDING.c.family, STANDING.c.log, STANDING.c.log_started_s, STANDING.c.facts)
        rows = self._connection.execute(select(*names).where(STANDING.c.device_id.in_(ids))).all()
        return {(r.device_id, r.family): Standing.from_store(r.log, r.log_started_s, r.facts) for r in rows}

    def read_lines(
        self, lines: Sequence[SignedLine], logs: Mapping[LogKey, LogState]
    ) -> dict[tuple[bool, str, str, int], bytes]:
        """Return the stored lines with numbers of a batch: (is it a report, device id, log, number) → line.

        Args:
            lines: the batch.
            logs: the stored state of its logs; a higher number than theirs is not looked for.
        """
        reports, vitals = [], []
        for line in lines:
            if isinstance(line, SignedReport):
                report = line.report
                state = logs.get((line.device_id, report.log, report.family))
                if state is not None and report.sequence <= state.highest:
                    reports.append((line.device_id, report.log, report.sequence))
            else:
                vital = line.vital
                state = logs.get((line.device_id, vital.log, vital.family))
                if state is not None and vital.number <= state.vital_number:
                    vitals.append((line.device_id, vital.log, vital.number))
        found: dict[tuple[bool, str, str, int], bytes] = {}
        for is_report, table, number, keys in (
            (True, REPORT, REPORT.c.sequence, reports),
            (False, VITAL, VITAL.c.number, vitals),
        ):
            if keys:
                where = tuple_(table.c.device_id, table.c.log, number).in_(keys)
                query = select(table.c.device_id, table.c.log, number, table.c.line).where(where)
                for row in self._connection.execute(query):
                    found[is_report, row[0], row[1], row[2]] = bytes(row[3])
        return found

    def insert_lines(self, table: Table, rows: Sequence[dict[str, Any]]) -> None:
        """Insert new lines into the table of their kind.

        Args:
            table: REPORT or VITAL.
            rows: the rows.
        """
        if rows:
            self._connection.execute(table.insert(), list(rows))

    def insert_forks(self, forks: Sequence[dict[str, Any]]) -> None:
        """Insert lines that contradict stored ones, at most MAX_FORKS of a device."""
        stored: dict[str, int] = {}
        for row in forks:
            device_id = row["device_id"]
            if device_id not in stored:
                where = FORK.c.device_id == device_id
                stored[device_id] = len(self._connection.execute(select(FORK.c.digest).where(where)).all())
            if stored[device_id] < MAX_FORKS:
                self._connection.execute(self._database.insert(FORK).values(row).on_conflict_do_nothing())
                stored[device_id] += 1

    def update_devices(self, devices: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the receipt time and the suspicion of changed devices."""
        changed = [
            {"id": name, "seen": row["seen_s"], "suspect": row["is_suspect"]}
            for name, row in devices.items()
            if row["is_changed"]
        ]
        if changed:
            values: dict[str, Any] = {"seen_s": bindparam("seen"), "is_suspect": bindparam("suspect")}
            where = DEVICE.c.device_id == bindparam("id")
            self._connection.execute(update(DEVICE).where(where).values(values), changed)

    def write_logs(self, logs: Mapping[LogKey, LogState]) -> None:
        """Write the state of changed logs."""
        names = ("contiguous_to", "highest", "highest_digest", "vital_number", "vital_digest")
        rows = [
            {
                **dict(zip(("device_id", "log", "family"), key, strict=True)),
                **{name: getattr(log, name) for name in (*names, "started_s")},
            }
            for key, log in logs.items()
            if log.is_changed
        ]
        self._replace(LOG, rows, names)

    def write_standings(self, standings: Mapping[StandingKey, Standing]) -> None:
        """Write standings over those of the same device and family."""
        names = ("log", "log_started_s", "facts", "channel", "release", "state", "reason", "outcome")
        rows = []
        for (device_id, family), now in standings.items():
            at = now.position
            rows.append(
                {
                    "device_id": device_id,
                    "family": family,
                    "log": now.log,
                    "log_started_s": now.log_started_s,
                    "facts": now.facts_json(),
                    **{name: getattr(at, name) for name in names[3:]},
                }
            )
        self._replace(STANDING, rows, names)

    def delete_standings(self, devices: Mapping[str, tuple[str, bool]]) -> None:
        """Delete the standings of devices that are not counted any more, and take them out of the tally.

        Args:
            devices: device id → cohort, and whether the device is suspect.
        """
        ids = sorted(devices)
        for start in range(0, len(ids), IDS_IN_A_QUERY):
            part = ids[start : start + IDS_IN_A_QUERY]
            tally: Counter[TallyRow] = Counter()
            for (device_id, family), standing in self.read_standings(part).items():
                cohort, is_suspect = devices[device_id]
                tally.subtract(tally_rows(standing, family, cohort, is_suspect=is_suspect))
            self.add_counts(TALLY, "devices", tally)
            self._connection.execute(delete(STANDING).where(STANDING.c.device_id.in_(part)))

    def add_daily(self, counts: Mapping[tuple[int, str, str, str, str], int]) -> None:
        """Add to the daily sums: (day, family, channel, release, value) → lines."""
        self.add_counts(DAILY, "lines", counts)

    def add_refused(self, day: int, reasons: Mapping[str, int]) -> None:
        """Add to the counts of refused lines.

        Args:
            day: days since 1970-01-01.
            reasons: reason → lines.
        """
        self.add_counts(REFUSED, "lines", {(day, reason): lines for reason, lines in reasons.items()})

    def add_counts(self, table: Table, name: str, counts: Mapping[Any, int]) -> None:
        """Add to counts, in order of their keys.

        Args:
            table: the table.
            name: name of its column with the count.
            counts: primary key → what to add.
        """
        keys = [column.name for column in table.primary_key.columns]
        rows = [{**dict(zip(keys, key, strict=True)), name: n} for key, n in sorted(counts.items()) if n]
        if rows:
            insert = self._database.insert(table)
            total = table.c[name] + insert.excluded[name]
            self._connection.execute(insert.on_conflict_do_update(index_elements=keys, set_={name: total}), rows)

    def _replace(self, table: Table, rows: list[dict[str, Any]], names: Sequence[str]) -> None:
        if rows:
            insert = self._database.insert(table)
            keys = [column.name for column in table.primary_key.columns]
            changed = {name: insert.excluded[name] for name in names}
            self._connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed), rows)
