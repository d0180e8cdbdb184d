"""One HTTP connection: uvicorn's protocol with limits, over a transport that joins writes.

Rules:
1. Bytes that are not HTTP get a JSON error, like every other error. The bytes and fields of a request's head, the
   framing of its body, the number of pipelined requests, and the time until the head is complete are limited.
2. Head and body of a response are sent in one write, on a socket with TCP_NODELAY. In two writes, Nagle's algorithm
   delays the second until the client's delayed acknowledgment of the first.
3. A client that closes its sending side gets the responses to its complete requests. One that closes its Unix socket is
   gone; over TCP the two look the same.
4. If a request is answered before its body was read, the rest is read and dropped for LINGER_S, so that a client that
   sends before it reads gets the answer and not a reset connection.
5. An incomplete head, and a response that a client does not read, count as bytes in memory
   (device_agent.front.connections rules 3 and 4).
"""

import asyncio
import json
import select
import socket
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from device_agent.front.connections import FREE_BYTES, ByteLedger, ConnectionTable, HeldBytes
from device_agent.front.peers import UNKNOWN_PEER, PeerFinder

KEEP_ALIVE_TIMEOUT_S: Final = 75  # nginx's default; an idle connection causes this one wake-up
MAX_HEAD_BYTES: Final = 512 * 1024  # twice what asyncio reads at once, since a short head can begin late in a read
MAX_FIELD_BYTES: Final = 64 * 1024  # of a complete head: names, values and the URL
MAX_FIELDS: Final = 128
MAX_PIPELINED: Final = 32  # requests that wait for the responses before them; each takes 3 kB
MAX_FRAMING_BYTES: Final = 1024 * 1024  # chunk sizes, extensions and trailers of a body, beyond 8 per byte of the body
MAX_JOINED_BYTES: Final = 256 * 1024  # for larger bodies a copy costs more than a second write
LINGER_S: Final = 5.0
MAX_LINGER_BYTES: Final = 128 * 1024 * 1024


