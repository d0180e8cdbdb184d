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
from device_agent.errors import NoSpaceUnavailable, StoreDamagedRefused

SEALED: Final = ".sealed"
INCOMING: Final = ".incoming"
PART: Final = ".part"
ETAG: Final = ".etag"
RESERVE_BYTES: Final = 8 * 1024 * 1024  # for the journal and the trust memory: an update never takes the last block


class Store:
    """The folders `store/` and `spool/` of one family.

    Args:
        directory: the family's place in the device directory; the two are made when missing.
    """

    def __init__(self, directory: Path) -> None:
        self._bundles, self._spool = directory / "store", directory / "spool"
        for folder in (self._bundles, self._spool):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # bundles

    def holds(self, digest: BundleDigest) -> bool:
        """Is there a sealed bundle of that name?"""
        return self._sealed(digest).exists()

    def held(self) -> frozenset[BundleDigest]:
        """Every sealed bundle."""
        names = (path.name.removesuffix(SEALED) for path in self._bundles.glob("*" + SEALED))
        return frozenset(BundleDigest(name) for name in names if SHA256_HEX_PATTERN.fullmatch(name))

    def open(self, digest: BundleDigest) -> int:
        """A descriptor to read a sealed bundle; the caller closes it. Raises StoreDamagedRefused: it is missing."""
        try:
            return os.open(self._sealed(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreDamagedRefused(f"bundle {digest[:16]} is not in the store") from error

    def begin(self, digest: BundleDigest) -> int:
        """A descriptor to write a sealed bundle to, from its beginning; the caller closes it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self._incoming(digest), flags, 0o600)

    def finish(self, digest: BundleDigest, fd: int) -> None:
        """What was written to `fd` is complete (rule 1)."""
        os.fsync(fd)
        self._incoming(digest).rename(self._sealed(digest))
        sync_folder(self._bundles)

    def discard(self, digest: BundleDigest) -> None:
        """Remove a sealed bundle, finished or not."""
        for path in (self._incoming(digest), self._sealed(digest)):
            path.unlink(missing_ok=True)

    # the spool

    def spooled_bytes(self, blob: str) -> int:
        """How much of a blob is already here."""
        part = self._spool / (blob + PART)
        return part.stat().st_size if part.exists() else 0

    def open_part(self, blob: str) -> tuple[int, int]:
        """Descriptors of a blob's part file and of the note about its origin; the caller closes both."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        part = os.open(self._spool / (blob + PART), flags, 0o600)
        try:
            return part, os.open(self._spool / (blob + ETAG), flags, 0o600)
        except OSError:
            os.close(part)
            raise

    def drop_part(self, blob: str) -> None:
        """Remove a blob's part file: it was used, or it is not what it should be."""
        for suffix in (PART, ETAG):
            (self._spool / (blob + suffix)).unlink(missing_ok=True)

    # space

    def free_bytes(self) -> int:
        """That a new file can take, after the reserve."""
        facts = os.statvfs(self._bundles)
        return max(0, facts.f_bavail * facts.f_frsize - RESERVE_BYTES)

    def check_space(self, needed: int) -> None:
        """Raises NoSpaceUnavailable."""
        free = self.free_bytes()
        if needed > free:
            raise NoSpaceUnavailable(
                f"{needed} bytes are needed in {self._bundles}, {free} are free beside a reserve of {RESERVE_BYTES}",
                remedy="free space on the device; nothing was downloaded",
            )

    def collect(self, keep: Iterable[BundleDigest], keep_parts: Iterable[str] = ()) -> list[str]:
        """Remove what is not named (rule 3); the names that went."""
        kept = {digest + SEALED for digest in keep}
        kept_parts = {blob + suffix for blob in keep_parts for suffix in (PART, ETAG)}
        gone = [path for path in self._bundles.iterdir() if path.name not in kept]
        gone += [path for path in self._spool.iterdir() if path.name not in kept_parts]
        for path in gone:
            path.unlink(missing_ok=True)
        return sorted(path.name for path in gone)

    def _sealed(self, digest: BundleDigest) -> Path:
        return self._bundles / (digest + SEALED)

    def _incoming(self, digest: BundleDigest) -> Path:
        return self._bundles / (digest + INCOMING)


def sync_folder(path: Path) -> None:
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
    sync_folder(path.parent)
