"""The container of a patch: a header, then frames (docs/format.md sections 9.2 and 9.3).

    patch  = magic(8) version(u16) stored(u32) size(u32) crc(u32) zstd(header JSON)  frame*
    frame  = op(u8) payload(u32) decoded(u32) decoded_sum(u32) crc(u32)  payload

All integers are little-endian. `size` is the uncompressed size of the header JSON, `decoded` the number of bytes that
the payload decodes to. `crc` is the CRC-32 of everything before it in the same head, then of what follows it up to the
end of header or frame. `decoded_sum` is the sum of the decoded bytes as 32-bit words, padded with zeros, modulo 2^32:
it shows early which frame is wrong, and the file's SHA-256 decides.

Rules:
1. Every length is compared with its limit before as many bytes are read or allocated.
2. A short read means a truncated patch. Bytes after the END frame mean a corrupt one.
3. The header lists the features that the patch uses. A frame whose op needs another feature is refused.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final, Protocol

from bundle import strict_json
from bundle.errors import (
    Malformed,
    PatchCorrupt,
    PatchFeatureUnsupported,
    PatchLimitExceeded,
    PatchTruncated,
    PatchVersionUnsupported,
    TooLarge,
)
from bundle.files import BundleFile, parse_files
from bundle.patch.byte_math import sum_words
from bundle.patch.limits import MAX_HEADER_BYTES, DeclaredLimits, PatchLimits
from bundle.patch.sections import pack_zstd, unpack_zstd
from bundle.strict_json import JSON, StrictObject

MAGIC: Final = b"\x89AWPATCH"  # the first byte is not text, so that no transfer mode mistakes it for a text file
VERSION: Final = 1
FEATURES: Final = ("delta", "edit", "lzma", "pcodec", "repeat", "stream", "typed")

MODULE_OF_FEATURE: Final = {"lzma": "_lzma", "pcodec": "pcodec"}

_PREFIX: Final = struct.Struct("<8sHII")
_CRC: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<BIII")


class Op(IntEnum):
    """The instruction of a frame (docs/format.md section 9.3)."""

    END = 0
    COPY = 1
    BYTES = 2
    DELTA = 3
    STREAM = 4
    MORE = 5
    PARAM = 6
    TYPED = 7
    EDIT = 8


FEATURE_OF_OP: Final = {
    Op.DELTA: "delta",
    Op.STREAM: "stream",
    Op.MORE: "stream",
    Op.PARAM: "typed",
    Op.TYPED: "typed",
    Op.EDIT: "edit",
}


class ForwardReader(Protocol):
    """A patch's bytes from the first to the last; a short read only at the end."""

    def read(self, n: int, /) -> bytes:
        """Return at most `n` bytes; fewer only at the end of the patch."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """The decoded header of a patch.

    Attributes:
        base: file table of the base; empty if the patch needs no base (a bundle has at least one file).
        target: file table of the target.
        features: sorted names of the decoder features that the patch uses.
        declared_limits: limits that the frames keep.
    """

    base: tuple[BundleFile, ...]
    target: tuple[BundleFile, ...]
    features: tuple[str, ...]
    declared_limits: DeclaredLimits


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame whose checksum has been verified.

    Attributes:
        number: 0 for the first frame.
        op: the instruction.
        decoded_bytes: length of the decoded payload.
        decoded_sum: `word_sum` of these bytes.
        payload: the frame's content, as stored in the patch.
    """

    number: int
    op: Op
    decoded_bytes: int
    decoded_sum: int
    payload: bytes

    @property
    def where(self) -> str:
        """The frame's name in errors."""
        return f"patch frame {self.number} ({self.op.name})"

    def check_decoded(self, decoded: bytes | memoryview) -> None:
        """Compare decoded bytes with the length and sum in the frame's head.

        Raises:
            PatchCorrupt: they differ.
        """
        if len(decoded) != self.decoded_bytes or word_sum(decoded) != self.decoded_sum:
            raise PatchCorrupt(
                f"{self.where}: decoded {len(decoded)} bytes that are not the {self.decoded_bytes} expected"
            )


def encode_header(header: Header) -> bytes:
    """Return the start of a patch, up to its first frame."""
    document: dict[str, JSON] = {
        "base": [file.as_json() for file in header.base],
        "target": [file.as_json() for file in header.target],
        "features": list(header.features),
        "limits": {field.name: getattr(header.declared_limits, field.name) for field in fields(DeclaredLimits)},
    }
    content = strict_json.encode(document)
    stored = pack_zstd(content, 19)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(stored), len(content))
    return prefix + _CRC.pack(zlib.crc32(stored, zlib.crc32(prefix))) + stored


def read_header(patch: ForwardReader, limits: PatchLimits) -> Header:
    """Read and check the header.

    Args:
        patch: positioned at its first byte.
        limits: a header that declares more is refused.

    Raises:
        PatchVersionUnsupported: the data is not a patch, or has another format version.
        PatchTruncated: the patch ends inside its header.
        PatchCorrupt: a checksum or the document is wrong.
        PatchLimitExceeded: the patch needs more than `limits`.
        PatchFeatureUnsupported: the patch needs a feature that this decoder lacks.
    """
    head = patch.read(_PREFIX.size)
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise PatchVersionUnsupported(f"found {head[:8].hex()} at the start, expected a patch ({MAGIC.hex()})")
    if len(head) < _PREFIX.size:
        raise PatchTruncated(f"patch ends after {len(head)} bytes, in its header")
    _, version, stored_bytes, json_bytes = _PREFIX.unpack(head)
    if version != VERSION:
        raise PatchVersionUnsupported(
            f"patch has version {version}, this decoder knows {VERSION}", hint="update the device agent"
        )
    if max(stored_bytes, json_bytes) > MAX_HEADER_BYTES:
        raise PatchLimitExceeded(
            f"patch header is {max(stored_bytes, json_bytes)} bytes, at most {MAX_HEADER_BYTES} are allowed"
        )
    crc = _read_exactly(patch, _CRC.size, "header")
    stored = _read_exactly(patch, stored_bytes, "header")
    if _CRC.unpack(crc)[0] != zlib.crc32(stored, zlib.crc32(head)):
        raise PatchCorrupt("patch header: its checksum is wrong")
    return _parse_header(unpack_zstd(stored, json_bytes, "patch header"), limits)


