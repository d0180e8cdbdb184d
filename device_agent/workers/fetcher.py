"""The fetcher: bounded, resumable downloads.

It is the only worker with a network, and it has no secret. No server is trusted: a blob's digest is checked while it is
received, and again by the worker that uses it.

Rules:
1. Every response is bounded: metadata by the limit of the call, a blob by its signed size. A response that announces
   more is not read; one that sends more is cut at the limit.
2. A blob is resumed where it stopped, also after a restart: with Range, and If-Range if the server sent a strong ETag.
   If the server sends the whole file instead, the known prefix is skipped. The existing bytes are hashed first.
3. A download resumes at most once per call after its content was discarded, to rule out loops. A blob with a wrong
   digest after a resume is fetched once more, because its first part may be of another file; then it is refused.
4. A transfer slower than `min_rate_bytes_s` over RATE_WINDOW_S is ended, and its progress is kept. Retries wait with
   exponential backoff and full jitter, and obey Retry-After up to a limit; progress resets the count.
5. Content codings are neither requested nor accepted. Redirects are followed at most MAX_REDIRECTS times, and never
   from https to http.

Calls: `get` {url, max_bytes} → a memfd; `blob` {url, sha256, size, min_rate_bytes_s, max_rate_bytes_s, backoff_ms} with
descriptors of part file and note → {received, resumed_at}; events {"done", "total"}.
"""

import encodings.idna  # noqa: F401  # the resolver loads it at its first use, when the jail has closed the files
import functools
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from bundle.errors import DigestMismatch, DownloadFailed, NotFound, TooLarge
from bundle.version import VERSION
from device_agent.errors import ServerTooSlow
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker
from device_agent.workers.partial_download import MAX_ETAG_CHARACTERS, STRONG_ETAG_PATTERN, PartialBlob

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 15.0
READ_TIMEOUT_S: Final = 30.0
DOCUMENT_DEADLINE_S: Final = 120.0  # metadata is at most a few MiB
RATE_WINDOW_S: Final = 30.0
CHUNK_BYTES: Final = 64 * 1024
RANGE_NOT_SATISFIABLE: Final = 416
PROGRESS_INTERVAL_BYTES: Final = 1024 * 1024
MAX_REDIRECTS: Final = 5
MAX_TRIES: Final = 5
BACKOFF_MS: Final = 500
MAX_BACKOFF_S: Final = 30.0
MAX_RETRY_AFTER_S: Final = 60.0
CONTENT_RANGE_PATTERN: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
HEADERS: Final = {"User-Agent": f"airweights-device-agent/{VERSION}", "Accept-Encoding": "identity"}


@functools.cache
def connection_pool() -> urllib3.PoolManager:
    """Return the connection pool of this process.

    The first call loads the CA certificates, so it must come before the jail closes the files.
    """
    return urllib3.PoolManager(
        num_pools=4,
        maxsize=1,
        retries=False,
        headers=HEADERS,
        ssl_context=ssl.create_default_context(),
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
    )


@dataclass(slots=True)
class _RateLimit:
    """The rate limits of a transfer: a minimum, averaged over a window, and a maximum."""

    min_bytes_s: int
    max_bytes_s: int | None
    started_s: float = field(default_factory=time.monotonic)
    window_started_s: float = field(default_factory=time.monotonic)
    window_bytes: int = 0
    total_bytes: int = 0

    def record_received(self, count: int, url: str) -> None:
        """Count received bytes: raise ServerTooSlow below the minimum rate, sleep above the maximum rate."""
        self.total_bytes += count
        self.window_bytes += count
        now = time.monotonic()
        elapsed = now - self.window_started_s
        if elapsed >= RATE_WINDOW_S:
            if self.window_bytes < self.min_bytes_s * elapsed:
                raise ServerTooSlow(
                    f"{url}: {self.window_bytes} bytes in {elapsed:.0f} s,"
                    f" less than {self.min_bytes_s} bytes per second"
                )
            self.window_started_s, self.window_bytes = now, 0
        if self.max_bytes_s is not None:
            ahead = self.total_bytes / self.max_bytes_s - (now - self.started_s)
            if ahead > 0:
                time.sleep(ahead)


def handle_get(_supervisor: SupervisorChannel, message: Message) -> Message:
    """Download a small document into a memfd: call `get`.

    Args:
        message: fields `url`, `max_bytes`.

    Raises:
        NotFound: the server has no such file.
        DownloadFailed: the transfer failed.
        TooLarge: the document is longer than the limit.
    """
    message.close()
    fd = fetch_document(str(message.value["url"]), int(message.value["max_bytes"]))
    return Message({"bytes": os.fstat(fd).st_size}, (fd,))