class JoiningTransport:
    """A transport that keeps the head of a response until its body is written (rule 2).

    Args:
        transport: the transport to write to.
        close: called instead of its `close`.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._head = b""
        self._is_closed = False
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

    def is_closing(self) -> bool:
        """Return whether nothing more can be written."""
        return self._is_closed or self._transport.is_closing()

    def close(self) -> None:
        """Flush and close the transport."""
        self.flush()
        self._is_closed = True
        self._close()


class FrontProtocol(HttpToolsProtocol):
    """One connection, with the limits of this module.

    Args:
        table, ledger: the open connections, and the bytes in memory.
        peers: finds the user of a connection.
        arguments: of uvicorn's protocol.

    Attributes:
        peer: user id of the client, or UNKNOWN_PEER.
        must_give_way: the request has to fail, because others need its memory or its connection.
        is_cut_off: the client closed its sending side within the body.
    """

    _is_in_head = True
    _head_bytes = 0
    _body_bytes = 0
    _framing_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _has_eof = False
    _lingered_bytes = -1  # at least 0 while rule 4 applies
    _field_bytes = 0
    _unread: HeldBytes | None = None
    _held_head: HeldBytes | None = None
    must_give_way = False
    is_cut_off = False
    peer = UNKNOWN_PEER

    def __init__(self, *, table: ConnectionTable, ledger: ByteLedger, peers: PeerFinder, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._table, self._ledger, self._peers = table, ledger, peers
        self._plain: asyncio.Transport

    @property
    def is_over_limit(self) -> bool:
        """True if too many connections have a request (device_agent.front.connections rule 2)."""
        return self._table.is_full

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Set TCP_NODELAY, wrap the transport, and start the timer of the first head."""
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.peer = self._peers.find(sock)
        self._plain = transport
        super().connection_made(JoiningTransport(transport, self._close))  # type: ignore[arg-type]  # all that uvicorn calls of one
        self._start_head_timer()
        self._table.open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and release what the connection holds."""
        self._table.close(self)
        self._stop_head_timer()
        self._release_unread()
        self._release_head()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def give_way(self) -> None:
        """Close the connection; a request whose body is incomplete gets an error first."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.must_give_way = True
            self.cycle.message_event.set()
        elif self._plain.get_write_buffer_size() or self._lingered_bytes >= 0:
            self._plain.abort()
        else:
            self._plain.close()

    def data_received(self, data: bytes) -> None:
        """Parse data; reject a head or a framing that is too long."""
        if self._lingered_bytes >= 0:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > MAX_LINGER_BYTES:
                self._plain.abort()
            return
        before = self._body_bytes
        super().data_received(data)
        if self.transport.is_closing() or self.parser is None:
            return
        if not self._is_in_head:
            self._framing_bytes += len(data) - (self._body_bytes - before)
            if self._framing_bytes > MAX_FRAMING_BYTES + 8 * self._body_bytes:
                self.send_400_response("the chunks of a body are too small, or their extensions too long")
            return
        self._head_bytes += len(data)
        if self._head_bytes > FREE_BYTES:
            self._held_head = self._held_head or self._ledger.hold(self)
            self._ledger.grow(self._held_head, self._head_bytes - self._held_head.size)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"a request's head is longer than {MAX_HEAD_BYTES} bytes")
        elif self._head_timer is None:
            self._start_head_timer()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's returns None: asyncio closes the transport
        """Keep the connection open if a response is still to be sent (rule 3)."""
        self._has_eof = True
        if self.cycle is None or self.cycle.response_complete or self._lingered_bytes >= 0 or self._is_gone():
            return False
        self.cycle.keep_alive = False
        if self.cycle.more_body:
            self.is_cut_off = True
            self.cycle.message_event.set()
        return True

    def on_message_begin(self) -> None:
        """Start to count the bytes of a head."""
        self._is_in_head, self._head_bytes, self._field_bytes = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Store a part of the URL."""
        self._field_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header field; drop trailers, which follow a body.

        Args:
            name, value: of the field.
        """
        if self._is_in_head:
            self._field_bytes += len(name) + len(value)
            super().on_header(name, value)
            if self._field_bytes > MAX_FIELD_BYTES or len(self.headers) > MAX_FIELDS:
                raise ValueError("the head is too long")  # the parser reports an error, and the client gets a 400

    def on_headers_complete(self) -> None:
        """Stop the timer of the head; from here on the connection has a request."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are pipelined")
        self._is_in_head = False
        self._release_head()
        self._body_bytes = self._framing_bytes = 0
        self._stop_head_timer()
        self._table.start_request(self)
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]  # read by device_agent.front.app
        if not self.url.startswith(b"/"):
            scheme, separator, rest = self.url.partition(b"://")
            if separator and scheme.lower() in (b"http", b"https"):
                self.scope["authority"] = rest.partition(b"/")[0].partition(b"?")[0]  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count the bytes of a body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Write a head that still waits for its body; count what the client has not read (rule 5)."""
        self.transport.flush()  # type: ignore[attr-defined]  # a JoiningTransport
        super().on_response_complete()
        if not self.pipeline:
            self._table.end_request(self)
        self._release_unread()
        if (size := self._plain.get_write_buffer_size()) > FREE_BYTES:
            self._unread = self._ledger.hold(self)
            self._ledger.grow(self._unread, size)

    def resume_writing(self) -> None:
        """Stop to count a response that the client has read."""
        self._release_unread()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if the client has not read the last response."""
        if self._plain.get_write_buffer_size():
            self._plain.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Send a JSON error and close the connection."""
        body = json.dumps({"error": msg}).encode()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()

    def _close(self) -> None:
        """Close the connection, after reading what the client still sends (rule 4)."""
        is_read = self.cycle is not None and not self.cycle.more_body and not self._is_in_head
        if self._lingered_bytes >= 0 or self._plain.is_closing():
            return
        if is_read or self._has_eof or self.must_give_way:
            self._plain.close()
            return
        self._lingered_bytes = 0
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self._plain.resume_reading()
        if self._plain.can_write_eof():
            self._plain.write_eof()
        self.loop.call_later(LINGER_S, self._plain.abort)
        self._table.end_request(self)

    def _is_gone(self) -> bool:
        sock = self._plain.get_extra_info("socket")
        if sock is None or sock.family != socket.AF_UNIX:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _release_unread(self) -> None:
        if self._unread is not None:
            self._ledger.release(self._unread)
            self._unread = None

    def _release_head(self) -> None:
        if self._held_head is not None:
            self._ledger.release(self._held_head)
            self._held_head = None

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(KEEP_ALIVE_TIMEOUT_S, self.give_way)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
