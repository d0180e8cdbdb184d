"""As a user that is not root: what another process of the same user can do to a supervisor and its worker.

    python -m tests.support.tracing

prints {PROCESS: {ATTEMPT: "did" or the name of the error}} for "supervisor", "worker" and, to compare, "other".
"""

import ctypes
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable

from device_agent.process.jail import close_memory
from tests.support.worker_fixtures import start_jail_probe

PTRACE_SEIZE = 0x4206


def _seize(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _attempts(pid: int) -> dict[str, str]:
    def open_file(name: str) -> Callable[[], object]:
        return lambda: os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))

    tries: dict[str, Callable[[], object]] = {
        "trace": lambda: _seize(pid),
        **{name: open_file(name) for name in ("mem", "maps", "environ", "fd/0", "root")},
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "did"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    return found


def main() -> None:
    """Start the processes, and a tracer of the same user."""
    if len(sys.argv) > 1:
        json.dump({name: _attempts(int(pid)) for name, pid in json.loads(sys.argv[1]).items()}, sys.stdout)
        return
    assert os.geteuid() != 0
    secret = os.memfd_create("plain-model")
    os.write(secret, b"secret")
    assert close_memory()
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with start_jail_probe() as worker:
        pids = {"supervisor": os.getpid(), "worker": worker.pid, "other": other.pid}
        command = [sys.executable, "-m", "tests.support.tracing", json.dumps(pids)]
        done = subprocess.run(command, capture_output=True, check=True)
    other.communicate()
    found = json.loads(done.stdout)
    found["supervisor"]["core limit"] = str(resource.getrlimit(resource.RLIMIT_CORE)[1])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
