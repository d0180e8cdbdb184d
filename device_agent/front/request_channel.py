"""The front's end of a request channel: sends requests to a model process and receives responses."""

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from device_agent.front.requests import Request
from device_agent.runtime import wire
from device_agent.runtime.wire import HEAD_BYTES, NO_JSON, FrameHead, Response, WireError

OnResponse = Callable[[int, Response], None]


class RequestChannel:
    """A `Sender` of device_agent.front.generations over a SOCK_SEQPACKET socket.

    Args:
        loop: the event loop; all callbacks run on it.
        fd: the socket; owned from here on.
        max_response_bytes: largest response body; a process that sends more is treated as crashed.
        on_response: called with the request's number and the response.
        on_lost: called once, when the process has ended or broken a rule of the frames.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        *,
        max_response_bytes: int,
        on_response: OnResponse,
        on_lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._max_response_bytes = max_response_bytes
        self._on_response = on_response
        self._on_lost = on_lost
        self._outbox: deque[Request] = deque()
        self._is_open = True
        loop.add_reader(self._socket.fileno(), self._read)

    def send(self, request: Request) -> None:
        """Send a request, later if the socket is full."""
        if self._outbox:
            self._outbox.append(request)
            return
        try:
            self._write(request)
        except BlockingIOError:
            self._outbox.append(request)
            self._loop.add_writer(self._socket.fileno(), self._flush)
        except (OSError, WireError):
            # deferred: the caller is still updating its queues
            self._loop.call_soon(self._close_lost)

    def close(self) -> None:
        """Close the channel without calling `on_lost`."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _write(self, request: Request) -> None:
        head = FrameHead(
            wire.REQUEST_KIND,
            request.flags,
            0,
            request.json_bytes,
            request.number,
            len(request.body),
            model=request.model_number,
        )
        wire.send_frame(self._socket, head, (request.body,))

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._write(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            return
        except (OSError, WireError):
            self._close_lost()
            return
        self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        try:
            number, response = self._receive()
        except BlockingIOError:
            return
        except (OSError, WireError):
            self._close_lost()
            return
        self._on_response(number, response)

    def _receive(self) -> tuple[int, Response]:
        data, ancillary, flags, _ = self._socket.recvmsg(
            wire.MESSAGE_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
        )
        fds = [struct.unpack_from("i", payload)[0] for *_, payload in ancillary if len(payload) >= 4]
        try:
            if not data:
                raise WireError("the model process closed the channel")
            head = FrameHead.unpack(data)
            if head.kind != wire.RESPONSE_KIND or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise WireError("received a frame that is not a response")
            # json_bytes counts uncompressed bytes, so it can exceed the size of a compressed body
            is_cut = head.json_bytes != NO_JSON and head.json_bytes > head.size and not head.flags & wire.COMPRESSED
            if not 200 <= head.status < 600 or is_cut:
                raise WireError(f"response with status {head.status} and {head.json_bytes} bytes of JSON")
            if head.flags & wire.IN_MEMFD:
                if len(fds) != 1:
                    raise WireError("a large response arrived without its memfd")
                body = wire.read_memfd(fds[0], head, self._max_response_bytes)
            else:
                body = data[HEAD_BYTES + head.padding :]
                if len(body) != head.size:
                    raise WireError(f"response of {len(body)} bytes, {head.size} announced")
        finally:
            for fd in fds:
                os.close(fd)
        has_nan = bool(head.flags & wire.HAS_NAN)
        encoding = _content_encoding(head.flags)
        is_rejected = bool(head.flags & wire.REJECTED)
        return head.number, Response(head.status, head.json_bytes, body, has_nan, head.busy_us, encoding, is_rejected)

    def _close_lost(self) -> None:
        if self._is_open:
            # shutdown affects the supervisor's copy of the socket too, so a process that broke the rules ends
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self.close()
            self._on_lost()


def _content_encoding(flags: int) -> str:
    if flags & wire.GZIP_RESPONSE:
        return "gzip"
    return "deflate" if flags & wire.DEFLATE_RESPONSE else ""
