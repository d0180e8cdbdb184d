"""Conditional requests, and the count of received bytes.

The count is that of the wire below TLS: status lines, header fields and bodies as they arrive, interim responses and
unread bodies included.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from device_agent.process.worker import SupervisorChannel

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_VALIDATOR_CHARACTERS: Final = 512


@dataclass(slots=True)
class ReceivedBytes:
    """The bytes that this process received over the network.

    Attributes:
        total_bytes: everything.
        body_bytes: bodies that were read.
        limit_bytes: value of `total_bytes` at which a transfer ends, or None.
    """

    total_bytes: int = 0
    body_bytes: int = 0
    limit_bytes: int | None = None
    _sent_bytes: int = 0

    def send_count(self, supervisor: SupervisorChannel, wasted: int = 0) -> None:
        """Send the bytes since the last call to the supervisor, as an event.

        Args:
            supervisor: receives the event.
            wasted: how many bytes of this call were wasted.
        """
        supervisor.send_event({"received": self.total_bytes - self._sent_bytes, "wasted": wasted})
        self._sent_bytes = self.total_bytes

    @property
    def left_bytes(self) -> int | None:
        """Bytes up to the limit, not negative; None without a limit."""
        return None if self.limit_bytes is None else max(self.limit_bytes - self.total_bytes, 0)


received: Final = ReceivedBytes()


class CountedReader(io.RawIOBase):
    """A raw stream that counts what is read from it.

    Args:
        stream: the stream of a socket.
    """

    def __init__(self, stream: io.RawIOBase) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        """Return True: the stream can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        """Read into `buffer`, and count."""
        count = self._stream.readinto(buffer)
        received.total_bytes += count or 0
        return count

    def close(self) -> None:
        """Close the stream and the one below it."""
        self._stream.close()
        super().close()


def conditional_headers(etag: str, last_modified: str) -> dict[str, str]:
    """Return the header fields of a conditional request; none if there is no validator.

    Args:
        etag: the stored ETag, or "".
        last_modified: the stored Last-Modified date, used without an ETag only.
    """
    if etag:
        return {"If-None-Match": etag}
    return {"If-Modified-Since": last_modified} if last_modified else {}


def is_conditional(headers: Mapping[str, str]) -> bool:
    """Return whether a request with these header fields may be responded to with 304."""
    return "If-None-Match" in headers or "If-Modified-Since" in headers


def usable_validator(value: str) -> str:
    """Return a validator, or "" if it is too long or not printable ASCII."""
    is_usable = len(value) <= MAX_VALIDATOR_CHARACTERS and all(" " <= character <= "~" for character in value)
    return value if is_usable else ""
