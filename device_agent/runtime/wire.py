"""Frames between the front and a model process: one message of a Unix SOCK_SEQPACKET socket each.

A frame is a head of HEAD_BYTES ‖ padding ‖ body. Rules:
1. A body of up to MAX_INLINE_BYTES is in the message itself. A larger one is in a memfd beside it (flag IN_MEMFD),
   after the padding, and the message is the head alone.
2. The padding puts what follows the JSON part of a request at a multiple of ALIGNMENT, so that a tensor that is sent as
   bytes can be used where it lies.
3. The front sends at most IN_FLIGHT requests before it has an answer: the others wait in the socket, so that the
   model process is never idle between two, and a dying process takes no more than IN_FLIGHT requests with it.
4. The front trusts nothing that comes back: sizes are bounded, and a memfd is read, never mapped (its owner could cut
   it under a reader). A frame that breaks a rule ends the channel.
"""

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

MAX_INLINE_BYTES: Final = 64 * 1024  # three of them fit the kernel's default socket buffer of 208 KiB
MAX_IN_FLIGHT_REQUESTS: Final = 4
ALIGNMENT_BYTES: Final = 64  # a cache line, and the widest vector load of onnxruntime's kernels
NO_JSON: Final = 0xFFFFFFFF  # the whole body is JSON, or there is no body

Part: TypeAlias = bytes | bytearray | memoryview

REQUEST_KIND: Final = 1
RESPONSE_KIND: Final = 2
TENSORS_KIND: Final = 3  # device_agent.runtime.tensor_channel

IN_MEMFD: Final = 1
HAS_NAN: Final = 2  # an answer: a float output is not finite although the inputs are
GZIP_BODY: Final = 4
GZIP_RESPONSE: Final = 8
DEFLATE_BODY: Final = 32
DEFLATE_RESPONSE: Final = 64
COMPRESSED: Final = GZIP_BODY | GZIP_RESPONSE | DEFLATE_BODY | DEFLATE_RESPONSE
SHADOW: Final = 16  # a request: the live answer follows its body (device_agent.front.shadow)

_HEAD: Final = struct.Struct("!BBBxIQQIH")
HEAD_BYTES: Final = _HEAD.size
SHADOW_TRAILER: Final = struct.Struct(
    "!QII"
)  # at the body's end: bytes of the live answer, of its JSON part; limit, ppm
MESSAGE_BYTES: Final = HEAD_BYTES + ALIGNMENT_BYTES + MAX_INLINE_BYTES


class WireError(Exception):
    """The other side broke a rule of the frames, or is gone."""


class FrameHead(NamedTuple):
    """The head of a frame.

    Attributes:
        kind: REQUEST or ANSWER.
        flags: of the constants above.
        padding: bytes between head (or start of the memfd) and body.
        json_bytes: length of the body's JSON part where bytes follow it, else NO_JSON.
        number: of the request; an answer carries its request's.
        size: bytes of the body.
        busy_us: an answer: microseconds from the request's arrival in the model process, saturated at 2^32-1.
        status: an answer: HTTP status.
    """

    kind: int
    flags: int
    padding: int
    json_bytes: int
    number: int
    size: int
    busy_us: int = 0
    status: int = 0

    def pack(self) -> bytes:
        """HEAD_BYTES."""
        return _HEAD.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> "FrameHead":
        """Inverse of `pack`, of the first HEAD_BYTES. Raises WireError."""
        if len(data) < HEAD_BYTES:
            raise WireError(f"frame of {len(data)} bytes, expected at least {HEAD_BYTES}")
        return cls(*_HEAD.unpack_from(data))


@dataclass(frozen=True, slots=True)
class Response:
    """What a model process says to a request.

    Attributes:
        status: HTTP status.
        json_bytes: as in Head.
        body: the response body.
        has_nan: HAS_NAN was set.
        busy_us: as in Head.
        encoding: "gzip" or "deflate" of a compressed body, else "".
    """

    status: int
    json_bytes: int
    body: bytes
    has_nan: bool = False
    busy_us: int = 0
    encoding: str = ""


def padding_for(json_bytes: int, start: int) -> int:
    """Bytes to put before a body, so that what follows its JSON part is at a multiple of ALIGNMENT (rule 2).

    Args:
        json_bytes: length of the JSON part, or NO_JSON.
        start: offset of the first padding byte.
    """
    return 0 if json_bytes == NO_JSON else -(start + json_bytes) % ALIGNMENT_BYTES


def send_frame(channel: socket.socket, head: FrameHead, parts: Sequence[Part], *, fd: int | None = None) -> None:
    """Send one frame; `head.size` bytes in `parts`, its IN_MEMFD and padding are set here.

    Args:
        channel: of the frame.
        head: of the frame.
        parts: of the body.
        fd: sent beside a frame whose body is in the message itself.

    Raises:
        BlockingIOError: the channel is non-blocking and full; nothing was sent.
        WireError: the other side is gone.
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
    """A new memfd with the padding and the parts; the caller closes it."""
    fd = os.memfd_create("airweights-body", os.MFD_CLOEXEC)
    try:
        offset = padding
        for part in parts:
            left = memoryview(part).cast("B")
            while left:
                written = os.pwrite(fd, left, offset)
                left = left[written:]
                offset += written
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_memfd(fd: int, head: FrameHead, max_bytes: int) -> bytes:
    """The body in a memfd, read under rule 4. Raises WireError."""
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
