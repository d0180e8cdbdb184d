"""Frames between the front and a model process: each is one message of a Unix SOCK_SEQPACKET socket.

A frame is a head of HEAD_BYTES, padding, and the body. Rules:
1. A body of at most MAX_INLINE_BYTES is in the message. A larger one is in a memfd that is sent with it (flag
   IN_MEMFD), after the padding; the message is then the head alone.
2. The padding aligns the bytes after the JSON part to ALIGNMENT_BYTES, so that a tensor can be used without a copy.
3. The front sends at most MAX_IN_FLIGHT_REQUESTS before it has a response. They queue in the socket, so that the model
   process is never idle between two requests, and a crash affects no more than these.
4. The front does not trust the model process. It checks sizes, and it reads a memfd instead of mapping it, because its
   owner could shrink it meanwhile. A frame that breaks a rule ends the channel.
"""

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

MAX_INLINE_BYTES: Final = 64 * 1024  # three fit into the kernel's default socket buffer of 208 KiB
MAX_IN_FLIGHT_REQUESTS: Final = 4
KEPT_BODIES: Final = 4  # bodies of the largest size that the front keeps in memory; a response can have as many bytes
ALIGNMENT_BYTES: Final = 64  # a cache line, which is also the widest vector load of onnxruntime's kernels
NO_JSON: Final = 0xFFFFFFFF  # the whole body is JSON, or there is no body

Part: TypeAlias = bytes | bytearray | memoryview

REQUEST_KIND: Final = 1
RESPONSE_KIND: Final = 2
TENSORS_KIND: Final = 3  # device_agent.runtime.tensor_channel

IN_MEMFD: Final = 1
HAS_NAN: Final = 2  # in a response: a float output is not finite although the inputs are
GZIP_BODY: Final = 4
GZIP_RESPONSE: Final = 8
DEFLATE_BODY: Final = 32
DEFLATE_RESPONSE: Final = 64
COMPRESSED: Final = GZIP_BODY | GZIP_RESPONSE | DEFLATE_BODY | DEFLATE_RESPONSE
REJECTED: Final = 128  # in a response with status 400: the model could not run on the inputs (InputsRejected)
SHADOW: Final = 16  # in a request: the live response follows its body (device_agent.front.shadow)

_HEAD: Final = struct.Struct("!BBBBIQQIH")
HEAD_BYTES: Final = _HEAD.size
SHADOW_TRAILER: Final = struct.Struct(
    "!QII"
)  # at the end of a mirrored body: length of the live response, of its JSON part; limit in ppm
MESSAGE_BYTES: Final = HEAD_BYTES + ALIGNMENT_BYTES + MAX_INLINE_BYTES


class WireError(Exception):
    """The peer broke a rule of the frames, or is gone."""


class FrameHead(NamedTuple):
    """The head of a frame.

    Attributes:
        kind: REQUEST_KIND, RESPONSE_KIND or TENSORS_KIND.
        flags: the flags of this module.
        padding: bytes between the head (or the start of the memfd) and the body.
        json_bytes: length of the body's JSON part if bytes follow it, else NO_JSON.
        number: number of the request; a response has the same.
        size: length of the body, in bytes.
        busy_us: in a response: microseconds since the request's arrival in the model process, at most 2^32 - 1.
        status: in a response: HTTP status.
        model: in a request: position of the model in its bundle (device_agent.runtime.oip.served_names).
    """

    kind: int
    flags: int
    padding: int
    json_bytes: int
    number: int
    size: int
    busy_us: int = 0
    status: int = 0
    model: int = 0

    def pack(self) -> bytes:
        """Encode the head in HEAD_BYTES."""
        return _HEAD.pack(*self[:3], self.model, *self[3:-1])

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> "FrameHead":
        """Decode the first HEAD_BYTES; the inverse of `pack`.

        Raises:
            WireError: there are fewer bytes.
        """
        if len(data) < HEAD_BYTES:
            raise WireError(f"frame of {len(data)} bytes, expected at least {HEAD_BYTES}")
        kind, flags, padding, model, json_bytes, number, size, busy_us, status = _HEAD.unpack_from(data)
        return cls(kind, flags, padding, json_bytes, number, size, busy_us, status, model)


@dataclass(frozen=True, slots=True)
class Response:
    """A model process's response to a request.

    Attributes:
        status: HTTP status.
        json_bytes: as in FrameHead.
        body: the response body.
        has_nan: the flag HAS_NAN.
        is_rejected: the flag REJECTED.
        busy_us: as in FrameHead.
        encoding: "gzip" or "deflate" of a compressed body, else "".
    """

    status: int
    json_bytes: int
    body: bytes
    has_nan: bool = False
    busy_us: int = 0
    encoding: str = ""
    is_rejected: bool = False


def padding_for(json_bytes: int, start: int) -> int:
    """Return the padding that aligns the bytes after the JSON part (rule 2).

    Args:
        json_bytes: length of the JSON part, or NO_JSON.
        start: offset of the first padding byte.
    """
    return 0 if json_bytes == NO_JSON else -(start + json_bytes) % ALIGNMENT_BYTES


def send_frame(channel: socket.socket, head: FrameHead, parts: Sequence[Part], *, fd: int | None = None) -> None:
    """Send one frame. Sets IN_MEMFD and the padding.

    Args:
        channel: the socket.
        head: the head; `head.size` is the sum of the parts.
        parts: the body's parts.
        fd: descriptor to send with a frame whose body is in the message.

    Raises:
        BlockingIOError: the channel is non-blocking and full; nothing was sent.
        WireError: the peer is gone.
    """
    if head.size > MAX_INLINE_BYTES:
        body = create_memfd(parts, padding := padding_for(head.json_bytes, 0))
        try:
            data = head._replace(flags=head.flags | IN_MEMFD, padding=padding).pack()
            _send(channel, [data], body)
        finally:
            os.close(body)
        return
    padding = padding_for(head.json_bytes, HEAD_BYTES)
    _send(channel, [head._replace(padding=padding).pack(), bytes(padding), *parts], fd)


def create_memfd(parts: Sequence[Part], padding: int) -> int:
    """Create a memfd with a body; the caller closes it.

    Args:
        parts: the body's parts.
        padding: bytes to leave before the body.
    """
    fd = os.memfd_create("airweights-body", os.MFD_CLOEXEC)
    try:
        offset = padding
        for part in parts:
            remaining = memoryview(part).cast("B")
            while remaining:
                written = os.pwrite(fd, remaining, offset)
                remaining = remaining[written:]
                offset += written
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_memfd(fd: int, head: FrameHead, max_bytes: int) -> bytes:
    """Read the body from a memfd (rule 4).

    Args:
        fd: the memfd.
        head: the frame's head.
        max_bytes: largest body.

    Raises:
        WireError: the body is too large, or the memfd is shorter than the head says.
    """
    if head.size > max_bytes:
        raise WireError(f"body of {head.size} bytes, at most {max_bytes} are allowed")
    parts = []
    offset, end = head.padding, head.padding + head.size
    while offset < end:
        part = os.pread(fd, end - offset, offset)
        if not part:
            raise WireError(f"body ends {end - offset} bytes early")
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _send(channel: socket.socket, data: Sequence[Part], fd: int | None) -> None:
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
    try:
        channel.sendmsg(data, rights, socket.MSG_NOSIGNAL)
    except ConnectionError as error:
        raise WireError(str(error)) from error
