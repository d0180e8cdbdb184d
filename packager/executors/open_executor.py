"""Open the executor that `--executor` names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from packager.diff.run_jobs import JobExecutor
from packager.executors.errors import ExecutorInvalid
from packager.executors.processes import ProcessExecutor

PROCESSES_PATTERN: Final = re.compile(r"processes:([1-9][0-9]{0,2})")
MAX_PROCESSES: Final = 256


@contextmanager
def open_executor(text: str | None, jobs: int = 1) -> Iterator[JobExecutor | None]:
    """Open an executor during a `with` block; None runs jobs in this process.

    Args:
        text: `processes:N`, or None.
        jobs: number of processes if `text` is None.

    Raises:
        ExecutorInvalid: the text is not an executor.
    """
    if text is None:
        text = f"processes:{jobs}"
    found = PROCESSES_PATTERN.fullmatch(text)
    if found is None or int(found[1]) > MAX_PROCESSES:
        raise ExecutorInvalid(f"found {text[:80]!r}, expected processes:N with at most {MAX_PROCESSES} processes")
    if int(found[1]) == 1:
        yield None
        return
    with ProcessExecutor(int(found[1])) as executor:
        yield executor
