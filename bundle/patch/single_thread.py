"""One BLAS thread while patches are encoded or decoded.

A patch's products are small: waking other cores takes longer than it saves. In the encoder one thread also makes sums
come out in the same order on every run; the decoder's sums are exact in any order.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

_LOCK: Final = threading.Lock()
_SAVED_THREAD_COUNTS: Final[list[int]] = []  # the thread count to restore, one entry per active block
_PREFIXES: Final = ("scipy_openblas_%s64_", "scipy_openblas_%s", "openblas_%s64_", "openblas_%s")


@contextmanager
def use_single_thread() -> Iterator[None]:
    """Use one BLAS thread inside the block; do nothing if numpy's OpenBLAS is not found."""
    found = _find_thread_functions()
    if found is None:
        yield
        return
    get, set_ = found
    with _LOCK:
        # The setting belongs to the process: the first block changes it, the last one restores it.
        if not _SAVED_THREAD_COUNTS:
            _SAVED_THREAD_COUNTS.append(get())
            set_(1)
        else:
            _SAVED_THREAD_COUNTS.append(_SAVED_THREAD_COUNTS[0])
    try:
        yield
    finally:
        with _LOCK:
            before = _SAVED_THREAD_COUNTS.pop()
            if not _SAVED_THREAD_COUNTS:
                set_(before)


@cache
def _find_thread_functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or numpy.__file__ is None:
        return None
    folder = Path(numpy.__file__).parent.parent / "numpy.libs"
    try:
        libraries = sorted(folder.glob("*openblas*"))
    except OSError:  # a jail may hide the folder; BLAS then keeps its threads
        return None
    for library in libraries:
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError:
            continue
        for prefix in _PREFIXES:
            get = getattr(loaded, prefix % "get_num_threads", None)
            set_ = getattr(loaded, prefix % "set_num_threads", None)
            if get is not None and set_ is not None:
                return get, set_
    return None
