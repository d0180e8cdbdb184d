"""Bundles as ordinary folders and files on the packager's machine; devices store them sealed.

Rules:
1. A new bundle is written into a temporary folder beside its final path and renamed at the end. After a failure nothing
   is left.
2. An existing path is never overwritten.
3. A single file is a bundle of one file whose path is `SINGLE_FILE_PATH`. A patch that makes such a bundle makes a file
   again.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from bundle.errors import Invalid
from bundle.files import BundleDirectory, BundleFile, scan_directory
from bundle.patch.apply import apply_patch
from packager.errors import FileNotFound, OutputExists

SINGLE_FILE_PATH: Final = "content"


class DirectoryBase:
    """Random access to the files of a bundle folder, as a context manager.

    Args:
        directory: the scanned bundle; its table is not verified again.
    """

    def __init__(self, directory: BundleDirectory) -> None:
        self._directory = directory
        self._exit_stack = ExitStack()
        self._streams: list[BinaryIO] = []

    def __enter__(self) -> Self:
        self._streams = [
            self._exit_stack.enter_context(file_path(self._directory, file).open("rb")) for file in self.files
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._exit_stack.close()

    @property
    def files(self) -> tuple[BundleFile, ...]:
        """The bundle's file table."""
        return self._directory.files

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of one file.

        Args:
            index: the file's index in the table.
            offset: bytes from the start of the file.
            length: number of bytes.

        Raises:
            Invalid: the file was truncated since it was scanned.
        """
        data = os.pread(self._streams[index].fileno(), length, offset)
        while len(data) < length:
            more = os.pread(self._streams[index].fileno(), length - len(data), offset + len(data))
            if not more:
                raise Invalid(f"base file {self.files[index].path!r} ends before byte {offset + length}")
            data += more
        return data


class DirectoryTarget:
    """Writes a bundle into a folder that is kept only if `commit` is called; a context manager.

    Args:
        root: path of the new bundle.

    Raises:
        OutputExists: the path exists already.
        FileNotFound: its parent folder does not exist.
    """

    def __init__(self, root: Path) -> None:
        if root.exists():
            raise OutputExists(
                f"output {root} exists already", hint="choose a path that does not exist, or remove it first"
            )
        if not root.absolute().parent.is_dir():
            raise FileNotFound(f"output {root}: the folder {root.absolute().parent} does not exist")
        self._root = root
        self._partial: Path | None = None
        self._stream: BinaryIO | None = None
        self._paths: list[str] = []

    def __enter__(self) -> Self:
        parent = self._root.absolute().parent
        self._partial = Path(tempfile.mkdtemp(prefix=f".{self._root.name}.partial-", dir=parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def begin_file(self, file: BundleFile) -> None:
        """Begin a file, as `bundle.patch.address_space.Target` says."""
        if self._partial is None:
            raise ValueError("DirectoryTarget is used outside its with block")
        path = self._partial / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("xb")
        self._paths.append(file.path)

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes, as `bundle.patch.address_space.Target` says."""
        if self._stream is None:
            raise ValueError("DirectoryTarget.write outside a file")
        self._stream.write(data)

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Return bytes that were written, as `bundle.patch.address_space.Target` says.

        Args:
            index: the file's index in the table.
            offset: bytes from the start of the file.
            length: number of bytes.
        """
        assert self._partial is not None
        if self._stream is not None:
            self._stream.flush()
        with (self._partial / self._paths[index]).open("rb") as stream:
            return os.pread(stream.fileno(), length, offset)

    def end_file(self) -> None:
        """End the file, as `bundle.patch.address_space.Target` says."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def commit(self) -> None:
        """Rename the finished bundle to its final path."""
        if self._partial is None:
            raise ValueError("DirectoryTarget.commit outside its with block")
        if self._paths == [SINGLE_FILE_PATH]:
            (self._partial / SINGLE_FILE_PATH).rename(self._root)
            return
        self._partial.chmod(0o755)
        self._partial.rename(self._root)
        self._partial = None


def file_path(directory: BundleDirectory, file: BundleFile) -> Path:
    """Return the path of a file of a bundle folder.

    Args:
        directory: the bundle.
        file: an entry of its table.
    """
    return directory.root if directory.root.is_file() else directory.root / file.path


def open_bundle(path: Path, roles: dict[str, str] | None = None) -> BundleDirectory:
    """Scan a folder, or a single file, as a bundle.

    Args:
        path: a bundle folder, or a single file.
        roles: role by file path; see `bundle.files.scan_directory`.

    Raises:
        Invalid: the path is missing, or is not a valid bundle.
    """
    if not path.is_file():
        return scan_directory(path, roles or {})
    import hashlib

    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return BundleDirectory(path, (BundleFile(SINGLE_FILE_PATH, "model", path.stat().st_size, sha256),))


def apply_to_directory(base: Path | None, patch: Path, out: Path) -> tuple[BundleFile, ...]:
    """Apply an unencrypted patch to a bundle folder or file.

    Args:
        base: folder or single file; None for a patch that needs no base.
        patch: the patch file, not encrypted.
        out: path of the new bundle; must not exist.

    Returns:
        The new bundle's file table.

    Raises:
        Invalid: a path is missing, or `out` exists.
        PatchRefused: the patch cannot be applied; nothing is left at `out`.
    """
    if not patch.is_file():
        raise FileNotFound(f"patch {patch} is not a file")
    with ExitStack() as stack:
        source = None if base is None else stack.enter_context(DirectoryBase(open_bundle(base)))
        stream = stack.enter_context(patch.open("rb"))
        target = stack.enter_context(DirectoryTarget(out))
        table = apply_patch(stream, source, target)
        target.commit()
    return table
