"""One child is killed at one of its own calls, while the supervisor lives: the real processes, in their jails."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

from torture.case import Site, boot_only, endure, forked, look, spread
from torture.fault_classes import Row, inject, without_strace
from torture.in_process import Alone

# not openat: a child's own imports make hundreds of them before its first call
CALLS: Final = ("write", "pwrite64", "rename", "fsync", "fdatasync", "unlink", "mkdir", "ftruncate", "symlink")
MODULES: Final = ("fetcher", "verifier", "patcher")
MAX_CALLS: Final = 12  # of one name that is tried in one child; most are made less often, and then nothing is killed


def child_killed(site: Site, limit: int | None, *, fails_live: bool = False) -> Row:
    """Each of MODULES at each of CALLS: the update ends as unavailable, and the next one completes."""
    way = "probation to rollback" if fails_live else "poll to commit"
    row = Row(f"fetcher, verifier or patcher alone killed at a system call, {way}")
    why = without_strace()
    if why is not None:
        row.skipped = why
        return row
    points = [(f"{module}:{call}", n + 1) for n in range(MAX_CALLS) for module in MODULES for call in CALLS]
    exhausted: set[str] = set()
    for point, number in spread(points, limit):
        if point in exhausted:
            continue
        module, call = point.split(":")
        config = site.copy()
        work = partial(_traced_update, module, inject(call, f"signal=KILL:when={number}"))
        said = forked(config, work, fails_live=fails_live, has_children=True, prepare=boot_only)
        outcome = said.get("outcomes", [said])[0]
        if outcome in ("rolled-back", "updated"):
            exhausted.add(point)  # it makes no more calls of this name
            continue
        row.points += 1
        if outcome != "unavailable":
            row.bad.append(f"{point} {number}: {said}")
        elif wrong := look(config, fails_live=fails_live):
            row.bad.append(f"{point} {number}: {wrong}")
    return row


def _traced_update(module: str, tracer: list[str], alone: Alone) -> dict[str, Any]:
    # once: the third child that dies over the same bundle refuses it, and rightly
    with _traced(module, tracer):
        return endure(alone, times=1)


@contextmanager
def _traced(module: str, tracer: list[str]) -> Iterator[None]:
    """Children of one module are started below a tracer."""
    real = subprocess.Popen

    def popen(words: list[str], **how: Any) -> Any:
        return real([*tracer, *words] if f"device_agent.workers.{module}" in words else words, **how)

    with mock.patch("subprocess.Popen", popen):
        yield
