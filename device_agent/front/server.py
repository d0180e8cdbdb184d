"""uvicorn, adapted to a device that is idle most of the time.

Rules:
1. No periodic timer. Stock uvicorn wakes up ten times per second to refresh a Date header and to check a flag. This
   server waits for an event, and responses have no Date header (RFC 9110 section 6.6.1 allows that for an origin server
   without a reliable clock).
2. Bytes that are not HTTP get a JSON error, like every other error. The size of a request's head and the time until it
   is complete are limited.
3. Head and body of a response are sent in one write, on a socket with TCP_NODELAY. In two writes, Nagle's algorithm
   delays the second until the client's delayed acknowledgment of the first.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Generator
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

KEEP_ALIVE_TIMEOUT_S: Final = 75  # nginx's default; an idle connection causes this one wake-up
MAX_HEAD_BYTES: Final = 512 * 1024  # twice what asyncio reads at once, since a short head can begin late in a read
SHUTDOWN_GRACE_S: Final = 10
MAX_JOINED_BYTES: Final = 256 * 1024  # for larger bodies a copy costs more than a second write


class JoiningTransport:
    """A transport that keeps the head of a response until its body is written (rule 3).

    Args:
        transport: the transport to write to.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        """Write data; the head of a response waits for the next `write`, `flush` or `close`."""
        head, self._head = self._head, b""
        if head:
            if len(data) <= MAX_JOINED_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.write(head)
                self._transport.write(data)
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write a waiting head; for a response without a body, as for HEAD."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Flush and close the transport."""
        self.flush()
        self._transport.close()


class FrontProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a JoiningTransport, with the limits of rule 2."""

    _is_in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Set TCP_NODELAY, wrap the transport, and start the timer of the first head."""
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(JoiningTransport(transport))  # type: ignore[arg-type]  # all that uvicorn calls of one
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of the head."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; reject a head that is longer than MAX_HEAD_BYTES."""
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"a request's head is longer than {MAX_HEAD_BYTES} bytes")
        elif self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        """Start to count the bytes of a head."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop the timer of the head."""
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Write a head that still waits for its body."""
        self.transport.flush()  # type: ignore[attr-defined]  # a JoiningTransport
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Send a JSON error and close the connection."""
        body = json.dumps({"error": msg}).encode()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_TIMEOUT_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class FrontServer(Server):
    """uvicorn's server without its periodic timer (rule 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """Number of open connections."""
        return len(self.server_state.connections)

    def request_stop(self) -> None:
        """Stop accepting connections, complete the open requests, and return from `serve`."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Wait for `request_stop`, without waking up before (rule 1)."""
        self.server_state.default_headers = []
        await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: the supervisor decides when the front ends."""
        yield


def create_server(app: Any) -> FrontServer:
    """Create a server for an ASGI app and import all modules that it needs.

    Call it inside the event loop.
    """
    config = Config(
        app,
        http=FrontProtocol,
        loop="none",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_TIMEOUT_S,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )
    config.load()
    return FrontServer(config)
