"""The place of a line in its log: new, known, late, or a fork. No I/O.

A device numbers the reports of a log from 1, and each names the digest of the one before it. Rules, for a report n:

1. n is one more than the highest number: it must name the digest of the report before it.
2. n is higher: reports are missing; the gap stays open until they come.
3. n is lower or equal, and stored: the same digest is a duplicate, another one is a fork.
4. n is lower, and missing: it fills a gap, if both neighbors that are stored agree with it; else it is a fork.
5. n is at most `contiguous_to`, and not stored any more: it was deleted by retention, and is a duplicate.

Vitals are numbered, not chained: a second one with a number and another digest is a fork.

A fork means that two disks sign with one key: one was restored from a copy, or cloned. Clones that alternate are found
as well, since the chain of one does not lead to the reports of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from bundle.device_report import DeviceReport
from bundle.vital import Vital

MAX_MISSING_RANGES: Final = 8  # in one answer


class Place(StrEnum):
    """The place of a line in its log."""

    NEW = "new"
    LATE = "late"
    KNOWN = "known"
    FORK = "fork"


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A stored report, as far as its neighbors need it.

    Attributes:
        digest: its digest.
        previous: the digest that it names as the one before it, or None.
    """

    digest: str
    previous: str | None


@dataclass(slots=True)
class LogState:
    """The state of one log of a device and family.

    Attributes:
        contiguous_to: highest n for which the reports 1 to n came.
        highest: highest number of a report, or 0.
        highest_digest: digest of that report, or None.
        vital_number: highest number of a vital, or 0.
        vital_digest: digest of that vital, or None.
        started_s: receipt of the first line of the log, Unix seconds.
        is_changed: whether the state differs from the stored one.
    """

    contiguous_to: int = 0
    highest: int = 0
    highest_digest: str | None = None
    vital_number: int = 0
    vital_digest: str | None = None
    started_s: int = 0
    is_changed: bool = field(default=False, compare=False)


def place_report(report: DeviceReport, log: LogState, find: Callable[[int], StoredReport | None]) -> Place:
    """Find the place of a report, and update its log unless it is known or a fork.

    Args:
        report: the report.
        log: state of its log; changed.
        find: returns the stored report of a number in this log, or None.
    """
    number, digest = report.sequence, report.digest()
    if number == log.highest + 1:
        if number > 1 and report.previous != log.highest_digest:
            return Place.FORK
        _advance(log, number, digest, find)
        return Place.NEW
    if number > log.highest:
        _advance(log, number, digest, find)
        return Place.NEW
    stored = find(number)
    if stored is not None:
        return Place.KNOWN if stored.digest == digest else Place.FORK
    if number <= log.contiguous_to:
        return Place.KNOWN
    before, after = find(number - 1), find(number + 1)
    if (before is not None and before.digest != report.previous) or (after is not None and after.previous != digest):
        return Place.FORK
    log.is_changed = True
    if number == log.contiguous_to + 1:
        log.contiguous_to = _last_of_run(number, find)
    return Place.LATE


def place_vital(vital: Vital, log: LogState, find: Callable[[int], str | None]) -> Place:
    """Find the place of a vital, and update its log unless it is known or a fork.

    Args:
        vital: the vital.
        log: state of its log; changed.
        find: returns the digest of the stored vital of a number in this log, or None.
    """
    digest = vital.digest()
    if vital.number > log.vital_number:
        log.vital_number, log.vital_digest, log.is_changed = vital.number, digest, True
        return Place.NEW
    stored = log.vital_digest if vital.number == log.vital_number else find(vital.number)
    if stored is None:
        return Place.LATE
    return Place.KNOWN if stored == digest else Place.FORK


def missing_ranges(log: LogState, stored: list[int]) -> list[tuple[int, int]]:
    """Return the first ranges of missing numbers of a log.

    Args:
        log: state of the log.
        stored: stored numbers above `log.contiguous_to`, sorted.
    """
    ranges, expected = [], log.contiguous_to + 1
    for number in stored:
        if number > expected:
            ranges.append((expected, number - 1))
        expected = number + 1
    return ranges[:MAX_MISSING_RANGES]


def _advance(log: LogState, number: int, digest: str, find: Callable[[int], StoredReport | None]) -> None:
    if log.contiguous_to == number - 1:
        log.contiguous_to = _last_of_run(number, find)
    log.highest, log.highest_digest, log.is_changed = number, digest, True


def _last_of_run(number: int, find: Callable[[int], StoredReport | None]) -> int:
    while find(number + 1) is not None:
        number += 1
    return number
