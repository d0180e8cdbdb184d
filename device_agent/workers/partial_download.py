"""A blob on its way: what is here of it, hashed, and the validator that belongs to that."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import Final

READ_BYTES: Final = 64 * 1024
SYNC_BYTES: Final = 8 * 1024 * 1024  # what a cut of power may cost of a download
MAX_ETAG_CHARACTERS: Final = 256
STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]*"')


@dataclass(slots=True)
class PartialBlob:
    """A blob's part file: what is here, hashed."""

    fd: int
    note_fd: int
    size: int
    have: int = 0
    hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    unsynced: int = 0
    resumed: bool = False
    restarts: int = 0

    def load(self) -> None:
        """Hash what is here."""
        length = os.fstat(self.fd).st_size
        if length > self.size:
            self.clear()
            length = 0
        while self.have < length:
            data = os.pread(self.fd, READ_BYTES, self.have)
            self._count(data)
        self.restarts = 0

    def append(self, data: bytes) -> None:
        """Write on."""
        view = memoryview(data)
        offset = self.have
        while view:
            written = os.pwrite(self.fd, view, offset)
            offset += written
            view = view[written:]
        self._count(data)
        self.unsynced += len(data)
        if self.unsynced >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Make it durable."""
        os.fdatasync(self.fd)
        self.unsynced = 0

    def clear(self) -> None:
        """From the beginning."""
        os.ftruncate(self.fd, 0)
        self.restarts += 1
        self.have, self.hash = 0, hashlib.sha256()
        self.note("")

    def note(self, etag: str) -> None:
        """Remember the validator that belongs to what is here."""
        os.ftruncate(self.note_fd, 0)
        os.pwrite(self.note_fd, etag.encode("ascii", "replace"), 0)

    def etag(self) -> str:
        """The validator, or ""."""
        text = os.pread(self.note_fd, MAX_ETAG_CHARACTERS, 0).decode("ascii", "replace")
        return text if STRONG_ETAG.fullmatch(text) else ""

    def _count(self, data: bytes) -> None:
        self.hash.update(data)
        self.have += len(data)
