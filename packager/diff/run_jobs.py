"""Run jobs in an executor, in order, with a bounded number in flight.

Rules:
1. Any `concurrent.futures.Executor` works whose processes see the same files. A `JobExecutor` knows more: how its
   processes find files (packager.diff.sources), and how many jobs keep it busy.
2. The results come in the order of the jobs, so the patch has the same bytes with any executor.
3. Results that wait for an earlier one are in this process's memory. Of jobs whose results may be large, as many are
   submitted as may return MAX_WAITING_BYTES.
4. A process that dies is the executor's business; a job can run again, because it changes nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Final, TypeVar

from packager.diff.sources import LocalFinder, Source, SourceFinder, open_sources

Job = TypeVar("Job")
Result = TypeVar("Result")

JOBS_IN_FLIGHT: Final = 6  # submitted at a time to a plain executor: enough to keep it busy, few enough to bound memory
MAX_WAITING_BYTES: Final = 4 << 30


class JobExecutor(Executor):
    """An executor that says how its processes find files.

    Attributes:
        jobs_in_flight: how many jobs are submitted at a time.
    """

    jobs_in_flight: int = JOBS_IN_FLIGHT

    def share_sources(self, paths: Mapping[Source, Path]) -> SourceFinder:
        """Make files available to the processes, and return what finds them there."""
        return LocalFinder(tuple((source, str(path)) for source, path in paths.items()))


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], paths: Mapping[Source, Path], executor: Executor | None
) -> Iterator[Result]:
    """Yield the result of each job, in order.

    Args:
        function: runs one job; a function of a module, so that other processes can import it.
        jobs: the jobs.
        paths: the files that jobs read.
        executor: runs the jobs; None runs them in this thread.

    Raises:
        SourceMissing: a process does not find a file.
        SourceMismatch: a process finds other bytes.
    """
    if executor is None:
        yield from map(function, jobs)
        return
    finder = _own(executor).share_sources(paths)
    yield from _run(function, ((job, tuple(paths), finder, 0) for job in jobs), executor)


def run_separate_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[tuple[Job, Mapping[Source, Path], int]],
    executor: Executor,
) -> Iterator[Result]:
    """Yield the result of each job, in order; the files of each are shared when it is submitted.

    Args:
        function: runs one job; a function of a module, so that other processes can import it.
        jobs: the jobs, each with the files that it reads, and the largest number of bytes that it may return.
        executor: runs the jobs.

    Raises:
        SourceMissing: a process does not find a file.
        SourceMismatch: a process finds other bytes.
    """
    own = _own(executor)
    yield from _run(
        function, ((job, tuple(paths), own.share_sources(paths), size) for job, paths, size in jobs), executor
    )


def _run(
    function: Callable[[Job], Result],
    jobs: Iterable[tuple[Job, tuple[Source, ...], SourceFinder, int]],
    executor: Executor,
) -> Iterator[Result]:
    waiting, in_flight, waiting_bytes = deque[tuple[Future[Result], int]](), _own(executor).jobs_in_flight, 0
    for job, sources, finder, size in jobs:
        while waiting and (len(waiting) > in_flight or waiting_bytes + size > MAX_WAITING_BYTES):
            future, returned = waiting.popleft()
            waiting_bytes -= returned
            yield future.result()
        waiting.append((executor.submit(_run_job, function, job, sources, finder), size))
        waiting_bytes += size
    while waiting:
        yield waiting.popleft()[0].result()


def _own(executor: Executor) -> JobExecutor:
    return executor if isinstance(executor, JobExecutor) else _PLAIN


def _run_job(function: Callable[[Job], Result], job: Job, sources: tuple[Source, ...], finder: SourceFinder) -> Result:
    with open_sources(sources, finder):
        return function(job)


_PLAIN: Final = JobExecutor()
