"""Clients that hold connections, bodies or memory: others are still served, by real processes."""

import contextlib
import http.client
import json
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from device_agent.runtime.handles import ModelProcess
from tests.support.load_clients import INFER, REQUEST, Load, connect, post, wait_until
from tests.support.memfd_bundles import (
    MemfdBundle,
    create_memfd_bundle,
    make_graph_model,
    make_scale_model,
    start_front,
)

MIB = 1024 * 1024
FREE = "/v2/models/free/infer"
HEAD = b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: localhost\r\n"
SLOW = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


class Endpoint:
    """A front with two models: `toy` with the fixed shape [4], `free` with a free one."""

    def __init__(self, front: Any, processes: dict[str, ModelProcess]) -> None:
        self.front, self.address, self.processes = front, front.address, processes

    def open(self, data: bytes = b"") -> socket.socket:
        """Open a connection and send bytes."""
        host, _, port = self.address.removeprefix("http://").partition(":")
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(data)
        return connection

    def ask(self) -> int:
        """Return the status of a good request on a new connection."""
        return post(self.address)[0]


@contextlib.contextmanager
def serve(bundles: dict[str, MemfdBundle], **limits: Any) -> Iterator[Endpoint]:
    with start_front(**limits) as front:
        processes = {family: bundle.start_process(1, family=family) for family, bundle in bundles.items()}
        for family, process in processes.items():
            front.publish(family, process)
        yield Endpoint(front, processes)
        for process in processes.values():
            process.stop()


@pytest.fixture(scope="module")
def bundles() -> Iterator[dict[str, MemfdBundle]]:
    with (
        create_memfd_bundle(make_scale_model(2.0)) as toy,
        create_memfd_bundle(make_scale_model(2.0, size="n")) as free,
    ):
        yield {"toy": toy, "free": free}


@pytest.fixture(scope="module")
def endpoint(bundles: dict[str, MemfdBundle]) -> Iterator[Endpoint]:
    """Serve with room for 40 connections, and for 8 MiB of bodies."""
    with serve(bundles, max_connections=40, max_body_bytes=4 * MIB, max_kept_bytes=8 * MIB) as served:
        yield served


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while part := connection.recv(65536):
            received += part
    return received


def close_all(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_idle_and_headless_connections_give_way_oldest_first(endpoint: Endpoint) -> None:
    held = [endpoint.open(b"" if number % 2 else HEAD) for number in range(100)]
    assert [endpoint.ask() for _ in range(5)] == [200] * 5
    wait_until(lambda: endpoint.front.state()["connections"] <= 41)
    assert is_closed(held[0])
    assert not is_closed(held[-1])
    close_all(held)


def test_a_client_that_reuses_its_connection_keeps_it_while_others_come(endpoint: Endpoint) -> None:
    client = connect(endpoint.address)
    for _ in range(20):
        held = [endpoint.open() for _ in range(10)]
        client.request("POST", INFER, REQUEST)
        response = client.getresponse()
        assert (response.status, response.read()[:1]) == (200, b"{")
        close_all(held)
    client.close()


def test_bodies_that_make_no_progress_give_way_and_health_is_answered(endpoint: Endpoint) -> None:
    held = [endpoint.open(SLOW) for _ in range(60)]
    assert post(endpoint.address, b"", "/v2/health/live")[0] == 405
    assert [endpoint.ask() for _ in range(5)] == [200] * 5
    connection = connect(endpoint.address)
    connection.request("GET", "/v2/health/live")
    assert connection.getresponse().status == 200
    connection.close()
    close_all(held)


def test_bodies_of_the_largest_size_that_stay_open_give_way_to_others(endpoint: Endpoint) -> None:
    size = 4 * MIB
    head = f"POST {FREE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    held = [endpoint.open() for _ in range(8)]
    for connection in held:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head + bytes(size - 1))
    assert [endpoint.ask() for _ in range(5)] == [200] * 5
    values = np.arange(900_000, dtype="<f4")
    status, answer = ask_binary(endpoint.address, values)
    assert (status, np.array_equal(answer, values * 2)) == (200, True)
    answers = [read_all(connection) for connection in held[:2]]
    assert all(b" 503 " in answer.partition(b"\r\n")[0] or not answer for answer in answers)
    close_all(held)


