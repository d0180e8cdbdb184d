"""uvicorn, made fit for a device at rest.

Rules:
1. No tick: stock uvicorn wakes ten times a second to refresh a Date header and look at a flag. Here the server waits
   for an event, and answers have no Date header (RFC 9110 section 6.6.1: an origin server without a good clock sends
   none).
2. Head and body of an answer leave in one write, on a socket with TCP_NODELAY. In two, Nagle's algorithm holds the
   second back until the client's delayed acknowledgement of the first.
"""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

KEEP_ALIVE_S: Final = 75  # nginx's default; the timer is the only wake-up that an idle connection causes, once
SHUTDOWN_GRACE_S: Final = 10
JOINED_BYTES: Final = 256 * 1024  # above it a copy costs more than a second write


class JoiningTransport:
    """A transport that keeps an answer's head until its body comes (rule 2)."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        """As the transport's; a head without its body waits for the next write or for `close`."""
        head, self._head = self._head, b""
        if head:
            if len(data) <= JOINED_BYTES:
                self._transport.write(head + data)
            else:
                self._transport.write(head)
                self._transport.write(data)
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            self._transport.write(data)

    def close(self) -> None:
        """As the transport's."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.close()


class FrontProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a JoiningTransport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(JoiningTransport(transport))  # type: ignore[arg-type]  # all that uvicorn calls of one


class FrontServer(Server):
    """uvicorn's server without its tick (rule 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self.server_state.connections)

    def end(self) -> None:
        """Stop accepting, let the running requests end, return from `serve`."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Rule 1."""
        self.server_state.default_headers = []
        await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """None: the supervisor says when to end."""
        yield


def server_for(app: Any) -> FrontServer:
    """A server for an ASGI app, with all its modules imported. Call it inside the event loop."""
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
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )
    config.load()
    return FrontServer(config)
