"""Lock memory so that keys and plain models are not written to swap.

Rules:
1. A worker that has keys or a plain model in memory locks its memory page by page, as pages are first used (mlockall(2)
   with MCL_ONFAULT), if it may lock an unlimited amount: as root, or with RLIMIT_MEMLOCK raised, as in the shipped
   systemd unit. A limited lock is not started, because an allocation would fail in the middle of an inference.
2. If the memory cannot be locked, `status` reports `memory_swappable`, unless this machine has no swap or this
   control group may not use it.

A memfd is locked only where it is mapped. The agent's memfds exist only while a model loads.
"""

import ctypes
import resource
from pathlib import Path
from typing import Final

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # linux/mman.h
SWAPS: Final = Path("/proc/swaps")
GROUPS: Final = Path("/sys/fs/cgroup")


def lock_memory() -> bool:
    """Lock all present and future memory of this process; return False if that is not allowed."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return False
    return bool(ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0)


def swap_is_enabled() -> bool:
    """Return whether unlocked memory could be swapped out on this machine; True if that is unknown."""
    try:
        devices = SWAPS.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        return bool(devices) and not _is_group_without_swap()
    except OSError:
        return True


def _is_group_without_swap() -> bool:
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "")
    group = GROUPS / own.lstrip("/")
    limits = [folder / "memory.swap.max" for folder in (group, *group.parents) if folder.is_relative_to(GROUPS)]
    return any(limit.exists() and limit.read_text().strip() == "0" for limit in limits)
