"""The lock of a check's cache directory: one check at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundle.errors import CheckInProgress


@contextmanager
def lock_cache(cache_dir: Path) -> Iterator[None]:
    """Hold the lock of a cache directory, which is created if missing.

    Raises:
        CheckInProgress: another check holds it.
        OSError: the directory cannot be created.
    """
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(cache_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckInProgress(f"another check has locked {cache_dir / 'lock'}") from error
        yield
    finally:
        os.close(descriptor)
