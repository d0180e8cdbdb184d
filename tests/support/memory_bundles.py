"""Bundles in memory and in folders for the patch tests: bases, targets and patches between them."""

import hashlib
import io
from pathlib import Path

from bundle.files import BundleDirectory, BundleFile
from bundle.patch.apply import apply_patch
from packager.diff.write.make_patch import make_patch
from packager.diff.write.patch_report import PatchReport

Files = dict[str, bytes]


def make_file_table(files: Files, role: str = "other") -> tuple[BundleFile, ...]:
    """Return the file table of `files`."""
    return tuple(
        BundleFile(path, role, len(data), hashlib.sha256(data).hexdigest()) for path, data in sorted(files.items())
    )


class MemoryBase:
    """A base bundle in memory."""

    def __init__(self, files: Files) -> None:
        self.files = make_file_table(files)
        self._content = [files[file.path] for file in self.files]

    def pread(self, index: int, offset: int, length: int) -> bytes:
        data = self._content[index][offset : offset + length]
        assert len(data) == length, "the decoder read outside the base"
        return data


class MemoryTarget:
    """A target in memory that asserts the order of calls."""

    def __init__(self) -> None:
        self.files: Files = {}
        self._open: str | None = None
        self._data = bytearray()

    def begin_file(self, file: BundleFile) -> None:
        assert self._open is None
        self._open = file.path
        self._data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        assert self._open is not None
        self._data += data

    def pread(self, index: int, offset: int, length: int) -> bytes:
        files = [*self.files.values(), *([bytes(self._data)] if self._open is not None else [])]
        data = files[index][offset : offset + length]
        assert len(data) == length, "the decoder read what is not written"
        return data

    def end_file(self) -> None:
        assert self._open is not None
        self.files[self._open] = bytes(self._data)
        self._open = None


def write_bundle(root: Path, files: Files) -> BundleDirectory:
    """Write `files` into a folder and return them as a bundle."""
    for path, data in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return BundleDirectory(root, make_file_table(files))


def make_patch_between(root: Path, base: Files | None, target: Files, codec: str = "auto") -> tuple[bytes, PatchReport]:
    """Create a patch from `base` to `target`; return it with its report. `root` gets both bundles."""
    out = io.BytesIO()
    source = None if base is None else write_bundle(root / "base", base)
    report = make_patch(source, write_bundle(root / "target", target), out, codec=codec)
    return out.getvalue(), report


def apply_to_memory(patch: bytes, base: Files | None) -> Files:
    """Apply a patch and return the files of the target."""
    target = MemoryTarget()
    files = apply_patch(io.BytesIO(patch), None if base is None else MemoryBase(base), target)
    assert files == tuple(sorted(files))
    assert [file.path for file in files] == list(target.files)
    return target.files
