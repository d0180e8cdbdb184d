"""A sealed bundle: how the plain files of a bundle lie in the store, encrypted under the device's storage key.

Rules:
1. It is a frame file (bundle.frames) with the label of the store and the bundle digest as its context; so a bundle can
   not be passed off as another, and a changed bit is noticed when its frame is read.
2. Inside: u32 big-endian length ‖ canonical JSON head ‖ the files in table order. The head has the manifest's bytes, so
   that the store alone is enough to know what a bundle is.
3. Plain files exist only in memory: a sealed memfd for each, its SHA-256 compared with the manifest's before it is
   handed out.
"""

import fcntl
import hashlib
import os
import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from bundle import strict_json
from bundle.errors import AirweightsError
from bundle.files import BundleDigest, BundleFile, bundle_digest
from bundle.frames import STORE_LABEL, FrameContext, FrameRandomReader, FrameWriter, Secret, Sink
from bundle.manifest import MAX_MANIFEST_BYTES, Variant, parse_manifest
from bundle.strict_json import JSON, NAME_PATTERN, StrictObject
from device_agent.errors import StoreDamaged

SCHEMA: Final = "airweights.sealed/1"
MAX_HEAD_BYTES: Final = 2 * MAX_MANIFEST_BYTES + 4096
CHUNK_BYTES: Final = 1 << 20
MEMFD_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LENGTH: Final = struct.Struct(">I")
MFD_NOEXEC_SEAL: Final = 0x0008  # Linux 6.3, linux/memfd.h; Python has no name for it before 3.14


@dataclass(frozen=True, slots=True)
class SealedHead:
    """What a sealed bundle says of itself.

    Attributes:
        manifest: canonical bytes of the release's manifest, as text.
        variant: which of its variants this is.
        counter_epoch: of the delegation that signed the release.
    """

    manifest: str
    variant: str
    counter_epoch: int

    def parse_variant(self) -> Variant:
        """Raises MalformedRefused, StoreDamagedRefused."""
        variant = parse_manifest(self.manifest.encode()).variant(self.variant)
        if variant is None:
            raise StoreDamaged(f"a sealed bundle names variant {self.variant!r}, its manifest has none")
        return variant

    def as_bytes(self) -> bytes:
        """Rule 2."""
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
        """Inverse of `as_bytes` without the length. Raises MalformedRefused."""
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
    """A `bundle.patch` Target that seals what it is given.

    Args:
        out: receives the frame file.
        key: the storage key.
        head: of the bundle; its variant's digest names the file.
    """

    def __init__(self, out: Sink, key: Secret, head: SealedHead) -> None:
        self._frames = FrameWriter(out, key, frame_context(head.parse_variant().digest))
        self._frames.write(head.as_bytes())

    def begin_file(self, file: BundleFile) -> None:
        """Files come in table order and lie one behind the other."""

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._frames.write(data)

    def end_file(self) -> None:
        """Nothing marks an end: the table has the sizes."""

    def close(self) -> None:
        """The last frame."""
        self._frames.close()


class SealedBundle:
    """A `bundle.patch` Base that reads a sealed bundle.

    Args:
        fd: of the sealed file; not closed here.
        key: the storage key.
        digest: of the bundle that it should be.

    Raises:
        StoreDamagedRefused: from any method; it does not open, or is not that bundle.
    """

    def __init__(self, fd: int, key: Secret, digest: BundleDigest) -> None:
        self._digest = digest
        try:
            size = os.fstat(fd).st_size
            self._frames = FrameRandomReader(lambda n, at: os.pread(fd, n, at), size, key, frame_context(digest))
            (length,) = _LENGTH.unpack(self._frames.pread(_LENGTH.size, 0))
            if length > MAX_HEAD_BYTES:
                raise StoreDamaged(f"bundle {digest[:16]}: head of {length} bytes")
            self.head = SealedHead.parse(self._frames.pread(length, _LENGTH.size))
            self._files = self.head.parse_variant().files
        except AirweightsError as error:
            raise self._damaged_error(error) from error
        start = _LENGTH.size + length
        self._file_offsets = list(accumulate((file.size for file in self._files), initial=start))
        if bundle_digest(self._files) != digest or self._file_offsets[-1] != self._frames.size:
            raise StoreDamaged(f"bundle {digest[:16]}: the sealed file is of another bundle, or not whole")

    @property
    def files(self) -> tuple[BundleFile, ...]:
        """Its file table."""
        return self._files

    def pread(self, index: int, offset: int, length: int) -> bytes:
        """Bytes of one file."""
        try:
            return self._frames.pread(length, self._file_offsets[index] + offset)
        except AirweightsError as error:
            raise self._damaged_error(error) from error

    def unseal_file(self, index: int) -> int:
        """Rule 3: a sealed memfd with one file; the caller closes it."""
        file = self._files[index]
        fd = _create_memfd(file.path)
        try:
            digest = hashlib.sha256()
            for offset in range(0, file.size, CHUNK_BYTES):
                data = self.pread(index, offset, min(CHUNK_BYTES, file.size - offset))
                digest.update(data)
                _write_all(fd, data)
            if digest.hexdigest() != file.sha256:
                raise StoreDamaged(f"bundle {self._digest[:16]}: {file.path!r} is not what the manifest says")
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, MEMFD_SEALS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _damaged_error(self, error: AirweightsError) -> StoreDamaged:
        if isinstance(error, StoreDamaged):
            return error
        return StoreDamaged(f"bundle {self._digest[:16]} does not open: {error.message}")


def frame_context(digest: BundleDigest) -> FrameContext:
    """Rule 1."""
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
