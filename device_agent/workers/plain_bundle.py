"""The plain bundle: files in the store as they are, for applications that map them (adr/0024).

Rules:
- Its first file is the head of a sealed bundle, encrypted under the storage key: the manifest with the digests. So a
  changed file is detected, and the journal can be rebuilt. The other files are the bundle's, in table order.
- A file is read again and its SHA-256 compared with the manifest at each start and before each lend. Who can write to
  the agent's files can still change them afterwards.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final

from bundle.errors import AirweightsError, DigestMismatch
from bundle.files import BundleDigest, BundleFile, bundle_digest
from bundle.frames import FrameContext, FrameRandomReader, FrameWriter, Secret
from device_agent.errors import StoreDamaged
from device_agent.workers.sealed_bundle import (
    CHUNK_BYTES,
    MAX_HEAD_BYTES,
    SealedBundle,
    SealedHead,
    SealedWriter,
    StoredBundle,
)

PLAIN_LABEL: Final = "airweights plain bundle v1"
_LENGTH: Final = struct.Struct(">I")


class PlainWriter:
    """A `bundle.patch` Target that writes the files of a bundle as they are.

    Args:
        fds: descriptors of the head and of the files, empty; the caller closes them.
        key: the storage key.
        head: head of the bundle.
    """

    def __init__(self, fds: Sequence[int], key: Secret, head: SealedHead) -> None:
        self._head_fd, self._fds = fds[0], fds[1:]
        self._key, self._head, self._index = key, head, -1
        self._out: BinaryIO | None = None

    def begin_file(self, file: BundleFile) -> None:
        """Start a file; files come in table order.

        Raises:
            DigestMismatch: the patch has more files than the manifest.
        """
        self._index += 1
        if self._index >= len(self._fds):
            raise DigestMismatch(f"the patch makes {file.path!r}, the manifest has {len(self._fds)} files")
        self._out = open(self._fds[self._index], "wb", closefd=False, buffering=CHUNK_BYTES)  # noqa: SIM115

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the current file."""
        assert self._out is not None
        self._out.write(data)

    def end_file(self) -> None:
        """End the current file: its last bytes are written."""
        assert self._out is not None
        self._out.close()

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Return bytes that were written.

        Args:
            index: position of the file in the table; it was begun.
            offset: bytes from the start of the file.
            length: number of bytes.

        Raises:
            StoreDamaged: the file was changed meanwhile.
        """
        if self._out is not None and not self._out.closed:
            self._out.flush()
        return _read_exactly(self._fds[index], offset, length, f"file {index} of the bundle that is being written")

    def release(self) -> None:
        """End a file that an error left open; its descriptor may be closed afterwards."""
        if self._out is not None:
            self._out.close()

    def close(self) -> None:
        """Write the head, which comes last."""
        with open(self._head_fd, "wb", closefd=False, buffering=CHUNK_BYTES) as out:
            frames = FrameWriter(out, self._key, _context(self._head.parse_variant().digest))
            frames.write(self._head.as_bytes())
            frames.close()


class PlainBundle(StoredBundle):
    """A bundle that is stored as plain files, with an encrypted head.

    Args:
        fds: descriptors of the head and of the files; the caller closes them.
        key: the storage key.
        digest: digest of the expected bundle.

    Raises:
        StoreDamaged: the head does not open, or names other files. Any method can raise it.
    """

    def __init__(self, fds: Sequence[int], key: Secret, digest: BundleDigest) -> None:
        super().__init__(digest)
        self._fds = fds[1:]
        try:
            size = os.fstat(fds[0]).st_size
            frames = FrameRandomReader(lambda n, at: os.pread(fds[0], n, at), size, key, _context(digest))
            (length,) = _LENGTH.unpack(frames.pread(_LENGTH.size, 0))
            if length > MAX_HEAD_BYTES:
                raise StoreDamaged(f"bundle {digest[:16]}: head of {length} bytes")
            self.head = SealedHead.parse(frames.pread(length, _LENGTH.size))
            self.files = self.head.parse_variant().files
        except AirweightsError as error:
            raise self._damaged_error(error) from error
        expected, found = [file.size for file in self.files], [os.fstat(fd).st_size for fd in self._fds]
        if bundle_digest(self.files) != digest or expected != found:
            raise StoreDamaged(f"bundle {digest[:16]}: its files have {found} bytes, expected {expected}")

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Read `length` bytes of one file.

        Args:
            index: position of the file in the table.
            offset: bytes from the start of the file.
            length: number of bytes.
        """
        return _read_exactly(self._fds[index], offset, length, f"bundle {self._digest[:16]}, file {index}")


def open_stored_bundle(fds: Sequence[int], key: Secret, digest: BundleDigest) -> StoredBundle:
    """Open a bundle of the store, in the form that it has.

    Args:
        fds: descriptors of `BundleStore.open_bundle`; the caller closes them.
        key: the storage key.
        digest: digest of the expected bundle.

    Raises:
        StoreDamaged: it does not open, or is another bundle.
    """
    return SealedBundle(fds[0], key, digest) if len(fds) == 1 else PlainBundle(fds, key, digest)


@contextmanager
def open_writer(fds: Sequence[int], key: Secret, head: SealedHead) -> "Iterator[SealedWriter | PlainWriter]":
    """Yield the writer of an incoming bundle; everything is in its files after the block.

    Args:
        fds: descriptors of `BundleStore.create_incoming`; the caller closes them.
        key: the storage key.
        head: head of the bundle.
    """
    for fd in fds:
        os.ftruncate(fd, 0)
    if len(fds) > 1:
        writer = PlainWriter(fds, key, head)
        try:
            yield writer
        finally:
            writer.release()
        return
    with open(fds[0], "wb", closefd=False, buffering=CHUNK_BYTES) as out:

        def read_output(length: int, offset: int) -> bytes:
            out.flush()
            return os.pread(fds[0], length, offset)

        yield SealedWriter(out, key, head, read_output)


def copy_bundle(base: StoredBundle, target: "SealedWriter | PlainWriter") -> None:
    """Write all files of a bundle to another form of it; compare their digests.

    Args:
        base: the bundle.
        target: writer of the same bundle.

    Raises:
        StoreDamaged: a file of the bundle is damaged.
    """
    for index, file in enumerate(base.files):
        target.begin_file(file)
        for data in base.checked_chunks(index):
            target.write(data)
        target.end_file()
    target.close()


def _context(digest: BundleDigest) -> FrameContext:
    return FrameContext(PLAIN_LABEL, "", 0, "", digest)


def _read_exactly(fd: int, offset: int, length: int, where: str) -> bytes:
    parts = []
    while length:
        data = os.pread(fd, length, offset)
        if not data:
            raise StoreDamaged(f"{where} ends at byte {offset}, {length} more are expected")
        parts.append(data)
        offset, length = offset + len(data), length - len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
