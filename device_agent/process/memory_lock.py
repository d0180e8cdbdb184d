"""Whether what is in memory can come to lie in a swap file: keys, plain models.

Rules:
1. A child that holds either locks its memory, page by page as it is used (mlockall(2), MCL_ONFAULT), where it may lock
   without limit: under root, or with RLIMIT_MEMLOCK raised (the shipped unit does). A lock that could run out is not
   begun: an allocation would fail in the middle of an inference.
2. Where it may not, `status` says `swappable`, unless there is no swap here, or none for this control group.
A memory file is locked only where it is mapped; the agent's live for the moment that a model loads.
"""

import ctypes
import resource
from pathlib import Path
from typing import Final

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4  # linux/mman.h
SWAPS: Final = Path("/proc/swaps")
GROUPS: Final = Path("/sys/fs/cgroup")


def lock_memory() -> bool:
    """Lock all of this process's memory, present and future. Changes nothing where it returns False."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return False
    return bool(ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0)


def swap_is_enabled() -> bool:
    """Could memory that is not locked be swapped out here? Yes, where that cannot be told."""
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
