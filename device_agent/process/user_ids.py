"""The user ids of workers, if the agent is root.

A worker that owns no files has an id that is derived from its process id. The id of a worker that owns files
(`JailPolicy.fixed_user`) is the same at every start.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

# first id that no one assigns (systemd documentation, "UIDS-GIDS"); adding the process id makes it unique
FIRST_WORKER_UID: Final = 1_879_048_192
# systemd's range for dynamic users, if a container maps only 65,536 ids
FALLBACK_UID_RANGE: Final = range(61_184, 65_520)
# ids of workers with `fixed_user`: above all process ids (at most 2**22), and above the fallback range
FIXED_USERS: Final = {"verifier": 1, "token_opener": 2}
FIRST_FIXED_UID: Final = FIRST_WORKER_UID + 2**22
FIRST_FIXED_FALLBACK_UID: Final = 65_520


def choose_free_uid() -> int | None:
    """Return an id that no other process has, or None if the system maps too few ids."""
    mapped = _count_mapped_uids()
    if mapped > FIRST_WORKER_UID + os.getpid():
        return FIRST_WORKER_UID + os.getpid()
    taken = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            taken.add(path.stat().st_uid)
    start = os.getpid() % len(FALLBACK_UID_RANGE)
    candidates = (*FALLBACK_UID_RANGE[start:], *FALLBACK_UID_RANGE[:start])
    return next((uid for uid in candidates if uid not in taken and uid < mapped), None)


def choose_fixed_uid(worker: str) -> int | None:
    """Return the id that a worker has at every start, or None if the system maps too few ids.

    Args:
        worker: one of FIXED_USERS.
    """
    mapped = _count_mapped_uids()
    index = FIXED_USERS[worker]
    return next((uid + index for uid in (FIRST_FIXED_UID, FIRST_FIXED_FALLBACK_UID) if uid + index < mapped), None)


def _count_mapped_uids() -> int:
    mapped: int = 0
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, length = (int(field) for field in line.split())
        mapped = max(mapped, inside + length)
    return mapped
