"""Clients in other languages: the C library, and one that follows the page of the protocol alone."""

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import airweights
from tests.support.app_lab import app_lab, release, socket_path
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

ROOT = Path(__file__).parents[2]
LIBRARY = Path(airweights.__path__[0]) / "c"
MAX_CLIENT_BYTES = 2 << 20

needs_compiler = pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "make", "ar", "pkg-config"))), reason="needs gcc, make and pkg-config"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a device that lends 1.0.0; the tests of the module run in order."""
    with app_lab(tmp_path_factory.mktemp("clients")) as (publisher, device):
        device.update()
        device.start()
        yield publisher, device


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example program, built as its page says."""
    folder = tmp_path_factory.mktemp("build")
    run("make", "-C", str(LIBRARY), "install", f"PREFIX={folder}/usr", f"BUILD={folder}", "CC=gcc")
    flags = run("pkg-config", "--cflags", "--libs", "airweights", PKG_CONFIG_PATH=f"{folder}/usr/lib/pkgconfig").split()
    source = str(ROOT / "examples/words.c")
    run("gcc", "-Wall", "-Wextra", "-Werror", "-O2", source, *flags, "-o", str(folder / "words"))
    return folder / "words"


def run(*command: str, **variables: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
    assert found.returncode == 0, found.stderr
    return found.stdout


@needs_compiler
def test_a_c_program_reads_judges_and_follows_swaps(lab: tuple[Publisher, DeviceUnderTest], words: Path) -> None:
    publisher, device = lab
    with subprocess.Popen([words, socket_path(device), FAMILY], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("1.0.0: 2 words, sum ")
        assert program.stdout.readline() == "judged\n"
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{program.pid}/status").read_text().splitlines() if ":" in line
        )
        own = sum(1024 * int(status[field].split()[0]) for field in ("RssAnon", "RssFile"))
        assert own <= MAX_CLIENT_BYTES
        # the program's verdict ends the probation of a release of runtime "app"
        release(publisher, "1.1.0", "one\ntwo\nthree\n", runtime="app")
        assert device.call("update")["outcome"] == "updated"
        assert program.stdout.readline().startswith("1.1.0: 3 words, sum ")
        assert program.stdout.readline() == "judged\n"
        release(publisher, "1.2.0", "no line", runtime="app")
        refused = device.call("update")
        assert (refused["outcome"], refused["release"]) == ("rolled-back", "1.2.0")
        assert refused["detail"].endswith("user:root judges it unhealthy: no words")
        lines = [program.stdout.readline() for _ in range(4)]
        assert [line.split(",")[0] for line in lines] == ["1.2.0: 0 words", "judged\n", "1.1.0: 3 words", "judged\n"]
        program.kill()


@needs_compiler
@pytest.mark.parametrize("arguments", [("/nowhere/apps.sock", FAMILY), ("/" + "x" * 200, FAMILY), (None, 'x"y')])
def test_errors_of_the_c_client_are_one_line(
    lab: tuple[Publisher, DeviceUnderTest], words: Path, arguments: tuple[str | None, str]
) -> None:
    path = arguments[0] or str(socket_path(lab[1]))
    found = subprocess.run([words, path, arguments[1]], capture_output=True, text=True, check=False, timeout=120)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    unknown = subprocess.run(
        [words, socket_path(lab[1]), "other"], capture_output=True, text=True, check=False, timeout=120
    )
    assert unknown.stderr.startswith("words: not-allowed: user ")


class PageClient:
    """Written from docs/apps/protocol.md; uses nothing of this project."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))

    def send(self, **fields: Any) -> None:
        body = json.dumps({"version": 1, **fields}).encode()
        self.socket.sendall(struct.pack(">I", len(body)) + body)

    def receive(self) -> tuple[Any, list[int]]:
        head, fds, _, _ = socket.recv_fds(self.socket, 4, 250)
        (size,), body = struct.unpack(">I", head), b""
        while len(body) < size:
            body += self.socket.recv(size - len(body))
        return json.loads(body), list(fds)

    def open(self, family: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        self.send(command="open", family=family)
        files: dict[str, bytes] = {}
        while True:
            reply, fds = self.receive()
            for row, fd in zip(reply["ok"]["files"], fds, strict=True):
                with open(fd, "rb") as stream:
                    files[row["path"]] = stream.read()
            if reply["ok"]["is_last"]:
                return reply["ok"], files


def test_the_page_of_the_protocol_is_enough_to_write_a_client(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    _, device = lab
    client, watcher = PageClient(socket_path(device)), PageClient(socket_path(device))
    with client.socket, watcher.socket:
        watcher.send(command="watch", family=FAMILY)
        assert watcher.receive()[0]["ok"]["event"] == "serving"
        assert device.call("rollback")["outcome"] == "rolled-back"
        assert watcher.receive()[0]["release"] == "1.0.0"
        bundle, files = client.open(FAMILY)
        assert files["labels/words.txt"] == b"one\ntwo\n"
        client.send(command="verdict", family=FAMILY, bundle=bundle["bundle"], is_healthy=True, latency_us=120)
        assert client.receive()[0] == {"ok": {"counted": True}}
        client.send(command="verdict", family=FAMILY, bundle="0" * 64, is_healthy=True)
        assert client.receive()[0]["error"]["reason"] == "release-replaced"
