"""What time it is, for judging expiry.

Rules:
1. now = max(system clock, build time, time floor).
2. A system clock that is not synchronized counts as absent: then it is the floor plus the time that certainly passed
   since, which is the time since the floor was set if that was in this boot, else since boot. The build time gets
   nothing added: the software may be younger than the boot.
3. The floor follows the signed `x-issued-at` of the timestamp role, but only to a value at which root, targets and
   release are all unexpired: who stole an online key cannot brick a fleet by dating 2099.
4. A root that replaces the timestamp keys resets the floor to that root's own `x-issued-at`.
The floor never follows the system clock: a wrong clock harms until it is put right and no longer.
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
    """What the caller can say about time.

    Attributes:
        now_s: the system clock, Unix seconds.
        synchronized: does the system say that its clock is set?
        build_time_s: when this software was built, Unix seconds.
        boot_elapsed_s: since boot, suspend included.
        boot_id: names this boot (Linux: /proc/sys/kernel/random/boot_id), "" where unknown.
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
        time_s: Unix seconds.
        boot_id, boot_elapsed_s: when it was set.
    """

    time_s: int = 0
    boot_id: str = ""
    boot_elapsed_s: int = 0


def current_time(clock: ClockFacts, floor: TimeFloor) -> int:
    """Rules 1 and 2, Unix seconds."""
    proven = max(clock.build_time_s, floor.time_s)
    if clock.is_synchronized:
        return min(max(clock.now_s, proven), MAX_TIME_S)
    # without a boot id, a floor set at a smaller uptime may be of this boot: the shorter time is the certain one
    is_this_boot = clock.boot_id == floor.boot_id and floor.boot_elapsed_s <= clock.boot_elapsed_s
    passed = clock.boot_elapsed_s - floor.boot_elapsed_s if is_this_boot else clock.boot_elapsed_s
    return min(max(proven, floor.time_s + max(passed, 0) if floor.time_s else 0), MAX_TIME_S)


def raise_floor(floor: TimeFloor, issued_at_s: int | None, expiries_s: Iterable[int], clock: ClockFacts) -> TimeFloor:
    """Rule 3.

    Args:
        floor: before.
        issued_at_s: of the verified timestamp, or None where it has none.
        expiries_s: of root, targets and release.
        clock: of this check.
    """
    if issued_at_s is None or issued_at_s <= floor.time_s or any(issued_at_s >= expiry for expiry in expiries_s):
        return floor
    return TimeFloor(issued_at_s, clock.boot_id, max(clock.boot_elapsed_s, 0))


def is_suspect(clock: ClockFacts, floor: TimeFloor) -> bool:
    """Does the system clock contradict what is proven, or is it not synchronized?"""
    return not clock.is_synchronized or clock.now_s < max(clock.build_time_s, floor.time_s)


def parse_time(text: object) -> int | None:
    """Unix seconds of TUF's time format, or None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        return int(datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def format_time(time_s: int) -> str:
    """TUF's time format."""
    return datetime.fromtimestamp(time_s, UTC).strftime(TIME_FORMAT)
