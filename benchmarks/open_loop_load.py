"""Load generators: an open loop for latencies and a closed loop for throughput.

The open loop sends requests at planned times and measures latency from the planned time. A stall of the server
therefore shows in every request that it delays (no coordinated omission).
"""

import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import numpy as np

from device_agent.runtime.tensors import Array, datatype_name, to_bytes

Row = tuple[
    float, float, bool
]  # planned start (monotonic clock) and latency, in seconds; whether the response was as expected
MAX_BEHIND_S = 2.0  # a client that is further behind its plan restarts it: the machine cannot reach the rate


def build_infer_request(path: str, inputs: Mapping[str, Array]) -> bytes:
    """Return the bytes of an HTTP inference request with binary tensors."""
    rows, raw = [], b""
    for name, array in inputs.items():
        data = bytes(to_bytes(array))
        row = {"name": name, "datatype": datatype_name(array.dtype), "shape": list(array.shape)}
        rows.append({**row, "parameters": {"binary_data_size": len(data)}})
        raw += data
    text = json.dumps({"inputs": rows, "parameters": {"binary_data_output": True}}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text) + len(raw)}\r\n"
    return f"{head}Inference-Header-Content-Length: {len(text)}\r\n\r\n".encode() + text + raw


class HttpClient:
    """A keep-alive connection with the minimal HTTP that these responses need."""

    def __init__(self, address: str, request: bytes) -> None:
        self._address, self._request = address, request
        self._connect()

    def _connect(self) -> None:
        if self._address.startswith("unix:"):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(self._address.removeprefix("unix:"))
        else:
            parts = urlsplit(self._address)
            self._socket = socket.create_connection((parts.hostname, parts.port or 80))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self) -> bool:
        """Send one request; return whether the status is 200."""
        try:
            self._socket.sendall(self._request)
            data = self._socket.recv(65536)
            while (end := data.find(b"\r\n\r\n")) < 0:
                data += self._receive()
            head = data[:end].lower()
            # match at the line start: a response also has an Inference-Header-Content-Length
            length = int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0])
            left = length - (len(data) - end - 4)
            while left > 0:
                left -= len(self._receive())
        except (OSError, IndexError, ValueError):
            self._socket.close()
            self._connect()
            return False
        return head.startswith(b"http/1.1 200")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError
        return data


class OpenLoop:
    """Threads that together send `rate` requests per second."""

    def __init__(self, clients: list[Callable[[], bool]], rate: float) -> None:
        self.rows: list[list[Row]] = [[] for _ in clients]
        self._stop = threading.Event()
        period = len(clients) / rate
        first = time.monotonic() + 0.05
        self._threads = [
            threading.Thread(target=self._run, args=(client, self.rows[n], first + n * period / len(clients), period))
            for n, client in enumerate(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Row]:
        """Stop sending; return all requests, sorted by planned start."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return sorted(row for rows in self.rows for row in rows)

    def _run(self, client: Callable[[], bool], rows: list[Row], planned: float, period: float) -> None:
        while not self._stop.is_set():
            wait = planned - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            elif wait < -MAX_BEHIND_S:
                planned = time.monotonic()
            answered = client()
            rows.append((planned, time.monotonic() - planned, answered))
            planned += period


@dataclass
class LoadProcess:
    """An OpenLoop over HTTP in its own process, so that it shares no interpreter with the measured code."""

    address: str
    requests: list[bytes]
    rate: float

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_open_loop, args=(theirs, self.address, self.requests, self.rate))
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def stop(self) -> list[Row]:
        self._pipe.send(None)
        rows: list[Row] = self._pipe.recv()
        self._process.join()
        return rows


def _serve_open_loop(pipe: Connection, address: str, requests: list[bytes], rate: float) -> None:
    loop = OpenLoop([HttpClient(address, request) for request in requests], rate)
    loop.start()
    pipe.send(None)
    pipe.recv()
    pipe.send(loop.stop())


def run_closed_loop(address: str, request: bytes, connections: int, seconds: float) -> tuple[float, float]:
    """Measure connections that each send the next request after the response to the one before.

    Args:
        address: URL or `unix:PATH` of the server.
        request: bytes of the HTTP request.
        connections: number of connections.
        seconds: duration.

    Returns:
        Requests per second, and the median latency in seconds.
    """
    pipes = []
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_closed_loop, args=(theirs, address, request, connections, seconds))
    process.start()
    pipes.append(ours)
    latencies = [latency for pipe in pipes for latency in pipe.recv()]
    process.join()
    return len(latencies) / seconds, float(np.median(latencies))


def _serve_closed_loop(pipe: Connection, address: str, request: bytes, connections: int, seconds: float) -> None:
    latencies: list[float] = []

    def run() -> None:
        client = HttpClient(address, request)
        for _ in range(20):
            client()
        barrier.wait()
        end = time.monotonic() + seconds
        while (before := time.monotonic()) < end:
            if not client():
                raise RuntimeError("a request failed")
            latencies.append(time.monotonic() - before)

    barrier = threading.Barrier(connections)
    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(latencies)
