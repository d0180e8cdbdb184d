"""Kill one worker at one of its own system calls while the supervisor lives: real processes in their jails."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

from torture.case import Site, check_after_restart, retry_updates, run_in_fork, spread, start_only
from torture.fault_classes import Row, reason_without_strace, strace_command
from torture.in_process import InProcessAgent

# not openat: a worker's imports make hundreds of them before its first request
WORKER_CALLS: Final = ("write", "pwrite64", "rename", "fsync", "fdatasync", "unlink", "mkdir", "ftruncate", "symlink")
MODULES: Final = ("fetcher", "verifier", "patcher")
MAX_CALLS: Final = 12  # calls of one name tried in one worker; most are made less often, and then nothing is killed


def worker_killed_row(site: Site, limit: int | None, *, fails_live: bool = False) -> Row:
    """Kill each of MODULES at each of CALLS: the update ends as unavailable, and the next one completes."""
    way = "probation to rollback" if fails_live else "poll to commit"
    row = Row(f"fetcher, verifier or patcher killed at a system call, {way}")
    why = reason_without_strace()
    if why is not None:
        row.skipped = why
        return row
    points = [(f"{module}:{call}", n + 1) for n in range(MAX_CALLS) for module in MODULES for call in WORKER_CALLS]
    exhausted: set[str] = set()
    for point, number in spread(points, limit):
        if point in exhausted:
            continue
        module, call = point.split(":")
        config = site.copy()
        work = partial(_traced_update, module, strace_command(call, f"signal=KILL:when={number}"))
        result = run_in_fork(config, work, fails_live=fails_live, has_real_workers=True, prepare=start_only)
        outcome = result.get("outcomes", [result])[0]
        if outcome in ("rolled-back", "updated"):
            exhausted.add(point)  # the worker makes no more calls of this name
            continue
        row.points += 1
        if outcome != "unavailable":
            row.bad.append(f"{point} {number}: {result}")
        elif wrong := check_after_restart(config, fails_live=fails_live):
            row.bad.append(f"{point} {number}: {wrong}")
    return row


def _traced_update(module: str, tracer: list[str], agent: InProcessAgent) -> dict[str, Any]:
    # once: the third worker that crashes on the same bundle quarantines it
    with _trace_worker(module, tracer):
        return retry_updates(agent, times=1)


@contextmanager
def _trace_worker(module: str, tracer: list[str]) -> Iterator[None]:
    """Start the workers of one module under a tracer."""
    real = subprocess.Popen

    def popen(words: list[str], **how: Any) -> Any:
        return real([*tracer, *words] if f"device_agent.workers.{module}" in words else words, **how)

    with mock.patch("subprocess.Popen", popen):
        yield