def word_sum(data: bytes | memoryview) -> int:
    """Return the sum of little-endian 32-bit words, modulo 2^32; it takes a tenth of the time of a CRC."""
    whole = len(data) & ~3
    return (sum_words(data[:whole]) + int.from_bytes(data[whole:], "little")) & 0xFFFFFFFF


def encode_frame(op: Op, payload: bytes, decoded: bytes | memoryview = b"") -> bytes:
    """Return one frame: its head and its payload.

    Args:
        op: the instruction.
        payload: the frame's content, as stored in the patch.
        decoded: the decoded payload.
    """
    head = _FRAME.pack(op, len(payload), len(decoded), word_sum(decoded))
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def read_frames(patch: ForwardReader, header: Header) -> Iterator[Frame]:
    """Yield every frame before END, then check that nothing follows.

    Args:
        patch: positioned at the first frame.
        header: declares the limits and features of the frames.

    Raises:
        PatchTruncated: the patch ends inside a frame.
        PatchCorrupt: a checksum is wrong, an op is unknown, or bytes follow END.
        PatchLimitExceeded: a payload is larger than the header announced.
        PatchFeatureUnsupported: a frame needs a feature that the header does not list.
    """
    number = 0
    while True:
        head = _read_exactly(patch, _FRAME.size + _CRC.size, f"frame {number}")
        code, payload_bytes, decoded_bytes, decoded_sum = _FRAME.unpack_from(head)
        if payload_bytes > header.declared_limits.payload_bytes:
            raise PatchLimitExceeded(
                f"patch frame {number}: payload of {payload_bytes} bytes, the header announced "
                f"{header.declared_limits.payload_bytes}"
            )
        payload = _read_exactly(patch, payload_bytes, f"frame {number}")
        if _CRC.unpack_from(head, _FRAME.size)[0] != zlib.crc32(payload, zlib.crc32(head[: _FRAME.size])):
            raise PatchCorrupt(f"patch frame {number}: its checksum is wrong")
        if code not in Op._value2member_map_:
            raise PatchCorrupt(f"patch frame {number}: unknown op {code}")
        op = Op(code)
        if op in FEATURE_OF_OP and FEATURE_OF_OP[op] not in header.features:
            raise PatchFeatureUnsupported(
                f"patch frame {number}: op {op.name} needs feature {FEATURE_OF_OP[op]!r}, missing in the header"
            )
        if op is Op.END:
            if payload or decoded_bytes or patch.read(1):
                raise PatchCorrupt(f"patch frame {number}: bytes after the end of the patch")
            return
        yield Frame(number, op, decoded_bytes, decoded_sum, payload)
        number += 1


def _read_exactly(patch: ForwardReader, length: int, what: str) -> bytes:
    data = patch.read(length)
    if len(data) != length:
        raise PatchTruncated(f"patch ends in its {what}: found {len(data)} bytes, expected {length}")
    return data


def _parse_header(json_bytes: bytes, limits: PatchLimits) -> Header:
    try:
        document = StrictObject(
            strict_json.decode(json_bytes, what="patch header", max_bytes=MAX_HEADER_BYTES), "patch header"
        )
        base = _parse_file_table(document, "base", limits)
        target = _parse_file_table(document, "target", limits)
        features = document.texts("features", strict_json.NAME_PATTERN, max_items=32)
        row = document.object("limits")
        values = {field.name: row.integer(field.name) for field in fields(DeclaredLimits)}
        row.reject_unknown()
        document.reject_unknown()
    except (Malformed, TooLarge) as error:
        raise PatchCorrupt(error.message) from error
    for name, value in values.items():
        if value > getattr(limits, name):
            raise PatchLimitExceeded(
                f"patch needs {name} {value}, this decoder allows {getattr(limits, name)}", hint="use another patch"
            )
    declared_limits = DeclaredLimits(**values)
    if declared_limits.memory_bound_bytes() > limits.memory_bytes:
        raise PatchLimitExceeded(
            f"patch needs {declared_limits.memory_bound_bytes()} bytes of memory, {limits.memory_bytes} are allowed",
            hint="create the patch again, so that the manifest states its memory",
        )
    for feature in features:
        _check_feature(feature)
    if sum(file.size for file in target) > limits.target_bytes:
        raise PatchLimitExceeded(
            f"patch makes {sum(f.size for f in target)} bytes, at most {limits.target_bytes} are allowed"
        )
    return Header(base, target, features, declared_limits)


def _parse_file_table(document: StrictObject, name: str, limits: PatchLimits) -> tuple[BundleFile, ...]:
    return parse_files(document.objects(name, max_items=limits.files))


def _check_feature(feature: str) -> None:
    if feature not in FEATURES:
        raise PatchFeatureUnsupported(
            f"patch needs the decoder feature {feature!r}, this decoder knows {', '.join(FEATURES)}",
            hint="update the device agent, or use another patch",
        )
    module = MODULE_OF_FEATURE.get(feature)
    if module is not None:
        from importlib.util import find_spec

        if find_spec(module) is None:
            raise PatchFeatureUnsupported(
                f"patch needs the decoder feature {feature!r}, which is not installed here", hint="use another patch"
            )
