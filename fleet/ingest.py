"""Judge and store a batch of lines.

For each line, in this order:

1. It is at most 16 KiB and follows its schema.
2. Its device is registered and not revoked.
3. It is a duplicate, byte for byte, of a stored line: known; nothing else is checked.
4. Its device has not sent more than its share.
5. It names this repository, and its signature is the device's.
6. Its log is of its family, and its place in the log (fleet.judge) is new, late, known or a fork.

Rules:
- A line is judged alone. A refused line changes nothing but the count of refused lines; a fork makes its device
  suspect, and is kept as evidence.
- A batch is one transaction. What was answered as accepted is on disk; a batch that was cut off comes again, and is
  known then.
- The same lines give the same store, whatever their order, and however many collectors receive them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Connection, select

from bundle.device_report import SignedReport
from bundle.errors import AirweightsError
from fleet.batch_rows import BatchRows, LogKey, StandingKey
from fleet.database import Database
from fleet.errors import LineForked, LogLimitReached, SenderRevoked, SenderTooFast, SenderUnregistered
from fleet.judge import LogState, Place, StoredReport, missing_ranges, place_report, place_vital
from fleet.line import SignedLine, parse_line, verify_line
from fleet.standing import Standing, TallyRow, standing_in_log, tally_rows
from fleet.tables import REPORT, TALLY, VITAL

MAX_LOGS: Final = 64  # for each device and family: a new log begins when a device loses its journal, which is rare
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was not accepted.

    Attributes:
        number: number of the line in the batch, from 1.
        reason: reason of the error.
        message: one line for a person.
    """

    number: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LogAnswer:
    """The stored part of a log; the device drops what is stored, and sends what is missing.

    Attributes:
        contiguous_to: highest n for which the reports 1 to n are stored.
        highest: highest number of a stored report.
        missing: the first ranges of missing numbers, as (first, last).
        vital: highest number of a stored vital.
    """

    contiguous_to: int
    highest: int
    missing: tuple[tuple[int, int], ...]
    vital: int

    def as_json(self) -> dict[str, Any]:
        """Return the object of the answer to a device."""
        return {
            "contiguous_to": self.contiguous_to,
            "highest": self.highest,
            "missing": [list(one) for one in self.missing],
            "vital": self.vital,
        }


