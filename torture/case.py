"""One case: copy a device, run an update on it while a fault is injected, and check what a restarted agent finds.

A case forks twice from a process that has imported everything: once for the update, under a tracer, and once for the
check, as an agent that starts again. The second fork knows nothing of the first except the files on the disk.
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
from torture.in_process import InProcessAgent, copy_device

# system calls that create or change a file in a device directory, SQLite's included
TRACED_CALLS: Final = (
    *("openat", "write", "pwrite64", "rename", "renameat2", "fsync", "fdatasync", "unlink", "mkdir"),
    *("ftruncate", "link", "symlink"),
)
CASE_TIMEOUT_S: Final = 60
PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
READY: Final = b"."
OLD, NEW = "1.0.0", "1.1.0"

Work = Callable[[InProcessAgent], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Site:
    """The files that cases start from.

    Attributes:
        device: a folder with config.toml and device/; 1.0.0 is installed, and the channel is at 1.1.0.
        scratch: the folder for copies.
    """

    device: Path
    scratch: Path

    def copy(self) -> Path:
        """Copy the device; return the path of its configuration."""
        shutil.rmtree(self.scratch / "case", ignore_errors=True)
        return copy_device(self.device, self.scratch / "case")


def update(agent: InProcessAgent) -> dict[str, Any]:
    """Serve the active bundle and run one update."""
    agent.start()
    ended = agent.update()
    return {"outcome": ended.outcome.value, "reason": ended.reason, "served": agent.serving_version()}


def start_only(agent: InProcessAgent) -> None:
    """Start serving; for `prepare`, so that the fault hits an agent that already serves."""
    agent.start()


def retry_updates(agent: InProcessAgent, times: int = 3) -> dict[str, Any]:
    """Update up to `times` times as the supervisor does, while system calls fail; the serving model must stay."""
    outcomes = []
    needs_recovery = False
    for _ in range(times):
        try:
            if needs_recovery:
                agent.recover()
            needs_recovery = False
            outcomes.append(agent.update().outcome.value)
        except Unavailable as error:
            outcomes.append(error.reason)
            needs_recovery = True
        if agent.serving_version() not in (OLD, NEW):
            return {"bad": f"serves {agent.serving_version()} after {outcomes}"}
        if outcomes[-1] in ("updated", "nothing-new"):
            break
    return {"outcomes": outcomes, "served": agent.serving_version()}


def run_in_fork(
    config: Path,
    work: Work,
    *,
    fails_live: bool = False,
    has_real_workers: bool = False,
    tracer: list[str] | None = None,
    prepare: Callable[[InProcessAgent], None] | None = None,
) -> dict[str, Any]:
    """Do the work in a forked process.

    Args:
        config: path of the device's configuration.
        work: what to do with the agent.
        fails_live: whether the candidate fails in probation.
        has_real_workers: as InProcessAgent's; the caller waits for workers that outlive the work.
        tracer: an strace command that is attached before the work begins.
        prepare: what to do before the tracer is attached.

    Returns:
        The work's result; {"killed": signal}; or {"bad": traceback}.
    """
    # a socket: a failing `write` must not hit the harness
    answer, theirs = socket.socketpair()
    others = child_pids()
    if has_real_workers:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer.close()
        os.close(go_write)
        _run_forked(config, work, prepare, theirs, go_read, fails_live=fails_live, has_real_workers=has_real_workers)
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
        result = b"".join(iter(lambda: answer.recv(1 << 16), b""))
    _, status = os.waitpid(pid, 0)
    if attached is not None:
        attached.communicate(timeout=CASE_TIMEOUT_S)
    if has_real_workers:
        # by process id: this process may have other children, which do not end
        while orphans := child_pids() - others:
            for orphan in orphans:
                os.waitpid(orphan, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)
    if os.WIFSIGNALED(status):
        return {"killed": os.WTERMSIG(status)}
    return dict(json.loads(result)) if result else {"bad": f"no answer, status {status}"}


def child_pids() -> set[int]:
    """Return the process ids of this process's children."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(number) for number in (task / "children").read_text().split()}
    return found


def _run_forked(
    config: Path,
    work: Work,
    prepare: Callable[[InProcessAgent], None] | None,
    answer: socket.socket,
    go: int,
    *,
    fails_live: bool,
    has_real_workers: bool,
) -> None:
    code = 1
    sys.dont_write_bytecode = True  # else the first runs would make calls that the others do not
    try:
        signal.alarm(CASE_TIMEOUT_S)
        try:
            prepared = None
            if prepare is not None:
                prepared = InProcessAgent(config, fails_live=fails_live, has_real_workers=has_real_workers)
                prepare(prepared)
                answer.send(READY)
            os.read(go, 1)
            result = work(prepared or InProcessAgent(config, fails_live=fails_live, has_real_workers=has_real_workers))
        except Exception:  # noqa: BLE001  # any failure is the result of the case
            result = {"bad": traceback.format_exc()}
        answer.sendall(json.dumps(result).encode())
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def check_after_restart(config: Path, *, fails_live: bool = False) -> str:
    """Start an agent on the remaining files; return "" if its state is good, else what is wrong.

    Good: it serves the old or the new release with every byte intact, its trust state is valid, no temporary file
    remains, and the next update completes.
    """
    found = run_in_fork(config, _observe_after_restart, fails_live=fails_live)
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


def _observe_after_restart(agent: InProcessAgent) -> dict[str, Any]:
    slots = TrustStateStore(agent.device.trust_directory / "slots")
    state = "lost" if slots.is_lost else "valid"
    served = agent.start()
    left = [path.name for path in (agent.device.root / "store").iterdir() if not path.name.endswith(".sealed")]
    ended = agent.update()
    return {
        "served": served,
        "slots": state,
        "left": left,
        "outcome": ended.outcome.value,
        "reason": ended.reason,
        "then": agent.serving_version(),
    }


def count_calls(site: Site, *, fails_live: bool = False, has_real_workers: bool = False) -> dict[str, int]:
    """Count how often each of CALLS is made in one undisturbed case, by the process that decides."""
    trace = site.scratch / "trace"
    tracer = ["strace", "-o", str(trace), "-e", f"trace={','.join(TRACED_CALLS)}", "-e", "signal=none"]
    config = site.copy()
    result = run_in_fork(config, update, fails_live=fails_live, has_real_workers=has_real_workers, tracer=tracer)
    assert "bad" not in result, result["bad"]
    counts = dict.fromkeys(TRACED_CALLS, 0)
    for row in trace.read_text().splitlines():
        name = row.split()[-1] if not row else row.partition("(")[0].split()[-1]
        if name in counts:
            counts[name] += 1
    return counts


def spread(points: list[tuple[str, int]], limit: int | None) -> list[tuple[str, int]]:
    """Return at most `limit` of the points, spread evenly."""
    if limit is None or len(points) <= limit:
        return points
    return [points[index * len(points) // limit] for index in range(limit)]
