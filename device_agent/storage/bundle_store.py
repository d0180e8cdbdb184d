"""The bundle store (bundles by digest), the spool (partial downloads), and durable writes.

A bundle is stored in one of two forms: sealed, as one encrypted file; or plain, as a folder with an encrypted head and
the files under their numbers in the file table (adr/0024). If a crash left both forms, the sealed one counts.

Rules:
- A file with its final name is complete and durable. It is written under another name, synced and renamed, and then the
  directory is synced. So a power cut leaves only complete files, and files with names that no reader opens.
- The supervisor opens files and passes descriptors; it never reads the content. Only the patcher has the storage key
  and can check whether a bundle is intact.
- The files of a plain bundle are read-only and belong to the agent's user; a file that does not is damaged. Others
  cannot reach them by name, but can map them once the agent has lent a descriptor.
- Garbage collection deletes every bundle that no pointer names.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bundle.files import BundleDigest
from bundle.strict_json import SHA256_HEX_PATTERN
from bundle.variant import MAX_PLAIN_FILES
from device_agent.errors import NoSpace, StoreDamaged

SEALED_SUFFIX: Final = ".sealed"
INCOMING_SUFFIX: Final = ".incoming"
PLAIN_SUFFIX: Final = ".plain"
PLAIN_INCOMING_SUFFIX: Final = ".plain.incoming"
HEAD_NAME: Final = "head"  # in the folder of a plain bundle
PLAIN_FILE_MODE: Final = 0o444  # an application can open its descriptor again, but cannot write
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
        """Return whether the store has a bundle with this digest, in either form."""
        return self._sealed_path(digest).exists() or self._plain_path(digest).exists()

    def is_plain(self, digest: BundleDigest) -> bool:
        """Return whether the store has this bundle as plain files."""
        return self._plain_path(digest).exists() and not self._sealed_path(digest).exists()

    def digests(self) -> frozenset[BundleDigest]:
        """Return the digests of all bundles."""
        names = (path.stem for path in self._bundle_directory.iterdir() if path.suffix in (SEALED_SUFFIX, PLAIN_SUFFIX))
        return frozenset(BundleDigest(name) for name in names if SHA256_HEX_PATTERN.fullmatch(name))

    def open_bundle(self, digest: BundleDigest) -> tuple[int, ...]:
        """Open a bundle for reading; the caller closes the descriptors.

        Returns:
            The descriptor of a sealed bundle; or those of the head and of each file of a plain one, in table order.

        Raises:
            StoreDamaged: the store has no such bundle, or a file of it is not as the agent left it.
        """
        if self.is_plain(digest):
            return self._open_plain(digest)
        try:
            return (os.open(self._sealed_path(digest), os.O_RDONLY | os.O_CLOEXEC),)
        except FileNotFoundError as error:
            raise StoreDamaged(f"bundle {digest[:16]} is not in the store") from error

    def create_incoming(self, digest: BundleDigest, plain_files: int | None = None) -> tuple[int, ...]:
        """Create empty files for a bundle; the caller closes the descriptors.

        Args:
            digest: digest of the bundle.
            plain_files: number of files of a plain bundle; None for a sealed one.

        Returns:
            Descriptors in the order of `open_bundle`.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        if plain_files is None:
            return (os.open(self._incoming_path(digest), flags, 0o600),)
        folder = self._plain_incoming_path(digest)
        _delete(folder)
        folder.mkdir(mode=0o700)
        return tuple(os.open(folder / name, flags, 0o600) for name in _plain_names(plain_files))

    def commit_incoming(self, digest: BundleDigest, fds: Sequence[int]) -> None:
        """Make a complete incoming bundle durable, give it its final name, and delete the other form.

        Args:
            digest: digest of the bundle.
            fds: descriptors from `create_incoming`, with the whole bundle written.
        """
        if len(fds) == 1:
            os.fsync(fds[0])
            self._incoming_path(digest).rename(self._sealed_path(digest))
            sync_directory(self._bundle_directory)
            _delete(self._plain_path(digest))
            return
        for fd in fds:
            os.fchmod(fd, PLAIN_FILE_MODE)
            os.fsync(fd)
        sync_directory(self._plain_incoming_path(digest))
        _delete(self._plain_path(digest))  # only a damaged one can be there
        self._plain_incoming_path(digest).rename(self._plain_path(digest))
        sync_directory(self._bundle_directory)
        _delete(self._sealed_path(digest))
        sync_directory(self._bundle_directory)

    def delete(self, digest: BundleDigest) -> None:
        """Delete a bundle, and what is incoming of it."""
        paths = (self._incoming_path(digest), self._sealed_path(digest), self._plain_path(digest))
        for path in (*paths, self._plain_incoming_path(digest)):
            _delete(path)

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
        kept = {digest + (PLAIN_SUFFIX if self.is_plain(digest) else SEALED_SUFFIX) for digest in keep}
        kept_parts = {blob + PARTIAL_SUFFIX for blob in keep_partials}
        deleted = [path for path in self._bundle_directory.iterdir() if path.name not in kept]
        deleted += [path for path in self._spool_directory.iterdir() if path.name not in kept_parts]
        for path in deleted:
            _delete(path)
        return sorted(path.name for path in deleted)

    def _partial_path(self, blob: str) -> Path:
        return self._spool_directory / (blob + PARTIAL_SUFFIX)

    def _sealed_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + SEALED_SUFFIX)

    def _incoming_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + INCOMING_SUFFIX)

    def _plain_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + PLAIN_SUFFIX)

    def _plain_incoming_path(self, digest: BundleDigest) -> Path:
        return self._bundle_directory / (digest + PLAIN_INCOMING_SUFFIX)

    def _open_plain(self, digest: BundleDigest) -> tuple[int, ...]:
        folder, fds = self._plain_path(digest), list[int]()
        try:
            count = sum(1 for _ in folder.iterdir()) - 1
            if not 1 <= count <= MAX_PLAIN_FILES:
                raise StoreDamaged(f"bundle {digest[:16]}: its folder has {count} files beside the head")
            for name in _plain_names(count):
                fds.append(os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
                if fault := _plain_file_fault(os.fstat(fds[-1])):
                    raise StoreDamaged(f"bundle {digest[:16]}: file {name} {fault}")
        except OSError as error:
            _close_all(fds)
            raise StoreDamaged(f"bundle {digest[:16]}: {error.filename}: {error.strerror}") from error
        except BaseException:
            _close_all(fds)
            raise
        return tuple(fds)


def _plain_names(files: int) -> list[str]:
    return [HEAD_NAME, *(f"{number:04}" for number in range(files))]


def _plain_file_fault(found: os.stat_result) -> str:
    """Return why a file of a plain bundle is not as the agent left it, or ""."""
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, expected {os.geteuid()}"
    if stat.S_IMODE(found.st_mode) != PLAIN_FILE_MODE:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}, expected {PLAIN_FILE_MODE:04o}"
    return f"has {found.st_nlink} names, expected one" if found.st_nlink != 1 else ""


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for file in path.iterdir():
            file.unlink(missing_ok=True)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


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
