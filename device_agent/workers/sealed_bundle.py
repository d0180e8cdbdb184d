"""The sealed bundle: a bundle's files in the store, encrypted under the device's storage key.

`StoredBundle` is what it has in common with a plain one (device_agent.workers.plain_bundle).

Rules:
- It is a frame file (bundle.frames) whose context is the label of the store and the bundle digest. So a sealed bundle
  cannot replace another one, and a changed bit is detected when its frame is read.
- Its content is: length of the head (u32, big-endian) ‖ head (canonical JSON) ‖ the files in table order. The head
  contains the manifest, so a journal can be rebuilt from the store alone.
- Plain files exist in memory only, each in a sealed memfd. Its SHA-256 is compared with the manifest before the
  descriptor is returned.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from bundle import strict_json
from bundle.errors import AirweightsError, NotAuthentic
from bundle.files import BundleDigest, BundleFile, bundle_digest
from bundle.frames import STORE_LABEL, FrameContext, FrameRandomReader, FrameWriter, Secret, Sink
from bundle.manifest import MAX_MANIFEST_BYTES, parse_manifest
from bundle.strict_json import JSON, NAME_PATTERN, StrictObject
from bundle.variant import Variant
from device_agent.errors import StoreDamaged

SCHEMA: Final = "airweights.sealed/1"
MAX_HEAD_BYTES: Final = 2 * MAX_MANIFEST_BYTES + 4096
CHUNK_BYTES: Final = 1 << 20
MEMFD_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LENGTH: Final = struct.Struct(">I")
MFD_NOEXEC_SEAL: Final = 0x0008  # Linux 6.3, linux/memfd.h; Python has no name for it before 3.14


@dataclass(frozen=True, slots=True)
class SealedHead:
    """The head of a sealed bundle.

    Attributes:
        manifest: canonical bytes of the release's manifest, as text.
        variant: name of the variant.
        counter_epoch: epoch of the delegation that signed the release's counter.
    """

    manifest: str
    variant: str
    counter_epoch: int

    def parse_variant(self) -> Variant:
        """Parse the manifest and return the variant of this bundle.

        Raises:
            Malformed: the manifest does not follow its schema.
            StoreDamaged: the manifest has no such variant.
        """
        variant = parse_manifest(self.manifest.encode()).variant(self.variant)
        if variant is None:
            raise StoreDamaged(f"a sealed bundle names variant {self.variant!r}, which its manifest does not list")
        return variant

    def as_bytes(self) -> bytes:
        """Return the length and the head, as they start the content."""
        body: dict[str, JSON] = {
            "schema": SCHEMA,
            "manifest": self.manifest,
            "variant": self.variant,
            "counter_epoch": self.counter_epoch,
        }
        data = strict_json.encode(body)
        return _LENGTH.pack(len(data)) + data

    @classmethod
    def parse(cls, data: bytes) -> "SealedHead":
        """Parse the output of `as_bytes`, without the length.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        fields = StrictObject(strict_json.decode(data, what="sealed bundle", max_bytes=MAX_HEAD_BYTES), "sealed bundle")
        fields.choice("schema", (SCHEMA,))
        manifest = fields.value("manifest")
        out = cls(
            manifest if isinstance(manifest, str) else "",
            fields.text("variant", NAME_PATTERN),
            fields.integer("counter_epoch"),
        )
        fields.reject_unknown()
        return out


class SealedWriter:
    """A `bundle.patch` Target that seals the files of a bundle.

    Args:
        out: receives the frame file.
        key: the storage key.
        head: head of the bundle; the digest of its variant is part of the frames' context.
        pread: returns `length` bytes of the frame file from `offset`, as `pread(length, offset)`.
    """

    def __init__(self, out: Sink, key: Secret, head: SealedHead, pread: Callable[[int, int], bytes]) -> None:
        variant = head.parse_variant()
        self._frames, self._pread = FrameWriter(out, key, frame_context(variant.digest)), pread
        self._frames.write(head.as_bytes())
        self._file_offsets: list[int] = []
        self._next_offset = len(head.as_bytes())

    def begin_file(self, file: BundleFile) -> None:
        """Start a file; files come in table order and follow each other without a gap.

        The table is that of the patch, which is compared with the manifest's after the last file.
        """
        self._file_offsets.append(self._next_offset)
        self._next_offset += file.size

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the current file."""
        self._frames.write(data)

    def end_file(self) -> None:
        """End a file; nothing is written, because the table has the sizes."""

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Return bytes that were written.

        Args:
            index: position of the file in the table; it was begun.
            offset: bytes from the start of the file.
            length: number of bytes.

        Raises:
            StoreDamaged: the file was changed meanwhile.
        """
        try:
            return self._frames.read_back(length, self._file_offsets[index] + offset, self._pread)
        except NotAuthentic as error:
            raise StoreDamaged(f"the bundle that is being written does not open: {error.message}") from error

    def close(self) -> None:
        """Write the last frame of the file."""
        self._frames.close()


