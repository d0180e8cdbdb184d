"""The inheritance of a worker: a few environment variables of the supervisor, and blocked signals."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from device_agent.process.worker import HELD_SIGNALS

INHERITED_VARIABLES: Final = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"),
)
# one thread: a second thread started before the jail would escape Landlock; few arenas: arenas cost resident memory
FIXED_VARIABLES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONFAULTHANDLER": "1",
}


@contextmanager
def hold_signals() -> Iterator[None]:
    """Block HELD_SIGNALS in this thread: a process that is started meanwhile begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a worker, with `extra` ones."""
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    return {**inherited, **FIXED_VARIABLES, **extra}
