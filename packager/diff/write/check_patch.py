"""Apply a finished patch as a device does, and discard the result.

Rules:
- Encoders and build machines may be wrong, or read other bytes than those that are signed. So no patch leaves
  `make_patch` that does not make the target's files from the base's, byte by byte (SHA-256 of each file).
- The base's files must have the digests of its table when they are read, since a device has these bytes.
- The decoder is the device's own. It runs with the patch's own limits where they are above the default ones.
"""

import hashlib
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import BinaryIO

from bundle.errors import AirweightsError
from bundle.files import BundleDirectory, BundleFile
from bundle.patch.apply import apply_patch
from bundle.patch.limits import DEFAULT_LIMITS, DeclaredLimits
from packager.diff.bundle_folder import DirectoryBase, file_path
from packager.errors import PatchCheckFailed


class JoinedReader:
    """Reads the header of a patch, then the file of its frames.

    Args:
        head: bytes of the header.
        frames: the frames, positioned at the first one.
    """

    def __init__(self, head: bytes, frames: BinaryIO) -> None:
        self._head = head
        self._frames = frames

    def read(self, n: int, /) -> bytes:
        """Return at most `n` bytes; fewer only at the end."""
        part, self._head = self._head[:n], self._head[n:]
        return part if len(part) == n else part + self._frames.read(n - len(part))


class DiscardingTarget:
    """Takes the files of a bundle and keeps nothing; the decoder compares their digests.

    Args:
        expected: reads the bundle that the patch is to make, where the decoder reads what it wrote.
    """

    def __init__(self, expected: DirectoryBase) -> None:
        self._expected = expected

    def begin_file(self, file: BundleFile) -> None:
        """Begin a file, as `bundle.patch.address_space.Target` says."""

    def write(self, data: bytes | memoryview) -> None:
        """Discard the next bytes of the file."""

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Return bytes of the expected bundle.

        Args:
            index: the file's index in the table.
            offset: bytes from the start of the file.
            length: number of bytes.
        """
        return self._expected.pread(index, offset, length)

    def end_file(self) -> None:
        """End the file, as `bundle.patch.address_space.Target` says."""


def check_patch(
    patch: JoinedReader, base: BundleDirectory | None, target: BundleDirectory, own: DeclaredLimits
) -> None:
    """Apply a patch to its base, and compare every file of the result.

    Args:
        patch: the patch from its first byte.
        base: the base; None for a full download.
        target: the bundle that the patch is to make.
        own: the limits that its header declares.

    Raises:
        PatchCheckFailed: the patch cannot be applied, or makes other files.
    """
    limits = replace(
        DEFAULT_LIMITS, **{name: max(size, getattr(DEFAULT_LIMITS, name)) for name, size in asdict(own).items()}
    )
    with ExitStack() as stack:
        source = None
        if base is not None:
            _check_digests(base)
            source = stack.enter_context(DirectoryBase(base))
        try:
            expected = stack.enter_context(DirectoryBase(target))
            made = apply_patch(patch, source, DiscardingTarget(expected), limits)
        except AirweightsError as error:
            raise PatchCheckFailed(f"the patch to {target.root} does not make its files: {error.message}") from error
    if made != target.files:
        raise PatchCheckFailed(f"the patch to {target.root} makes other files than it was made for")


def _check_digests(base: BundleDirectory) -> None:
    for file in base.files:
        with file_path(base, file).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            raise PatchCheckFailed(f"{base.root}: {file.path!r} changed: found SHA-256 {found}, not {file.sha256}")
