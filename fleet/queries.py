"""Queries of the commands and of the page.

Rules:
- The page reads sums only (`tally`, `daily`), so that its cost does not grow with the fleet.
- Counts are lower bounds: a lost store counts less until the devices sent their lines again.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, func, or_, select, true

from fleet.database import Database
from fleet.line import ReceivedLine
from fleet.standing import FAILED, STRATUM_KINDS, Standing
from fleet.tables import DAILY, DEVICE, FORK, LOG, REFUSED, REPORT, STANDING, TALLY, VITAL

LINES_IN_MEMORY: Final = 2_000
DAY_S: Final = 86_400
SILENT_AFTER_S: Final = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class ReleaseCounts:
    """The devices of one family, channel and release.

    Attributes:
        family: name of the family.
        channel: channel.
        release: version.
        values: kind of the tally → value → devices.
    """

    family: str
    channel: str
    release: str
    values: Mapping[str, Mapping[str, int]]

    @property
    def devices(self) -> int:
        """Return the number of devices that stand for the release, without suspect ones."""
        return sum(self.values.get("state", {}).values())

    @property
    def failed(self) -> int:
        """Return the number of devices on which the release failed."""
        return self.values.get("state", {}).get(FAILED, 0)

    @property
    def suspects(self) -> int:
        """Return the number of suspect devices."""
        return sum(self.values.get("suspect", {}).values())

    def strata(self) -> Iterator[tuple[str, str, int, int]]:
        """Iterate over the strata: kind, value, devices, failed devices."""
        for kind in STRATUM_KINDS:
            failed = self.values.get(f"failed-{kind}", {})
            for value, devices in sorted(self.values.get(kind, {}).items(), key=lambda row: (-row[1], row[0])):
                yield kind, value, devices, failed.get(value, 0)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `fleet status --json`."""
        return {
            "family": self.family,
            "channel": self.channel,
            "release": self.release,
            "devices": self.devices,
            "failed": self.failed,
            "suspects": self.suspects,
            "states": dict(self.values.get("state", {})),
            "failures": dict(self.values.get("failure", {})),
            "reasons": dict(self.values.get("reason", {})),
            "strata": [
                {"kind": kind, "value": value, "devices": devices, "failed": failed}
                for kind, value, devices, failed in self.strata()
            ],
        }


