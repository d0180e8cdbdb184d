"""Measure a good client's latency while other clients hold connections, bodies and memory of the endpoint.

    python -m benchmarks.endpoint_abuse [--idle N] [--slow N] [--held N] [--busy N] [--large N] [--reconnects R]
        [--seconds S] [--fairness] [--json OUT]

Five runs: alone; beside `idle` keep-alive connections, `slow` ones that send one byte per second of a head or a body,
and `held` ones that stop before the last byte of a body of the largest size; beside `busy` clients that send valid
requests as fast as they can; beside `large` ones that do so with JSON of 4 bytes for each of LARGE_VALUES numbers; and
beside `busy` clients of a model that takes some 10 ms, with the ratio of the good client's p99 to the service time.
With round robin, the ratio is at most busy + 1, and what the machine adds.
With `--reconnects`, closed connections of the second run are opened again, at most R per second. The good client sends
half of its requests on one connection, and half on a new one each.
"""

import argparse
import json
import multiprocessing
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.open_loop_load import HttpClient, OpenLoop, build_infer_request
from device_agent.runtime.handles import FrontHandle, GenerationSpec, ModelProcess, ServeConfig

RATE: Final = 100.0
WORK_RATE: Final = 4.0  # of the model that takes some 10 ms: a request ends before the next one, also beside others
PATH: Final = "/v2/models/m/infer"
HEAD: Final = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n".encode()
LARGE_VALUES: Final = 12_000_000
WORK_ROWS, WORK_WIDTH, WORK_LAYERS = 64, 512, 16
KINDS: Final = ("idle", "slow head", "slow body", "held")


class Abuser:
    """Holds the connections of one abusive client, in this process.

    Args:
        address: of the endpoint.
        counts: number of connections of each of KINDS.
        held_bytes: length of the bodies of the last kind.
        reconnects_per_s: closed connections that are opened again.
    """

    def __init__(self, address: str, counts: dict[str, int], held_bytes: int, reconnects_per_s: float) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        parts = urlsplit(address)
        self._target = (parts.hostname or "", parts.port or 80)
        self._held_bytes = held_bytes
        self._reconnects_per_s = reconnects_per_s
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, str]] = {}
        self._closed: list[str] = []
        self.reconnects = 0
        for kind, count in counts.items():
            for _ in range(count):
                self._connect(kind)

    def run_step(self, duration_s: float) -> None:
        """Send one byte on each slow connection, spread over a duration, and reconnect what was closed."""
        end, slow = time.monotonic() + duration_s, [pair for pair in self._open.values() if pair[1].startswith("slow")]
        for number, (connection, kind) in enumerate(slow):
            with suppress(OSError):
                connection.send(b"1\r\na\r\n" if kind == "slow body" else b"x")
            if number % 20 == 19:
                time.sleep(max(end - time.monotonic(), 0) * 20 / (len(slow) - number + 19))
        time.sleep(max(end - time.monotonic(), 0))
        for descriptor, _ in self._poll.poll(0):
            connection, kind = self._open.pop(descriptor)
            connection.close()
            self._closed.append(kind)
        for _ in range(min(len(self._closed), round(self._reconnects_per_s * duration_s))):
            self._connect(self._closed.pop(0))
            self.reconnects += 1

    @property
    def open_connections(self) -> int:
        """Number of connections that the endpoint has not closed."""
        return len(self._open)

    def _connect(self, kind: str) -> None:
        connection = socket.create_connection(self._target)
        with suppress(OSError):
            if kind == "slow head":
                connection.sendall(HEAD + b"X: ")
            elif kind == "slow body":
                connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            elif kind == "held":
                length = f"Content-Length: {self._held_bytes}\r\n\r\n".encode()
                connection.sendall(HEAD + length + bytes(self._held_bytes - 1))
        connection.setblocking(False)
        self._open[connection.fileno()] = connection, kind
        self._poll.register(connection.fileno(), select.EPOLLIN | select.EPOLLRDHUP)


def _serve_abuser(pipe: Connection, *arguments: Any) -> None:
    abuser = Abuser(*arguments)
    pipe.send(None)
    while not pipe.poll():
        abuser.run_step(1.0)
    pipe.send({"open": abuser.open_connections, "reconnects": abuser.reconnects})


def _serve_busy(pipe: Connection, address: str, request: bytes, clients: int) -> None:
    loop = OpenLoop([HttpClient(address, request) for _ in range(clients)], 1e9)
    loop.start()
    pipe.send(None)
    pipe.recv()
    pipe.send({"requests": len(loop.stop())})


