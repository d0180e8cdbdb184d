"""The container of a patch: a header, then frames (docs/format.md, Patches).

    patch  = magic(8) version(u16) stored(u32) plain(u32) crc(u32) zstd(header JSON)  frame*
    frame  = op(u8) payload(u32) plain(u32) plain_sum(u32) crc(u32)  payload

All integers are little-endian. `crc` is the CRC-32 of everything before it in the same head, then of what follows it up
to the end of header or frame; `plain_sum` is the sum of the `plain` bytes that the frame decodes to, taken as words of
32 bits, zeros added at the end, modulo 2^32. It tells early which frame went wrong; the file's SHA-256 decides.

Rules:
1. Every length is compared with its limit before as much is read or allocated.
2. A short read is a truncated patch; bytes after the END frame are a corrupt one.
3. Features that a patch uses are named in its header; a frame whose op belongs to another feature is refused.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final, Protocol

import numpy as np

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
from bundle.patch.limits import MAX_HEADER_BYTES, DeclaredLimits, PatchLimits
from bundle.patch.sections import pack_zstd, unpack_zstd
from bundle.strict_json import JSON, StrictObject

MAGIC: Final = b"\x89AWPATCH"  # the first byte is not text, so that no transfer mode mistakes it for a text file
VERSION: Final = 1
FEATURES: Final = ("delta", "edit", "lzma", "pcodec", "stream", "typed")

MODULE_OF_FEATURE: Final = {"lzma": "_lzma", "pcodec": "pcodec"}

_PREFIX: Final = struct.Struct("<8sHII")
_CRC: Final = struct.Struct("<I")
_FRAME: Final = struct.Struct("<BIII")


class Op(IntEnum):
    """What a frame does."""

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
    """The patch's bytes, from the first to the last; a short read only at the end."""

    def read(self, n: int, /) -> bytes:
        """At most `n` bytes; fewer only where the patch ends."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """What a patch says about itself.

    Attributes:
        base: file table of the base; empty for a patch from nothing (a bundle never is).
        target: file table of the target.
        features: sorted names of decoder features that the patch uses.
        announced: its limits.
    """

    base: tuple[BundleFile, ...]
    target: tuple[BundleFile, ...]
    features: tuple[str, ...]
    declared_limits: DeclaredLimits


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, its checksum held.

    Attributes:
        number: 0 for the first.
        plain_bytes: length of what the payload decodes to.
        plain_sum: `word_sum` of that.
    """

    number: int
    op: Op
    decoded_bytes: int
    decoded_sum: int
    payload: bytes

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"patch frame {self.number} ({self.op.name})"

    def check_decoded(self, decoded: bytes | memoryview) -> None:
        """Raises PatchCorruptRefused where `plain` is not what the frame's head announces."""
        if len(decoded) != self.decoded_bytes or word_sum(decoded) != self.decoded_sum:
            raise PatchCorrupt(
                f"{self.where}: decoded {len(decoded)} bytes that are not the {self.decoded_bytes} expected"
            )


def encode_header(header: Header) -> bytes:
    """The start of a patch, up to its first frame."""
    document: dict[str, JSON] = {
        "base": [file.as_json() for file in header.base],
        "target": [file.as_json() for file in header.target],
        "features": list(header.features),
        "limits": {field.name: getattr(header.declared_limits, field.name) for field in fields(DeclaredLimits)},
    }
    plain = strict_json.encode(document)
    stored = pack_zstd(plain, 19)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(stored), len(plain))
    return prefix + _CRC.pack(zlib.crc32(stored, zlib.crc32(prefix))) + stored


