"""Keep the memory of a process at rest small.

Rule: `leave_out_openssl` comes before anything that imports `hashlib`.
"""

import contextlib
import ctypes
import gc
import sys
from importlib.util import find_spec
from typing import Any


def leave_out_openssl() -> None:
    """Make `hashlib` use the interpreter's own SHA-256 instead of OpenSSL's library, which takes 3.4 MiB.

    It is for processes that compute digests of short texts only. An interpreter without a SHA-256 of its own keeps
    OpenSSL's.
    """
    own = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
    modules: dict[str, Any] = sys.modules
    if "_hashlib" not in modules and find_spec(own) is not None:
        modules["_hashlib"] = None  # its import raises ImportError, which hashlib is prepared for


def release_memory() -> None:
    """Return unused memory to the system, before the process sleeps until the next poll."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc: the C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
