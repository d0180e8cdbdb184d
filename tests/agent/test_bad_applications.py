"""Applications that hang, crash, leak, ask without end or answer for others: nothing is lost, and others are served."""

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from device_agent.apps import app_socket
from device_agent.apps.access import FamilyAccess
from device_agent.apps.app_socket import AppFamily, AppServer
from device_agent.apps.client import AppClient
from device_agent.apps.lender import FileLender
from device_agent.errors import DaemonNotRunning, NotAllowed, ReleaseReplaced, StoreDamaged
from device_agent.policy.app_verdicts import AppVerdict
from device_agent.policy.journal_records import BundleRecord
from device_agent.process.channel import send_message
from device_agent.runtime.bundle_fds import create_sealed_memfd
from tests.support.load_clients import wait_until
from tests.vectors.documents import make_manifest

MANIFEST = make_manifest()
VARIANT = MANIFEST.variants[0][0]
RECORD = BundleRecord.from_manifest(MANIFEST, VARIANT, 0)
FAMILY = MANIFEST.family


class Lab:
    """A server of one family whose files are small memory files.

    Attributes:
        path: path of its socket.
        family: the family.
        generation: number of the serving generation.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.generation = folder / "apps.sock", 1
        access = FamilyAccess(judges=(f"user:{os.getuid()}",))
        self.lender = FileLender(
            lambda _bundle, paths: {path: create_sealed_memfd("test", b"data") for path in paths}, keep_s=0
        )
        self.family = AppFamily(FAMILY, access, self.lender, lambda: (RECORD, self.generation))
        self.family.changed()
        self.server = AppServer(self.path, lambda: {FAMILY: self.family})

    def swap(self) -> None:
        """Let another generation of the same bundle serve."""
        self.generation += 1
        self.family.changed()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Yield a server, and check that nothing stays lent or open."""
    before = open_descriptors()
    lab = Lab(tmp_path)
    try:
        yield lab
        wait_until(lambda: not lab.lender.held_bytes())
    finally:
        lab.server.close()
    wait_until(lambda: open_descriptors() <= before)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def request(**fields: Any) -> bytes:
    body = json.dumps({"version": 1, "family": FAMILY, **fields}).encode()
    return struct.pack(">I", len(body)) + body


def is_served(lab: Lab) -> bool:
    with AppClient(lab.path) as client, client.open(FAMILY) as bundle:
        return len(bundle.fds) == len(MANIFEST.variants[0][1].files)


@pytest.mark.parametrize("is_swapped", [True, False])
def test_a_bundle_that_a_swap_deletes_while_it_is_borrowed_fails_no_request(lab: Lab, is_swapped: bool) -> None:
    failures = [StoreDamaged("the bundle is not in the store")]

    def unseal(_bundle: BundleRecord, paths: Sequence[str]) -> dict[str, int]:
        if failures:
            if is_swapped:
                lab.swap()
            raise failures.pop()
        return {path: create_sealed_memfd("test", b"data") for path in paths}

    lab.lender = lab.family.lender = FileLender(unseal, keep_s=0)
    with AppClient(lab.path) as client, nullcontext() if is_swapped else pytest.raises(StoreDamaged):
        with client.open(FAMILY) as bundle:
            assert bundle.release.generation == 2
    assert is_served(lab)


@pytest.mark.parametrize("requests", [1_000, 10_000])
def test_an_application_that_asks_without_end_gets_answers_and_leaves_nothing(lab: Lab, requests: int) -> None:
    path = MANIFEST.variants[0][1].files[0].path
    with AppClient(lab.path) as client:
        for number in range(requests):
            if number % 100:
                client.list(FAMILY)
            else:
                client.open(FAMILY, paths=[path]).close()
    assert is_served(lab)


def test_an_application_that_leaks_descriptors_holds_its_own_only(lab: Lab) -> None:
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(lab.path))
        for _ in range(50):  # the descriptors that come with a reply are never received
            connection.sendall(request(command="open"))
            head = connection.recv(4)
            left = struct.unpack(">I", head)[0]
            while left:
                left -= len(connection.recv(left))
        assert len(lab.lender.held_bytes()) == 1
        # one set of files in the lender, whatever the number of requests
        assert open_descriptors() <= before + len(MANIFEST.variants[0][1].files) + 8
        assert is_served(lab)


