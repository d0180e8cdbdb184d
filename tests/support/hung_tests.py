"""End a test that hangs, and say where: the stacks of its threads, and the processes below it.

1. A test (with its fixtures) gets HUNG_S seconds. Then it fails in the main thread, so that its `finally` blocks and
   fixtures stop what it has started. If one of them hangs too, it fails after the same time again.
2. `faulthandler_timeout` in pyproject.toml prints the stacks before that, also if the main thread is in a library that
   never returns to Python.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

HUNG_S: Final = 900.0  # the longest test takes 100 s on an idle machine


@contextmanager
def end_if_hung(seconds: float = HUNG_S) -> Iterator[None]:
    """Fail what runs in the main thread if it takes longer than `seconds`."""

    def fail(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"the test hangs: {seconds:.0f} s have passed\n{describe_process()}", pytrace=True)

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe_process() -> str:
    """Return the stacks of this process's threads, and a line for each process below it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        lines += [f"thread {names.get(ident, ident)}:", *traceback.format_stack(frame, limit=-12)]
    return "\n".join(["the processes below:", *_list_processes(), *lines])


def _list_processes() -> list[str]:
    """Return process id, state, kernel function and command line of each descendant."""
    children: dict[int, list[int]] = {}
    lines: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                waits_in = (folder / "wchan").read_text()
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has just ended, or is another user's
                continue
            pid = int(folder.name)
            children.setdefault(int(parent), []).append(pid)
            lines[pid] = f"{pid} below {parent}, state {state}, in {waits_in}: {words[:300]}"
    found: list[str] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += [lines[pid] for pid in below]
        todo += below
    return found