class StoredBundle:
    """A `bundle.patch` Base that reads a bundle of the store.

    Args:
        digest: digest of the bundle.

    Attributes:
        head: head of the bundle.
        files: file table of the bundle.

    Raises:
        StoreDamaged: by any method, if the bundle does not open or was changed.
    """

    head: SealedHead
    files: tuple[BundleFile, ...]

    def __init__(self, digest: BundleDigest) -> None:
        self._digest = digest

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Read `length` bytes of one file.

        Args:
            index: position of the file in the table.
            offset: bytes from the start of the file.
            length: number of bytes.
        """
        raise NotImplementedError

    def unseal_file(self, index: int) -> int:
        """Copy one file into a sealed memfd and check its SHA-256; the caller closes the descriptor."""
        fd = _create_memfd(self.files[index].path)
        try:
            for data in self.checked_chunks(index):
                _write_all(fd, data)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, MEMFD_SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def check_files(self, paths: Iterable[str] | None = None) -> None:
        """Read files and check their SHA-256, in bounded memory.

        Args:
            paths: their paths; None for all files.
        """
        wanted = None if paths is None else set(paths)
        for index, file in enumerate(self.files):
            if wanted is None or file.path in wanted:
                for _ in self.checked_chunks(index):
                    pass

    def checked_chunks(self, index: int) -> Iterator[bytes]:
        """Yield one file in chunks; the last step compares its SHA-256.

        Args:
            index: position of the file in the table.
        """
        file, digest = self.files[index], hashlib.sha256()
        for offset in range(0, file.size, CHUNK_BYTES):
            data = self.pread(index, offset, min(CHUNK_BYTES, file.size - offset))
            digest.update(data)
            yield data
        if digest.hexdigest() != file.sha256:
            raise StoreDamaged(f"bundle {self._digest[:16]}: SHA-256 of {file.path!r} differs from the manifest")

    def _damaged_error(self, error: AirweightsError) -> StoreDamaged:
        if isinstance(error, StoreDamaged):
            return error
        return StoreDamaged(f"bundle {self._digest[:16]} does not open: {error.message}")


class SealedBundle(StoredBundle):
    """A bundle that is stored as one encrypted file.

    Args:
        fd: descriptor of the sealed file; the caller closes it.
        key: the storage key.
        digest: digest of the expected bundle.

    Raises:
        StoreDamaged: it does not open, or is another bundle. Any method can raise it.
    """

    def __init__(self, fd: int, key: Secret, digest: BundleDigest) -> None:
        super().__init__(digest)
        try:
            size = os.fstat(fd).st_size
            self._frames = FrameRandomReader(lambda n, at: os.pread(fd, n, at), size, key, frame_context(digest))
            (length,) = _LENGTH.unpack(self._frames.pread(_LENGTH.size, 0))
            if length > MAX_HEAD_BYTES:
                raise StoreDamaged(f"bundle {digest[:16]}: head of {length} bytes")
            self.head = SealedHead.parse(self._frames.pread(length, _LENGTH.size))
            self.files = self.head.parse_variant().files
        except AirweightsError as error:
            raise self._damaged_error(error) from error
        start = _LENGTH.size + length
        self._file_offsets = list(accumulate((file.size for file in self.files), initial=start))
        if bundle_digest(self.files) != digest or self._file_offsets[-1] != self._frames.size:
            raise StoreDamaged(f"bundle {digest[:16]}: the sealed file is incomplete or belongs to another bundle")

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Read `length` bytes of one file.

        Args:
            index: position of the file in the table.
            offset: bytes from the start of the file.
            length: number of bytes.
        """
        try:
            return self._frames.pread(length, self._file_offsets[index] + offset)
        except AirweightsError as error:
            raise self._damaged_error(error) from error


def frame_context(digest: BundleDigest) -> FrameContext:
    """Return the context of the frames of a sealed bundle."""
    return FrameContext(STORE_LABEL, "", 0, "", digest)


def _create_memfd(path: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    name = path.rpartition("/")[2][:100]
    try:
        return os.memfd_create(name, flags | MFD_NOEXEC_SEAL)
    except OSError:  # a kernel before 6.3
        return os.memfd_create(name, flags)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