def ask_binary(address: str, values: Any) -> tuple[int, Any]:
    """Send a tensor as raw bytes; return status and the output."""
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [len(values)],
        "parameters": {"binary_data_size": values.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    fields = {"Inference-Header-Content-Length": str(len(head))}
    status, headers, body = post(address, head + values.tobytes(), FREE, **fields)
    length = int(headers.get("inference-header-content-length", len(body)))
    return status, np.frombuffer(body[length:], "<f4")


def test_health_is_answered_while_every_connection_has_a_request(bundles: dict[str, MemfdBundle]) -> None:
    with serve({"toy": bundles["toy"]}, max_connections=4, wait_s=60.0) as served:
        served.processes["toy"].kill()
        wait_until(lambda: not served.front.state()["families"]["toy"]["ready"])
        length = f"Content-Length: {len(REQUEST)}\r\n\r\n".encode()
        waiting = [served.open(HEAD + length + REQUEST) for _ in range(4)]
        wait_until(lambda: served.front.state()["families"]["toy"]["waiting"] == 4)
        status, fields, body = post(served.address)
        assert (status, fields["connection"], fields["retry-after"]) == (503, "close", "1")
        assert b"more than 4 connections" in body
        for _ in range(3):
            connection = connect(served.address)
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().status == 200
            connection.close()
        close_all(waiting)


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_client_that_closes_its_sending_side_gets_its_answer(
    bundles: dict[str, MemfdBundle], endpoint: Endpoint, tmp_path: Path, is_unix: bool
) -> None:
    length = f"Content-Length: {len(REQUEST)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        if is_unix:
            served = stack.enter_context(serve({"toy": bundles["toy"]}, listen=f"unix:{tmp_path}/s"))
        for data, count in ((HEAD + length + REQUEST, 1), (2 * (HEAD + length + REQUEST), 2)):
            if is_unix:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(served.address.removeprefix("unix:"))
                connection.sendall(data)
            else:
                connection = endpoint.open(data)
            connection.settimeout(60)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection).count(b"HTTP/1.1 200 OK") == count
            connection.close()


def test_a_body_that_is_cut_off_by_a_closed_sending_side_is_408(endpoint: Endpoint) -> None:
    for data in (SLOW, HEAD + b"Content-Length: 100\r\n\r\n{"):
        connection = endpoint.open(data)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        connection.close()


def test_two_hosts_or_none_are_400(endpoint: Endpoint) -> None:
    for fields in (b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nhost: evil.example\r\n"):
        for version in (b"1.1", b"1.0"):
            connection = endpoint.open(b"GET /v2 HTTP/" + version + b"\r\n" + fields + b"\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")
            connection.close()


def test_a_body_of_a_fixed_shape_is_limited_to_kilobytes_and_the_client_reads_why(endpoint: Endpoint) -> None:
    status, _, body = post(endpoint.address, b" " * 3 * MIB)
    assert status == 413
    limit = int(json.loads(body)["error"].split()[-4])
    assert limit < 70_000
    assert post(endpoint.address, REQUEST + b" " * (limit - len(REQUEST)))[0] == 200
    assert post(endpoint.address, b"{}" + b" " * MIB, FREE)[0] == 400


def test_a_flood_of_chunk_extensions_or_trailers_ends(endpoint: Endpoint) -> None:
    for tail in (b"1;" + b"x" * 2 * MIB, b"0\r\n" + b"A: b\r\n" * 400_000):
        connection = endpoint.open()
        with contextlib.suppress(ConnectionError):
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + tail)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
        connection.close()
    assert endpoint.ask() == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000,
    ],
    ids=["fields", "value", "url", "pipelined"],
)
def test_heads_that_would_take_much_memory_are_400(endpoint: Endpoint, data: bytes) -> None:
    connection = endpoint.open(data)
    assert b"HTTP/1.1 400 Bad Request" in read_all(connection)
    connection.close()


def test_incomplete_heads_count_as_memory(endpoint: Endpoint) -> None:
    held = [endpoint.open(b"GET /v2 HTTP/1.1\r\nA: " + b"b" * 500_000) for _ in range(30)]
    wait_until(lambda: sum(map(is_closed, held)) >= 8)
    assert endpoint.ask() == 200
    close_all(held)


def test_a_few_pipelined_requests_are_answered_in_order(endpoint: Endpoint) -> None:
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"
    connection = endpoint.open((request + b"\r\n") * 20 + request + b"Connection: close\r\n\r\n")
    assert read_all(connection).count(b'{"live": true}') == 21
    connection.close()


