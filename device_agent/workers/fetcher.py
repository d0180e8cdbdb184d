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
{is_modified, etag, last_modified} and a memfd, conditional if `etag` or `last_modified` is not "";
`envelope` {url, name} → {envelope} in hexadecimal (device_agent.workers.envelope_lookup); `blob` {url, sha256, size,
min_rate_bytes_s, max_rate_bytes_s, backoff_ms, budget_bytes} with the descriptor of the partial file →
{received, resumed_at}; events {"done", "total"}; `post` {url, max_bytes} with a descriptor of what to send → {size} and
a memfd with the answer; `publish` {url, device_id, max_bytes} likewise, through an MQTT broker.
"""

import functools
import importlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from bundle.errors import DigestMismatch, DownloadFailed, NotFound, TooLarge
from device_agent.config.reports import MQTT_VARIABLE
from device_agent.config.repository import redact_url
from device_agent.errors import MqttMissing, ServerTooSlow
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import Handler, SupervisorChannel, serve_calls, start_worker
from device_agent.workers.blob_transfer import BlobTransfer, RateLimit
from device_agent.workers.envelope_lookup import fetch_envelope
from device_agent.workers.http_client import ClientSettings, HttpClient
from device_agent.workers.http_heads import conditional_headers, received
from device_agent.workers.partial_download import PartialBlob
from device_agent.workers.repository_credentials import SystemAuthorities, no_credentials, read_credentials
from device_agent.workers.response_body import CHUNK_BYTES, check_no_web_page, open_body

LINES_TYPE: Final = "application/x-ndjson"
DOCUMENT_DEADLINE_S: Final = 120.0  # metadata is at most a few MiB


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
            `min_rate_bytes_s`, `token_realm`, and those of `read_credentials`, with its descriptors.

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
        token_realm=str(value["token_realm"]),
    )
    prepare_client().close()
    _clients[:] = [HttpClient(settings)]
    return {}


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
        with open_body(prepare_client(), url, dict(headers), prepare_client().settings.min_rate_bytes_s) as body:
            if body.announced_bytes is not None and body.announced_bytes > max_bytes:
                raise TooLarge(f"{body.url}: {body.announced_bytes} bytes announced, at most {max_bytes} are allowed")
            for data in body.chunks(CHUNK_BYTES):
                if not size:
                    check_no_web_page(body, data)
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


def handle_envelope(supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Download one envelope of a shard: call `envelope`.

    Args:
        supervisor: receives the count of bytes.
        message: fields `url`, `name`.

    Raises:
        NotFound: the server has no such shard, or the shard no such record.
        DownloadFailed: the transfer failed.
        Refused: the shard breaks its format.
    """
    message.close()
    before, is_useful = received.total_bytes, False
    try:
        envelope = fetch_envelope(prepare_client(), str(message.value["url"]), str(message.value["name"]))
        is_useful = True
    except NotFound:
        is_useful = True
        raise
    finally:
        received.send_count(supervisor, 0 if is_useful else received.total_bytes - before)
    return {"envelope": envelope.hex()}


def post_document(supervisor: SupervisorChannel, message: Message) -> Message:
    """Send a small document, and return the answer in a memfd: call `post`.

    Args:
        supervisor: receives the count of bytes.
        message: fields `url`, `max_bytes` of the answer; descriptor of the document.

    Raises:
        NotFound, DownloadFailed: the server does not take it, or the transfer failed.
        TooLarge: the answer is longer than its limit.
    """
    value, client, body = message.value, prepare_client(), _read_document(message)
    try:
        with client.watchdog.watch(client.settings.min_rate_bytes_s):
            response = client.post(str(value["url"]), {"Content-Type": LINES_TYPE}, body)
            try:
                answer = response.read(int(value["max_bytes"]))
            finally:
                response.close()
    finally:
        received.send_count(supervisor, 0)
    return _pack_answer(answer)


def publish_document(supervisor: SupervisorChannel, message: Message) -> Message:
    """Send lines through an MQTT broker, and return the collector's answer in a memfd: call `publish`.

    Args:
        supervisor: receives the count of bytes.
        message: fields `url`, `device_id`, `max_bytes` of the answer; descriptor of the lines.

    Raises:
        MqttMissing: paho-mqtt is not installed.
        DownloadFailed: the transfer failed, or no collector answers.
        TooLarge: the answer is longer than its limit.
    """
    value, client, body = message.value, prepare_client(), _read_document(message)
    try:
        from device_agent.workers.mqtt_sender import MqttSender  # loaded before the jail, if it is configured
    except ImportError as error:
        raise MqttMissing("paho-mqtt is not installed", hint="install the extra `mqtt`") from error
    try:
        with client.watchdog.watch(client.settings.min_rate_bytes_s):
            sender = MqttSender(client, str(value["url"]), str(value["device_id"]))
            answer = sender.send(body, int(value["max_bytes"]))
    finally:
        received.send_count(supervisor, 0)
    return _pack_answer(answer)


def _read_document(message: Message) -> bytes:
    """Return the document that a message has a descriptor of, and close the descriptor."""
    try:
        return os.pread(message.fds[0], os.fstat(message.fds[0]).st_size, 0)
    finally:
        message.close()


def _pack_answer(answer: bytes) -> Message:
    fd = os.memfd_create("answer", os.MFD_CLOEXEC)
    os.write(fd, answer)
    return Message({"size": len(answer)}, (fd,))


def prepare() -> None:
    """Import what requests need; called before the jail closes the files."""
    prepare_client()
    if MQTT_VARIABLE in os.environ:
        with suppress(ImportError):
            importlib.import_module("device_agent.workers.mqtt_sender")


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
            rate = RateLimit(value["max_rate_bytes_s"])
            transfer = BlobTransfer(
                prepare_client(), supervisor, url, sha256, part, rate, int(value["min_rate_bytes_s"])
            )
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


if __name__ == "__main__":
    handlers: dict[str, Handler] = {
        "configure": configure,
        "get": handle_get,
        "envelope": handle_envelope,
        "blob": fetch_blob,
        "post": post_document,
        "publish": publish_document,
    }
    serve_calls(start_worker(lambda _pace, _policy: prepare())[0], handlers)
