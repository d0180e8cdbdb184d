"""Bundles in plain folders: what the device keeps sealed, the packager's machine has as ordinary files.

Rules:
1. A new bundle is written into a folder beside its place and renamed at the end; after a failure nothing is left.
2. What exists already is not overwritten.
3. A single file is a bundle of one file whose path is `SINGLE`; a patch that makes such a bundle makes a file again.
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
    """Random access to a plain bundle; a context manager.

    Args:
        directory: the bundle; its table is believed, so scan it first where it matters.
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
        """The bundle's table."""
        return self._directory.files

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises Invalid where the file was cut since it was scanned."""
        data = os.pread(self._streams[index].fileno(), length, offset)
        while len(data) < length:
            more = os.pread(self._streams[index].fileno(), length - len(data), offset + len(data))
            if not more:
                raise Invalid(f"base file {self.files[index].path!r} ends before byte {offset + length}")
            data += more
        return data


class DirectoryTarget:
    """Takes a bundle's files into a folder; a context manager that keeps them only after `commit`.

    Args:
        root: where the bundle will be; must not exist (rule 2).
    """

    def __init__(self, root: Path) -> None:
        if root.exists():
            raise OutputExists(
                f"output {root} exists already", hint="name a place that does not exist, or remove it first"
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
        """See `bundle.patch.address_space.Target`."""
        if self._partial is None:
            raise ValueError("DirectoryTarget is used outside its with block")
        path = self._partial / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("xb")
        self._paths.append(file.path)

    def write(self, data: bytes | memoryview) -> None:
        """See `bundle.patch.address_space.Target`."""
        if self._stream is None:
            raise ValueError("DirectoryTarget.write outside a file")
        self._stream.write(data)

    def end_file(self) -> None:
        """See `bundle.patch.address_space.Target`."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def commit(self) -> None:
        """Give the bundle its name."""
        if self._partial is None:
            raise ValueError("DirectoryTarget.commit outside its with block")
        if self._paths == [SINGLE_FILE_PATH]:
            (self._partial / SINGLE_FILE_PATH).rename(self._root)
            return
        self._partial.chmod(0o755)
        self._partial.rename(self._root)
        self._partial = None


def file_path(directory: BundleDirectory, file: BundleFile) -> Path:
    """Where a file of a plain bundle lies."""
    return directory.root if directory.root.is_file() else directory.root / file.path


def open_bundle(path: Path, roles: dict[str, str] | None = None) -> BundleDirectory:
    """Scan a folder, or a single file (rule 3). Raises Invalid."""
    if not path.is_file():
        return scan_directory(path, roles or {})
    import hashlib

    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return BundleDirectory(path, (BundleFile(SINGLE_FILE_PATH, "model", path.stat().st_size, sha256),))


def apply_to_directory(base: Path | None, patch: Path, out: Path) -> tuple[BundleFile, ...]:
    """Apply a plain patch to a plain bundle.

    Args:
        base: folder or single file; None for a patch from nothing.
        patch: the patch, not encrypted.
        out: where the new bundle goes; must not exist.

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