@dataclass(slots=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        new: lines that were stored.
        known: lines that were stored before.
        forks: lines that contradict a stored one; also in `refused`.
        refused: the lines that were not accepted.
        devices: device → log → what the store has of the log now, for each log with an accepted line.
    """

    new: int = 0
    known: int = 0
    forks: int = 0
    refused: list[RefusedLine] = field(default_factory=list)
    devices: dict[str, dict[str, LogAnswer]] = field(default_factory=dict)

    @property
    def logs(self) -> dict[str, LogAnswer]:
        """Return what the store has of each log with an accepted line."""
        return {log: answer for logs in self.devices.values() for log, answer in logs.items()}

    @property
    def lines(self) -> int:
        """Return the number of lines of the batch."""
        return self.new + self.known + len(self.refused)

    def add(self, other: "BatchResult", offset: int) -> None:
        """Add the result of another batch.

        Args:
            other: the result.
            offset: number of lines before the batch in its file.
        """
        self.new, self.known, self.forks = self.new + other.new, self.known + other.known, self.forks + other.forks
        self.refused += [replace(one, number=one.number + offset) for one in other.refused]
        for device_id, logs in other.devices.items():
            self.devices.setdefault(device_id, {}).update(logs)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the answer and of `fleet ingest --json`."""
        return {
            "new": self.new,
            "known": self.known,
            "forks": self.forks,
            "refused": [{"line": one.number, "reason": one.reason, "message": one.message} for one in self.refused],
            "logs": {log: answer.as_json() for log, answer in sorted(self.logs.items())},
        }


def ingest(
    database: Database,
    lines: Sequence[bytes],
    *,
    is_allowed: Callable[[str], bool] = lambda _: True,
    now_s: Callable[[], int] = lambda: int(time.time()),
) -> BatchResult:
    """Judge the lines of a batch one by one, and store them in one transaction.

    Args:
        database: the store.
        lines: the lines, without their line ends.
        is_allowed: takes one token of a device, and returns whether it had one.
        now_s: returns the time in Unix seconds.

    Raises:
        FleetStoreUnavailable: the store cannot be written; nothing of the batch is stored.
    """
    result = BatchResult()
    parsed: list[tuple[int, bytes, SignedLine]] = []
    for number, data in enumerate(lines, 1):
        try:
            parsed.append((number, data, parse_line(data)))
        except AirweightsError as error:
            result.refused.append(RefusedLine(number, error.reason, error.message))
    with database.write() as connection:
        batch = _Batch(database, connection, [line for _, _, line in parsed], now_s())
        for number, data, line in parsed:
            try:
                if batch.take(line, data, is_allowed):
                    result.new += 1
                else:
                    result.known += 1
            except AirweightsError as error:
                result.refused.append(RefusedLine(number, error.reason, error.message))
                result.forks += isinstance(error, LineForked)
        batch.write(result.refused)
        result.devices = batch.answers()
    result.refused.sort(key=lambda one: one.number)
    return result


class _Batch:
    """One transaction: the rows that its lines need, read at once, changed in memory, and written at once."""

    def __init__(self, database: Database, connection: Connection, lines: Sequence[SignedLine], now_s: int) -> None:
        self._database, self._connection, self._now_s = database, connection, now_s
        ids = sorted({line.device_id for line in lines})
        self._rows = BatchRows(database, connection)
        self._devices = self._rows.read_devices(ids)
        self._logs = self._rows.read_logs(ids)
        self._highest_stored = {(key[0], key[1]): log.highest for key, log in self._logs.items()}
        self._standings = self._rows.read_standings(ids)
        self._was_suspect = {name: row["is_suspect"] for name, row in self._devices.items()}
        self._before: dict[StandingKey, Standing | None] = {}
        self._reports: dict[tuple[str, str, int], dict[str, Any]] = {}  # to insert
        self._vitals: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._forks: list[dict[str, Any]] = []
        self._daily: Counter[tuple[int, str, str, str, str]] = Counter()
        self._touched: set[LogKey] = set()
        self._lines = self._rows.read_lines(lines, self._logs)

    # judge

    def take(self, line: SignedLine, data: bytes, is_allowed: Callable[[str], bool]) -> bool:
        """Take a line, and return whether it is new; raise the error of a refused one."""
        content = line.report if isinstance(line, SignedReport) else line.vital
        number = line.report.sequence if isinstance(line, SignedReport) else line.vital.number
        is_report = isinstance(line, SignedReport)
        key = (line.device_id, content.log, content.family)
        device = self._devices.get(line.device_id)
        if device is None:
            raise SenderUnregistered(f"line of device {line.device_id[:16]}…, which is not registered")
        if device["is_revoked"]:
            raise SenderRevoked(f"line of device {device['label']!r}, which is revoked")
        stored = self._lines.get((is_report, line.device_id, content.log, number))
        if stored == data:
            self._touched.add(key)
            return False
        if not is_allowed(line.device_id):
            raise SenderTooFast(f"device {device['label']!r} sends more lines than its share")
        verify_line(line, device["ed25519_public"], self._database.repository_id)
        log = self._log_of(key, device["label"])
        place = Place.FORK if log is None else self._place(line, log)
        self._touched.add(key)
        device["seen_s"] = max(device["seen_s"], self._now_s)
        device["is_changed"] = True
        if log is None or place is Place.FORK:
            self._mark_suspect(line, data, number)
            raise LineForked(
                f"device {device['label']!r} signed another line with number {number}, or one that does not follow it",
                hint="find out whether the device's disk was restored or copied",
            )
        if place is Place.KNOWN:
            return False
        self._add(line, data, is_report=is_report)
        self._move_standing(line, log)
        return True

    def _place(self, line: SignedLine, log: LogState) -> Place:
        if isinstance(line, SignedReport):
            report = line.report

            def find_report(number: int) -> StoredReport | None:
                return self._find_report(line.device_id, report.log, number)

            return place_report(report, log, find_report)
        vital = line.vital

        def find_vital(number: int) -> str | None:
            pending = self._vitals.get((line.device_id, vital.log, number))
            return pending["digest"] if pending else self._find_vital(line.device_id, vital.log, number)

        return place_vital(vital, log, find_vital)

    def _find_report(self, device_id: str, log: str, number: int) -> StoredReport | None:
        pending = self._reports.get((device_id, log, number))
        if pending is not None:
            return StoredReport(pending["digest"], pending["previous"])
        if number > self._highest_stored.get((device_id, log), 0):
            return None
        where = (REPORT.c.device_id == device_id) & (REPORT.c.log == log) & (REPORT.c.sequence == number)
        row = self._connection.execute(select(REPORT.c.digest, REPORT.c.previous).where(where)).first()
        return None if row is None else StoredReport(row.digest, row.previous)

    def _find_vital(self, device_id: str, log: str, number: int) -> str | None:
        where = (VITAL.c.device_id == device_id) & (VITAL.c.log == log) & (VITAL.c.number == number)
        return self._connection.execute(select(VITAL.c.digest).where(where)).scalar()

    def _log_of(self, key: LogKey, label: str) -> LogState | None:
        """Return the state of a log, new if it has no line yet; None if it is the log of another family."""
        log = self._logs.get(key)
        if log is None:
            if any((device, name) == key[:2] for device, name, _ in self._logs):
                return None
            if sum(1 for device, _, family in self._logs if (device, family) == (key[0], key[2])) >= MAX_LOGS:
                raise LogLimitReached(f"device {label!r} has {MAX_LOGS} logs already")
            log = self._logs[key] = LogState(started_s=self._now_s)
        return log

    def _mark_suspect(self, line: SignedLine, data: bytes, number: int) -> None:
        content = line.report if isinstance(line, SignedReport) else line.vital
        self._devices[line.device_id]["is_suspect"] = True
        for family in {family for device, family in self._standings if device == line.device_id}:
            self._remember(line.device_id, family)
        self._forks.append(
            {
                "device_id": line.device_id,
                "digest": content.digest(),
                "family": content.family,
                "log": content.log,
                "number": number,
                "received_s": self._now_s,
                "line": data,
            }
        )

    def _add(self, line: SignedLine, data: bytes, *, is_report: bool) -> None:
        content = line.report if isinstance(line, SignedReport) else line.vital
        row = {
            "device_id": line.device_id,
            "log": content.log,
            "digest": content.digest(),
            "family": content.family,
            "received_s": self._now_s,
            "line": data,
        }
        day = self._now_s // DAY_S
        if isinstance(line, SignedReport):
            report = line.report
            self._reports[line.device_id, report.log, report.sequence] = row | {
                "sequence": report.sequence,
                "previous": report.previous,
            }
            value = "failed" if report.is_failure else report.outcome
            self._daily[day, report.family, report.channel, report.release, value] += 1
            self._lines[True, line.device_id, report.log, report.sequence] = data
        else:
            vital = line.vital
            self._vitals[line.device_id, vital.log, vital.number] = row | {"number": vital.number}
            self._daily[day, vital.family, vital.channel, vital.release or "unknown", "vital"] += 1
            self._lines[is_report, line.device_id, vital.log, vital.number] = data

    def _move_standing(self, line: SignedLine, log: LogState) -> None:
        content = line.report if isinstance(line, SignedReport) else line.vital
        key = (line.device_id, content.family)
        before = self._standings.get(key)
        now = standing_in_log(before, content.log, log.started_s)
        if now is None:
            return
        now = now.with_report(line.report) if isinstance(line, SignedReport) else now.with_vital(line.vital)
        if now != before:
            self._remember(*key)
            self._standings[key] = now

    def _remember(self, device_id: str, family: str) -> None:
        """Keep the standing from before the batch, whose rows of the tally have to be taken back."""
        self._before.setdefault((device_id, family), self._standings.get((device_id, family)))

    # write

    def write(self, refused: Iterable[RefusedLine]) -> None:
        """Write all changed rows, and count the refused lines by reason."""
        rows = self._rows
        rows.insert_lines(REPORT, list(self._reports.values()))
        rows.insert_lines(VITAL, list(self._vitals.values()))
        rows.insert_forks(self._forks)
        rows.update_devices(self._devices)
        rows.write_logs(self._logs)
        rows.write_standings({key: self._standings[key] for key in self._before})
        rows.add_counts(TALLY, "devices", self._tally())
        rows.add_daily(self._daily)
        rows.add_refused(self._now_s // DAY_S, Counter(one.reason for one in refused))

    def _tally(self) -> Counter[TallyRow]:
        tally: Counter[TallyRow] = Counter()
        for (device_id, family), before in self._before.items():
            device, now = self._devices[device_id], self._standings[device_id, family]
            if before is not None:
                was_suspect = self._was_suspect[device_id]
                tally.subtract(tally_rows(before, family, device["cohort"], is_suspect=was_suspect))
            tally.update(tally_rows(now, family, device["cohort"], is_suspect=device["is_suspect"]))
        return tally

    def answers(self) -> dict[str, dict[str, LogAnswer]]:
        """Return what the store has of each log with an accepted line, by device."""
        found: dict[str, dict[str, LogAnswer]] = {}
        for key in self._touched:
            log = self._logs.get(key)
            if log is None:
                continue
            missing: list[tuple[int, int]] = []
            if log.contiguous_to < log.highest:
                where = (REPORT.c.device_id == key[0]) & (REPORT.c.log == key[1])
                query = select(REPORT.c.sequence).where(where & (REPORT.c.sequence > log.contiguous_to))
                numbers = self._connection.execute(query.order_by(REPORT.c.sequence)).scalars()
                missing = missing_ranges(log, list(numbers))
            answer = LogAnswer(log.contiguous_to, log.highest, tuple(missing), log.vital_number)
            found.setdefault(key[0], {})[key[1]] = answer
        return found