@contextmanager
def run_beside(target: Callable[..., None], *arguments: Any) -> Iterator[dict[str, Any]]:
    """Run a function in a process of its own; the yielded dictionary gets its result at the end."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    pipe.recv()
    result: dict[str, Any] = {}
    try:
        yield result
    finally:
        pipe.send(None)
        result.update(pipe.recv())
        process.join()


class NewConnectionClient:
    """Sends each request on a new connection."""

    def __init__(self, address: str, request: bytes) -> None:
        self._address, self._request = address, request

    def __call__(self) -> bool:
        """Send one request; return whether the status is 200."""
        client = HttpClient(self._address, self._request)
        try:
            return client()
        finally:
            client.close()


def measure(address: str, request: bytes, seconds: float, rate: float = RATE) -> dict[str, Any]:
    """Return failures and latencies of the good client.

    Args:
        address: of the endpoint.
        request: bytes of a request.
        seconds: duration.
        rate: requests per second.
    """
    out: dict[str, Any] = {}
    for name, client in (("keep_alive", HttpClient), ("new_connections", NewConnectionClient)):
        loop = OpenLoop([client(address, request)], rate / 2)
        loop.start()
        time.sleep(seconds / 2)
        rows = loop.stop()
        latencies = np.array([row[1] for row in rows]) * 1e3
        out[name] = {
            "requests": len(rows),
            "failed": sum(not row[2] for row in rows),
            "p50_ms": round(float(np.quantile(latencies, 0.5)), 2),
            "p99_ms": round(float(np.quantile(latencies, 0.99)), 2),
            "worst_ms": round(float(latencies.max()), 2),
        }
    return out


def _make_large_request() -> bytes:
    tensor = f'{{"name":"x","datatype":"FP32","shape":[{LARGE_VALUES}],"data":['.encode()
    body = b'{"parameters":{"binary_data_output":true},"inputs":[' + tensor + b"0.5," * (LARGE_VALUES - 1) + b"0.5]}]}"
    return HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def _make_work_model() -> onnx.ModelProto:
    from tests.support.memfd_bundles import make_graph_model

    square = numpy_helper.from_array(np.eye(WORK_WIDTH, dtype=np.float32), "w")
    names = ["x", *(f"h{number}" for number in range(WORK_LAYERS - 1)), "y"]
    nodes = [helper.make_node("MatMul", [one, "w"], [two]) for one, two in pairwise(names)]
    shape: list[int | str] = [WORK_ROWS, WORK_WIDTH]
    return make_graph_model(nodes, [("x", "float32", shape)], [("y", "float32", shape)], [square])


def measure_fairness(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the good client alone and beside busy ones, of a model that takes some 10 ms.

    Args:
        options: `busy` clients, `seconds` of each run.
    """
    from tests.support.memfd_bundles import create_memfd_bundle

    with create_memfd_bundle(_make_work_model()) as bundle:
        request = build_infer_request(PATH, {"x": np.ones((WORK_ROWS, WORK_WIDTH), np.float32)})
        front = FrontHandle.start(ServeConfig("tcp:127.0.0.1:0"))
        process = ModelProcess.start(bundle.fds, GenerationSpec("m", 1, "1.0", "benchmark", None, threads=1))
        try:
            front.publish("m", process)
            measure(front.address, request, 2.0)
            out = {"alone": measure(front.address, request, options.seconds, WORK_RATE)}
            with run_beside(_serve_busy, front.address, request, options.busy) as load:
                started = time.monotonic()
                out["busy"] = measure(front.address, request, options.seconds, WORK_RATE)
                elapsed_s = time.monotonic() - started
            out["busy"] |= load
            out["busy"]["service_ms"] = service_ms = round(elapsed_s / load["requests"] * 1e3, 2)
            for kind in ("keep_alive", "new_connections"):
                out["busy"][kind]["p99_service_times"] = round(out["busy"][kind]["p99_ms"] / service_ms, 2)
        finally:
            front.stop()
            process.stop()
    return out


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the five measurements; return their figures by name."""
    out: dict[str, Any] = {}
    from tests.support.memfd_bundles import create_memfd_bundle, make_scale_model

    # a free shape, so that bodies of the largest size are allowed
    with create_memfd_bundle(make_scale_model(2.0, size="n")) as bundle:
        request = build_infer_request(PATH, {"x": np.ones(256, np.float32)})
        front = FrontHandle.start(ServeConfig("tcp:127.0.0.1:0"))
        process = ModelProcess.start(bundle.fds, GenerationSpec("m", 1, "1.0", "benchmark", None, threads=1))
        try:
            front.publish("m", process)
            measure(front.address, request, 2.0)
            out["alone"] = measure(front.address, request, options.seconds)
            before = front.resident_bytes()
            half = options.slow // 2
            counts = dict(zip(KINDS, (options.idle, options.slow - half, half, options.held), strict=True))
            arguments = (front.address, counts, options.held_bytes, options.reconnects)
            with run_beside(_serve_abuser, *arguments) as abuse:
                out["abuse"] = measure(front.address, request, options.seconds)
                out["abuse"]["connections"] = front.state()["connections"]
                out["abuse"]["front_mib"] = round((front.resident_bytes() - before) / 2**20, 1)
            out["abuse"] |= abuse
            with run_beside(_serve_busy, front.address, request, options.busy) as load:
                out["busy"] = measure(front.address, request, options.seconds)
            out["busy"] |= load
            with run_beside(_serve_busy, front.address, _make_large_request(), options.large) as load:
                out["large"] = measure(front.address, request, options.seconds)
            out["large"] |= load
            out["large"]["model_process_peak_mib"] = round(process.peak_bytes() / 2**20)
        finally:
            front.stop()
            process.stop()
    out["fairness"] = measure_fairness(options)
    return out


def main() -> None:
    """Run the benchmark and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--held", type=int, default=8)
    parser.add_argument("--held-bytes", type=int, default=64 * 1024 * 1024)
    parser.add_argument("--busy", type=int, default=8)
    parser.add_argument("--large", type=int, default=3)
    parser.add_argument("--reconnects", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--fairness", action="store_true", help="only the last of the five runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure_fairness(options) if options.fairness else run(options), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
