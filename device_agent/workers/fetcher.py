"""The fetcher: bounded, resumable downloads.

It is the only worker with a network, and the only one that reads the credentials of the repository. No server is
trusted: a blob's digest is checked while it is received, and again by the worker that uses it.

Rules:
1. Every response is bounded: metadata by the limit of the call, a blob by its signed size. A response that announces
   more is not read; one that sends more is cut at the limit.
2. A blob is resumed where it stopped, also after a restart. Its digest decides whether the parts belong together, so
   ETags, which differ between the servers behind one name, are ignored. If the server sends the whole file instead of a
   range, or ranges that were not requested, the known prefix is skipped. The existing bytes are hashed first.
3. A download resumes at most once per call after its content was discarded, to rule out loops. A blob with a wrong
   digest after a resume is fetched once more, because its first part may be of another file; then it is refused.
4. A transfer that stalls or is too slow is cut (device_agent.workers.transfer_watchdog), and its progress is kept; it
   is not repeated, so that the next mirror is asked at once. Other retries wait with exponential backoff and full
   jitter, and obey Retry-After up to a limit; progress resets the count.
5. Content codings are neither requested nor accepted. Redirects, proxies and credentials: see
   device_agent.workers.http_client.
6. A web page in place of a file means that the repository was not reached.
7. Every received byte is counted, heads included, also of calls that fail: event {"received", "wasted"} before the
   reply. Wasted are the bytes of a failed document, and those of a blob that were received before or are discarded.
8. A blob's call ends when it has received `budget_bytes`.

Calls: `configure` {settings} with descriptors of credential files; `get` {url, max_bytes, etag, last_modified} →
{is_modified, etag, last_modified} and a memfd, conditional if `etag` or `last_modified` is not ""; `blob` {url, sha256,
size, min_rate_bytes_s, max_rate_bytes_s, backoff_ms, budget_bytes} with the descriptor of the partial file →
{received, resumed_at}; events {"done", "total"}.
"""

import functools
import http.client
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

from bundle.errors import DigestMismatch, DownloadFailed, NotFound, TooLarge, UnexpectedNotModified
from device_agent.config.repository import redact_url
from device_agent.errors import (
    MeteredLimitExceeded,
    ProxyAuthRequired,
    RedirectRefused,
    RepositoryAuthRequired,
    RepositoryNotReached,
    ServerTooSlow,
    TlsFailed,
)
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import Handler, SupervisorChannel, serve_calls, start_worker
from device_agent.workers.http_client import RANGE_NOT_SATISFIABLE, ClientSettings, HttpClient, HttpResponse
from device_agent.workers.http_heads import conditional_headers, received, usable_validator
from device_agent.workers.partial_download import PartialBlob
from device_agent.workers.repository_credentials import SystemAuthorities, no_credentials, read_credentials

logger = logging.getLogger(__name__)

DOCUMENT_DEADLINE_S: Final = 120.0  # metadata is at most a few MiB
CHUNK_BYTES: Final = 64 * 1024
MIN_CHUNK_BYTES: Final = 256
PROGRESS_INTERVAL_BYTES: Final = 1024 * 1024
MAX_TRIES: Final = 5
MAX_RANGE_FAULTS: Final = 2  # then the whole file is requested, and its known prefix skipped
BACKOFF_MS: Final = 500
MAX_BACKOFF_S: Final = 30.0
MAX_RETRY_AFTER_S: Final = 60.0
CONTENT_RANGE_PATTERN: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
WEB_PAGE_PATTERN: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body|script|!--)", re.IGNORECASE
)
WEB_PAGE_BYTES: Final = 256  # of a body's beginning
# a second request gets the same answer
FINAL_ERRORS: Final = (
    *(NotFound, ServerTooSlow, ProxyAuthRequired, RedirectRefused, RepositoryAuthRequired),
    *(RepositoryNotReached, TlsFailed, UnexpectedNotModified),
)


@functools.cache
def _system_authorities() -> SystemAuthorities:
    return SystemAuthorities.read(os.environ)


