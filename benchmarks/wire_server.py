"""A static HTTP/1.1 server on loopback that counts all bytes: `CountingServer`, `Traffic`.

It sends strong ETags, answers `If-None-Match` by 304 and `Range: bytes=A-B` by 206, and keeps connections open, as
web servers and object stores do. Bytes are those of HTTP in both directions, heads included, without TCP and IP.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

TYPE: Final = "application/octet-stream"


@dataclass(slots=True)
class Traffic:
    """Requests and bytes of a device.

    Attributes:
        requests: number of requests.
        sent: bytes from the device to the server.
        received: bytes from the server to the device.
    """

    requests: int = 0
    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.sent + self.received

    def since(self, earlier: "Traffic") -> "Traffic":
        """Return the traffic after an earlier state."""
        return Traffic(self.requests - earlier.requests, self.sent - earlier.sent, self.received - earlier.received)


class CountingServer:
    """Serve a folder on a free port of loopback while the context is open."""

    def __init__(self, folder: Path) -> None:
        self.traffic = Traffic()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"folder": folder.resolve(), "owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Address of the folder, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def copy_traffic(self) -> Traffic:
        """Return the traffic until now."""
        with self._lock:
            return replace(self.traffic)

    def add(self, *, requests: int = 0, sent: int = 0, received: int = 0) -> None:
        """Count requests, and bytes in each direction."""
        with self._lock:
            self.traffic.requests += requests
            self.traffic.sent += sent
            self.traffic.received += received


class _CountedReader:
    def __init__(self, stream: Any, owner: CountingServer) -> None:
        self._stream, self._owner = stream, owner

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._stream.readline(size)
        self._owner.add(sent=len(line))
        return line

    def close(self) -> None:
        self._stream.close()


class _CountedWriter:
    def __init__(self, stream: Any, owner: CountingServer) -> None:
        self._stream, self._owner = stream, owner

    def write(self, data: bytes) -> int:
        self._owner.add(received=len(data))  # before they leave, so that a client that has them finds them counted
        size: int = self._stream.write(data)
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    owner: CountingServer
    rfile: Any
    wfile: Any

    def setup(self) -> None:
        super().setup()
        self.rfile = _CountedReader(self.rfile, self.owner)
        self.wfile = _CountedWriter(self.wfile, self.owner)

    def do_GET(self) -> None:
        path = (self.folder / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            self._answer(404)
            return
        data = path.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        if tag in self.headers.get("If-None-Match", ""):
            self._answer(304, fields={"ETag": tag})
            return
        extent = self.headers.get("Range", "")
        if extent.startswith("bytes=") and "," not in extent:
            first, _, last = extent.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(int(last), len(data) - 1) if first and last else len(data) - 1
            if start > end:
                self._answer(416, fields={"Content-Range": f"bytes */{len(data)}"})
                return
            place = f"bytes {start}-{end}/{len(data)}"
            self._answer(206, data[start : end + 1], {"ETag": tag, "Content-Range": place})
            return
        self._answer(200, data, {"ETag": tag})

    def _answer(self, status: int, body: bytes = b"", fields: Mapping[str, str] | None = None) -> None:
        self.owner.add(requests=1)
        self.send_response(status)
        for name, value in (fields or {}).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Type", TYPE)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
