"""Keeps freed memory in the process while a patch is applied, so that the next block gets it back without page faults.

A block's arrays are some hundred kilobytes each, just above the size from which the C library maps memory afresh and
returns it at once: without this, a fifth to a third of the time of applying goes into page faults. What is held at the
same time, and so the peak, stays as it is. The C library gives memory back as it always does once the block is left.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

RETAINED_BYTES: Final = 64 << 20  # far above what the limits let a patch hold
DEFAULT_BYTES: Final = 128 << 10  # both thresholds of the GNU C library before anything sets them
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3

_LOCK: Final = threading.Lock()
_ACTIVE_BLOCKS: Final[list[None]] = []


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Inside the block memory is reused; where the C library is not GNU's nothing changes."""
    mallopt = _find_mallopt()
    if mallopt is None:
        yield
        return
    with _LOCK:
        # The thresholds are the process's: the first one in raises them, the last one out lowers them.
        if not _ACTIVE_BLOCKS:
            _set_threshold(mallopt, RETAINED_BYTES)
        _ACTIVE_BLOCKS.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _ACTIVE_BLOCKS.pop()
            if not _ACTIVE_BLOCKS:
                _set_threshold(mallopt, DEFAULT_BYTES)


def _set_threshold(mallopt: Callable[[int, int], int], size: int) -> None:
    mallopt(_M_MMAP_THRESHOLD, min(size, 32 << 20))  # the library takes no more on 64-bit systems
    mallopt(_M_TRIM_THRESHOLD, size)


@cache
def _find_mallopt() -> Callable[[int, int], int] | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version.restype = ctypes.c_char_p
        mallopt: Callable[[int, int], int] = library.mallopt
    except (OSError, AttributeError):
        return None
    library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    return mallopt
