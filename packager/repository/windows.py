"""Maintenance windows of a rollout, written in local time, and their description.

Rules:
- A rollout has instants (Unix seconds), so a window opens at one moment for all devices, wherever they are. People
  write local time; the time zone is named, and every window is shown in local time with its offset, and in UTC.
- `02:00/04:00` is one window a day, for the next days, each computed on its own day, so that the local time stays when
  the clocks change. `2026-12-01T02:00/2026-12-01T04:00` is one window; a time may carry its own offset or `Z`.
- A time that the clocks skip counts as the moment of the change. Of a time that occurs twice, a window takes the first
  as its start and the second as its end. Both are reported in a note.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bundle.rollout import Window
from packager.errors import WindowInvalid

TIME_PATTERN: Final = re.compile(r"[0-9]{1,2}:[0-9]{2}")
MAX_WINDOWS: Final = 64  # of a rollout
MIN_YEAR: Final = 1971  # Unix times are positive, in every time zone
MAX_YEAR: Final = 9998  # the last year of `datetime` in one time zone is beyond it in another
EXPECTED: Final = "expected START/END: 02:00/04:00, or 2026-12-01T02:00/2026-12-01T04:00"


@dataclass(frozen=True, slots=True)
class ParsedWindows:
    """Windows, sorted by their start, and notes about changes of the clocks."""

    windows: tuple[Window, ...]
    notes: tuple[str, ...]


def find_zone(name: str) -> tzinfo:
    """Return the time zone of an IANA name; for "", that of the variable TZ, or else this machine's.

    Raises:
        WindowInvalid: no such zone is known.
    """
    if not name:
        return _local_zone()
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise WindowInvalid(f"--timezone: found {name!r}, expected an IANA name such as Europe/Berlin") from error


def parse_windows(texts: Sequence[str], zone: tzinfo, days: int, now_s: int) -> ParsedWindows:
    """Parse the values of `--window`.

    Args:
        texts: the values.
        zone: time zone of times without an offset.
        days: number of days of a daily window, today included.
        now_s: current Unix time in seconds.

    Raises:
        WindowInvalid: a value is malformed, a window ends before it starts, all are in the past, or they are too many.
    """
    found: set[tuple[int, int]] = set()
    notes: list[str] = []
    for text in texts:
        first, slash, last = text.partition("/")
        if not slash:
            raise WindowInvalid(f"--window: found {text!r}, {EXPECTED}")
        if TIME_PATTERN.fullmatch(first) and TIME_PATTERN.fullmatch(last):
            pairs = _daily(text, first, last, zone, days, now_s)
        else:
            pairs = [(_parse_moment(text, first, zone), _parse_moment(text, last, zone))]
        for start, end in pairs:
            window = (_instant(start, 0, notes), _instant(end, 1, notes))
            if window[1] <= window[0]:
                raise WindowInvalid(f"--window: {text!r} ends before it starts")
            if window[1] > now_s:
                found.add(window)
    if texts and not found:
        raise WindowInvalid(f"--window: {', '.join(texts)}: all windows have closed")
    if len(found) > MAX_WINDOWS:
        raise WindowInvalid(f"--window: found {len(found)} windows, expected at most {MAX_WINDOWS}")
    return ParsedWindows(tuple(Window(*window) for window in sorted(found)), tuple(dict.fromkeys(notes)))


def describe_windows(windows: Sequence[Window], zone: tzinfo, now_s: int) -> list[str]:
    """Return lines for a terminal: when the next window opens or this one closes, and every coming window.

    Args:
        windows: windows of a rollout, in any order.
        zone: time zone to show.
        now_s: current Unix time in seconds.
    """
    if not windows:
        return []
    coming = sorted((window for window in windows if window.end_s > now_s), key=lambda window: window.start_s)
    if not coming:
        return ["all windows have closed: no device activates the release"]
    first = coming[0]
    state = (
        f"a window is open until {_shown(first.end_s, zone)}"
        if first.start_s <= now_s
        else f"the next window opens at {_shown(first.start_s, zone)}, in {_duration(first.start_s - now_s)}"
    )
    return [state, *(f"window {_shown(one.start_s, zone)} to {_shown(one.end_s, zone)}" for one in coming)]


def _local_zone() -> tzinfo:
    """Return the zone of the variable TZ, else this machine's; without its rules, the offset of today."""
    try:
        if text := os.environ.get("TZ"):
            return ZoneInfo(text.removeprefix(":"))
        with open("/etc/localtime", "rb") as stream:
            return ZoneInfo.from_file(stream, key="local")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        zone = datetime.now(UTC).astimezone().tzinfo
        assert zone is not None
        return zone


def _daily(text: str, first: str, last: str, zone: tzinfo, days: int, now_s: int) -> list[tuple[datetime, datetime]]:
    try:
        start, end = (time(int(part.partition(":")[0]), int(part.partition(":")[2])) for part in (first, last))
    except ValueError as error:
        raise WindowInvalid(f"--window: found {text!r}, {EXPECTED}") from error
    today = datetime.fromtimestamp(now_s, zone).date()
    nights = timedelta(days=0 if start < end else 1)  # 22:00/02:00 ends on the next day
    return [
        (datetime.combine(day, start, zone), datetime.combine(day + nights, end, zone))
        for day in (today + timedelta(days=number) for number in range(days))
    ]


def _parse_moment(text: str, part: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(part)
    except ValueError as error:
        raise WindowInvalid(f"--window: found {text!r}, {EXPECTED}") from error
    if not MIN_YEAR <= moment.year <= MAX_YEAR:
        raise WindowInvalid(f"--window: found {text!r}, expected years from {MIN_YEAR} to {MAX_YEAR}")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)


def _instant(moment: datetime, fold: int, notes: list[str]) -> int:
    """Return the Unix time of a local time; `fold` selects one of two that read the same."""
    first, second = (moment.replace(fold=number) for number in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return int(moment.timestamp())
    shown = f"{moment:%Y-%m-%d %H:%M}"
    is_skipped = datetime.fromtimestamp(first.timestamp(), moment.tzinfo).replace(tzinfo=None) != first.replace(
        tzinfo=None
    )
    if is_skipped:
        notes.append(f"{shown} does not exist in this time zone: the clocks skip it; the moment of the change is taken")
        return _change_of_clocks(second, first)
    notes.append(f"{shown} occurs twice in this time zone; the {'second' if fold else 'first'} one is taken")
    return int(moment.replace(fold=fold).timestamp())


def _change_of_clocks(before: datetime, after: datetime) -> int:
    """Return the Unix time at which the offset changes, between two moments that enclose it."""
    zone, low, high = before.tzinfo, int(before.timestamp()), int(after.timestamp())
    offset = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high


def _shown(unix_s: int, zone: tzinfo) -> str:
    local = datetime.fromtimestamp(unix_s, zone)
    return f"{local:%Y-%m-%d %H:%M %z} ({datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%MZ})"


def _duration(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    hours, minutes = divmod(rest // 60, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