def fetch_document(url: str, max_bytes: int) -> int:
    """Download a small document and return a memfd with it; the caller closes it.

    Args:
        url: http, https or file URL.
        max_bytes: limit of the document.

    Raises:
        NotFound: the server has no such file.
        DownloadFailed: the transfer failed, or took longer than DOCUMENT_DEADLINE_S.
        TooLarge: the document is longer than the limit.
    """
    fd = os.memfd_create("document", os.MFD_CLOEXEC)
    try:
        deadline = time.monotonic() + DOCUMENT_DEADLINE_S
        received = 0
        with _open_body(url, {}) as body:
            if body.announced_bytes is not None and body.announced_bytes > max_bytes:
                raise TooLarge(f"{url}: {body.announced_bytes} bytes announced, at most {max_bytes} are allowed")
            for data in body.chunks():
                received += len(data)
                if received > max_bytes:
                    raise TooLarge(f"{url}: more than the allowed {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise DownloadFailed(f"{url}: not complete after {DOCUMENT_DEADLINE_S:.0f} s")
                os.write(fd, data)
            if body.announced_bytes is not None and received < body.announced_bytes:
                raise DownloadFailed(f"{url}: ends after {received} of {body.announced_bytes} bytes")
    except BaseException:
        os.close(fd)
        raise
    return fd


def fetch_blob(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Download one blob into its partial file, from where it stopped: call `blob`.

    Args:
        supervisor: receives the progress.
        message: fields `url`, `sha256`, `size`, `min_rate_bytes_s`, `max_rate_bytes_s`, `backoff_ms`; descriptors of
            the partial file and of its ETag.

    Raises:
        NotFound: the server has no such file.
        DownloadFailed: the transfer failed after all retries, or was too slow (ServerTooSlow).
        DigestMismatch: the blob does not have the signed size and digest.
    """
    value = message.value
    try:
        part = PartialBlob(message.fds[0], message.fds[1], int(value["size"]))
        part.load()
        resumed_at, received = part.received_bytes, 0
        url, sha256 = str(value["url"]), str(value["sha256"])
        for may_retry in (True, False):
            rate = _RateLimit(int(value["min_rate_bytes_s"]), value["max_rate_bytes_s"])
            try:
                _download_with_retries(supervisor, url, part, rate, int(value["backoff_ms"]))
            finally:
                part.sync()
                received += rate.total_bytes
            if part.hash.hexdigest() == sha256:
                return {"received": received, "resumed_at": resumed_at}
            found = part.hash.hexdigest()
            part.clear()
            if not part.is_resumed or not may_retry:
                break
        raise DigestMismatch(f"{url}: SHA-256 of the {part.size_bytes} bytes is {found[:16]}…, expected {sha256[:16]}…")
    finally:
        message.close()


def _download_with_retries(
    supervisor: SupervisorChannel, url: str, part: PartialBlob, rate: _RateLimit, backoff_ms: int
) -> None:
    failures = 0
    while part.received_bytes < part.size_bytes:
        before = part.received_bytes
        try:
            _transfer(supervisor, url, part, rate)
        except (NotFound, ServerTooSlow):
            raise
        except DownloadFailed as error:
            part.sync()
            failures = 1 if part.received_bytes > before else failures + 1
            if failures >= MAX_TRIES:
                raise
            logger.info("retry %d: %s", failures, error.message)
            time.sleep(_retry_delay_s(failures, backoff_ms, error))


def _transfer(supervisor: SupervisorChannel, url: str, part: PartialBlob, rate: _RateLimit) -> None:
    headers = {}
    if part.received_bytes:
        part.is_resumed = True
        headers["Range"] = f"bytes={part.received_bytes}-"
        if part.read_etag():
            headers["If-Range"] = part.read_etag()
    with _open_body(url, headers) as body:
        skip = _skip_bytes(url, body, part)
        expected_bytes = part.size_bytes - part.received_bytes + skip
        if body.announced_bytes is not None and body.announced_bytes > expected_bytes:
            raise DigestMismatch(f"{url}: {body.announced_bytes} bytes announced, {expected_bytes} are signed")
        reported = part.received_bytes
        for data in body.chunks():
            rate.record_received(len(data), url)
            skipped = min(skip, len(data))
            skip -= skipped
            data = data[skipped:]
            if len(data) > part.size_bytes - part.received_bytes:
                part.clear()
                raise DigestMismatch(f"{url}: longer than the signed {part.size_bytes} bytes")
            part.append(data)
            if part.received_bytes - reported >= PROGRESS_INTERVAL_BYTES or part.received_bytes == part.size_bytes:
                reported = part.received_bytes
                supervisor.send_event({"done": part.received_bytes, "total": part.size_bytes})
        if part.received_bytes < part.size_bytes:
            raise DownloadFailed(f"{url}: ends after {part.received_bytes} of {part.size_bytes} bytes")


def _skip_bytes(url: str, body: "_ResponseBody", part: PartialBlob) -> int:
    """Return how many bytes of the body are already in the partial file."""
    if body.start_byte == -1:
        if part.restarts:
            raise DigestMismatch(f"{url}: the file is shorter than the signed {part.size_bytes} bytes")
        part.clear()
    if body.start_byte is not None:
        if body.start_byte != part.received_bytes or (
            body.total_bytes is not None and body.total_bytes != part.size_bytes
        ):
            raise DownloadFailed(
                f"{url}: the response starts at byte {body.start_byte} of {body.total_bytes}, expected "
                f"{part.received_bytes} of {part.size_bytes}"
            )
        return 0
    if part.received_bytes and body.etag != part.read_etag():
        if part.restarts:
            raise DownloadFailed(f"{url}: the file changed during the download")
        part.clear()
    part.write_etag(body.etag)
    return part.received_bytes


@dataclass(slots=True)
class _ResponseBody:
    """A response: `start_byte` and `total_bytes` are from its Content-Range, or None for a whole file."""

    stream: Iterator[bytes]
    announced_bytes: int | None
    start_byte: int | None
    total_bytes: int | None
    etag: str

    def chunks(self) -> Iterator[bytes]:
        return self.stream


@contextmanager
def _open_body(url: str, headers: dict[str, str]) -> Iterator[_ResponseBody]:
    parts = urlsplit(url)
    if parts.scheme == "file":
        with _open_file_body(unquote(parts.path), url, headers) as body:
            yield body
        return
    try:
        response = _send_request(url, headers)
        try:
            yield _parse_response(url, response, headers)
        finally:
            # closed, not drained: the rest of an unwanted body can be long
            response.close()
    except HTTPError as error:
        raise DownloadFailed(f"{url}: {_describe_cause(error)}") from error


@contextmanager
def _open_file_body(path: str, url: str, headers: dict[str, str]) -> Iterator[_ResponseBody]:
    try:
        with open(path, "rb") as stream:
            start = int(headers["Range"][6:-1]) if "Range" in headers else None
            total = os.fstat(stream.fileno()).st_size
            stream.seek(start or 0)
            chunks = iter(lambda: stream.read(CHUNK_BYTES), b"")
            yield _ResponseBody(chunks, total - (start or 0), start, None if start is None else total, "")
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no such file") from error
    except OSError as error:
        raise DownloadFailed(f"{url}: {error.strerror}") from error


def _send_request(url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    for _ in range(MAX_REDIRECTS + 1):
        response = connection_pool().request(
            "GET", url, headers={**HEADERS, **headers}, redirect=False, preload_content=False, decode_content=False
        )
        location = response.get_redirect_location()
        if not location:
            return _check_response(url, response)
        response.close()
        target = urljoin(url, location)
        if urlsplit(target).scheme not in (("https",) if url.startswith("https:") else ("http", "https")):
            raise DownloadFailed(f"{url}: redirects to {target[:200]!r}")
        url = target
    raise DownloadFailed(f"{url}: redirected more than {MAX_REDIRECTS} times")


def _check_response(url: str, response: urllib3.BaseHTTPResponse) -> urllib3.BaseHTTPResponse:
    if response.status in (200, 206, RANGE_NOT_SATISFIABLE) and not response.headers.get("Content-Encoding"):
        return response
    response.close()
    if response.status in (403, 404, 410):
        raise NotFound(f"{url}: HTTP {response.status}")
    if response.headers.get("Content-Encoding"):
        raise DownloadFailed(f"{url}: sent with a content coding that was not requested")
    error = DownloadFailed(f"{url}: HTTP {response.status}")
    wait = response.headers.get("Retry-After", "")
    error.add_note(wait if wait.isdecimal() and len(wait) < 6 else "")
    raise error


def _parse_response(url: str, response: urllib3.BaseHTTPResponse, headers: dict[str, str]) -> _ResponseBody:
    length = response.headers.get("Content-Length", "")
    announced = int(length) if length.isdecimal() and len(length) < 19 else None
    etag = response.headers.get("ETag", "")
    etag = etag if STRONG_ETAG_PATTERN.fullmatch(etag) and len(etag) <= MAX_ETAG_CHARACTERS else ""
    start = total = None
    if response.status == RANGE_NOT_SATISFIABLE:
        if "Range" not in headers:
            raise DownloadFailed(f"{url}: HTTP 416, but no range was requested")
        start = -1
    if response.status == 206:
        found = CONTENT_RANGE_PATTERN.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or "Range" not in headers:
            raise DownloadFailed(f"{url}: HTTP 206 without the requested range")
        start, total = int(found[1]), None if found[3] is None else int(found[3])
    return _ResponseBody(_read_chunks(response), announced, start, total, etag)


def _read_chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    # read1 returns the bytes received so far; a full read would block on a slow server and hide it from the rate limit
    return iter(lambda: response.read1(CHUNK_BYTES, decode_content=False), b"")


def _retry_delay_s(failures: int, backoff_ms: int, error: DownloadFailed) -> float:
    requested_s = next((float(note) for note in getattr(error, "__notes__", []) if note), 0.0)
    ceiling = min(backoff_ms / 1000 * 2**failures, MAX_BACKOFF_S)
    return max(min(requested_s, MAX_RETRY_AFTER_S), random.uniform(0, ceiling))  # noqa: S311  # jitter, not a secret


def _describe_cause(error: HTTPError) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


if __name__ == "__main__":
    serve_calls(start_worker(lambda _pace: connection_pool())[0], {"get": handle_get, "blob": fetch_blob})
