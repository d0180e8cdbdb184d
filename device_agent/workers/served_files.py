"""Fetch files of a repository as a device does: the program of `packager repo verify --url`.

It runs on the publisher's machine, without a jail and without a device. It reads one JSON object from stdin: `url`,
`config` (a device's configuration whose access settings apply, or null), `files` (rows of `path`, `size` and `sha256`),
`local` (the folder with the files as they should be served) and `missing` (a path that does not exist). It writes one
JSON object per line: {"path", "reason", "message", …}, with an empty reason if all is well.

Rules:
1. Every transfer uses the fetcher's own functions, so the result is a device's.
2. The path `""` has facts of the server: what it answers for a missing file, to a range, and in header fields.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from bundle.errors import AirweightsError, DigestMismatch, DownloadFailed, NotFound
from device_agent.config.config import load_config
from device_agent.errors import ProxyAuthRequired, ProxyFailed, ServerTooSlow, TlsFailed
from device_agent.process.channel import Message
from device_agent.process.worker import SupervisorChannel
from device_agent.workers import fetcher
from device_agent.workers.repository_access import RepositoryAccess

MIN_RATE_BYTES_S: Final = 1024
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
RANGE_IGNORED: Final = "range-ignored"
MISSING_ANSWERED: Final = "missing-file-answered"
ETAG_CHANGES: Final = "etag-changes"
UNREACHED: Final = tuple(
    kind.reason for kind in (DownloadFailed, ProxyFailed, ProxyAuthRequired, ServerTooSlow, TlsFailed)
)


class _Silent:
    """Takes the events of a transfer."""

    def send_event(self, _value: object) -> None:
        """Ignore an event of a transfer."""


def check_served_files(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the result of each file, and then of the server.

    Args:
        job: the object that the module's docstring describes.
    """
    if job["config"] is not None:
        _configure(Path(job["config"]))
    base = str(job["url"]).rstrip("/")
    for row in job["files"]:
        result = _check_file(base, row)
        yield result
        if row["sha256"] is None and result["reason"] in UNREACHED:
            return  # nothing else would be reached either
    if not base.startswith("file:"):
        yield from _check_server(base, job)


def _configure(config_file: Path) -> None:
    def send(value: dict[str, Any], fds: Any) -> object:
        return fetcher.configure(_supervisor(), Message(value, tuple(os.dup(fd) for fd in fds)))

    def no_sealed_key() -> int:
        raise DownloadFailed("the client key is sealed on the device: check with a client key in a file")

    RepositoryAccess(load_config(config_file)).send_if_changed(send, no_sealed_key)


def _check_file(base: str, row: dict[str, Any]) -> dict[str, Any]:
    url, path = f"{base}/{row['path']}", row["path"]
    try:
        if path.startswith("blobs/"):
            with tempfile.TemporaryFile() as part:
                _fetch_blob(url, row, part.fileno())
            return {"path": path, "reason": "", "message": ""}
        return {"path": path, "reason": "", "message": "", "content": _fetch_document(url, row)}
    except AirweightsError as error:
        return {"path": path, "reason": error.reason, "message": error.message}


def _fetch_document(url: str, row: dict[str, Any]) -> str | None:
    """Fetch a document and compare it with its digest; return the content of one without a known digest."""
    is_known = row["sha256"] is not None
    document = fetcher.fetch_document(url, row["size"] if is_known else MAX_DOCUMENT_BYTES)
    with open(document.fd, "rb") as stream:
        stream.seek(0)
        data = stream.read()
    found = hashlib.sha256(data).hexdigest()
    if is_known and found != row["sha256"]:
        raise DigestMismatch(
            f"{url}: SHA-256 of the {len(data)} bytes is {found[:16]}…, expected {row['sha256'][:16]}…"
        )
    return None if is_known else data.decode(errors="replace")


def _fetch_blob(url: str, row: dict[str, Any], part: int) -> dict[str, Any]:
    value = {
        "url": url,
        "sha256": row["sha256"],
        "size": row["size"],
        "min_rate_bytes_s": MIN_RATE_BYTES_S,
        "max_rate_bytes_s": None,
        "backoff_ms": 50,
    }
    return fetcher.fetch_blob(_supervisor(), Message(value, (os.dup(part),)))


def _check_server(base: str, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(AirweightsError):
        try:
            headers = _headers(f"{base}/{job['missing']}")
        except NotFound:
            pass
        else:
            yield {
                "path": "",
                "reason": MISSING_ANSWERED,
                "message": f"{base}/{job['missing']}: HTTP {headers['status']} for a file that does not exist,"
                " expected 404 or 403",
            }
    with contextlib.suppress(AirweightsError):
        headers = _headers(f"{base}/metadata/timestamp.json")
        yield {"path": "", "reason": "", "message": "", "age_s": headers["age"]}
    rows = [row for row in job["files"] if row["sha256"] is not None and row["size"] > 1]
    blobs = [row for row in rows if row["path"].startswith("blobs/")]
    if rows:
        with contextlib.suppress(AirweightsError):
            yield from _check_ranges(base, job, max(blobs or rows, key=lambda row: int(row["size"])))


def _check_ranges(base: str, job: dict[str, Any], row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Resume the largest file from its middle, and request its ETag twice."""
    url, half = f"{base}/{row['path']}", row["size"] // 2
    with tempfile.TemporaryFile() as part, (Path(job["local"]) / row["path"]).open("rb") as local:
        part.write(local.read(half))
        part.flush()
        received = int(_fetch_blob(url, row, part.fileno())["received"])
    if received > row["size"] - half:
        yield {
            "path": "",
            "reason": RANGE_IGNORED,
            "message": f"{url}: {received} bytes were sent for the last {row['size'] - half}: an interrupted download"
            " begins again",
        }
    tags = {_headers(url)["etag"] for _ in range(2)}
    if len(tags) > 1:
        yield {"path": "", "reason": ETAG_CHANGES, "message": f"{url}: the ETag differs between two requests"}


def _headers(url: str) -> dict[str, Any]:
    client = fetcher.prepare_client()
    with client.watchdog.watch(client.settings.min_rate_bytes_s):
        response = client.open(url, {})
        age = response.header("Age")
        found = {
            "status": response.status,
            "etag": response.header("ETag"),
            "age": int(age) if age.isdecimal() and len(age) < 12 else None,
        }
        response.close()
    return found


def _supervisor() -> SupervisorChannel:
    return cast("SupervisorChannel", _Silent())


def main() -> None:
    """Read the job from stdin and print the results."""
    for result in check_served_files(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
