"""Memory settings of the C library that let a patch reuse freed memory without page faults.

A block's arrays are some hundred kilobytes each. From just below that size on, the C library maps new memory for each
array and returns it when the array is freed; page faults then take a fifth to a third of the time of applying. The
settings do not change how much memory is in use at one time, so the peak stays the same. After the block the C library
returns memory as usual.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

RETAINED_BYTES: Final = 64 << 20  # far above the memory that the limits allow a patch
DEFAULT_BYTES: Final = 128 << 10  # default of both thresholds in the GNU C library
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3

_LOCK: Final = threading.Lock()
_ACTIVE_BLOCKS: Final[list[None]] = []


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Reuse freed memory inside the block; do nothing if the C library is not GNU's."""
    mallopt = _find_mallopt()
    if mallopt is None:
        yield
        return
    with _LOCK:
        # The thresholds belong to the process: the first block raises them, the last one lowers them.
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
    mallopt(_M_MMAP_THRESHOLD, min(size, 32 << 20))  # the library's maximum on 64-bit systems
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
