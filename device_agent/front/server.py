"""uvicorn, adapted to a device that is idle most of the time.

Rules:
1. No periodic timer. Stock uvicorn wakes up ten times per second to refresh a Date header and to check a flag. This
   server waits for an event, and responses have no Date header (RFC 9110 section 6.6.1 allows that for an origin server
   without a reliable clock).
2. A stop loses no request: connections that wait in the kernel are accepted first, then the server stops listening.
   For STOP_GRACE_S, idle connections may send a last request; its response says `Connection: close`.
3. At most ACCEPTED_AT_ONCE connections are accepted before requests are handled again. The others wait in the kernel.
"""

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Generator
from functools import partial
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import Server

from device_agent.front.connections import ByteLedger, ConnectionTable
from device_agent.front.peers import PeerFinder
from device_agent.front.protocol import KEEP_ALIVE_TIMEOUT_S, FrontProtocol

SHUTDOWN_GRACE_S: Final = 10
STOP_GRACE_S: Final = 0.3
STOP_POLL_S: Final = 0.01
MAX_LAST_ACCEPTS: Final = 50  # rounds of accepting, so that a stop ends although clients keep connecting
ACCEPTED_AT_ONCE: Final = 16  # one takes 0.1 ms
LISTEN_BACKLOG: Final = 2048  # connections that wait in the kernel; a burst of a thousand clients is not refused


class FrontServer(Server):
    """uvicorn's server without its periodic timer (rule 1)."""

    def __init__(self, config: Config, table: ConnectionTable) -> None:
        super().__init__(config)
        self._table = table
        self._stopping = asyncio.Event()

    def request_stop(self) -> None:
        """Stop accepting connections, complete the open requests, and return from `serve`."""
        self.should_exit = True
        self._stopping.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections (rule 3)."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(LISTEN_BACKLOG)  # asyncio accepts as many at once as its own backlog says

    async def main_loop(self) -> None:
        """Wait for `request_stop`, without waking up before (rule 1)."""
        self.server_state.default_headers = []
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Complete all requests, then close all connections (rule 2)."""
        loop = asyncio.get_running_loop()
        self._table.is_stopping = True
        waiting = select.poll()
        for listener in sockets or ():
            waiting.register(listener, select.POLLIN)
        for _ in range(MAX_LAST_ACCEPTS):
            if not waiting.poll(0):
                break
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        deadline = loop.time() + STOP_GRACE_S
        while self._table.has_idle and loop.time() < deadline:
            await asyncio.sleep(STOP_POLL_S)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: the supervisor decides when the front ends."""
        yield


def create_server(app: Any, table: ConnectionTable, ledger: ByteLedger, peers: PeerFinder) -> FrontServer:
    """Create a server for an ASGI app and import all modules that it needs.

    Call it inside the event loop.

    Args:
        app: the ASGI app.
        table, ledger: the open connections, and the bytes of their requests and responses.
        peers: finds the user of a connection.
    """
    config = Config(
        app,
        http=partial(FrontProtocol, table=table, ledger=ledger, peers=peers),  # type: ignore[arg-type]  # called only
        backlog=ACCEPTED_AT_ONCE,
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
    # a client could fill the log with a warning for each request that is not HTTP
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return FrontServer(config, table)
