"""Open the executor that `--executor` names."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from packager.diff.run_jobs import JobExecutor
from packager.executors.errors import ExecutorInvalid
from packager.executors.processes import ProcessExecutor

DASK_PATTERN: Final = re.compile(r"dask://([A-Za-z0-9.-]+:[0-9]{1,5})")
PROCESSES_PATTERN: Final = re.compile(r"processes:([1-9][0-9]{0,2})")
MAX_PROCESSES: Final = 256


@contextmanager
def open_executor(text: str | None, jobs: int = 1, inputs: str | None = None) -> Iterator[JobExecutor | None]:
    """Open an executor during a `with` block; None runs jobs in this process.

    Args:
        text: `processes:N`, `dask://HOST:PORT`, or None.
        jobs: number of processes if `text` is None.
        inputs: URL of a store for sealed inputs, for workers that do not see this machine's folders.

    Raises:
        ExecutorInvalid: the text is not an executor.
    """
    if text is None:
        text = f"processes:{jobs}"
    if found := DASK_PATTERN.fullmatch(text):
        if importlib.util.find_spec("distributed") is None:
            raise ExecutorInvalid(
                "dask: needs distributed, which is not installed", hint="pip install 'airweights[dask]'"
            )
        from packager.executors.dask import DaskExecutor

        with DaskExecutor(found[1], inputs) as cluster:
            yield cluster
        return
    if inputs is not None:
        raise ExecutorInvalid("found --inputs without a cluster, expected --executor dask://HOST:PORT")
    found = PROCESSES_PATTERN.fullmatch(text)
    if found is None or int(found[1]) > MAX_PROCESSES:
        raise ExecutorInvalid(
            f"found {text[:80]!r}, expected processes:N with at most {MAX_PROCESSES} processes, or dask://HOST:PORT"
        )
    if int(found[1]) == 1:
        yield None
        return
    with ProcessExecutor(int(found[1])) as executor:
        yield executor
