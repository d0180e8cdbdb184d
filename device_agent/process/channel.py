"""Messages between the supervisor and a worker: length-prefixed JSON over a Unix stream socket.

Rules:
1. A message is a u32 big-endian length, followed by that many bytes of UTF-8 JSON, which is one object. A message has
   at most MAX_MESSAGE_BYTES.
2. Descriptors are sent with the first byte of their message (SCM_RIGHTS), at most MAX_FDS of them. They arrive
   close-on-exec and belong to the receiver.
3. An error is sent as its `as_dict()` and raised at the other side as the class that has the same `reason`. If that
   class is not loaded there, an error of the same kind (exit code) with the same reason is raised.
4. If the peer sends anything else, the channel is unusable: `ChannelClosed` is raised.
"""

import array
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = (
    16 * 1024 * 1024
)  # root metadata and manifests are below 1 MiB; larger data is sent in memfds
MAX_FDS: Final = 250  # the kernel's SCM_MAX_FD is 253

JsonObject = dict[str, Any]  # a parsed JSON object; the receiver parses it into types at once
_HEAD: Final = struct.Struct(">I")


class ChannelClosed(Exception):
    """The peer closed the channel, ended, or sent bytes that are not a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One received message. The receiver owns `fds`.

    Attributes:
        value: the JSON object.
        fds: descriptors that came with it.
    """

    value: JsonObject
    fds: tuple[int, ...] = field(default=())

    def close(self) -> None:
        """Close the descriptors of the message."""
        for fd in self.fds:
            os.close(fd)


def send_message(channel: socket.socket, value: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; block until all of it is in the socket's buffer.

    Args:
        channel: a Unix stream socket.
        value: the JSON object.
        fds: descriptors to duplicate into the peer; the caller still owns them.

    Raises:
        ChannelClosed: the peer is gone.
        TimeoutError: the socket has a timeout, and it passed.
        ValueError: the message is too large or has too many descriptors.
    """
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {len(body)} bytes, at most {MAX_MESSAGE_BYTES} are allowed")
    if len(fds) > MAX_FDS:
        raise ValueError(f"message with {len(fds)} descriptors, at most {MAX_FDS} are allowed")
    data = memoryview(_HEAD.pack(len(body)) + body)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sent = channel.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        if sent < len(data):
            channel.sendall(data[sent:], socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionError) as error:
        raise ChannelClosed(str(error)) from error


def receive_message(channel: socket.socket, max_bytes: int = MAX_MESSAGE_BYTES) -> Message:
    """Receive one message; block until all of it has arrived.

    Args:
        channel: a Unix stream socket.
        max_bytes: maximum length of the message's JSON.

    Raises:
        ChannelClosed: the peer is gone or broke a rule of the channel.
        TimeoutError: the socket has a timeout, and it passed.
    """
    fds: list[int] = []
    try:
        (length,) = _HEAD.unpack(_read_exactly(channel, _HEAD.size, fds))
        if length > max_bytes:
            raise ChannelClosed(f"message of {length} bytes announced, at most {max_bytes} are allowed")
        try:
            value = json.loads(_read_exactly(channel, length, fds))
        except (ValueError, RecursionError) as error:
            raise ChannelClosed(f"message is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ChannelClosed("message is not an object")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return Message(value, tuple(fds))


def _read_exactly(channel: socket.socket, size: int, fds: list[int]) -> bytes:
    parts = []
    rights_bytes = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    while size:
        try:
            # not socket.recv_fds: it hides MSG_CTRUNC, so lost descriptors would go unnoticed
            data, ancillary, flags, _ = channel.recvmsg(min(size, 1 << 20), rights_bytes, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise ChannelClosed(str(error)) from error
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                fds.extend(received)
        if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
            raise ChannelClosed("too many descriptors in one message")
        if not data:
            raise ChannelClosed("the other side closed the channel")
        parts.append(data)
        size -= len(data)
        rights_bytes = 0 if len(fds) == MAX_FDS else rights_bytes
    return b"".join(parts)
