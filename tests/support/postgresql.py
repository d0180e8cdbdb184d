"""A PostgreSQL server of Debian's package, in a temporary folder, on a free port of loopback."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.free_ports import free_port

USERS = ("postgres", "nobody")


def find_binaries() -> Path | None:
    """Return the folder of the newest installed server, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def run_postgresql() -> Iterator[str]:
    """Run a server, and yield the URL of its empty database; skip the test without the packages."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("the Debian package `postgresql` is not installed")
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    user = next((name for name in USERS if _exists(name)), None) if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        command = [str(binaries / "initdb"), "-D", str(data), "-U", "fleet", "--auth=trust", "--no-sync"]
        subprocess.run(command, check=True, user=user, capture_output=True, cwd="/")
        port = free_port()
        options = ["-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "max_connections=40"]
        server = subprocess.Popen(
            [str(binaries / "postgres"), *options],
            user=user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(port)
            yield f"postgresql://fleet@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exists(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name).pw_uid != 0
    return False


def _wait_until_ready(port: int) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=fleet dbname=postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
