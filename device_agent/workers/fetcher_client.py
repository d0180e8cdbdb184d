"""The supervisor's client of the fetcher: documents, envelopes and blobs.

Rules:
- The settings and credentials of the repository are sent before the first request, and again when a file of them
  changes (device_agent.workers.repository_access). A `file:` URL has none.
- If a server refuses credentials that were renewed meanwhile, the request is sent once more with the new ones.
- All bytes that the fetcher reports are counted, also of calls that fail.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bundle.repository_paths import blob_path
from device_agent.config.config import Config
from device_agent.config.reports import MQTT_SCHEMES
from device_agent.errors import ProxyAuthRequired, RepositoryAuthRequired
from device_agent.policy.download_bytes import DownloadKind, ReceivedCount
from device_agent.policy.planner import PatchEdge
from device_agent.process.channel import Message
from device_agent.process.replies import parse_reply
from device_agent.workers.repository_access import RepositoryAccess
from device_agent.workers.worker_processes import WorkerProcesses

DOCUMENT_DEADLINE_S: Final = 900.0  # the fetcher's watchdog ends a stalled transfer long before
CONFIGURE_DEADLINE_S: Final = 60.0
BLOB_DEADLINE_S: Final = 7 * 86400.0  # likewise
BACKOFF_MS: Final = 500
LINES_PATH: Final = "/v1/lines"
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DownloadCost:
    """The cost of one download.

    Attributes:
        received_bytes: bytes received over the network.
        resumed_at_bytes: bytes that the spool already contained.
    """

    received_bytes: int
    resumed_at_bytes: int


@dataclass(slots=True)
class ResponseSizes:
    """The sizes of responses as the server of the repository sent them last.

    Attributes:
        head_bytes: head of a response with a file.
        unchanged_bytes: response to a conditional request for an unchanged file.
    """

    head_bytes: int = 0
    unchanged_bytes: int = 0


class FetcherClient:
    """The calls of one family's fetcher.

    Args:
        config: configuration of the family.
        processes: the running workers.
        unseal_client_key: returns a descriptor of the TLS client key that is sealed on the device.

    Attributes:
        received: all bytes that were received, by kind.
        response_sizes: sizes of the last responses.
    """

    def __init__(self, config: Config, processes: WorkerProcesses, unseal_client_key: Callable[[], int]) -> None:
        self._config, self._processes, self._unseal_client_key = config, processes, unseal_client_key
        self._access = RepositoryAccess(config)
        self._is_local = config.repository_url.startswith("file:")
        self.received = ReceivedCount()
        self.response_sizes = ResponseSizes()

    def fetch_document(
        self, url: str, max_bytes: int, kind: DownloadKind, validators: tuple[str, str] = ("", "")
    ) -> Message:
        """Download a small document; the reply is that of the fetcher's call `get`.

        Args:
            url: its URL.
            max_bytes: limit of the document.
            kind: what the received bytes count as.
            validators: ETag and Last-Modified of a stored copy, or "".

        Raises:
            NotFound: the server has no such file.
            Unavailable: the transfer failed.
            TooLarge: the document is longer than the limit.
        """
        request = {"url": url, "max_bytes": max_bytes, "etag": validators[0], "last_modified": validators[1]}
        before = self.received.total
        reply = self._call("get", request, kind, deadline_s=DOCUMENT_DEADLINE_S)
        received_bytes = self.received.total - before
        if reply.value["is_modified"]:
            self.response_sizes.head_bytes = max(received_bytes - os.fstat(reply.fds[0]).st_size, 0)
        else:
            self.response_sizes.unchanged_bytes = received_bytes
        return reply

    def fetch_envelope(self, source: str, path: str, name: str) -> str:
        """Download an envelope, and return its bytes in hexadecimal.

        Args:
            source: URL of the repository or of a mirror.
            path: path of the shard below it.
            name: name of the envelope.

        Raises:
            NotFound: it is not published.
            Unavailable: the transfer failed.
            Refused: the shard breaks its format.
        """
        request = {"url": f"{source}/{path}", "name": name}
        reply = self._call("envelope", request, DownloadKind.ENVELOPE, deadline_s=DOCUMENT_DEADLINE_S)
        with parse_reply("fetcher"):
            return bytes.fromhex(str(reply.value["envelope"])).hex()

    def fetch_blob(
        self, source: str, edge: PatchEdge, part: int, on_progress: OnProgress | None, budget_bytes: int | None
    ) -> DownloadCost:
        """Download a blob into its partial file, from where it stopped.

        Args:
            source: URL of the repository or of a mirror.
            edge: the patch with the blob.
            part: descriptor of the partial file.
            on_progress: called with (bytes done, bytes in all).
            budget_bytes: bytes that may be received; None for no limit.

        Raises:
            DigestMismatch: the bytes do not have the signed digest.
            MeteredLimitExceeded: the budget is used up.
            Unavailable: the transfer failed.
        """
        update = self._config.update
        entry = edge.entry
        request = {
            "url": f"{source}/{blob_path(entry.blob)}",
            "sha256": entry.blob,
            "size": entry.size,
            "min_rate_bytes_s": update.min_rate_bytes_s,
            "max_rate_bytes_s": update.max_rate_bytes_s,
            "backoff_ms": BACKOFF_MS,
            "budget_bytes": budget_bytes,
        }
        kind = DownloadKind.FULL if entry.base is None else DownloadKind.PATCH
        reply = self._call("blob", request, kind, (part,), deadline_s=BLOB_DEADLINE_S, on_progress=on_progress)
        with parse_reply("fetcher"):
            return DownloadCost(int(reply.value["received"]), int(reply.value["resumed_at"]))

    def send_lines(self, url: str, device_id: str, data: bytes, max_bytes: int) -> bytes:
        """Send lines to the collector, and return its answer.

        Args:
            url: URL of the collector, or of the MQTT broker that it takes lines from.
            device_id: id of the device; the collector's answer through a broker is addressed to it.
            data: the lines.
            max_bytes: limit of the answer.

        Raises:
            Unavailable: the transfer failed.
            TooLarge: the answer is longer than its limit.
        """
        fd = os.memfd_create("lines", os.MFD_CLOEXEC)
        try:
            os.write(fd, data)
            if url.startswith(MQTT_SCHEMES):
                operation, request = "publish", {"url": url, "device_id": device_id, "max_bytes": max_bytes}
            else:
                operation, request = "post", {"url": url + LINES_PATH, "max_bytes": max_bytes}
            reply = self._call(operation, request, DownloadKind.METADATA, (fd,), deadline_s=DOCUMENT_DEADLINE_S)
        finally:
            os.close(fd)
        try:
            with parse_reply("fetcher"):
                return os.pread(reply.fds[0], int(reply.value["size"]), 0)
        finally:
            reply.close()

    def _call(
        self,
        operation: str,
        request: dict[str, Any],
        kind: DownloadKind,
        fds: Sequence[int] = (),
        *,
        deadline_s: float,
        on_progress: OnProgress | None = None,
    ) -> Message:
        def handle_event(event: dict[str, Any]) -> None:
            if "received" in event:
                wasted = int(event["wasted"])
                self.received.add(kind, int(event["received"]) - wasted)
                self.received.add(DownloadKind.WASTED, wasted)
            elif on_progress is not None:
                on_progress(int(event["done"]), int(event["total"]))

        def call() -> Message:
            return self._processes.call(
                "fetcher", operation, request, fds, deadline_s=deadline_s, on_event=handle_event
            )

        self._configure()
        try:
            return call()
        except (RepositoryAuthRequired, ProxyAuthRequired):
            # a token can expire while it is used: if its file was renewed meanwhile, the request is sent once more
            if self._is_local or not self._access.is_changed():
                raise
            self._configure()
            return call()

    def _configure(self) -> None:
        if self._is_local:
            return
        if not self._processes.is_running("fetcher"):
            self._access.forget()
        self._access.send_if_changed(
            lambda request, fds: self._processes.call(
                "fetcher", "configure", request, fds, deadline_s=CONFIGURE_DEADLINE_S
            ),
            self._unseal_client_key,
        )
