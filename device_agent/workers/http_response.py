"""A response of a server, with its body still unread."""

import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from bundle.errors import DownloadFailed, TooLarge
from device_agent.workers.http_connection import below_urllib3, describe_error
from device_agent.workers.transfer_watchdog import TransferWatchdog

READ_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class HttpResponse:
    """A response with its body still unread. Close it.

    Attributes:
        url: the URL that it came from, for messages.
        response: status, header fields and body.
    """

    url: str
    response: BaseHTTPResponse
    _watchdog: TransferWatchdog

    @property
    def status(self) -> int:
        """The status code of the response."""
        return self.response.status

    def header(self, name: str) -> str:
        """Return a header field, the first of those with this name, or ""."""
        return next(iter(self.response.headers.getlist(name)), "")

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the body, each time what has arrived, at most `size` bytes.

        Raises:
            DownloadFailed: the connection broke.
            ServerTooSlow: the watchdog cut it.
        """
        while self.response.length_remaining != 0:
            # http.client's read1 does not count the bytes that are left (before Python 3.13)
            wanted = size if self.response.length_remaining is None else min(size, self.response.length_remaining)
            try:
                with self._watchdog.waiting(self.url):
                    # read1: a full read would block on a slow server and hide what has arrived
                    data = self.response.read1(wanted)
            except (OSError, ValueError, http.client.HTTPException, HTTPError) as error:
                raise DownloadFailed(
                    f"{self.url}: the transfer broke: {describe_error(below_urllib3(error))}"
                ) from error
            if not data:
                return
            self._watchdog.record_body(len(data))
            yield data

    def read(self, max_bytes: int) -> bytes:
        """Return the whole body.

        Raises:
            TooLarge: it is longer than `max_bytes`.
            DownloadFailed, ServerTooSlow: as `chunks`.
        """
        body = bytearray()
        for data in self.chunks(READ_BYTES):
            body += data
            if len(body) > max_bytes:
                raise TooLarge(f"{self.url}: more than the allowed {max_bytes} bytes")
        return bytes(body)

    def close(self) -> None:
        """Close the response; its connection is kept only if the body was read to its end."""
        if self.response.length_remaining == 0:
            self.response.drain_conn()  # an empty body is read only now
        self.response.close()
