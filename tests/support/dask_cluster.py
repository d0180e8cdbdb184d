"""A Dask cluster on loopback with mutual TLS: a scheduler and workers as programs, in mount namespaces of their own."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import Certificates, create_certificates
from tests.support.free_ports import free_port

START_S = 60
WORKER_MEMORY = "2 GiB"
needs_dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="distributed (extra dask) is not installed"
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        address: host and port of the scheduler.
        workers: the processes of the workers.
        certificates: of everybody.
    """

    address: str
    workers: "list[subprocess.Popen[bytes]]"
    certificates: Certificates

    def client_environment(self) -> dict[str, str]:
        """Return the variables that name the certificates of a client."""
        prefix = "DASK_DISTRIBUTED__COMM__TLS__"
        return {
            f"{prefix}CA_FILE": str(self.certificates.ca),
            f"{prefix}CLIENT__CERT": str(self.certificates.client),
            f"{prefix}CLIENT__KEY": str(self.certificates.client_key),
        }


@contextlib.contextmanager
def start_cluster(
    folder: Path, workers: int, *, hidden: Sequence[Path] = (), variables: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """Start a cluster.

    Args:
        folder: for certificates and logs.
        workers: number of workers, each with one thread.
        hidden: folders that the workers do not see; that needs root.
        variables: further environment variables of the workers.
    """
    certificates = create_certificates(folder / "tls")
    tls = ["--tls-ca-file", certificates.ca, "--tls-cert", certificates.server, "--tls-key", certificates.server_key]
    port = free_port()
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__PREAMBLE": "", **(variables or {})}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    program = [sys.executable, "-m", "dask"]
    hide = [f"mount -t tmpfs tmpfs {path}; " for path in hidden]
    apart = ["unshare", "-m", "sh", "-c", "".join([*hide, 'exec "$@"']), "sh"] if hidden else []
    with contextlib.ExitStack() as stack:

        def start(name: str, words: Sequence[object]) -> "subprocess.Popen[bytes]":
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            command = [str(word) for word in words]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGKILL)
            return process

        scheduler = ["scheduler", "--host", "127.0.0.1", "--port", port, "--protocol", "tls", "--no-dashboard"]
        start("scheduler", [*program, *scheduler, *tls])
        words = ["worker", f"tls://127.0.0.1:{port}", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        words += ["--memory-limit", WORKER_MEMORY]
        started = [
            start(f"worker-{number}", [*apart, *program, *words, "--name", number, *tls]) for number in range(workers)
        ]
        deadline = time.monotonic() + START_S
        while not all("Registered to" in (folder / f"worker-{one}.log").read_text() for one in range(workers)):
            assert time.monotonic() < deadline, (folder / "worker-0.log").read_text()[-2000:]
            time.sleep(0.1)
        yield Cluster(f"127.0.0.1:{port}", started, certificates)


can_hide_folders = os.geteuid() == 0 and shutil.which("unshare") is not None
