"""The transfer of one blob: ranges, retries, rate and budget.

Rules 2, 4 and 8 of the fetcher (device_agent.workers.fetcher) are kept here.
"""

import logging
import random
import time
from dataclasses import dataclass, field
from typing import Final

from bundle.errors import DigestMismatch, DownloadFailed, NotFound, UnexpectedNotModified
from device_agent.config.repository import redact_url
from device_agent.errors import (
    MeteredLimitExceeded,
    ProxyAuthRequired,
    RedirectRefused,
    RepositoryAuthRequired,
    RepositoryNotReached,
    ServerTooSlow,
    TlsFailed,
    TokenRealmRefused,
)
from device_agent.process.worker import SupervisorChannel
from device_agent.workers.http_client import HttpClient
from device_agent.workers.http_heads import received
from device_agent.workers.partial_download import PartialBlob
from device_agent.workers.response_body import CHUNK_BYTES, ResponseBody, check_no_web_page, open_body

logger = logging.getLogger(__name__)

MIN_CHUNK_BYTES: Final = 256
PROGRESS_INTERVAL_BYTES: Final = 1024 * 1024
MAX_TRIES: Final = 5
MAX_RANGE_FAULTS: Final = 2  # then the whole file is requested, and its known prefix skipped
MAX_BACKOFF_S: Final = 30.0
MAX_RETRY_AFTER_S: Final = 60.0
# a second request gets the same answer
FINAL_ERRORS: Final = (
    *(NotFound, ServerTooSlow, ProxyAuthRequired, RedirectRefused, RepositoryAuthRequired),
    *(RepositoryNotReached, TlsFailed, TokenRealmRefused, UnexpectedNotModified),
)


@dataclass(slots=True)
class RateLimit:
    """The maximum rate of a transfer, and the bytes received so far.

    Attributes:
        max_bytes_s: bytes per second, or None for no limit.
        started_s: start of the transfer, by the monotonic clock.
        total_bytes: bytes received since then.
    """

    max_bytes_s: int | None
    started_s: float = field(default_factory=time.monotonic)
    total_bytes: int = 0

    @property
    def chunk_bytes(self) -> int:
        """The number of bytes to read at once, so that the pauses stay short."""
        return (
            CHUNK_BYTES if self.max_bytes_s is None else min(CHUNK_BYTES, max(MIN_CHUNK_BYTES, self.max_bytes_s // 4))
        )

    def record_received(self, count: int) -> None:
        """Count received bytes, and sleep above the maximum rate."""
        self.total_bytes += count
        if self.max_bytes_s is not None:
            ahead = self.total_bytes / self.max_bytes_s - (time.monotonic() - self.started_s)
            if ahead > 0:
                time.sleep(ahead)


@dataclass(slots=True)
class BlobTransfer:
    """The transfers of one blob from one server, until it is complete.

    Attributes:
        client: sends the requests.
        supervisor: receives the progress.
        url: URL of the blob.
        sha256: its signed digest.
        part: its partial file.
        rate: the maximum rate.
        min_rate_bytes_s: minimum rate, below which a transfer is cut.
        range_faults: how many responses had another range than the requested one.
    """

    client: HttpClient
    supervisor: SupervisorChannel
    url: str
    sha256: str
    part: PartialBlob
    rate: RateLimit
    min_rate_bytes_s: int
    range_faults: int = 0

    def run(self, backoff_ms: int) -> None:
        """Transfer until all bytes have arrived; retry after errors that may pass.

        Args:
            backoff_ms: the first pause is at most twice as long.

        Raises:
            NotFound: the server has no such file.
            DownloadFailed: the transfer failed after all retries, or was too slow (ServerTooSlow).
            DigestMismatch: more bytes than the signed ones were sent, or announced.
            MeteredLimitExceeded: the budget is used up.
        """
        part, failures = self.part, 0
        while part.received_bytes < part.size_bytes:
            before = part.received_bytes
            self._check_budget()
            try:
                self._transfer()
            except FINAL_ERRORS:
                raise
            except DownloadFailed as error:
                part.sync()
                failures = 1 if part.received_bytes > before else failures + 1
                if failures >= MAX_TRIES:
                    raise
                logger.info("retry %d: %s", failures, error.message)
                time.sleep(_retry_delay_s(failures, backoff_ms, error))

    def _check_budget(self) -> None:
        if received.left_bytes == 0:
            raise MeteredLimitExceeded(
                f"{redact_url(self.url)}: the metered limit is reached after {self.part.received_bytes} of "
                f"{self.part.size_bytes} bytes",
                hint="wait for an unmetered connection, or raise update.metered_limit_bytes",
            )

    def _transfer(self) -> None:
        part, headers = self.part, {}
        if part.received_bytes:
            part.is_resumed = True
            if self.range_faults < MAX_RANGE_FAULTS:
                headers["Range"] = f"bytes={part.received_bytes}-"
        with open_body(self.client, self.url, headers, self.min_rate_bytes_s) as body:
            skip = self._skip_bytes(body)
            expected_bytes = part.size_bytes - part.received_bytes + skip
            if body.announced_bytes is not None and body.announced_bytes > expected_bytes:
                raise DigestMismatch(f"{body.url}: {body.announced_bytes} bytes announced, {expected_bytes} are signed")
            reported, is_first = part.received_bytes, body.start_byte is None
            for data in body.chunks(self.rate.chunk_bytes):
                self.rate.record_received(len(data))
                if is_first:
                    check_no_web_page(body, data)
                    is_first = False
                skipped = min(skip, len(data))
                skip -= skipped
                data = data[skipped:]
                if len(data) > part.size_bytes - part.received_bytes:
                    part.clear()
                    raise DigestMismatch(f"{body.url}: longer than the signed {part.size_bytes} bytes")
                part.append(data)
                is_complete = part.received_bytes == part.size_bytes
                if part.received_bytes - reported >= PROGRESS_INTERVAL_BYTES or is_complete:
                    reported = part.received_bytes
                    self.supervisor.send_event({"done": part.received_bytes, "total": part.size_bytes})
                    received.send_count(self.supervisor)
                if not is_complete:
                    self._check_budget()
                if is_complete and part.hash.hexdigest() == self.sha256:
                    return  # what may follow, such as trailers, is not waited for
            if part.received_bytes < part.size_bytes:
                raise DownloadFailed(f"{body.url}: ends after {part.received_bytes} of {part.size_bytes} bytes")

    def _skip_bytes(self, body: ResponseBody) -> int:
        """Return how many bytes of the body are already in the partial file."""
        part = self.part
        if body.start_byte is None:
            return part.received_bytes
        if body.start_byte == -1:
            if part.restarts:
                raise DigestMismatch(f"{body.url}: the file is shorter than the signed {part.size_bytes} bytes")
            part.clear()
        is_other_size = body.total_bytes is not None and body.total_bytes != part.size_bytes
        if body.start_byte != part.received_bytes or is_other_size:
            self.range_faults += 1
            raise DownloadFailed(
                f"{body.url}: the response starts at byte {body.start_byte} of {body.total_bytes}, expected "
                f"{part.received_bytes} of {part.size_bytes}"
            )
        return 0


def _retry_delay_s(failures: int, backoff_ms: int, error: DownloadFailed) -> float:
    requested_s = next((float(note) for note in getattr(error, "__notes__", []) if note), 0.0)
    ceiling = min(backoff_ms / 1000 * 2**failures, MAX_BACKOFF_S)
    return max(min(requested_s, MAX_RETRY_AFTER_S), random.uniform(0, ceiling))  # noqa: S311  # jitter, not a secret