@dataclass(frozen=True, slots=True)
class FleetTotals:
    """Sums over the whole store.

    Attributes:
        registered: registered devices that are not revoked.
        heard: of these, those with an accepted line.
        silent: of the heard ones, those without a line for SILENT_AFTER_S.
        suspects: suspect devices.
        newest_s: receipt of the newest line, Unix seconds; 0 without one.
        refused: reason → refused lines.
    """

    registered: int
    heard: int
    silent: int
    suspects: int
    newest_s: int
    refused: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `fleet status --json`."""
        return {
            "registered": self.registered,
            "heard": self.heard,
            "silent": self.silent,
            "suspects": self.suspects,
            "newest_s": self.newest_s or None,
            "refused": dict(self.refused),
        }


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as the commands show it.

    Attributes:
        device_id: its id.
        label: its label.
        cohort: its cohort.
        is_revoked: whether it is revoked.
        is_suspect: whether its lines contradict each other.
        seen_s: receipt of its newest line, Unix seconds; 0 without one.
        standings: family → standing.
    """

    device_id: str
    label: str
    cohort: str
    is_revoked: bool
    is_suspect: bool
    seen_s: int
    standings: Mapping[str, Standing]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `fleet show --json`."""
        return {
            "device_id": self.device_id,
            "label": self.label,
            "cohort": self.cohort,
            "revoked": self.is_revoked,
            "suspect": self.is_suspect,
            "seen_s": self.seen_s or None,
            "families": {
                family: {name: getattr(row.position, name) for name in row.position.__dataclass_fields__}
                for family, row in sorted(self.standings.items())
            },
        }


def read_release_counts(database: Database, family: str | None = None) -> list[ReleaseCounts]:
    """Return the counts of all releases with a device, the most devices first.

    Args:
        database: the store.
        family: name of a family, or None for all.
    """
    query = select(TALLY).where(TALLY.c.devices > 0)
    if family is not None:
        query = query.where(TALLY.c.family == family)
    found: dict[tuple[str, str, str], dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    with database.read() as connection:
        for row in connection.execute(query):
            found[row.family, row.channel, row.release][row.kind][row.value] = row.devices
    releases = [ReleaseCounts(*key, values) for key, values in found.items()]
    return sorted(releases, key=lambda one: (one.family, one.channel, -one.devices, one.release))


def read_totals(database: Database, now_s: int) -> FleetTotals:
    """Return the sums over the whole store.

    Args:
        database: the store.
        now_s: the time, Unix seconds.
    """
    is_current = ~DEVICE.c.is_revoked
    is_heard = is_current & (DEVICE.c.seen_s > 0)
    with database.read() as connection:
        row = connection.execute(
            select(
                func.count().filter(is_current),
                func.count().filter(is_heard),
                func.count().filter(is_heard & (DEVICE.c.seen_s < now_s - SILENT_AFTER_S)),
                func.count().filter(is_current & DEVICE.c.is_suspect),
                func.max(DEVICE.c.seen_s),
            )
        ).one()
        refused = connection.execute(select(REFUSED.c.reason, func.sum(REFUSED.c.lines)).group_by(REFUSED.c.reason))
        return FleetTotals(row[0], row[1], row[2], row[3], row[4] or 0, {r[0]: int(r[1]) for r in refused})


def read_daily(database: Database, since_day: int) -> list[Row[Any]]:
    """Return the daily sums from a day on: day, family, channel, release, value, lines.

    Args:
        database: the store.
        since_day: days since 1970-01-01.
    """
    with database.read() as connection:
        return list(connection.execute(select(DAILY).where(DAILY.c.day >= since_day).order_by(DAILY.c.day)))


def find_device(database: Database, label_or_id: str) -> DeviceRow | None:
    """Return a device by its label or id, or None.

    Args:
        database: the store.
        label_or_id: label or device id.
    """
    where = or_(DEVICE.c.label == label_or_id, DEVICE.c.device_id == label_or_id)
    found = list(_read_device_rows(database, where))
    return found[0] if found else None


def read_devices(
    database: Database, *, suspects: bool = False, silent_before_s: int | None = None, limit: int | None = None
) -> list[DeviceRow]:
    """Return devices, sorted by label.

    Args:
        database: the store.
        suspects: suspect devices only.
        silent_before_s: only devices that are not revoked and sent no line since this time, Unix seconds.
        limit: at most so many.
    """
    where: ColumnElement[bool] = true()
    if suspects:
        where = where & DEVICE.c.is_suspect
    if silent_before_s is not None:
        where = where & ~DEVICE.c.is_revoked & (DEVICE.c.seen_s < silent_before_s)
    return list(_read_device_rows(database, where, limit))


def read_forks(database: Database, device_id: str) -> list[Row[Any]]:
    """Return the lines of a device that contradict stored ones.

    Args:
        database: the store.
        device_id: id of the device.
    """
    with database.read() as connection:
        return list(connection.execute(select(FORK).where(FORK.c.device_id == device_id).order_by(FORK.c.received_s)))


def read_logs(database: Database, device_id: str) -> list[Row[Any]]:
    """Return the logs of a device, the oldest first.

    Args:
        database: the store.
        device_id: id of the device.
    """
    with database.read() as connection:
        return list(connection.execute(select(LOG).where(LOG.c.device_id == device_id).order_by(LOG.c.started_s)))


def read_lines(database: Database, family: str, since_s: int = 0) -> Iterator[ReceivedLine]:
    """Iterate over the signed lines of a family as they came, contradicting ones as well.

    Args:
        database: the store.
        family: name of the family.
        since_s: skip lines that were received before, Unix seconds.
    """
    for table in (REPORT, VITAL, FORK):
        where = (table.c.family == family) & (table.c.received_s >= since_s)
        query = select(table.c.received_s, table.c.line).where(where).order_by(table.c.received_s)
        with database.read() as connection:
            rows = connection.execution_options(yield_per=LINES_IN_MEMORY).execute(query)
            for row in rows:
                yield ReceivedLine(row.received_s, bytes(row.line))


def _read_device_rows(database: Database, where: Any, limit: int | None = None) -> Iterator[DeviceRow]:
    with database.read() as connection:
        query = select(DEVICE).where(where).order_by(DEVICE.c.label)
        devices = connection.execute(query if limit is None else query.limit(limit)).all()
        standings: dict[str, dict[str, Standing]] = defaultdict(dict)
        names = (STANDING.c.device_id, STANDING.c.family, STANDING.c.log, STANDING.c.log_started_s, STANDING.c.facts)
        for start in range(0, len(devices), LINES_IN_MEMORY):
            ids = [row.device_id for row in devices[start : start + LINES_IN_MEMORY]]
            for row in connection.execute(select(*names).where(STANDING.c.device_id.in_(ids))):
                standings[row.device_id][row.family] = Standing.from_store(row.log, row.log_started_s, row.facts)
    for row in devices:
        yield DeviceRow(
            row.device_id,
            row.label,
            row.cohort,
            row.is_revoked,
            row.is_suspect,
            row.seen_s,
            standings.get(row.device_id, {}),
        )
