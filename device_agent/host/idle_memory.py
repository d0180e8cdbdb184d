"""Give unused memory back to the system."""

import contextlib
import ctypes
import gc


def release_memory() -> None:
    """Return unused memory to the system, before the process sleeps until the next poll."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc: the C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
