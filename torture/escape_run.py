"""Run torture.escape_worker in each jail: as root or not, and on kernels that offer less.

    python -m torture.escape_run CASE.json

runs one case and prints its findings; `run_as_user` does so in a process of another user.
"""

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from device_agent.config.config import Config
from device_agent.process.jail import JailPolicy
from device_agent.process.syscalls import (
    CAP_DAC_READ_SEARCH,
    CAPABILITY_VERSION_3,
    CLONE_NEWUSER,
    PR_CAP_AMBIENT,
    PR_SET_KEEPCAPS,
)
from device_agent.process.worker_process import WorkerProcess
from device_agent.workers.worker_processes import jail_of
from torture.escape import Target
from torture.escapes import is_permitted, stopping_restrictions, ways_out

ROOT: Final = Path(__file__).parents[1]
MODULE: Final = "torture.escape_worker"
DEADLINE_S: Final = 60.0
ABSTRACT_NAME: Final = "airweights-escape"
OTHER_UID: Final = 1000
PR_CAP_AMBIENT_RAISE: Final = 2
# the kinds of jail: by name, the worker whose calls it may make
KINDS: Final = {
    **{"front": "front", "fetcher": "fetcher", "fetcher of file: URLs": "fetcher", "verifier": "verifier"},
    **{"key opener (TPM device)": "key_opener", "key opener (TPM socket)": "key_opener"},
    **{"key opener (PKCS#11)": "token_opener", "patcher": "patcher", "probe": "probe"},
    "model process": "model_process",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """The results in one jail.

    Attributes:
        kind: of KINDS.
        missing: restrictions that its jail lacks.
        uid: user id of the worker, or None if it kept the supervisor's.
        results: by way out, "did" or the name of the error.
    """

    kind: str
    missing: tuple[str, ...]
    uid: int | None
    results: dict[str, str]

    def escaped(self) -> list[str]:
        """Return the ways that succeeded although a restriction in force stops them and nothing permits them."""
        return [
            f"{self.kind}: {way.name}"
            for way in ways_out(KINDS[self.kind])
            if self.results[way.name] == "did"
            and not is_permitted(self.kind, way)
            and not set(stopping_restrictions(self.kind, way)) <= set(self.missing)
        ]


def jail_of_kind(kind: str, folder: Path) -> JailPolicy:
    """Return the jail of a kind, as the agent chooses it.

    Args:
        kind: of KINDS.
        folder: an existing folder for the trust state, for a local repository and for a socket.
    """
    worker = KINDS[kind]
    urls = {"fetcher of file: URLs": f"file://{folder}/repository"}
    storages = {
        "key opener (TPM device)": "tpm:device:/dev/tpmrm0",
        "key opener (TPM socket)": f"tpm:swtpm:path={folder}/swtpm.sock",
        "key opener (PKCS#11)": "pkcs11:token?module=/usr/lib/token.so&pin-file=/etc/pin",
    }
    config = Config(
        folder,
        urls.get(kind, "https://example.com"),
        "kws",
        key_storage=storages.get(kind, "file"),
        allow_unjailed=True,
    )
    if worker in ("front", "probe", "model_process"):
        return JailPolicy(worker, allow_unjailed=True)
    return jail_of("key_opener" if kind.startswith("key opener") else worker, config, folder / "trust")


@contextmanager
def create_target(folder: Path) -> Iterator[Target]:
    """Create what the ways out aim at, in an empty folder."""
    folder.chmod(0o755)
    for name in ("trust", "repository", "outside"):
        (folder / name).mkdir()
    outside = folder / "outside"
    (outside / "key").write_bytes(b"secret" * 1000)
    (outside / "key").chmod(0o600)
    sibling = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    stream, datagram, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), None
    key_fd = os.open(outside / "key", os.O_RDONLY)
    try:
        abstract = socket.socket(socket.AF_UNIX)
        stream.bind(str(outside / "control.sock"))
        stream.listen()
        datagram.bind(str(outside / "datagram.sock"))
        abstract.bind(f"\0{ABSTRACT_NAME}-{os.getpid()}")
        abstract.listen()
        yield Target(str(outside), os.getpid(), sibling.pid, key_fd, f"{ABSTRACT_NAME}-{os.getpid()}")
    finally:
        for channel in (stream, datagram, abstract):
            if channel is not None:
                channel.close()
        os.close(key_fd)
        sibling.communicate()


def run_case(kind: str, *, landlock_abi: int = 99, use_namespaces: bool = True) -> Findings:
    """Start a worker in the jail of a kind, and let it try every way out.

    Args:
        kind: of KINDS.
        landlock_abi: version of Landlock that the kernel is taken to have.
        use_namespaces: False for a system that forbids them.
    """
    with tempfile.TemporaryDirectory() as name, create_target(Path(name)) as target:
        policy = jail_of_kind(kind, Path(name))
        policy = replace(policy, landlock_abi=landlock_abi, use_namespaces=use_namespaces)
        request: dict[str, Any] = {
            **{"worker": policy.worker, "folder": target.folder, "supervisor": target.supervisor},
            **{"sibling": target.sibling, "abstract": target.abstract},
        }
        environment = {"PYTHONPATH": str(ROOT)}
        with WorkerProcess.start(MODULE, policy, environment=environment) as worker:
            results = worker.call("attempt", request, (target.key_fd,), deadline_s=DEADLINE_S).value
            return Findings(kind, worker.jail.missing, worker.jail.own_uid, results)


def run_as_user(kinds: list[str], *, landlock_abi: int = 99, use_namespaces: bool = True) -> list[Findings]:
    """Run cases as a user that is not root.

    Args:
        kinds: of KINDS.
        landlock_abi: as for `run_case`.
        use_namespaces: as for `run_case`.
    """
    case = json.dumps({"kinds": kinds, "landlock_abi": landlock_abi, "use_namespaces": use_namespaces})
    command = [sys.executable, "-m", "torture.escape_run", case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, preexec_fn=_leave_root)
    return [Findings(**{**found, "missing": tuple(found["missing"])}) for found in json.loads(done.stdout)]


def _leave_root() -> None:
    """Become another user that can still execute this interpreter, wherever it is installed."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None)
    os.setgroups([])
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresgid(OTHER_UID, OTHER_UID, OTHER_UID)
    os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
    kept = 1 << CAP_DAC_READ_SEARCH
    libc.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), struct.pack("=6I", kept, kept, kept, 0, 0, 0))
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0)


def enter_user_namespace() -> None:
    """Become a user without capabilities in a user namespace, which owns the same files as before."""
    if os.geteuid() != 0:
        return
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
        raise OSError("user namespaces are not allowed here")
    Path("/proc/self/uid_map").write_text(f"{OTHER_UID} 0 1", encoding="ascii")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{OTHER_UID} 0 1", encoding="ascii")


def main() -> None:
    """Run the case of the first argument and print its findings."""
    case = json.loads(sys.argv[1])
    options = {name: case[name] for name in ("landlock_abi", "use_namespaces")}
    found = [run_case(kind, **options) for kind in case["kinds"]]
    rows = [{"kind": f.kind, "missing": f.missing, "uid": f.uid, "results": f.results} for f in found]
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
