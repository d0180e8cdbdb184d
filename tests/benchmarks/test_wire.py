"""The wire benchmark counts every byte of HTTP, and its peers bring the published model to the device."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.wire import format_table, format_updates, measure_peer
from benchmarks.wire_peers import Peer, PlainHttp, SignedZstd
from benchmarks.wire_server import CountingServer, Traffic


def exchange(server: CountingServer, request: bytes) -> bytes:
    """Send one request on a connection of its own; return everything that came back."""
    address, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((address, int(port)), timeout=120) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("fields", "status"),
    [(b"", b"200"), (b"Range: bytes=2-4\r\n", b"206"), (b"Range: bytes=99-\r\n", b"416")],
)
def test_the_server_counts_what_is_on_the_connection(tmp_path: Path, fields: bytes, status: bytes) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    request = b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n"
    with CountingServer(tmp_path) as server:
        answer = exchange(server, request)
        assert answer.split()[1] == status
        assert server.copy_traffic() == Traffic(1, len(request), len(answer))
        if status == b"206":
            assert answer.endswith(b"\r\n\r\n234")


def test_an_unchanged_file_is_not_sent_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    head = b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with CountingServer(tmp_path) as server:
        tag = exchange(server, head + b"\r\n").partition(b"ETag: ")[2].partition(b"\r\n")[0]
        answer = exchange(server, head + b"If-None-Match: " + tag + b"\r\n\r\n")
        assert answer.split()[1] == b"304"
        assert b"0123456789" not in answer
        assert exchange(server, b"GET /../file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").split()[1] == b"404"


@pytest.mark.parametrize("create", [PlainHttp, SignedZstd])
def test_a_peer_installs_updates_and_polls(tmp_path: Path, create: Callable[[Path], Peer]) -> None:
    models = [tmp_path / "1", tmp_path / "2"]
    models[0].write_bytes(bytes(range(256)) * 40)
    models[1].write_bytes(models[0].read_bytes() + b"news")
    found = measure_peer(create(tmp_path / "peer"), models, 3)
    assert found["polls"]["requests"] == 3
    assert found["polls"]["received"] < 3 * 250
    assert found["update"]["received"] > 100


def test_tables_name_all_bytes_in_both_directions() -> None:
    phase = {"requests": 2, "sent": 100, "received": 1000}
    ways: dict[str, Any] = {"tufup": {"install": phase, "update": phase, "polls": {**phase, "sent": 200}}}
    rows = {"voice": {"polls": 4, "ways": ways}}
    assert format_table(rows).splitlines()[2:] == ["| voice | tufup | 1,100 | 1,100 | 2 | 300 |"]
    assert format_updates(rows).splitlines()[2:] == ["| voice |  |  | 1,100 |  |  |"]