_clients: list[HttpClient] = []  # the client of this process, as the last `configure` call set it up


def prepare_client() -> HttpClient:
    """Return the client; the first call reads the system's certificates, so it must come before the jail."""
    if not _clients:
        _clients.append(HttpClient(ClientSettings(no_credentials(_system_authorities()))))
    return _clients[0]


def configure(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Set how requests are sent from now on: call `configure`.

    Args:
        message: fields `proxy`, `no_proxy`, `allow_redirects_to`, `first_byte_s`, `stall_window_s`,
            `min_rate_bytes_s`, and those of `read_credentials`, with its descriptors.

    Raises:
        ConfigInvalid: a file of the credentials is malformed.
    """
    value = message.value
    try:
        credentials = read_credentials(message, _system_authorities())
    finally:
        message.close()
    settings = ClientSettings(
        credentials=credentials,
        proxy=str(value["proxy"]),
        no_proxy=None if value["no_proxy"] is None else tuple(map(str, value["no_proxy"])),
        allow_redirects_to=tuple(map(str, value["allow_redirects_to"])),
        first_byte_s=float(value["first_byte_s"]),
        stall_window_s=float(value["stall_window_s"]),
        min_rate_bytes_s=int(value["min_rate_bytes_s"]),
    )
    prepare_client().close()
    _clients[:] = [HttpClient(settings)]
    return {}


@dataclass(slots=True)
class _RateLimit:
    """The maximum rate of a transfer, and the bytes received so far."""

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


def handle_get(supervisor: SupervisorChannel, message: Message) -> Message:
    """Download a small document into a memfd: call `get`.

    Args:
        supervisor: receives the count of bytes.
        message: fields `url`, `max_bytes`, `etag`, `last_modified`.

    Raises:
        NotFound: the server has no such file.
        DownloadFailed: the transfer failed.
        TooLarge: the document is longer than the limit.
    """
    message.close()
    value = message.value
    headers = conditional_headers(str(value.get("etag", "")), str(value.get("last_modified", "")))
    before, is_useful = received.total_bytes, False
    try:
        document = fetch_document(str(value["url"]), int(value["max_bytes"]), headers)
        is_useful = True
    except NotFound:
        is_useful = True
        raise
    finally:
        received.send_count(supervisor, 0 if is_useful else received.total_bytes - before)
    fields = {"is_modified": document.is_modified, "etag": document.etag, "last_modified": document.last_modified}
    return Message(fields, (document.fd,))


@dataclass(frozen=True, slots=True)
class Document:
    """A downloaded document, with its validators.

    Attributes:
        fd: a memfd with it; empty if it is not modified.
        is_modified: False if the server responded with 304.
        etag: its ETag, weak or strong, or "".
        last_modified: its Last-Modified date, or "".
    """

    fd: int
    is_modified: bool
    etag: str
    last_modified: str


def fetch_document(url: str, max_bytes: int, headers: Mapping[str, str] = MappingProxyType({})) -> Document:
    """Download a small document; the caller closes its descriptor.

    Args:
        url: http, https or file URL.
        max_bytes: limit of the document.
        headers: header fields that make the request conditional.

    Raises:
        NotFound: the server has no such file.
        DownloadFailed: the transfer failed, or took longer than DOCUMENT_DEADLINE_S.
        TooLarge: the document is longer than the limit.
    """
    fd = os.memfd_create("document", os.MFD_CLOEXEC)
    try:
        deadline = time.monotonic() + DOCUMENT_DEADLINE_S
        size = 0
        with _open_body(url, dict(headers), prepare_client().settings.min_rate_bytes_s) as body:
            if body.announced_bytes is not None and body.announced_bytes > max_bytes:
                raise TooLarge(f"{body.url}: {body.announced_bytes} bytes announced, at most {max_bytes} are allowed")
            for data in body.chunks(CHUNK_BYTES):
                if not size:
                    _check_no_web_page(body, data)
                size += len(data)
                if size > max_bytes:
                    raise TooLarge(f"{body.url}: more than the allowed {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise ServerTooSlow(f"{body.url}: not complete after {DOCUMENT_DEADLINE_S:.0f} s")
                os.write(fd, data)
            if body.announced_bytes is not None and size < body.announced_bytes:
                raise DownloadFailed(f"{body.url}: ends after {size} of {body.announced_bytes} bytes")
            return Document(fd, body.is_modified, body.etag, body.last_modified)
    except BaseException:
        os.close(fd)
        raise


def _check_no_web_page(body: "_ResponseBody", data: bytes) -> None:
    """Raise RepositoryNotReached if a body begins like a web page. No file of a repository does."""
    start = data[:WEB_PAGE_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    is_page = WEB_PAGE_PATTERN.match(start) is not None
    if urlsplit(body.url.partition("?")[0]).path.endswith(".json"):
        is_page = is_page or start.startswith(b"<") or ("html" in body.content_type and not start.startswith(b"{"))
    if is_page:
        raise RepositoryNotReached(
            f"{body.url}: answers with a web page, expected a file of the repository",
            hint="log in to the network if it has a login page, and check `repository_url`",
        )


def fetch_blob(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Download one blob into its partial file, from where it stopped: call `blob`.

    Args:
        supervisor: receives the progress.
        message: fields `url`, `sha256`, `size`, `min_rate_bytes_s`, `max_rate_bytes_s`, `backoff_ms`, `budget_bytes`
            (missing or null for no limit); descriptor of the partial file.

    Raises:
        NotFound: the server has no such file.
        DownloadFailed: the transfer failed after all retries, or was too slow (ServerTooSlow).
        DigestMismatch: the blob does not have the signed size and digest.
        MeteredLimitExceeded: the budget is used up.
    """
    value = message.value
    before, body_before = received.total_bytes, received.body_bytes
    resumed_at = kept_bytes = 0
    try:
        part = PartialBlob(message.fds[0], int(value["size"]))
        part.load()
        resumed_at = kept_bytes = part.received_bytes
        budget = value.get("budget_bytes")
        received.limit_bytes = None if budget is None else before + int(budget)
        url, sha256 = str(value["url"]), str(value["sha256"])
        for may_retry in (True, False):
            rate = _RateLimit(value["max_rate_bytes_s"])
            transfer = _Transfer(supervisor, url, sha256, part, rate, int(value["min_rate_bytes_s"]))
            try:
                transfer.run(int(value["backoff_ms"]))
            finally:
                part.sync()
                kept_bytes = part.received_bytes
            if part.hash.hexdigest() == sha256:
                return {"received": received.body_bytes - body_before, "resumed_at": resumed_at}
            found = part.hash.hexdigest()
            part.clear()
            kept_bytes = 0
            if not part.is_resumed or not may_retry:
                break
        raise DigestMismatch(
            f"{redact_url(url)}: SHA-256 of the {part.size_bytes} bytes is {found[:16]}…, expected {sha256[:16]}…"
        )
    finally:
        count, useful = received.total_bytes - before, max(kept_bytes - resumed_at, 0)
        received.send_count(supervisor, received.body_bytes - body_before - useful if useful else count)
        received.limit_bytes = None
        message.close()


@dataclass(slots=True)
class _Transfer:
    """The transfers of one blob from one server, until it is complete."""

    supervisor: SupervisorChannel
    url: str
    sha256: str
    part: PartialBlob
    rate: _RateLimit
    min_rate_bytes_s: int
    range_faults: int = 0

    def run(self, backoff_ms: int) -> None:
        """Transfer until all bytes have arrived; retry after errors that may pass."""
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
        with _open_body(self.url, headers, self.min_rate_bytes_s) as body:
            skip = self._skip_bytes(body)
            expected_bytes = part.size_bytes - part.received_bytes + skip
            if body.announced_bytes is not None and body.announced_bytes > expected_bytes:
                raise DigestMismatch(f"{body.url}: {body.announced_bytes} bytes announced, {expected_bytes} are signed")
            reported, is_first = part.received_bytes, body.start_byte is None
            for data in body.chunks(self.rate.chunk_bytes):
                self.rate.record_received(len(data))
                if is_first:
                    _check_no_web_page(body, data)
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

    def _skip_bytes(self, body: "_ResponseBody") -> int:
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


@dataclass(slots=True)
class _ResponseBody:
    """A response: `start_byte` and `total_bytes` are from its Content-Range, or None for a whole file.

    `start_byte` is -1 if the server has no byte at the requested position.
    """

    url: str
    chunks: Callable[[int], Iterator[bytes]]
    announced_bytes: int | None
    start_byte: int | None
    total_bytes: int | None
    content_type: str = ""
    is_modified: bool = True
    etag: str = ""
    last_modified: str = ""


@contextmanager
def _open_body(url: str, headers: dict[str, str], min_rate_bytes_s: int) -> Iterator[_ResponseBody]:
    parts = urlsplit(url)
    if parts.scheme == "file":
        with _open_file_body(unquote(parts.path), url, headers) as body:
            yield body
        return
    client = prepare_client()
    with client.watchdog.watch(min_rate_bytes_s):
        response = client.open(url, headers)
        try:
            yield _parse_response(response, headers)
        finally:
            response.close()


@contextmanager
def _open_file_body(path: str, url: str, headers: dict[str, str]) -> Iterator[_ResponseBody]:
    try:
        with open(path, "rb") as stream:
            start = int(headers["Range"][6:-1]) if "Range" in headers else None
            total = os.fstat(stream.fileno()).st_size
            stream.seek(start or 0)

            def chunks(size: int) -> Iterator[bytes]:
                while data := stream.read(size):
                    received.total_bytes += len(data)
                    received.body_bytes += len(data)
                    yield data

            yield _ResponseBody(url, chunks, total - (start or 0), start, None if start is None else total)
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no such file") from error
    except OSError as error:
        raise DownloadFailed(f"{url}: {error.strerror}") from error


def _parse_response(response: HttpResponse, headers: dict[str, str]) -> _ResponseBody:
    url, length = response.url, response.header("Content-Length")
    announced = int(length) if length.isdecimal() and len(length) < 19 else None
    start = total = None
    if response.status == RANGE_NOT_SATISFIABLE:
        if "Range" not in headers:
            raise DownloadFailed(f"{url}: HTTP 416, but no range was requested")
        start = -1
    if response.status == 206:
        found = CONTENT_RANGE_PATTERN.fullmatch(response.header("Content-Range"))
        if found is None or "Range" not in headers:
            raise DownloadFailed(f"{url}: HTTP 206 without the requested range")
        start, total = int(found[1]), None if found[3] is None else int(found[3])
    is_modified = response.status != http.client.NOT_MODIFIED

    def chunks(size: int) -> Iterator[bytes]:
        if not is_modified:
            return
        left = received.left_bytes
        for data in response.chunks(size if left is None else max(min(size, left), 1)):
            received.body_bytes += len(data)
            yield data

    return _ResponseBody(
        url,
        chunks,
        announced if is_modified else None,
        start,
        total,
        response.header("Content-Type").lower(),
        is_modified,
        usable_validator(response.header("ETag")),
        usable_validator(response.header("Last-Modified")),
    )


def _retry_delay_s(failures: int, backoff_ms: int, error: DownloadFailed) -> float:
    requested_s = next((float(note) for note in getattr(error, "__notes__", []) if note), 0.0)
    ceiling = min(backoff_ms / 1000 * 2**failures, MAX_BACKOFF_S)
    return max(min(requested_s, MAX_RETRY_AFTER_S), random.uniform(0, ceiling))  # noqa: S311  # jitter, not a secret


if __name__ == "__main__":
    handlers: dict[str, Handler] = {"configure": configure, "get": handle_get, "blob": fetch_blob}
    serve_calls(start_worker(lambda _pace: prepare_client())[0], handlers)
