"""Facts about the device's clock, for the verifier (bundle.trust.clock).

The clock counts as synchronized if the kernel's STA_UNSYNC is clear, or if the marker file of systemd-timesyncd exists.
"""

import ctypes
import time
from pathlib import Path
from typing import Final

BUILT_AT_S: Final = 1_795_305_600  # 2026-11-22: a clock before the build date of this software is wrong
STA_UNSYNC: Final = 0x0040  # linux/timex.h
TIMEX_BYTES: Final = 208  # sizeof(struct timex) on 64-bit Linux; 128 on 32-bit
STATUS_OFFSET_BYTES: Final = 40  # offset of `int status` in it: after `modes` and four longs
SYNCHRONIZED_MARK_PATH: Final = Path("/run/systemd/timesync/synchronized")
BOOT_ID_PATH: Final = Path("/proc/sys/kernel/random/boot_id")


def clock_facts() -> dict[str, int | bool | str]:
    """Return the fields of bundle.trust.clock.ClockFacts: times in Unix seconds, boot time in seconds."""
    boot_id, boot_elapsed_s = read_boot_clock()
    return {
        "now_s": int(time.time()),
        "is_synchronized": is_synchronized(),
        "build_time_s": BUILT_AT_S,
        "boot_elapsed_s": boot_elapsed_s,
        "boot_id": boot_id,
    }


def read_boot_clock() -> tuple[str, int]:
    """Return the id of this boot, or "" if unknown, and the seconds since it, with time in suspend."""
    boot_id = BOOT_ID_PATH.read_text().strip() if BOOT_ID_PATH.exists() else ""
    return boot_id, int(time.clock_gettime(time.CLOCK_BOOTTIME))


def is_synchronized() -> bool:
    """Return whether the system reports that its clock is synchronized."""
    if SYNCHRONIZED_MARK_PATH.exists():
        return True
    if ctypes.sizeof(ctypes.c_long) != 8:
        return False
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return False
    status = int.from_bytes(buffer.raw[STATUS_OFFSET_BYTES : STATUS_OFFSET_BYTES + 4], "little")
    return not status & STA_UNSYNC
