"""Clients that send requests in the background while a test swaps or stops the model."""

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit

REQUEST = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}]}).encode()
INFER = "/v2/models/toy/infer"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(address: str) -> http.client.HTTPConnection:
    """Return a connection to "unix:/path" or "http://HOST:PORT"."""
    if address.startswith("unix:"):
        return UnixConnection(address.removeprefix("unix:"))
    return http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)


def post(address: str, body: bytes = REQUEST, path: str = INFER, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send one POST on a new connection; return status, header fields by lower-case name, and body."""
    connection = connect(address)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return response.status, fields, response.read()
    finally:
        connection.close()


def wait_until(condition: Callable[[], object], deadline_s: float = 60) -> None:
    """Call `condition` repeatedly until it is true; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {deadline_s} s"
        time.sleep(0.005)


class Load:
    """Threads that send REQUEST repeatedly.

    Attributes:
        responses: number of responses by (status, first value or error).
        order: first value or error of each response, in order.
    """

    def __init__(self, address: str, clients: int = 3) -> None:
        self.responses: Counter[tuple[int, float | str]] = Counter()
        self.order: list[float | str] = []
        self._address = address
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def wait_for_responses(self, more: int, deadline_s: float = 60) -> None:
        """Wait until `more` further responses have arrived, so that tests are paced by requests and not by time."""
        with self._changed:
            goal = len(self.order) + more
            assert self._changed.wait_for(lambda: len(self.order) >= goal, deadline_s), self.responses

    @property
    def failures(self) -> dict[tuple[int, float | str], int]:
        """The responses with a status other than 200."""
        return {key: count for key, count in self.responses.items() if key[0] != 200}

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = connect(self._address)
        while not self._stop.is_set():
            try:
                connection.request("POST", INFER, REQUEST)
                response = connection.getresponse()
                value = json.loads(response.read())
                key = (response.status, value["outputs"][0]["data"][0] if response.status == 200 else value["error"])
            except (OSError, http.client.HTTPException) as error:
                key = (0, repr(error))
                connection.close()
            with self._changed:
                self.responses[key] += 1
                self.order.append(key[1])
                self._changed.notify_all()
        connection.close()
