"""Messages between the supervisor and its children: length-prefixed JSON over a Unix stream socket, with descriptors.

Rules:
1. A message is u32 big-endian length ‖ that many bytes of UTF-8 JSON, one object. At most MAX_MESSAGE_BYTES.
2. Descriptors travel beside the first byte of their message (SCM_RIGHTS), at most MAX_FDS of them; they arrive
   close-on-exec and belong to the receiver.
3. An error crosses as its `as_dict()` and is raised again as the class with the same `reason`; where that class is not
   loaded here, as a class of the same kind (its exit code) that carries the reason.
4. A peer that sends anything else is treated as dead: `ChannelClosed`.
"""

import array
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # root metadata and manifests are below 1 MiB; larger things go as memfds
MAX_FDS: Final = 250  # the kernel's SCM_MAX_FD is 253

JsonObject = dict[str, Any]  # a parsed JSON object; each side takes it apart at once
_HEAD: Final = struct.Struct(">I")


class ChannelClosed(Exception):
    """The peer closed the channel, died, or sent what is not a message."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as received; the receiver owns `fds`."""

    value: JsonObject
    fds: tuple[int, ...] = field(default=())

    def close(self) -> None:
        """Close the descriptors that came along."""
        for fd in self.fds:
            os.close(fd)


def send_message(channel: socket.socket, value: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message, blocking.

    Raises:
        ChannelClosed, TimeoutError: the latter where the socket has a timeout.
        ValueError: too large, too many descriptors.
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


def receive_message(channel: socket.socket) -> Message:
    """Receive one message, blocking.

    Raises:
        ChannelClosed, TimeoutError: the latter where the socket has a timeout.
    """
    fds: list[int] = []
    try:
        (length,) = _HEAD.unpack(_read_exactly(channel, _HEAD.size, fds))
        if length > MAX_MESSAGE_BYTES:
            raise ChannelClosed(f"message of {length} bytes announced, at most {MAX_MESSAGE_BYTES} are allowed")
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
            # the socket module has no recvmsg that collects and checks; recv_fds drops MSG_CTRUNC
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
