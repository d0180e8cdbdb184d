"""The bundle store (sealed bundles by digest), the spool (partial downloads), and durable writes.

Rules:
- A file with its final name is complete and durable. It is written under another name, synced and renamed, and then the
  directory is synced. So a power cut leaves only complete files, and files with names that no reader opens.
- The supervisor opens files and passes descriptors; it never reads the content. Only the patcher has the storage key
  and can check whether a sealed bundle is intact.
- Garbage collection deletes every bundle that no pointer names.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bundle.files import BundleDigest
from bundle.strict_json import SHA256_HEX_PATTERN
from device_agent.errors import NoSpace, StoreDamaged

SEALED_SUFFIX: Final = ".sealed"
INCOMING_SUFFIX: Final = ".incoming"
PARTIAL_SUFFIX: Final = ".part"
RESERVE_BYTES: Final = 8 * 1024 * 1024  # stays free for the journal and the trust state


class BundleStore:
    """The directories `store/` and `spool/` of one family.

    Args:
        directory: the family's part of the device directory; the two directories are created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self._bundle_directory, self._spool_directory = directory / "store", directory / "spool"
        for folder in (self._bundle_directory, self._spool_directory):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # bundles

    def contains(self, digest: BundleDigest) -> bool:
        """Return whether the store has a sealed bundle with this digest."""
        return self._sealed_path(digest).exists()

    def digests(self) -> frozenset[BundleDigest]:
        """Return the digests of all sealed bundles."""
        names = (path.name.removesuffix(SEALED_SUFFIX) for path in self._bundle_directory.glob("*" + SEALED_SUFFIX))
        return frozenset(BundleDigest(name) for name in names if SHA256_HEX_PATTERN.fullmatch(name))

    def open_bundle(self, digest: BundleDigest) -> int:
        """Open a sealed bundle for reading; the caller closes the descriptor.

        Raises:
            StoreDamaged: the store has no such bundle.
        """
        try:
            return os.open(self._sealed_path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreDamaged(f"bundle {digest[:16]} is not in the store") from error

    def create_incoming(self, digest: BundleDigest) -> int:
        """Create an empty file for a sealed bundle; the caller closes the descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self._incoming_path(digest), flags, 0o600)

    def commit_incoming(self, digest: BundleDigest, fd: int) -> None:
        """Make a complete incoming file durable and give it its final name.

        Args:
            digest: digest of the bundle.
            fd: descriptor from `create_incoming`, with the whole sealed bundle written.
        """
        os.fsync(fd)
        self._incoming_path(digest).rename(self._sealed_path(digest))
        sync_directory(self._bundle_directory)

    def delete(self, digest: BundleDigest) -> None:
        """Delete a sealed bundle, and its incoming file."""
        for path in (self._incoming_path(digest), self._sealed_path(digest)):
            path.unlink(missing_ok=True)

    # spool

    def spooled_bytes(self, blob: str) -> int:
        """Return how many bytes of a blob are in the spool."""
        part = self._spool_directory / (blob + PARTIAL_SUFFIX)
        return part.stat().st_size if part.exists() else 0

    def open_partial(self, blob: str) -> int:
        """Open a blob's partial file; the caller closes the descriptor."""
        return os.open(self._partial_path(blob), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def delete_partial(self, blob: str) -> None:
        """Delete a blob's partial file."""
        self._partial_path(blob).unlink(missing_ok=True)

    # disk space

    def free_bytes(self) -> int:
        """Return the bytes that a new file may use, after the reserve."""
        facts = os.statvfs(self._bundle_directory)
        return max(0, facts.f_bavail * facts.f_frsize - RESERVE_BYTES)

    def check_space(self, needed_bytes: int) -> None:
        """Check that `needed_bytes` are free beside the reserve.

        Raises:
            NoSpace: fewer bytes are free.
        """
        free = self.free_bytes()
        if needed_bytes > free:
            raise NoSpace(
                f"{needed_bytes} bytes are needed in {self._bundle_directory}, {free} are free beside "
                f"a reserve of {RESERVE_BYTES}",
                hint="free space on the device; nothing was downloaded yet",
            )

    def delete_unlisted(self, keep: Iterable[BundleDigest], keep_partials: Iterable[str] = ()) -> list[str]:
        """Delete all files except those listed, and return the names of the deleted ones.

        Args:
            keep: digests of the bundles to keep.
            keep_partials: SHA-256 of the blobs whose partial files to keep.
        """
        kept = {digest + SEALED_SUFFIX for digest in keep}
        kept_parts = {blob + PARTIAL_SUFFIX for blob in keep_partials}
        deleted = [path for path in self._bundle_directory.iterdir() if path.name not in kept]
        deleted += [path for path in self._spool_directory.iterdir() if path.name not in kept_parts]
        for path in deleted:
            path.unlink(missing_ok=True)
        return sorted(path.name for path in deleted)

    def _partial_path(self, blob: str) -> Path:
        return self._spool_directory / (blob + PARTIAL_SUFFIX)

    def _sealed_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + SEALED_SUFFIX)

    def _incoming_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + INCOMING_SUFFIX)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a small file atomically: after a power cut it has the old content or the new one.

    Args:
        path: the file.
        data: the whole content.
        mode: permissions of the new file.
    """
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb", closefd=False) as stream:
            stream.write(data)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(path)
    sync_directory(path.parent)
