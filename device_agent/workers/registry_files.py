"""Files of a repository in an OCI registry: URLs `oci://REGISTRY/NAME/PATH` (bundle.registry_paths).

Rules:
1. A file with a tag is read from its manifest, in one request, if it is short; otherwise its blob is requested next.
   The manifest's validators are those of the file, so an unchanged timestamp is one request with 304.
2. A blob is requested by its digest, with the caller's Range. A registry without ranges sends all of it, and a redirect
   to an object store is followed without credentials, as for any URL (device_agent.workers.http_client).
3. Nothing that a registry says is trusted: digests and sizes in manifests only choose what is requested.
4. Who is asked for credentials, and by whom: device_agent.workers.registry_login.

`oci+http:` is a registry without TLS.
"""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from bundle.errors import DownloadFailed, NotFound
from bundle.registry_paths import DIGEST_PATTERN, MANIFEST_TYPE, place_of
from device_agent.config.repository import redact_url
from device_agent.workers.http_client import HttpClient
from device_agent.workers.http_heads import received
from device_agent.workers.http_response import HttpResponse
from device_agent.workers.registry_login import open_registry_url

MAX_MANIFEST_BYTES: Final = 256 * 1024  # of one file
MAX_NAME_CHARACTERS: Final = 255
URL_PATTERN: Final = re.compile(r"oci(\+http)?://([^/]+)/(.+)")
RANGE_PATTERN: Final = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})?")


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A file that its manifest contains.

    Attributes:
        data: the requested bytes.
        start_byte: first byte of the requested range; None for the whole file, -1 if there is no byte there.
        total_bytes: length of the file.
        is_modified: False if the registry responded with 304.
        etag, last_modified: validators, as the registry sent them.
    """

    data: bytes
    start_byte: int | None
    total_bytes: int
    is_modified: bool
    etag: str
    last_modified: str

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the bytes in pieces of at most `size`."""
        for start in range(0, len(self.data), size):
            yield self.data[start : start + size]


@dataclass(frozen=True, slots=True)
class RegistryFile:
    """A file in a registry.

    Attributes:
        url: its `oci:` URL.
        base: HTTP URL of the repository name, `https://REGISTRY/v2/NAME`.
        path: its path below the repository.
    """

    url: str
    base: str
    path: str


def parse_registry_url(url: str) -> RegistryFile:
    """Return the parts of an `oci:` URL.

    Raises:
        DownloadFailed: it names no file of a repository.
    """
    found = URL_PATTERN.fullmatch(url)
    # a repository's name has no part with which its paths begin (device_agent.config.repository)
    split = None if found is None else re.match(r"(.+?)/((?:metadata|targets|blobs|envelopes)/.+)", found[3])
    if found is None or split is None or len(split[1]) > MAX_NAME_CHARACTERS:
        raise DownloadFailed(f"{redact_url(url)}: not a file in a registry")
    return RegistryFile(url, f"{'http' if found[1] else 'https'}://{found[2]}/v2/{split[1]}", unquote(split[2]))


def open_registry_file(client: HttpClient, url: str, headers: dict[str, str]) -> InlineFile | HttpResponse:
    """Request a file from a registry; close a response.

    Args:
        client: sends the requests; its watchdog must watch.
        url: the `oci:` URL of the file.
        headers: header fields of the request: a range, or validators.

    Raises:
        NotFound: there is no such file.
        RepositoryAuthRequired: the registry wants credentials, or does not accept those that there are.
        DownloadFailed: the request failed, or the manifest is malformed.
        TooLarge: the manifest is longer than MAX_MANIFEST_BYTES.
    """
    file = parse_registry_url(url)
    place = place_of(file.path)
    digest, ranged = place.digest, {"Range": headers["Range"]} if "Range" in headers else {}
    if place.tag:
        validators = {name: value for name, value in headers.items() if name != "Range"}
        found = _read_manifest(client, file, place.tag, validators, ranged.get("Range", ""))
        if isinstance(found, InlineFile):
            return found
        digest = found
    return open_registry_url(client, file.base, f"blobs/{digest}", ranged)


def _read_manifest(
    client: HttpClient, file: RegistryFile, tag: str, validators: dict[str, str], wanted: str
) -> InlineFile | str:
    """Return the file if the manifest contains it, else the digest of its blob."""
    response = open_registry_url(client, file.base, f"manifests/{tag}", {"Accept": MANIFEST_TYPE, **validators})
    try:
        etag, last_modified = response.header("ETag"), response.header("Last-Modified")
        if response.status == 304:
            return InlineFile(b"", None, 0, False, etag, last_modified)
        text = response.read(MAX_MANIFEST_BYTES)
        received.body_bytes += len(text)
    finally:
        response.close()
    try:
        layer = json.loads(text)["layers"][0]
        digest, inline = str(layer["digest"]), layer.get("data")
        content = None if inline is None else base64.b64decode(inline, validate=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadFailed(f"{response.url}: not the manifest of a file") from error
    if content is not None:
        return _slice(content, wanted, etag, last_modified)
    if not DIGEST_PATTERN.fullmatch(digest):
        raise NotFound(f"{response.url}: names no blob")
    return digest


def _slice(content: bytes, wanted: str, etag: str, last_modified: str) -> InlineFile:
    found = RANGE_PATTERN.fullmatch(wanted)
    if found is None:
        return InlineFile(content, None, len(content), True, etag, last_modified)
    start, end = int(found[1]), int(found[2]) + 1 if found[2] else len(content)
    if start >= len(content):
        return InlineFile(b"", -1, len(content), True, etag, last_modified)
    return InlineFile(content[start:end], start, len(content), True, etag, last_modified)
