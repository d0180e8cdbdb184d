"""The time that expiry is judged by, on devices whose clock may be wrong.

Rules:
- With a synchronized system clock, now = max(system clock, build time, time floor).
- A system clock that is not synchronized is ignored. Then now = max(build time, time floor + elapsed), where `elapsed`
  is the time since the floor was set if that happened in this boot, else the time since boot. Nothing is added to the
  build time, because the software may have been built after the boot.
- The time floor rises to the signed `x-issued-at` of the timestamp role only while root, targets and the release role
  are unexpired at that time: an attacker with a stolen online key cannot move a fleet to the year 2099.
- A root that replaces the timestamp keys resets the floor to that root's own `x-issued-at` (bundle.trust.check).
- The floor never follows the system clock, so the effect of a wrong clock ends when the clock is corrected.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

ISSUED_AT_FIELD: Final = "x-issued-at"
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
MAX_TIME_S: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """Clock readings of one machine.

    Attributes:
        now_s: the system clock, Unix seconds.
        is_synchronized: whether the system reports its clock as synchronized.
        build_time_s: when this software was built, Unix seconds.
        boot_elapsed_s: seconds since boot, including time in suspend.
        boot_id: id of this boot (Linux: /proc/sys/kernel/random/boot_id), or "" if unknown.
    """

    now_s: int
    is_synchronized: bool
    build_time_s: int
    boot_elapsed_s: int
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class TimeFloor:
    """The latest time that signed metadata proved to have passed.

    Attributes:
        time_s: the time, in Unix seconds.
        boot_id: the boot in which the floor was set, or "" if unknown.
        boot_elapsed_s: seconds since that boot when the floor was set.
    """

    time_s: int = 0
    boot_id: str = ""
    boot_elapsed_s: int = 0


def current_time(clock: ClockFacts, floor: TimeFloor) -> int:
    """Return the time to judge expiry by, in Unix seconds.

    Args:
        clock: the clock readings of this check.
        floor: the stored time floor.
    """
    proven = max(clock.build_time_s, floor.time_s)
    if clock.is_synchronized:
        return min(max(clock.now_s, proven), MAX_TIME_S)
    # without a boot id, a floor that was set at a smaller uptime may be of this boot; assume so, since it is shorter
    is_this_boot = clock.boot_id == floor.boot_id and floor.boot_elapsed_s <= clock.boot_elapsed_s
    passed = clock.boot_elapsed_s - floor.boot_elapsed_s if is_this_boot else clock.boot_elapsed_s
    return min(max(proven, floor.time_s + max(passed, 0) if floor.time_s else 0), MAX_TIME_S)


def raise_floor(floor: TimeFloor, issued_at_s: int | None, expiries_s: Iterable[int], clock: ClockFacts) -> TimeFloor:
    """Return the time floor after a check: the signed time if it is later and credible, else `floor`.

    Args:
        floor: the stored time floor.
        issued_at_s: signing time of the verified timestamp role, Unix seconds, or None if it has none.
        expiries_s: expiries of root, targets and the release role, Unix seconds; the floor stays below all of them.
        clock: the clock readings of this check.
    """
    if issued_at_s is None or issued_at_s <= floor.time_s or any(issued_at_s >= expiry for expiry in expiries_s):
        return floor
    return TimeFloor(issued_at_s, clock.boot_id, max(clock.boot_elapsed_s, 0))


def parse_time(text: object) -> int | None:
    """Return the Unix seconds of a time in TUF's format (`TIME_FORMAT`), or None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        return int(datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def format_time(time_s: int) -> str:
    """Return a time in TUF's format, for example `2026-01-31T12:00:00Z`; `time_s` is in Unix seconds."""
    return datetime.fromtimestamp(time_s, UTC).strftime(TIME_FORMAT)