def test_a_client_that_does_not_read_its_answers_loses_them_and_no_one_else(endpoint: Endpoint) -> None:
    values = np.zeros(1_000_000, "<f4")
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [len(values)],
        "parameters": {"binary_data_size": values.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lengths = f"Content-Length: {len(head) + values.nbytes}\r\nInference-Header-Content-Length: {len(head)}\r\n\r\n"
    fields = "Connection: close\r\n" + lengths
    data = HEAD.replace(INFER.encode(), FREE.encode()) + fields.encode() + head + values.tobytes()
    host, _, port = endpoint.address.removeprefix("http://").partition(":")
    before, held = endpoint.front.window("free", 1).requests, []
    for number in range(1, 7):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(data)
        held.append(connection)
        while endpoint.front.window("free", 1).requests < before + number:
            time.sleep(0.01)
    assert len(read_all(held[0])) < values.nbytes < len(read_all(held[-1]))
    assert ask_binary(endpoint.address, values + 1)[0] == 200
    assert endpoint.ask() == 200
    close_all(held)


def peak_bytes(process: ModelProcess) -> int:
    return process.peak_bytes()


def test_a_large_body_of_json_takes_bounded_memory_and_delays_others_little(bundles: dict[str, MemfdBundle]) -> None:
    with serve({"free": bundles["free"]}) as served:
        process = served.processes["free"]
        small = REQUEST
        assert post(served.address, small, FREE)[0] == 200
        before = peak_bytes(process)
        status, _, body = post(served.address, b'{"inputs":[' + b"{}," * 4_000_000 + b"{}]}", FREE)
        assert status == 400
        assert b"values beside lists of numbers" in body
        assert peak_bytes(process) < before + 60 * MIB
        count = 2_000_000
        text = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [count], "data": 0}]})
        text = text.replace('"data": 0', '"data": [' + "0.5," * (count - 1) + "0.5]")
        wanted = text[:-1] + ', "parameters": {"binary_data_output": true}}'
        answers: list[int] = []
        client = threading.Thread(target=lambda: answers.append(post(served.address, wanted.encode(), FREE)[0]))
        client.start()
        delays = []
        while client.is_alive():
            started = time.monotonic()
            assert post(served.address, small, FREE)[0] == 200
            delays.append(time.monotonic() - started)
        client.join()
        assert answers == [200]
        assert peak_bytes(process) < before + 120 * MIB
        assert len(delays) >= 3, "requests are served while the large body is parsed"


def test_a_request_that_needs_too_much_memory_is_an_error_of_the_client() -> None:
    # x [n] -> Expand to [2000, n] -> y [n]: 8 kB of output memory for each byte of the request
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["h"]),
        helper.make_node("ReduceSum", ["h", "axes"], ["y"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("shape", 7, [2], [2000, 1]),
        helper.make_tensor("axes", 7, [1], [0]),
    ]
    model = make_graph_model(nodes, [("x", "float32", ["n"])], [("y", "float32", ["n"])], constants)
    with create_memfd_bundle(model) as bundle, start_front() as front:
        spec = replace(bundle.make_spec(1, family="free"), request_memory_bytes=64 * MIB)
        process = ModelProcess.start(bundle.fds, spec)
        front.publish("free", process)
        assert ask_binary(front.address, np.ones(100, "<f4"))[0] == 200
        status, _ = ask_binary(front.address, np.ones(400_000, "<f4"))
        assert status == 400
        assert process.peak_bytes() < 512 * MIB
        assert ask_binary(front.address, np.ones(100, "<f4"))[0] == 200
        process.stop()


def test_swaps_and_commits_fail_no_request_while_clients_abuse_the_endpoint(bundles: dict[str, MemfdBundle]) -> None:
    bundle = bundles["toy"]
    with serve({"toy": bundle}, max_connections=60) as served, Load(served.address, clients=2) as load:
        current = served.processes["toy"]
        held: list[socket.socket] = []
        for number in range(2, 5):
            held += [served.open(data) for data in (b"", HEAD, SLOW) for _ in range(30)]
            candidate = bundle.start_process(number)
            served.front.publish("toy", candidate)
            load.wait_for_responses(20)
            for connection in held:
                with contextlib.suppress(ConnectionError):
                    connection.send(b"1\r\na\r\n")
            served.front.retire("toy", number - 1, 60)
            current.stop()
            current = served.processes["toy"] = candidate
            load.wait_for_responses(20)
        assert load.failures == {}
        wait_until(lambda: served.front.state()["connections"] <= 61)
        close_all(held)


@pytest.mark.parametrize("count", [300, 10_000])
def test_any_number_of_keep_alive_connections_takes_bounded_memory(endpoint: Endpoint, count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 200:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = endpoint.front.resident_bytes()
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    held = []
    try:
        for number in range(count):
            held.append(endpoint.open(request))
            if number % 100 == 0:
                assert endpoint.ask() == 200
        wait_until(lambda: endpoint.front.state()["connections"] <= 41)
        assert endpoint.front.resident_bytes() < before + 16 * MIB
    finally:
        close_all(held)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a client as another user")
@pytest.mark.parametrize("is_unix", [False, True])
def test_another_user_is_not_pushed_out(bundles: dict[str, MemfdBundle], is_unix: bool) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        listen = f"unix:{folder}/s" if is_unix else "tcp:127.0.0.1:0"
        served = stack.enter_context(serve({"toy": bundles["toy"]}, listen=listen, max_connections=20))
        if is_unix:
            (folder / "s").chmod(0o666)
        other = connect(served.address)
        other.request("GET", "/v2/health/live")
        assert other.getresponse().read()
        held: list[http.client.HTTPConnection] = []
        for _ in range(60):
            with as_user(12345):
                connection = connect(served.address)
                connection.connect()
            held.append(connection)
        wait_until(lambda: served.front.state()["connections"] <= 21)
        sock = other.sock
        other.request("GET", "/v2/health/live")
        assert other.getresponse().status == 200
        assert other.sock is sock, "the connection of the other user was closed"
        for connection in held:
            connection.close()
        other.close()


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
