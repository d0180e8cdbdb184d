"""One case: a copy of a device, a process that works on it while something is done to it, and a look at what is left.

A case forks twice from a process that has imported everything: once for the work, under a tracer, and once for the
look, as an agent that starts again. Nothing of the first is known to the second but what lies on the disk.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundle.errors import Unavailable
from bundle.trust.trust_state import TrustStateStore
from torture.in_process import Alone, copy_device

# the calls that create or change something below a device directory, SQLite's own included
CALLS: Final = (
    *("openat", "write", "pwrite64", "rename", "renameat2", "fsync", "fdatasync", "unlink", "mkdir"),
    *("ftruncate", "link", "symlink"),
)
CASE_TIMEOUT_S: Final = 60
PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
READY: Final = b"."
OLD, NEW = "1.0.0", "1.1.0"

Work = Callable[[Alone], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Site:
    """What cases start from.

    Attributes:
        device: a folder with config.toml and device/, 1.0.0 installed, which follows a channel at 1.1.0.
        scratch: where copies are made.
    """

    device: Path
    scratch: Path

    def copy(self) -> Path:
        """A fresh device; the path of its configuration."""
        shutil.rmtree(self.scratch / "case", ignore_errors=True)
        return copy_device(self.device, self.scratch / "case")


def update(alone: Alone) -> dict[str, Any]:
    """Serve, update, and try again as the supervisor would after the journal failed."""
    alone.boot()
    ended = alone.update()
    return {"outcome": ended.outcome.value, "reason": ended.reason, "served": alone.served()}


def boot_only(alone: Alone) -> None:
    """For `prepare`: the daemon serves already when it begins."""
    alone.boot()


def endure(alone: Alone, times: int = 3) -> dict[str, Any]:
    """Updates as the supervisor does it, where the system refuses calls: never a bug, and what serves goes on."""
    outcomes = []
    needs_recovery = False
    for _ in range(times):
        try:
            if needs_recovery:
                alone.recover()
            needs_recovery = False
            outcomes.append(alone.update().outcome.value)
        except Unavailable as error:
            outcomes.append(error.reason)
            needs_recovery = True
        if alone.served() not in (OLD, NEW):
            return {"bad": f"serves {alone.served()} after {outcomes}"}
        if outcomes[-1] in ("updated", "nothing-new"):
            break
    return {"outcomes": outcomes, "served": alone.served()}


def forked(
    config: Path,
    work: Work,
    *,
    fails_live: bool = False,
    has_children: bool = False,
    tracer: list[str] | None = None,
    prepare: Callable[[Alone], None] | None = None,
) -> dict[str, Any]:
    """Do the work in a fork.

    Args:
        has_children: as Alone's; whoever outlives the work is waited for.
        prepare: done before the tracer is attached.
        tracer: words of a strace command that is attached before the work begins.

    Returns:
        what the work returned; {"killed": signal}; or {"bad": traceback}.
    """
    # a socket, since a refused `write` is the case's business and not the harness's
    answer, theirs = socket.socketpair()
    others = children_here()
    if has_children:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer.close()
        os.close(go_write)
        _in_child(config, work, prepare, theirs, go_read, fails_live=fails_live, has_children=has_children)
    theirs.close()
    os.close(go_read)
    attached = None
    if prepare is not None:
        assert answer.recv(1) == READY
    if tracer is not None:
        attached = subprocess.Popen([*tracer, "-p", str(pid)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert attached.stderr is not None
        line = attached.stderr.readline()
        assert b"attached" in line, line
    os.write(go_write, b"!")
    os.close(go_write)
    with answer:
        said = b"".join(iter(lambda: answer.recv(1 << 16), b""))
    _, status = os.waitpid(pid, 0)
    if attached is not None:
        attached.communicate(timeout=CASE_TIMEOUT_S)
    if has_children:
        # by their numbers: this process may have children that have nothing to do with the case, and never end
        while orphans := children_here() - others:
            for orphan in orphans:
                os.waitpid(orphan, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)
    if os.WIFSIGNALED(status):
        return {"killed": os.WTERMSIG(status)}
    return dict(json.loads(said)) if said else {"bad": f"no answer, status {status}"}


def children_here() -> set[int]:
    """Processes whose parent this one is."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(number) for number in (task / "children").read_text().split()}
    return found


def _in_child(
    config: Path,
    work: Work,
    prepare: Callable[[Alone], None] | None,
    answer: socket.socket,
    go: int,
    *,
    fails_live: bool,
    has_children: bool,
) -> None:
    code = 1
    try:
        signal.alarm(CASE_TIMEOUT_S)
        try:
            prepared = None
            if prepare is not None:
                prepared = Alone(config, fails_live=fails_live, has_children=has_children)
                prepare(prepared)
                answer.send(READY)
            os.read(go, 1)
            said = work(prepared or Alone(config, fails_live=fails_live, has_children=has_children))
        except Exception:  # noqa: BLE001  # whatever it is, it is what the case is about
            said = {"bad": traceback.format_exc()}
        answer.sendall(json.dumps(said).encode())
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def look(config: Path, *, fails_live: bool = False) -> str:
    """An agent starts on what is left: "" if all is as it must be, else what is wrong.

    It serves the old or the new release, whole; its trust memory is valid and not lowered; a further update completes.
    """
    found = forked(config, _look, fails_live=fails_live)
    if "bad" in found or "killed" in found:
        return str(found)
    allowed = (OLD,) if fails_live else (OLD, NEW)
    if found["served"] not in allowed:
        return f"serves {found['served']}, expected one of {allowed}"
    if found["slots"] == "lost":
        return "both trust slots are lost"
    if found["left"]:
        return f"left behind: {found['left']}"
    wanted = ("rolled-back", "refused") if fails_live else ("updated", "nothing-new")
    if found["outcome"] not in wanted or found["then"] != allowed[-1]:
        return f"a further update: {found['outcome']} {found['reason']}, serves {found['then']}"
    return ""


def _look(alone: Alone) -> dict[str, Any]:
    slots = TrustStateStore(alone.device.trust_directory / "slots")
    state = "lost" if slots.is_lost else "valid"
    served = alone.boot()
    left = [path.name for path in (alone.device.root / "store").iterdir() if not path.name.endswith(".sealed")]
    ended = alone.update()
    return {
        "served": served,
        "slots": state,
        "left": left,
        "outcome": ended.outcome.value,
        "reason": ended.reason,
        "then": alone.served(),
    }


def count_calls(site: Site, *, fails_live: bool = False, has_children: bool = False) -> dict[str, int]:
    """How often each of CALLS is made in one undisturbed case, by the process that decides."""
    trace = site.scratch / "trace"
    tracer = ["strace", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
    config = site.copy()
    said = forked(config, update, fails_live=fails_live, has_children=has_children, tracer=tracer)
    assert "bad" not in said, said["bad"]
    counts = dict.fromkeys(CALLS, 0)
    for row in trace.read_text().splitlines():
        name = row.split()[-1] if not row else row.partition("(")[0].split()[-1]
        if name in counts:
            counts[name] += 1
    return counts


def spread(points: list[tuple[str, int]], limit: int | None) -> list[tuple[str, int]]:
    """At most `limit` of the points, evenly."""
    if limit is None or len(points) <= limit:
        return points
    return [points[index * len(points) // limit] for index in range(limit)]
