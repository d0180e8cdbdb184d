"""The store: sealed bundles by digest, and the spool that blobs come into.

Rules:
1. A file under its final name is complete and synced: it is written under another name, synced, renamed, and the folder
   synced. So a name is a claim, and a cut of power leaves only names that nobody reads.
2. The supervisor opens files and passes descriptors; it never reads what is in them. Whether a sealed bundle is intact
   is known only by the one who has the storage key: the patcher.
3. Only what a pointer names is kept; all else is collected.
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
ETAG_SUFFIX: Final = ".etag"
RESERVE_BYTES: Final = 8 * 1024 * 1024  # for the journal and the trust memory: an update never takes the last block


class BundleStore:
    """The folders `store/` and `spool/` of one family.

    Args:
        directory: the family's place in the device directory; the two are made when missing.
    """

    def __init__(self, directory: Path) -> None:
        self._bundle_directory, self._spool_directory = directory / "store", directory / "spool"
        for folder in (self._bundle_directory, self._spool_directory):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # bundles

    def contains(self, digest: BundleDigest) -> bool:
        """Is there a sealed bundle of that name?"""
        return self._sealed_path(digest).exists()

    def digests(self) -> frozenset[BundleDigest]:
        """Every sealed bundle."""
        names = (path.name.removesuffix(SEALED_SUFFIX) for path in self._bundle_directory.glob("*" + SEALED_SUFFIX))
        return frozenset(BundleDigest(name) for name in names if SHA256_HEX_PATTERN.fullmatch(name))

    def open_bundle(self, digest: BundleDigest) -> int:
        """A descriptor to read a sealed bundle; the caller closes it. Raises StoreDamagedRefused: it is missing."""
        try:
            return os.open(self._sealed_path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreDamaged(f"bundle {digest[:16]} is not in the store") from error

    def create_incoming(self, digest: BundleDigest) -> int:
        """A descriptor to write a sealed bundle to, from its beginning; the caller closes it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self._incoming_path(digest), flags, 0o600)

    def commit_incoming(self, digest: BundleDigest, fd: int) -> None:
        """What was written to `fd` is complete (rule 1)."""
        os.fsync(fd)
        self._incoming_path(digest).rename(self._sealed_path(digest))
        sync_directory(self._bundle_directory)

    def delete(self, digest: BundleDigest) -> None:
        """Remove a sealed bundle, finished or not."""
        for path in (self._incoming_path(digest), self._sealed_path(digest)):
            path.unlink(missing_ok=True)

    # the spool

    def spooled_bytes(self, blob: str) -> int:
        """How much of a blob is already here."""
        part = self._spool_directory / (blob + PARTIAL_SUFFIX)
        return part.stat().st_size if part.exists() else 0

    def open_partial(self, blob: str) -> tuple[int, int]:
        """Descriptors of a blob's part file and of the note about its origin; the caller closes both."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        part = os.open(self._spool_directory / (blob + PARTIAL_SUFFIX), flags, 0o600)
        try:
            return part, os.open(self._spool_directory / (blob + ETAG_SUFFIX), flags, 0o600)
        except OSError:
            os.close(part)
            raise

    def delete_partial(self, blob: str) -> None:
        """Remove a blob's part file: it was used, or it is not what it should be."""
        for suffix in (PARTIAL_SUFFIX, ETAG_SUFFIX):
            (self._spool_directory / (blob + suffix)).unlink(missing_ok=True)

    # space

    def free_bytes(self) -> int:
        """That a new file can take, after the reserve."""
        facts = os.statvfs(self._bundle_directory)
        return max(0, facts.f_bavail * facts.f_frsize - RESERVE_BYTES)

    def check_space(self, needed_bytes: int) -> None:
        """Raises NoSpaceUnavailable."""
        free = self.free_bytes()
        if needed_bytes > free:
            raise NoSpace(
                f"{needed_bytes} bytes are needed in {self._bundle_directory}, {free} are free beside "
                f"a reserve of {RESERVE_BYTES}",
                hint="free space on the device; nothing was downloaded",
            )

    def delete_unlisted(self, keep: Iterable[BundleDigest], keep_partials: Iterable[str] = ()) -> list[str]:
        """Remove what is not named (rule 3); the names that went."""
        kept = {digest + SEALED_SUFFIX for digest in keep}
        kept_parts = {blob + suffix for blob in keep_partials for suffix in (PARTIAL_SUFFIX, ETAG_SUFFIX)}
        gone = [path for path in self._bundle_directory.iterdir() if path.name not in kept]
        gone += [path for path in self._spool_directory.iterdir() if path.name not in kept_parts]
        for path in gone:
            path.unlink(missing_ok=True)
        return sorted(path.name for path in gone)

    def _sealed_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + SEALED_SUFFIX)

    def _incoming_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + INCOMING_SUFFIX)


def sync_directory(path: Path) -> None:
    """Make names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a small file as a whole: the old content or the new, never neither."""
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
