"""The body of a response, or of a local file, read in pieces.

Rules:
- A range counts only if it was requested. Its position is judged by the caller, who knows what it has.
- A 304 has no body. A validator is kept only if it is usable in a request.
- A web page in place of a file means that the repository was not reached.
"""

import http.client
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from bundle.errors import DownloadFailed, NotFound
from device_agent.config.repository import REGISTRY_SCHEMES
from device_agent.errors import RepositoryNotReached
from device_agent.workers.http_client import RANGE_NOT_SATISFIABLE, HttpClient
from device_agent.workers.http_heads import received, usable_validator
from device_agent.workers.http_response import HttpResponse
from device_agent.workers.registry_files import InlineFile, open_registry_file

CHUNK_BYTES: Final = 64 * 1024
CONTENT_RANGE_PATTERN: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
WEB_PAGE_PATTERN: Final = re.compile(rb"<(?:!doctype\s+html|html|head|body|script|!--)", re.IGNORECASE)
WEB_PAGE_BYTES: Final = 256  # of a body's beginning


@dataclass(slots=True)
class ResponseBody:
    """A response, or an open file, with its body still unread.

    Attributes:
        url: the URL that it came from, for messages.
        chunks: yields the body in pieces of at most the given size.
        announced_bytes: announced length of the body, or None.
        start_byte: first byte of a range, or None for a whole file; -1 if there is no byte at the requested position.
        total_bytes: length of the whole file as the range announces it, or None.
        content_type: in lower case, or "".
        is_modified: False if the server responded with 304.
        etag: usable ETag, or "".
        last_modified: usable Last-Modified date, or "".
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
def open_body(client: HttpClient, url: str, headers: dict[str, str], min_rate_bytes_s: int) -> Iterator[ResponseBody]:
    """Request a file during a `with` block, watched by the client's watchdog.

    Args:
        client: sends the request.
        url: http, https, oci or file URL.
        headers: header fields of the request; of a file URL, only `Range` counts.
        min_rate_bytes_s: minimum rate of the transfer.

    Raises:
        NotFound: there is no such file.
        DownloadFailed: the request failed, or the file cannot be read.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        with _open_file_body(unquote(parts.path), url, headers) as body:
            yield body
        return
    with client.watchdog.watch(min_rate_bytes_s):
        if parts.scheme in REGISTRY_SCHEMES:
            found = open_registry_file(client, url, headers)
            if isinstance(found, InlineFile):
                yield _inline_body(found, url)
                return
            response = found
        else:
            response = client.open(url, headers)
        try:
            yield _parse_response(response, headers)
        finally:
            response.close()


def check_no_web_page(body: ResponseBody, data: bytes) -> None:
    """Check that a body does not begin like a web page. No file of a repository does.

    Args:
        body: the response.
        data: the first bytes of its body.

    Raises:
        RepositoryNotReached: it begins like a web page.
    """
    start = data[:WEB_PAGE_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n\v\f")  # a byte order mark, and white space
    is_page = WEB_PAGE_PATTERN.match(start) is not None
    if urlsplit(body.url.partition("?")[0]).path.endswith(".json"):
        is_page = is_page or start.startswith(b"<") or ("html" in body.content_type and not start.startswith(b"{"))
    if is_page:
        raise RepositoryNotReached(
            f"{body.url}: answers with a web page, expected a file of the repository",
            hint="log in to the network if it has a login page, and check `repository_url`",
        )


@contextmanager
def _open_file_body(path: str, url: str, headers: dict[str, str]) -> Iterator[ResponseBody]:
    try:
        with open(path, "rb") as stream:
            start = end = None
            total = os.fstat(stream.fileno()).st_size
            if "Range" in headers:
                first, _, last = headers["Range"].removeprefix("bytes=").partition("-")
                start, end = int(first), int(last) + 1 if last else None
            left = max(min(total if end is None else end, total) - (start or 0), 0)
            stream.seek(start or 0)

            def chunks(size: int) -> Iterator[bytes]:
                nonlocal left
                while data := stream.read(min(size, left)):
                    left -= len(data)
                    received.total_bytes += len(data)
                    received.body_bytes += len(data)
                    yield data

            yield ResponseBody(url, chunks, left, start, None if start is None else total)
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no such file") from error
    except OSError as error:
        raise DownloadFailed(f"{url}: {error.strerror}") from error


def _inline_body(file: InlineFile, url: str) -> ResponseBody:
    total = None if file.start_byte is None else file.total_bytes
    announced = len(file.data) if file.is_modified else None
    etag, last_modified = usable_validator(file.etag), usable_validator(file.last_modified)
    return ResponseBody(url, file.chunks, announced, file.start_byte, total, "", file.is_modified, etag, last_modified)


def _parse_response(response: HttpResponse, headers: dict[str, str]) -> ResponseBody:
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

    return ResponseBody(
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