def read_header(patch: ForwardReader, limits: PatchLimits) -> Header:
    """Read and check the header.

    Raises:
        PatchVersionRefused, PatchTruncatedRefused, PatchCorruptRefused, PatchLimitRefused.
    """
    head = patch.read(_PREFIX.size)
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise PatchVersionUnsupported(f"found {head[:8].hex()} at the start, expected a patch ({MAGIC.hex()})")
    if len(head) < _PREFIX.size:
        raise PatchTruncated(f"patch ends after {len(head)} bytes, in its header")
    _, version, stored_bytes, plain_bytes = _PREFIX.unpack(head)
    if version != VERSION:
        raise PatchVersionUnsupported(
            f"patch has version {version}, this decoder knows {VERSION}", hint="update the device agent"
        )
    if max(stored_bytes, plain_bytes) > MAX_HEADER_BYTES:
        raise PatchLimitExceeded(
            f"patch header is {max(stored_bytes, plain_bytes)} bytes, at most {MAX_HEADER_BYTES} are"
        )
    crc = _read_exactly(patch, _CRC.size, "header")
    stored = _read_exactly(patch, stored_bytes, "header")
    if _CRC.unpack(crc)[0] != zlib.crc32(stored, zlib.crc32(head)):
        raise PatchCorrupt("patch header: its checksum does not hold")
    return _parse_header(unpack_zstd(stored, plain_bytes, "patch header"), limits)


def word_sum(data: bytes | memoryview) -> int:
    """Sum of the little-endian words of 32 bits, modulo 2^32: a tenth of the time of a CRC."""
    whole = len(data) & ~3
    words = np.frombuffer(data, "<u4", whole // 4).sum(dtype=np.uint32)  # wraps
    return (int(words) + int.from_bytes(data[whole:], "little")) & 0xFFFFFFFF


def encode_frame(op: Op, payload: bytes, decoded: bytes | memoryview = b"") -> bytes:
    """One frame.

    Args:
        plain: what the payload decodes to.
    """
    head = _FRAME.pack(op, len(payload), len(decoded), word_sum(decoded))
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def read_frames(patch: ForwardReader, header: Header) -> Iterator[Frame]:
    """Every frame before END; then checks that nothing follows.

    Raises:
        PatchTruncatedRefused, PatchCorruptRefused, PatchLimitRefused, PatchFeatureRefused.
    """
    number = 0
    while True:
        head = _read_exactly(patch, _FRAME.size + _CRC.size, f"frame {number}")
        code, payload_bytes, plain_bytes, plain_sum = _FRAME.unpack_from(head)
        if payload_bytes > header.declared_limits.payload_bytes:
            raise PatchLimitExceeded(
                f"patch frame {number}: payload of {payload_bytes} bytes, announced "
                f"{header.declared_limits.payload_bytes}"
            )
        payload = _read_exactly(patch, payload_bytes, f"frame {number}")
        if _CRC.unpack_from(head, _FRAME.size)[0] != zlib.crc32(payload, zlib.crc32(head[: _FRAME.size])):
            raise PatchCorrupt(f"patch frame {number}: its checksum does not hold")
        if code not in Op._value2member_map_:
            raise PatchCorrupt(f"patch frame {number}: unknown op {code}")
        op = Op(code)
        if op in FEATURE_OF_OP and FEATURE_OF_OP[op] not in header.features:
            raise PatchFeatureUnsupported(
                f"patch frame {number}: op {op.name} needs feature {FEATURE_OF_OP[op]!r}, not named in the header"
            )
        if op is Op.END:
            if payload or plain_bytes or patch.read(1):
                raise PatchCorrupt(f"patch frame {number}: bytes after the end of the patch")
            return
        yield Frame(number, op, plain_bytes, plain_sum, payload)
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
    for feature in features:
        _check_feature(feature)
    if sum(file.size for file in target) > limits.target_bytes:
        raise PatchLimitExceeded(
            f"patch makes {sum(f.size for f in target)} bytes, at most {limits.target_bytes} are allowed"
        )
    return Header(base, target, features, DeclaredLimits(**values))


def _parse_file_table(document: StrictObject, name: str, limits: PatchLimits) -> tuple[BundleFile, ...]:
    return parse_files(document.objects(name, max_items=limits.files))


def _check_feature(feature: str) -> None:
    if feature not in FEATURES:
        raise PatchFeatureUnsupported(
            f"patch needs the decoder feature {feature!r}, this decoder has {', '.join(FEATURES)}",
            hint="update the device agent, or use another patch",
        )
    module = MODULE_OF_FEATURE.get(feature)
    if module is not None:
        from importlib.util import find_spec

        if find_spec(module) is None:
            raise PatchFeatureUnsupported(
                f"patch needs the decoder feature {feature!r}, which is not installed here", hint="use another patch"
            )
