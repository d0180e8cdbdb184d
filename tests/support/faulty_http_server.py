"""An HTTP server on loopback for a folder, with ranges and ETags, and faults that tests add to `Site.faults`."""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

Fault = Callable[["Exchange"], bool]


@dataclass
class Exchange:
    """One request and its planned response. A fault may change it, or send a response itself and return True."""

    handler: "_Handler"
    path: str
    data: bytes
    start: int
    etag: str

    @property
    def is_range(self) -> bool:
        return self.handler.headers.get("Range") is not None

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def write(self, data: bytes) -> None:
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def cut(self) -> None:
        """Close the connection after this response."""
        self.handler.close_connection = True


@dataclass
class ReceivedRequest:
    """A received request: path, first byte of the range, bytes of the body that were sent, and header fields."""

    path: str
    start: int
    sent: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        site = self.server.site
        path = urlsplit(self.path).path.lstrip("/")  # a client of a proxy sends the whole URL
        headers = {name.lower(): value for name, value in self.headers.items()}
        file = site.folder / path
        if not file.is_file():
            site.requests.append(ReceivedRequest(path, 0, headers=headers))
            self._empty(404)
            return
        data = file.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"' if site.etags else ""
        start = self._start(etag)
        seen = ReceivedRequest(path, start, headers=headers)
        site.requests.append(seen)
        exchange = Exchange(self, path, data, start, etag)
        for fault in list(site.faults):
            if fault(exchange):
                return
        data = exchange.data
        if etag and self.headers.get("If-None-Match") == etag:
            exchange.head(304, {"ETag": etag})
            return
        if start >= len(data) > 0:
            self._empty(416)
            return
        end = self._end(len(data)) if site.ranges else len(data)
        body = data[start:end]
        headers = {"Content-Length": str(len(body))}
        if etag:
            headers["ETag"] = etag
        is_part = bool(start) or end < len(data)
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        exchange.head(206 if is_part else 200, headers)
        seen.sent = len(body)
        try:
            exchange.write(body)
        except ConnectionError:
            exchange.cut()

    def _start(self, etag: str) -> int:
        value = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if not value or not self.server.site.ranges or (condition is not None and condition != etag):
            return 0
        return int(value.removeprefix("bytes=").partition("-")[0])

    def _end(self, size: int) -> int:
        last = self.headers.get("Range", "").partition("-")[2]
        return min(int(last) + 1, size) if last else size

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Do not log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: "Site"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


@dataclass
class Site:
    """A served folder.

    Attributes:
        etags: whether responses have an ETag.
        ranges: whether range requests are supported.
        faults: called in order for each request of an existing file.
        requests: the received requests, in order.
        url: address of the server.
    """

    folder: Path
    etags: bool = True
    ranges: bool = True
    faults: list[Fault] = field(default_factory=list)
    requests: list[ReceivedRequest] = field(default_factory=list)
    url: str = ""

    def bytes_sent(self, prefix: str) -> int:
        """Return the body bytes of all responses for paths with this prefix."""
        return sum(seen.sent for seen in self.requests if seen.path.startswith(prefix))


@contextmanager
def serve_folder(folder: Path, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> Iterator[Site]:
    """Serve a folder on a free port until the block ends, with TLS if a context is given."""
    site = Site(folder)
    server = _Server((address, 0), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.site = site
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    site.url = f"{'https' if tls else 'http'}://{address}:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# faults


def replace_body(path: str, data: bytes) -> Fault:
    """Return a fault that sends other bytes for one path."""

    def fault(exchange: Exchange) -> bool:
        if exchange.path == path:
            exchange.data = data
        return False

    return fault


def only_first(times: int, fault: Fault) -> Fault:
    """Return a fault that occurs only the first `times` times."""
    left = [times]

    def wrapped(exchange: Exchange) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        return fault(exchange)

    return wrapped


def only_below(prefix: str, fault: Fault) -> Fault:
    """Return a fault that occurs only for paths with a prefix."""
    return lambda exchange: exchange.path.startswith(prefix) and fault(exchange)


def cut_after(count: int) -> Fault:
    """Return a fault that closes the connection after `count` bytes of the body."""

    def fault(exchange: Exchange) -> bool:
        body = exchange.data[exchange.start :]
        headers = {"Content-Length": str(len(body)), "ETag": exchange.etag}
        if exchange.start:
            total = len(exchange.data)
            headers["Content-Range"] = f"bytes {exchange.start}-{total - 1}/{total}"
        exchange.head(206 if exchange.start else 200, headers)
        exchange.write(body[:count])
        exchange.cut()
        return True

    return fault


def respond_with_status(code: int, headers: dict[str, str] | None = None) -> Fault:
    """Return a fault that sends an HTTP status without a body."""

    def fault(exchange: Exchange) -> bool:
        exchange.head(code, {"Content-Length": "0", **(headers or {})})
        return True

    return fault


def hang(release: threading.Event, arrived: threading.Event | None = None) -> Fault:
    """Return a fault that sends nothing until `release` is set, at most for a minute; a request sets `arrived`."""

    def fault(exchange: Exchange) -> bool:
        if arrived is not None:
            arrived.set()
        release.wait(60)
        exchange.cut()
        return True

    return fault


def send_endless_body(exchange: Exchange) -> bool:
    """Send a body without a length that does not end."""
    exchange.head(200, {"Connection": "close"})
    exchange.cut()
    try:
        for _ in range(10_000):
            exchange.write(bytes(64 * 1024))
    except ConnectionError:
        pass
    return True


def trickle(pause_s: float) -> Fault:
    """Return a fault that sends the body byte by byte with pauses."""

    def fault(exchange: Exchange) -> bool:
        body = exchange.data[exchange.start :]
        exchange.head(200, {"Content-Length": str(len(body))})
        try:
            for byte in body:
                exchange.write(bytes([byte]))
                time.sleep(pause_s)
        except ConnectionError:
            exchange.cut()
        return True

    return fault
