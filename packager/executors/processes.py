"""`processes:N`: jobs in processes of this machine.

Rules:
1. A worker starts from a fork server, which imports its modules anew: it has none of this process's keys in memory.
2. A worker that dies is replaced. Its job, and those that waited, run again, MAX_RUNS times in all.
3. A worker may use its share of the machine's memory, at least MIN_MEMORY_BYTES. A job that needs more ends with an
   error, before the kernel kills other programs.
"""

import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Final

from packager.diff.run_jobs import JobExecutor
from packager.diff.write.patch_job import MAX_WORKER_BYTES
from packager.executors.errors import WorkerLost, WorkerOutOfMemory

MAX_RUNS: Final = 3
MIN_MEMORY_BYTES: Final = MAX_WORKER_BYTES
JOBS_PER_WORKER: Final = 3  # one runs, two wait, so that no worker waits for the planner
PRELOADED: Final = ["packager.diff.write.patch_job"]


@dataclass(slots=True)
class _Task:
    outer: "Future[Any]"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    runs_left: int = MAX_RUNS


class ProcessExecutor(JobExecutor):
    """An executor with processes of this machine; use it as a context manager.

    Args:
        workers: number of processes.
        memory_bytes: memory that each may use; None for its share of the machine's.
    """

    def __init__(self, workers: int, memory_bytes: int | None = None) -> None:
        self.jobs_in_flight = JOBS_PER_WORKER * workers
        self._workers = workers
        self.memory_bytes = memory_bytes or max(_machine_bytes() // workers, MIN_MEMORY_BYTES)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._lock = threading.Lock()
        self._is_closed = False
        self._pool = self._open_pool()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        """Run a function in a worker.

        Args:
            function: the function, of a module.
            arguments: its arguments.
            options: its keyword arguments; none are supported.
        """
        assert not options
        task = _Task(Future(), function, arguments)
        self._start(task)
        return task.outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the worker processes.

        Args:
            wait: return when they have ended.
            cancel_futures: drop jobs that wait.
        """
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool | None:
        """End the processes; after an error, drop the jobs that wait."""
        self.shutdown(cancel_futures=kind is not None)
        return None

    def _open_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, self._context, _limit_memory, (self.memory_bytes,))

    def _start(self, task: _Task) -> None:
        task.runs_left -= 1
        with self._lock:
            pool = self._pool
            try:
                inner = pool.submit(task.function, *task.arguments)
            except BrokenProcessPool:
                pool = self._pool = self._open_pool()
                inner = pool.submit(task.function, *task.arguments)
        inner.add_done_callback(lambda done: self._finish(task, pool, done))

    def _finish(self, task: _Task, pool: ProcessPoolExecutor, done: "Future[Any]") -> None:
        if done.cancelled():
            task.outer.cancel()
            return
        error = done.exception()
        if isinstance(error, BrokenProcessPool):
            with self._lock:
                may_repeat = task.runs_left > 0 and not self._is_closed
                if may_repeat and self._pool is pool:
                    self._pool = self._open_pool()
            if may_repeat:
                self._start(task)
                return
            error = WorkerLost(f"a job was started {MAX_RUNS} times, and each time a worker process ended")
        elif isinstance(error, MemoryError):
            error = WorkerOutOfMemory(f"a job needs more than the {self.memory_bytes >> 20:,} MiB of a worker")
        if error is not None:
            task.outer.set_exception(error)
        else:
            task.outer.set_result(done.result())


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit_memory(limit_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
