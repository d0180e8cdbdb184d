"""Find an envelope in a shard by range requests (docs/format.md section 7.1).

Rules:
- The first range has the header and the index; small shards fit into it. The second one has the record.
- A server without ranges sends the whole shard, of at most MAX_SHARD_BYTES; then there is no second request. A server
  that fails at a range is asked for the whole shard. More bytes than requested are used.
- The publisher replaces a shard as a whole. If it does so between the two requests, the record has another name, and
  the shard is read once more.
"""

from dataclasses import dataclass
from typing import Final

from bundle.envelope_shard import HEAD_BYTES, MAX_SHARD_BYTES, find_envelope, parse_index, parse_record
from bundle.errors import DownloadFailed, ShardMismatch, ShardTooLarge, ShardTruncated
from device_agent.config.repository import redact_url
from device_agent.workers.http_client import HttpClient
from device_agent.workers.response_body import CHUNK_BYTES, check_no_web_page, open_body

LOOKUPS: Final = 2


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a shard.

    Attributes:
        data: the bytes, from the requested position on.
        is_whole: they are the whole shard.
        total_bytes: size of the shard, or None if the server does not say it.
    """

    data: bytes
    is_whole: bool
    total_bytes: int | None


def fetch_envelope(client: HttpClient, url: str, name: str) -> bytes:
    """Download an envelope of a shard.

    Args:
        client: sends the requests.
        url: http, https or file URL of the shard.
        name: name of the envelope, in hexadecimal.

    Raises:
        NotFound: the server has no such shard, or the shard no such record.
        DownloadFailed: the transfer failed.
        Refused: the shard breaks its format (bundle.envelope_shard).
    """
    for lookups_left in reversed(range(LOOKUPS)):
        try:
            return _look_up(client, url, name)
        except (ShardMismatch, ShardTruncated):
            if not lookups_left:
                raise
    raise AssertionError


def _look_up(client: HttpClient, url: str, name: str) -> bytes:
    try:
        head = _fetch(client, url, 0, HEAD_BYTES)
    except DownloadFailed as error:
        if type(error) is not DownloadFailed:
            raise  # no such file, or no connection
        head = _fetch(client, url, 0, None)
    if head.is_whole:
        return find_envelope(head.data, name)
    index = parse_index(head.data)
    if head.total_bytes is not None:
        index.check_total(head.total_bytes)
    start = index.find_record(name)
    end = start + index.record_bytes
    if end <= len(head.data):
        return parse_record(head.data[start:end], name)
    record = _fetch(client, url, start, index.record_bytes)
    if record.is_whole:
        return find_envelope(record.data, name)
    if len(record.data) < index.record_bytes:
        raise ShardTruncated(f"{redact_url(url)}: {len(record.data)} bytes at {start}, expected {index.record_bytes}")
    return parse_record(record.data[: index.record_bytes], name)


def _fetch(client: HttpClient, url: str, start: int, size: int | None) -> _Part:
    """Request `size` bytes from `start` on, or the whole shard if `size` is None."""
    headers = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
    with open_body(client, url, headers, client.settings.min_rate_bytes_s) as body:
        if body.start_byte == -1:
            raise ShardTruncated(f"{body.url}: ends before byte {start}")
        is_range = body.start_byte is not None
        if is_range and body.start_byte != start:
            raise DownloadFailed(f"{body.url}: the response starts at byte {body.start_byte}, expected {start}")
        limit = MAX_SHARD_BYTES
        if body.announced_bytes is not None and body.announced_bytes > limit:
            raise ShardTooLarge(f"{body.url}: {body.announced_bytes} bytes announced, at most {limit} are allowed")
        data = b""
        for chunk in body.chunks(CHUNK_BYTES):
            if not data:
                check_no_web_page(body, chunk)
            data += chunk
            if len(data) > limit:
                raise ShardTooLarge(f"{body.url}: more than the allowed {limit} bytes")
        if body.announced_bytes is not None and len(data) < body.announced_bytes:
            raise DownloadFailed(f"{body.url}: ends after {len(data)} of {body.announced_bytes} bytes")
        is_whole = not is_range or (start == 0 and body.total_bytes == len(data))
        return _Part(data, is_whole, body.total_bytes)
