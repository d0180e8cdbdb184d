"""A partial download: the bytes received so far, and their hash."""

import hashlib
import os
from dataclasses import dataclass, field
from typing import Final

READ_BYTES: Final = 64 * 1024
SYNC_INTERVAL_BYTES: Final = 8 * 1024 * 1024  # a power cut can lose at most this much of a download


@dataclass(slots=True)
class PartialBlob:
    """The partial file of a blob, with the running hash of its content.

    Attributes:
        fd: descriptor of the partial file.
        size_bytes: signed size of the blob.
        received_bytes: bytes written and hashed so far.
        hash: running SHA-256 of these bytes.
        unsynced_bytes: bytes written since the last sync.
        is_resumed: whether bytes of an earlier transfer are part of it.
        restarts: how often the content was discarded since `load`.
    """

    fd: int
    size_bytes: int
    received_bytes: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    unsynced_bytes: int = 0
    is_resumed: bool = False
    restarts: int = 0

    def load(self) -> None:
        """Hash the existing content; discard it if it is longer than the blob."""
        length = os.fstat(self.fd).st_size
        if length > self.size_bytes:
            self.clear()
            length = 0
        while self.received_bytes < length:
            data = os.pread(self.fd, READ_BYTES, self.received_bytes)
            self._hash_data(data)
        self.restarts = 0

    def append(self, data: bytes) -> None:
        """Append and hash `data`; sync after every SYNC_INTERVAL_BYTES."""
        view = memoryview(data)
        offset = self.received_bytes
        while view:
            written = os.pwrite(self.fd, view, offset)
            offset += written
            view = view[written:]
        self._hash_data(data)
        self.unsynced_bytes += len(data)
        if self.unsynced_bytes >= SYNC_INTERVAL_BYTES:
            self.sync()

    def sync(self) -> None:
        """Make the written bytes durable."""
        os.fdatasync(self.fd)
        self.unsynced_bytes = 0

    def clear(self) -> None:
        """Discard the received bytes."""
        os.ftruncate(self.fd, 0)
        self.restarts += 1
        self.received_bytes, self.hash = 0, hashlib.sha256()

    def _hash_data(self, data: bytes) -> None:
        self.hash.update(data)
        self.received_bytes += len(data)