def test_an_application_that_hangs_holds_nothing_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_socket, "SEND_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as hanging, socket.socket(socket.AF_UNIX) as half:
        hanging.connect(str(lab.path))
        hanging.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        half.connect(str(lab.path))
        half.sendall(request(command="list")[:7])  # and never the rest
        hanging.settimeout(30)
        with suppress(OSError):  # its replies are never read: the server closes the connection
            while True:
                hanging.sendall(request(command="list") * 100)
        lab.swap()
        assert is_served(lab)


def test_an_application_that_closes_early_or_is_killed_is_forgotten(lab: Lab) -> None:
    for data in (request(command="open"), request(command="watch"), request(command="open") * 20, b"\0\0"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(lab.path))
            connection.sendall(data)
    child = get_context("fork").Process(target=_borrow_and_wait, args=(lab.path,))
    child.start()
    wait_until(lambda: any(lab.lender.held_bytes().values()))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    wait_until(lambda: not lab.lender.held_bytes())
    assert is_served(lab)


def _borrow_and_wait(path: Path) -> None:
    with AppClient(path) as client, client.open(FAMILY):
        signal.pause()
    sys.exit(1)


def test_descriptors_that_an_application_sends_are_closed(lab: Lab) -> None:
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(lab.path))
        for _ in range(20):
            send_message(connection, {"version": 1, "command": "list", "family": FAMILY}, [0, 1, 2])
            connection.recv(1 << 16)
        assert open_descriptors() <= before + 8


def test_a_verdict_for_another_family_bundle_or_generation_counts_nowhere(lab: Lab) -> None:
    with AppClient(lab.path) as client, client.open(FAMILY) as bundle:
        for fields, error in (
            ({"family": "other", "bundle": RECORD.digest}, NotAllowed),
            ({"bundle": "0" * 64}, ReleaseReplaced),
        ):
            with pytest.raises(error):
                client._call({"command": "verdict", "family": FAMILY, "is_healthy": True, **fields})
        assert lab.family.verdicts.all() == ()
        assert not lab.family.verdicts.add(99, AppVerdict("user:0", is_healthy=False))
        assert client.send_verdict(bundle, is_healthy=True)
        assert not client.send_verdict(bundle, is_healthy=False), "the first one counts"
        lab.swap()
        assert client.send_verdict(bundle, is_healthy=True), "once for each generation"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\xff\xff",
        struct.pack(">I", 0),
        struct.pack(">I", 3) + b"nul",
        struct.pack(">I", 9) + b'{"a": {}}',
        struct.pack(">I", 65536) + b"[" * 65536,
        struct.pack(">I", 4) + b"\xf0\x28\x8c\x28",
        request(command="open", roles=["model"] * 300),
        request(command="open", paths=["../../etc/passwd"]),
        request(command="verdict", bundle="x", is_healthy=1),
        os.urandom(4096),
    ],
    ids=range(11),
)
def test_garbage_is_refused_or_ends_its_own_connection(lab: Lab, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(lab.path))
        connection.settimeout(30)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            answer = connection.recv(1 << 16)
            assert not answer or b'"error"' in answer
    assert is_served(lab)


def test_a_user_who_is_not_listed_reads_and_judges_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.family.set_access(FamilyAccess(readers=("user:12345",), judges=("group:54321",)))
    monkeypatch.setattr(FamilyAccess, "may_read", lambda *_: False)
    with AppClient(lab.path) as client:
        for _ in range(3):
            with pytest.raises(NotAllowed):
                client.open(FAMILY)
    monkeypatch.undo()
    with AppClient(lab.path) as client, client.open(FAMILY) as bundle, pytest.raises(NotAllowed):
        client.send_verdict(bundle, is_healthy=True)


def test_after_the_server_has_ended_borrowed_files_stay(lab: Lab) -> None:
    with AppClient(lab.path) as client, client.open(FAMILY) as bundle:
        lab.server.close()
        assert all(os.pread(fd, 4, 0) == b"data" for fd in bundle.fds.values())
    with pytest.raises(DaemonNotRunning):
        AppClient(lab.path)
