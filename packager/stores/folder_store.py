"""A folder as a store, for `file:` URLs: a web server's folder, or a mounted share.

Writes are atomic and synced (packager.repository.layout). `create` and `swap` hold a lock on the folder while they
compare, so every publisher must reach the folder through one file system that supports `flock`.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from packager.errors import RepositoryDamaged
from packager.repository.layout import SERVED_FOLDER_MODE, copy_into, sync_directory, write_file
from packager.stores.errors import StoreUnavailable
from packager.stores.store import StoredContent, StoredFile

LOCK: Final = ".publisher.lock"


class FolderStore:
    """A folder as a store (packager.stores.store).

    Args:
        url: the URL, for messages.
        folder: the folder; created if missing.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._folder = url, folder

    def list_files(self) -> Mapping[str, StoredFile]:
        """Return path → file, for every file below the folder."""
        found = {}
        for path in self._folder.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                status, relative = path.stat(), path.relative_to(self._folder).as_posix()
                found[relative] = StoredFile(relative, status.st_size, status.st_mtime)
        return found

    def read(self, path: str) -> StoredContent | None:
        """Return a file's content, or None if there is no such file."""
        try:
            data = (self._folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return StoredContent(data, hashlib.sha256(data).hexdigest())

    def download(self, path: str, target: Path) -> None:
        """Copy a file to a local file.

        Args:
            path: path below the folder.
            target: the file to write.

        Raises:
            RepositoryDamaged: there is no such file.
        """
        try:
            shutil.copyfile(self._folder / path, target)
        except FileNotFoundError as error:
            raise RepositoryDamaged(f"{self.url}/{path} is missing") from error

    def put(self, path: str, source: bytes | Path, cache_control: str) -> None:  # noqa: ARG002  # the web server's part
        """Write a file, whether it exists or not.

        Args:
            path: path below the folder.
            source: the bytes, or the file with them.
            cache_control: not used: the web server sets header fields.
        """
        target = self._folder / path
        with self._reporting():
            if isinstance(source, bytes):
                self._write(target, source)
                return
            self._make_folders(target.parent)
            copy, _ = copy_into(source, target.parent)
            copy.replace(target)
            sync_directory(target.parent)

    def create(self, path: str, source: bytes | Path, cache_control: str) -> bool:
        """Write a file unless it exists; return whether it was written.

        Args:
            path: path below the folder.
            source: the bytes, or the file with them.
            cache_control: not used: the web server sets header fields.
        """
        with self._locked():
            if (self._folder / path).exists():
                return False
            self.put(path, source, cache_control)
            return True

    def swap(self, path: str, data: bytes, expected: str | None, cache_control: str) -> bool:
        """Replace a file if it still has a version; return whether it was replaced.

        Args:
            path: path below the folder.
            data: the new bytes.
            expected: the version that `read` returned; None if there must be no such file.
            cache_control: not used: the web server sets header fields.
        """
        with self._locked():
            found = self.read(path)
            if (None if found is None else found.version) != expected:
                return False
            self.put(path, data, cache_control)
            return True

    def delete(self, paths: list[str]) -> None:
        """Delete files; those that do not exist are ignored."""
        with self._reporting():
            for path in paths:
                (self._folder / path).unlink(missing_ok=True)

    def check_conditional_puts(self) -> None:
        """Do nothing: the lock is this program's own."""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._reporting():
            self._make_folders(self._folder)
            descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._reporting():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(f"{self.url}: {error.strerror}: {error.filename}") from error

    def _write(self, target: Path, data: bytes) -> None:
        self._make_folders(target.parent)
        write_file(target, data)

    def _make_folders(self, folder: Path) -> None:
        # readable for the web server, whatever the umask is
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            path.chmod(SERVED_FOLDER_MODE)
