"""Write the test vectors of patches: `python -m tests.vectors.patch.generate`.

Each file is one patch from BASE to TARGET with one defect, and is named for it. `expected.json` has the reason of the
expected refusal, or null for a patch that must apply. The patches are assembled from the parts of the format, without
the encoder, so that they do not depend on it.
"""

import bz2
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import zstandard

from bundle.files import BundleFile
from bundle.patch.container import MAGIC, Header, Op, encode_frame, encode_header
from bundle.patch.limits import DeclaredLimits
from bundle.patch.numbers import encode_signed_varint, encode_varint
from bundle.patch.ranges import write_base_ranges, write_target_ranges
from bundle.patch.sections import pack_lzma, pack_zstd, write_section
from bundle.patch.stream import FREE_TRIPLES
from packager.diff.encode.zstd_prefix import compress_with_prefix

FOLDER: Final = Path(__file__).parent
BASE: Final = {"a": bytes(range(256)) * 4, "b": b"the old text, the old text"}
TARGET: Final = {"a": bytes(range(256)) * 4, "b": b"the new text, the old text", "c": b"", "d": b"added" * 20}

DECLARED_LIMITS: Final = DeclaredLimits(
    payload_bytes=1 << 16,
    pending_bytes=1 << 12,
    dictionary_bytes=1 << 12,
    parameter_bytes=256,
    block_elements=1024,
    window_log=12,
)


def make_file_table(files: dict[str, bytes]) -> tuple[BundleFile, ...]:
    """Return the file table of a bundle."""
    return tuple(BundleFile(p, "other", len(d), hashlib.sha256(d).hexdigest()) for p, d in sorted(files.items()))


HEADER: Final = Header(
    make_file_table(BASE), make_file_table(TARGET), ("delta", "lzma", "stream", "typed"), DECLARED_LIMITS
)
END: Final = encode_frame(Op.END, b"")
A, B, D = 1024, 26, 100


def make_copy_frame(*entries: tuple[int, int, int], plain: bytes | None = None) -> bytes:
    """Return a COPY frame; each entry is (target gap, signed base gap, length), in bytes."""
    rows = b"".join(encode_varint(t) + encode_signed_varint(b) + encode_varint(n) for t, b, n in entries)
    body = encode_varint(len(entries)) + rows if plain is None else plain
    return encode_frame(Op.COPY, write_section(body), body)


def make_bytes_frame(
    ranges: list[tuple[int, int]], data: bytes, words: list[tuple[int, int]], content: bytes = b""
) -> bytes:
    """Return a BYTES frame.

    Args:
        ranges: ranges of the target, (gap, length).
        data: bytes of these ranges.
        words: ranges of the base that form the dictionary, (start, length).
        content: bytes of the frame's checksum if they differ from `data`.
    """
    dictionary = b"".join((BASE["a"] + BASE["b"])[s : s + n] for s, n in words)
    packed = compress_with_prefix(dictionary, data, 19)
    body = write_section(write_target_ranges(ranges) + write_base_ranges(words)) + packed
    return encode_frame(Op.BYTES, body, content or data)


def make_delta_frame(
    start: int, base: int, triples: list[tuple[int, int, int]], diff: bytes, extra: bytes, plain: bytes
) -> bytes:
    """Return a DELTA frame; a triple is (bytes added to the base, extra bytes, signed seek in the base)."""
    control = b"".join(encode_varint(a) + encode_varint(e) + encode_signed_varint(s) for a, e, s in triples)
    body = (
        encode_varint(start)
        + encode_varint(base)
        + b"".join(write_section(section, can_use_bzip2=True) for section in (control, diff, extra))
    )
    return encode_frame(Op.DELTA, body, plain)


def make_bzip2_bomb() -> bytes:
    """Return a DELTA frame with a bzip2 section of 26 stated bytes that decompresses to 64 MiB."""
    bomb = bz2.compress(bytes(1 << 26), 9)
    section = bytes([2]) + encode_varint(B) + encode_varint(len(bomb)) + bomb
    body = (
        encode_varint(A)
        + encode_varint(A)
        + write_section(encode_varint(B) + encode_varint(0) + encode_signed_varint(0))
        + section
        + write_section(b"")
    )
    return encode_frame(Op.DELTA, body, TARGET["b"])


def make_stream_frame(
    data: bytes, start: int, *, window_log: int = 12, length: int | None = None, coder: int = 1
) -> bytes:
    """Return a STREAM frame, with zstd (coder 1) or LZMA (coder 3)."""
    parameters = zstandard.ZstdCompressionParameters(window_log=10, write_content_size=False, write_checksum=False)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = pack_lzma(data, 12) if coder == 3 else packed.compress(data) + packed.flush()
    head = (
        encode_varint(start) + encode_varint(len(data) if length is None else length) + bytes([coder, window_log, 0, 1])
    )
    return encode_frame(Op.STREAM, head + content)


def make_delta_stream_frame(
    content: bytes, *, start: int = 1024, length: int = 26, base: int = 1024, form: int = 1, rest: bytes = b""
) -> bytes:
    """Return a STREAM frame of LZMA in its DELTA form."""
    head = encode_varint(start) + encode_varint(length) + bytes([3, 12, form]) + encode_varint(base) + b"\x01"
    return encode_frame(Op.STREAM, head + pack_lzma(content, 12) + rest)


def encode_triple(add: int, extra: int, seek: int = 0) -> bytes:
    """Return a control triple of a DELTA frame."""
    return encode_varint(add) + encode_varint(extra) + encode_signed_varint(seek)


def make_lzma_section(plain: bytes, stated: int) -> bytes:
    """Return an LZMA section of `plain` that states another uncompressed size."""
    stored = pack_lzma(plain, 12)
    return bytes([3]) + encode_varint(stated) + encode_varint(len(stored)) + stored


DIFFERENCE: Final = bytes((n - o) % 256 for n, o in zip(TARGET["b"], BASE["b"], strict=True))
COPY_A: Final = make_copy_frame((0, 0, A))
DELTA_B: Final = make_delta_frame(A, A, [(B, 0, 0)], DIFFERENCE, b"", TARGET["b"])
STREAM_D: Final = make_stream_frame(TARGET["d"], A + B)
BYTES_D: Final = make_bytes_frame([(A + B, D)], TARGET["d"], [])


def make_typed_frame(codes: list[int], segments: bytes, data: bytes, plain: bytes) -> bytes:
    """Return a TYPED frame; `plain` is the content for its checksum."""
    return encode_frame(Op.TYPED, bytes(codes) + write_section(segments) + data, plain)


def encode_segment(start: int, elements: int, base: int | None = None) -> bytes:
    """Return a segment table with one segment."""
    return (
        encode_varint(1)
        + encode_varint(start)
        + encode_varint(elements)
        + (b"" if base is None else encode_signed_varint(base))
    )


def make_planes(residual: bytes) -> bytes:
    """Return the residuals of one-byte elements as a section of planes."""
    signed = [byte - 256 if byte > 127 else byte for byte in residual]
    return write_section(bytes(((number << 1) ^ (number >> 7)) & 0xFF for number in signed))


def make_part(numbers: list[int], coder: int = 1) -> bytes:
    """Return a part of four-byte numbers, coded as planes."""
    zigzag = [(number << 1) ^ (number >> 31) for number in numbers]
    body = b"".join(write_section(bytes(number >> 8 * i & 0xFF for number in zigzag)) for i in range(4))
    return bytes([coder]) + encode_varint(len(body)) + body


def make_byte_part(residual: bytes) -> bytes:
    """Return a part of one-byte elements, coded as planes."""
    body = make_planes(residual)
    return b"\x01" + encode_varint(len(body)) + body


def make_edit_frame(
    code: int,
    ranges: list[tuple[int, int, int]],
    edits: list[tuple[int, int]],
    *,
    size: int = 1,
    runs: list[int] | None = None,
    count: int | None = None,
    content: bytes | None = None,
) -> bytes:
    """Return an EDIT frame of one-byte elements.

    Each range is (target gap, signed base gap, length); each edit is (gap, residual), in runs of one unless lengths are
    given.
    """
    range_table = encode_varint(len(ranges)) + b"".join(
        encode_varint(t) + encode_signed_varint(b) + encode_varint(n) for t, b, n in ranges
    )
    lengths = [1] * len(edits) if runs is None else runs
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    gaps = [edits[first][0] if first < len(edits) else 0 for first in firsts]
    zigzag = [((number << 1) ^ (number >> 31)) & (1 << 8 * size) - 1 for _, number in edits]
    planes_ = b"".join(write_section(bytes(number >> 8 * i & 0xFF for number in zigzag)) for i in range(size))
    body = bytes([code]) + write_section(range_table) + encode_varint(len(gaps) if count is None else count)
    body += encode_varint(len(gaps)) + make_part(gaps) + encode_varint(len(lengths)) + make_part(lengths)
    body += bytes([1]) + encode_varint(len(planes_)) + planes_
    plain = range_table + b"".join((number & (1 << 8 * size) - 1).to_bytes(size, "little") for _, number in edits)
    return encode_frame(Op.EDIT, body, plain if content is None else content)


def list_gaps(residuals: list[int]) -> list[tuple[int, int]]:
    """Return (gap, residual) of the residuals that are not 0."""
    places = [i for i, residual in enumerate(residuals) if residual]
    return [(place - before - 1, residuals[place]) for before, place in zip([-1, *places], places, strict=False)]


def list_runs(edits: list[tuple[int, int]]) -> list[int]:
    """Return the lengths of the runs of edits without a gap between them."""
    lengths: list[int] = []
    for gap, _ in edits:
        if gap or not lengths:
            lengths.append(0)
        lengths[-1] += 1
    return lengths


def make_gain_frame(bits: list[int], inner: int = 1, count: int | None = None) -> bytes:
    """Return a PARAM frame of gains; `bits` are the float32 bits of each gain minus those of 1.0."""
    head = b"\x01" + encode_varint(len(bits) if count is None else count) + encode_varint(inner)
    return encode_frame(Op.PARAM, head + encode_varint(len(bits)) + make_part(bits))


def make_factor_frame(kind: int, numbers: list[int], rank: int, shift: int = 0, length: int | None = None) -> bytes:
    """Return a PARAM frame of a factor of a low-rank product."""
    head = (
        bytes([kind])
        + (encode_varint(0) if kind == 2 else b"")
        + encode_varint(len(numbers) // rank if length is None else length)
    )
    return encode_frame(
        Op.PARAM,
        head
        + encode_varint(rank)
        + encode_signed_varint(shift)
        + bytes(rank)
        + encode_varint(len(numbers))
        + make_part(numbers),
    )


def make_patch(*frames: bytes, header: Header = HEADER) -> bytes:
    """Return a patch of a header, frames and the END frame."""
    return encode_header(header) + b"".join(frames) + END


def make_header(
    version: int = 1, crc_flip: int = 0, document: bytes | None = None, plain_length: int | None = None
) -> bytes:
    """Return an encoded header with one defect."""
    plain = document if document is not None else b"{}"
    stored = pack_zstd(plain, 19)
    prefix = struct.pack("<8sHII", MAGIC, version, len(stored), len(plain) if plain_length is None else plain_length)
    crc = zlib.crc32(stored, zlib.crc32(prefix)) ^ crc_flip
    return prefix + struct.pack("<I", crc) + stored


def flip_bit(data: bytes, position: int) -> bytes:
    """Flip the lowest bit of one byte."""
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


F16: Final = 1
U8: Final = 4
U16: Final = 6
NONE, BASE_, AFFINE, PARAM = range(4)
TYPED_B: Final = make_typed_frame([U8, BASE_, 0, 0], encode_segment(A, B, A), make_planes(DIFFERENCE), TARGET["b"])
DOUBLED: Final = bytes((2 * byte if byte < 128 else 255) for byte in BASE["b"])
HALF_GAIN: Final = 0x3F000000 - 0x3F800000
GAINED: Final = bytes((n - round(o / 2)) % 256 for n, o in zip(TARGET["b"], BASE["b"], strict=True))
TIE_GAIN: Final = -83055  # times the base's "e": just above 100.5 in float64, a tie in float32


def _times_tie_gain(byte: int) -> int:
    """Multiply by the gain in float32 and round, as the decoder must."""
    factor = float(struct.unpack("<f", struct.pack("<I", 0x3F800000 + TIE_GAIN))[0])
    single = float(struct.unpack("<f", struct.pack("<f", byte * factor))[0])
    return min(255, round(single))


TIED: Final = bytes((n - _times_tie_gain(o)) % 256 for n, o in zip(TARGET["b"], BASE["b"], strict=True))
LOW_RANK: Final = bytes((n - min(255, o + 3)) % 256 for n, o in zip(TARGET["b"], BASE["b"], strict=True))


def make_patch_after_a(*frames: bytes) -> bytes:
    """Return a patch that copies file `a`, then has these frames, then creates file `d`."""
    return make_patch(COPY_A, *frames, STREAM_D)


def make_typed_b(codes: list[int], data: bytes, segments: bytes = encode_segment(A, B, A)) -> bytes:
    """Return a TYPED frame that creates file `b`."""
    return make_typed_frame(codes, segments, data, TARGET["b"])


def make_transposed_in_segments(first: int = 0, rows: int = 2, start: int = A, second: bytes = b"") -> bytes:
    """Return a frame that creates file `b` in two segments from a base with rows and columns exchanged.

    Args:
        first: index of the first element.
        rows: rows of the exchanged base, which has 13 columns.
        start: address of the base.
        second: what the second segment states beside its gap and its elements.
    """
    segments = encode_varint(2) + encode_varint(A) + encode_varint(12) + encode_signed_varint(start)
    segments += encode_varint(0) + encode_varint(B - 12) + second
    old = (BASE["a"] + BASE["b"])[start:]
    predicted = [old[(first + i) % 13 * rows + (first + i) // 13] if first + i < 13 * rows else 0 for i in range(B)]
    residual = bytes((new - before) % 256 for new, before in zip(TARGET["b"], predicted, strict=True))
    head = encode_varint(first) + encode_varint(rows) + encode_varint(13)
    return make_typed_b([U8, BASE_, 0, 1], head + make_planes(residual), segments)


def make_keyed_in_two_parts(sub_block: int) -> bytes:
    """Return a frame of two sub-blocks; the second has the smaller class, so its residuals come first."""
    in_order = DIFFERENCE[sub_block:] + DIFFERENCE[:sub_block]
    cut = B - sub_block + 4
    data = b"\x00" + encode_varint(sub_block) + write_section(b"\x02\x01")
    return make_typed_b([U8, BASE_, 2, 0], data + make_byte_part(in_order[:cut]) + make_byte_part(in_order[cut:]))


def order_f16(bits: int) -> int:
    """Return the bits of a float16 as an ordered integer."""
    return bits if bits < 0x8000 else (bits ^ 0x7FFF) - 0x10000


def make_frame_in_units(codes: tuple[int, int, int, int] = (F16, 1, 2, 16), missing: int = 0) -> bytes:
    """Return a frame of float16 elements, predicted from two bytes earlier, each a sub-block with the largest unit."""
    start = A - 2
    old = struct.unpack(f"<{B // 2}H", (BASE["a"] + BASE["b"])[start : start + B])
    new = struct.unpack(f"<{B // 2}H", TARGET["b"])
    classes, units, numbers = b"", b"", []
    for before, after in zip(old, new, strict=True):
        residual = (order_f16(after) - order_f16(before) + 0x8000) % 0x10000 - 0x8000
        zeros = min(9, (residual & -residual).bit_length() - 1) if residual else 0
        classes += bytes([1 if residual else 0])
        units += bytes([max(1, before >> 10 & 31) + zeros])
        if residual:
            numbers.append(residual >> zeros)
    zigzag = [(number << 1) ^ (number >> 31) for number in numbers]
    body = b"".join(write_section(bytes(number >> 8 * i & 0xFF for number in zigzag)) for i in range(2))
    data = b"\x00\x01" + write_section(classes) + write_section(units[missing:])
    return make_typed_frame(
        list(codes),
        encode_segment(A, B // 2, start),
        data + bytes([1]) + encode_varint(len(body)) + body,
        TARGET["b"],
    )


EDITING: Final = replace(HEADER, features=("delta", "edit", "lzma", "stream", "typed"))
BYTES_EDITED: Final = list_gaps([0] * A + [byte - 256 if byte > 127 else byte for byte in DIFFERENCE])
RUNS: Final = list_runs(BYTES_EDITED)
HALVES_EDITED: Final = list_gaps(
    [
        order_f16(new) - order_f16(old)
        for new, old in zip(*(struct.unpack(f"<{B // 2}H", side["b"]) for side in (TARGET, BASE)), strict=True)
    ]
)
PENDING_EDIT_BYTES: Final = 16  # bytes of memory that the decoder counts for each pending edit


def make_edit_patch(*frames: bytes, **changes: int) -> bytes:
    """Return a patch whose header declares the feature of EDIT frames."""
    return make_patch(*frames, STREAM_D, header=replace(EDITING, declared_limits=replace(DECLARED_LIMITS, **changes)))


REPEATING: Final = replace(HEADER, features=("delta", "lzma", "repeat", "stream", "typed"))
ORIGIN: Final = A + B + 1  # base address of the target's first byte
HALF: Final = D // 2
STREAM_HALF_D: Final = make_stream_frame(TARGET["d"][:HALF], A + B)


def make_repeat_patch(*frames: bytes, header: Header = REPEATING) -> bytes:
    """Return a patch whose header declares that it reads the target."""
    return make_patch(*frames, header=header)


def make_repeat_of_half_d(flags: int = 0, shape: tuple[int, int] = (0, 0), source: int = ORIGIN + A + B) -> bytes:
    """Return a TYPED frame that creates the second half of file `d` from the first."""
    first, second = TARGET["d"][:HALF], TARGET["d"][HALF:]
    rows, columns = shape
    prediction = first
    if flags:
        prediction = bytes(first[((i % columns) * rows + i // columns) % HALF] for i in range(HALF))
    residual = bytes((new - old) % 256 for new, old in zip(second, prediction, strict=True))
    head = encode_varint(0) + encode_varint(rows) + encode_varint(columns) if flags else b""
    segment = encode_segment(A + B + HALF, HALF, source)
    return make_typed_frame([U8, BASE_, 0, flags], segment, head + make_planes(residual), second)


GOOD: Final = make_patch(COPY_A, DELTA_B, STREAM_D)
HEAD: Final = len(encode_header(HEADER))


def header_with_limits(**changes: int) -> Header:
    """Return the header with other declared limits."""
    return replace(HEADER, declared_limits=replace(DECLARED_LIMITS, **changes))


VECTORS: Final[dict[str, tuple[str | None, Callable[[], bytes]]]] = {
    "good": (None, lambda: GOOD),
    "good-bytes-with-dictionary": (
        None,
        lambda: make_patch(make_bytes_frame([(A, B), (A + B, D)], TARGET["b"] + TARGET["d"], [(A, B)]), COPY_A),
    ),
    "good-frames-ahead-of-the-cursor": (None, lambda: make_patch(BYTES_D, DELTA_B, COPY_A)),
    "good-repeat": (
        None,
        lambda: make_repeat_patch(
            make_copy_frame((0, 0, 256), (0, ORIGIN - 256, 256), (0, -256, 512)), DELTA_B, STREAM_D
        ),
    ),
    "good-repeat-typed": (
        None,
        lambda: make_repeat_patch(COPY_A, DELTA_B, STREAM_HALF_D, make_repeat_of_half_d()),
    ),
    "good-repeat-transposed": (
        None,
        lambda: make_repeat_patch(COPY_A, DELTA_B, STREAM_HALF_D, make_repeat_of_half_d(1, (10, 5))),
    ),
    "repeat-not-named": (
        "patch-range-invalid",
        lambda: make_patch(make_copy_frame((0, 0, 256), (0, ORIGIN - 256, 256))),
    ),
    "repeat-of-what-is-not-written": (
        "patch-range-invalid",
        lambda: make_repeat_patch(make_copy_frame((0, ORIGIN + 256, 256)), COPY_A),
    ),
    "repeat-of-itself": (
        "patch-range-invalid",
        lambda: make_repeat_patch(make_copy_frame((0, 0, 256), (0, ORIGIN - 256, 512))),
    ),
    "repeat-typed-ahead-of-the-cursor": (
        "patch-range-invalid",
        lambda: make_repeat_patch(COPY_A, DELTA_B, make_repeat_of_half_d()),
    ),
    "repeat-transposed-ahead-of-the-cursor": (
        "patch-range-invalid",
        lambda: make_repeat_patch(COPY_A, DELTA_B, STREAM_HALF_D, make_repeat_of_half_d(1, (10, 6))),
    ),
    "repeat-from-between-base-and-target": (
        "patch-range-invalid",
        lambda: make_repeat_patch(COPY_A, DELTA_B, STREAM_HALF_D, make_repeat_of_half_d(source=A + B)),
    ),
    "repeat-across-the-end-of-the-base": (
        "patch-range-invalid",
        lambda: make_repeat_patch(COPY_A, DELTA_B, STREAM_HALF_D, make_repeat_of_half_d(source=A)),
    ),
    "empty-file": ("patch-truncated", lambda: b""),
    "not-a-patch": ("patch-version-unsupported", lambda: b"\x08\x09 ONNX or anything else"),
    "version-2": ("patch-version-unsupported", lambda: make_header(2)),
    "header-checksum": ("patch-corrupt", lambda: make_header(crc_flip=1)),
    "header-longer-than-allowed": ("patch-limit-exceeded", lambda: make_header(plain_length=(1 << 20) + 1)),
    "header-shorter-than-stated": ("patch-corrupt", lambda: make_header(plain_length=3)),
    "header-without-fields": ("patch-corrupt", lambda: make_header()),
    "header-not-json": ("patch-corrupt", lambda: make_header(document=b"{")),
    "unknown-feature": ("patch-feature-unsupported", lambda: make_patch(header=replace(HEADER, features=("quantum",)))),
    "feature-not-named": (
        "patch-feature-unsupported",
        lambda: make_patch(COPY_A, DELTA_B, header=replace(HEADER, features=())),
    ),
    "announces-too-much-pending": (
        "patch-limit-exceeded",
        lambda: make_patch(header=header_with_limits(pending_bytes=(4 << 20) + 1)),
    ),
    "announces-too-large-a-window": (
        "patch-limit-exceeded",
        lambda: make_patch(header=header_with_limits(window_log=24)),
    ),
    "wrong-base": ("wrong-base", lambda: make_patch(header=replace(HEADER, base=make_file_table({"a": b"x"})))),
    "unknown-op": ("patch-corrupt", lambda: encode_header(HEADER) + _raw_frame(99)),
    "frame-checksum": ("patch-corrupt", lambda: flip_bit(GOOD, HEAD + 14)),
    "frame-payload-flipped": ("patch-corrupt", lambda: flip_bit(GOOD, HEAD + 18)),
    "frame-longer-than-announced": (
        "patch-limit-exceeded",
        lambda: encode_header(header_with_limits(payload_bytes=10)) + DELTA_B + END,
    ),
    "end-missing": ("patch-truncated", lambda: GOOD[: -len(END)]),
    "bytes-after-end": ("patch-corrupt", lambda: GOOD + b"\0"),
    "payload-on-end": ("patch-corrupt", lambda: encode_header(HEADER) + encode_frame(Op.END, b"x")),
    "hole-in-the-target": ("patch-range-invalid", lambda: make_patch(COPY_A, DELTA_B)),
    "target-range-twice": ("patch-range-invalid", lambda: make_patch(COPY_A, DELTA_B, DELTA_B)),
    "target-range-overlaps-later": ("patch-range-invalid", lambda: make_patch(DELTA_B, make_copy_frame((0, 0, A + 1)))),
    "target-range-overlaps-earlier": ("patch-range-invalid", lambda: make_patch(make_copy_frame((1, 0, A)), DELTA_B)),
    "target-range-beyond-end": ("patch-range-invalid", lambda: make_patch(make_copy_frame((0, 0, A), (B, -A, D + 1)))),
    "base-range-beyond-end": ("patch-range-invalid", lambda: make_patch(make_copy_frame((0, B + 1, A)))),
    "base-range-before-start": ("patch-range-invalid", lambda: make_patch(make_copy_frame((0, -1, A)))),
    "empty-copy": ("patch-corrupt", lambda: make_patch(make_copy_frame((0, 0, 0)))),
    "copy-table-short": (
        "patch-corrupt",
        lambda: make_patch(make_copy_frame(plain=encode_varint(2) + encode_varint(0))),
    ),
    "copy-table-trailing-byte": ("patch-corrupt", lambda: make_patch(make_copy_frame(plain=encode_varint(0) + b"\0"))),
    "copy-of-too-many-ranges": (
        "patch-limit-exceeded",
        lambda: make_patch(make_copy_frame(plain=encode_varint((1 << 14) + 1))),
    ),
    "number-with-leading-zero": ("patch-corrupt", lambda: make_patch(make_copy_frame(plain=b"\x81\x00\x00\x00\x01"))),
    "number-of-more-than-63-bits": ("patch-corrupt", lambda: make_patch(make_copy_frame(plain=b"\xff" * 9 + b"\x01"))),
    "good-edit": (None, lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED))),
    "good-edit-of-floats": (
        None,
        lambda: make_edit_patch(COPY_A, make_edit_frame(F16, [(A, A, B)], HALVES_EDITED, size=2)),
    ),
    "good-edit-of-two-ranges": (
        None,
        lambda: make_edit_patch(
            encode_frame(
                Op.BYTES,
                write_section(write_target_ranges([(7, 2)]) + encode_varint(0)) + pack_zstd(b"\x07\x08", 19),
                b"\x07\x08",
            ),
            make_edit_frame(
                U8, [(0, 0, 7), (2, 2, A + B - 9)], [(BYTES_EDITED[0][0] - 2, BYTES_EDITED[0][1]), *BYTES_EDITED[1:]]
            ),
        ),
    ),
    "good-edit-of-runs": (None, lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED, runs=RUNS))),
    "edit-of-an-empty-run": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED, runs=[*RUNS, 0])),
    ),
    "edit-of-runs-beyond-announced": (
        "patch-limit-exceeded",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED, runs=[*RUNS[:-1], (1 << 31) - 1])),
    ),
    "edit-not-named": (
        "patch-feature-unsupported",
        lambda: make_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED), STREAM_D),
    ),
    "edit-of-unknown-type": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(12, [(0, 0, A + B)], BYTES_EDITED)),
    ),
    "edit-without-edits": ("patch-corrupt", lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], [], count=0))),
    "edit-of-more-than-announced": (
        "patch-limit-exceeded",
        lambda: make_edit_patch(
            make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED), block_elements=len(BYTES_EDITED) - 1
        ),
    ),
    "edit-waits-beyond-limit": (
        "patch-limit-exceeded",
        lambda: make_edit_patch(
            make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED), pending_bytes=PENDING_EDIT_BYTES * len(BYTES_EDITED) - 1
        ),
    ),
    "edit-of-negative-gap": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], [*BYTES_EDITED[:-1], (-1, BYTES_EDITED[-1][1])])),
    ),
    "edit-beyond-its-ranges": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], [*BYTES_EDITED, (B, 1)])),
    ),
    "edit-of-half-an-element": (
        "patch-corrupt",
        lambda: make_edit_patch(COPY_A, make_edit_frame(F16, [(A, A, B - 1)], HALVES_EDITED, size=2)),
    ),
    "edit-with-a-residual-missing": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED, count=len(BYTES_EDITED) + 1)),
    ),
    "edit-of-an-empty-range": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B), (0, 0, 0)], BYTES_EDITED)),
    ),
    "edit-outside-base": (
        "patch-range-invalid",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 1, A + B)], BYTES_EDITED)),
    ),
    "edit-beyond-target": (
        "patch-range-invalid",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B), (D, -A - B, A)], BYTES_EDITED)),
    ),
    "edit-of-a-range-of-63-bits": (
        "patch-range-invalid",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, (1 << 63) - 1), (0, 0, (1 << 63) - 1)], BYTES_EDITED)),
    ),
    "edit-differs-from-sum": (
        "patch-corrupt",
        lambda: make_edit_patch(make_edit_frame(U8, [(0, 0, A + B)], BYTES_EDITED, content=b"something else")),
    ),
    "decoded-bytes-differ-from-sum": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_bytes_frame([(A, B)], TARGET["b"], [], content=BASE["b"])),
    ),
    "bytes-ranges-longer-than-frame": (
        "patch-limit-exceeded",
        lambda: make_patch(COPY_A, make_bytes_frame([(A, B + 1)], TARGET["b"], [])),
    ),
    "bytes-ranges-shorter-than-frame": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_bytes_frame([(A, B - 1)], TARGET["b"], [])),
    ),
    "bytes-dictionary-outside-base": (
        "patch-range-invalid",
        lambda: make_patch(COPY_A, make_bytes_frame([(A, B)], TARGET["b"], [(A, B + 1)])),
    ),
    "bytes-ahead-of-cursor-beyond-limit": (
        "patch-limit-exceeded",
        lambda: make_patch(BYTES_D, DELTA_B, COPY_A, header=header_with_limits(pending_bytes=D + B - 1)),
    ),
    "bytes-of-one-frame-beyond-limit": (
        "patch-limit-exceeded",
        lambda: make_patch(COPY_A, DELTA_B, header=header_with_limits(pending_bytes=B - 1)),
    ),
    "delta-base-outside": (
        "patch-range-invalid",
        lambda: make_patch(COPY_A, make_delta_frame(A, A + 1, [(B, 0, 0)], DIFFERENCE, b"", TARGET["b"])),
    ),
    "delta-triple-too-long": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_frame(A, A, [(B + 1, 0, 0)], DIFFERENCE, b"", TARGET["b"])),
    ),
    "delta-empty-triple": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_frame(A, A, [(0, 0, 0), (B, 0, 0)], DIFFERENCE, b"", TARGET["b"])),
    ),
    "delta-difference-left-over": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_frame(A, A, [(B - 1, 0, 0)], DIFFERENCE, b"", TARGET["b"])),
    ),
    "delta-bzip2-bomb": ("patch-corrupt", lambda: make_patch(COPY_A, make_bzip2_bomb())),
    "delta-section-beyond-limit": (
        "patch-limit-exceeded",
        lambda: make_patch(COPY_A, make_delta_frame(A, A, [(B, 0, 0)], bytes(B + 1), b"", TARGET["b"])),
    ),
    "delta-section-of-unknown-coder": (
        "patch-corrupt",
        lambda: make_patch(
            COPY_A, encode_frame(Op.DELTA, encode_varint(A) + encode_varint(A) + b"\x09\x00", TARGET["b"])
        ),
    ),
    "stream-not-at-cursor": ("patch-range-invalid", lambda: make_patch(COPY_A, STREAM_D, DELTA_B)),
    "stream-shorter-than-stated": (
        "patch-range-invalid",
        lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(TARGET["d"], A + B, length=D + 1)),
    ),
    "stream-longer-than-stated": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(TARGET["d"], A + B, length=D - 1)),
    ),
    "stream-window-beyond-announced": (
        "patch-limit-exceeded",
        lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(TARGET["d"], A + B, window_log=13)),
    ),
    "stream-without-last-piece": (
        "patch-corrupt",
        lambda: make_patch(
            COPY_A, DELTA_B, encode_frame(Op.STREAM, encode_varint(A + B) + encode_varint(D) + b"\x01\x0c\x00\x00")
        ),
    ),
    "stream-window-too-small": (
        "patch-limit-exceeded",
        lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(TARGET["d"], A + B, window_log=11)),
    ),
    "stream-of-unknown-coder": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(TARGET["d"], A + B, coder=2)),
    ),
    "stream-of-unknown-form": ("patch-corrupt", lambda: make_patch(COPY_A, make_delta_stream_frame(b"", form=2))),
    "stream-of-lzma-damaged": (
        "patch-corrupt",
        lambda: make_patch(
            COPY_A,
            DELTA_B,
            encode_frame(Op.STREAM, encode_varint(A + B) + encode_varint(D) + b"\x03\x0c\x00\x01" + b"\x99" * 20),
        ),
    ),
    "stream-of-lzma-cut": (
        "patch-corrupt",
        lambda: make_patch(
            COPY_A,
            DELTA_B,
            encode_frame(
                Op.STREAM,
                encode_varint(A + B) + encode_varint(D) + b"\x03\x0c\x00\x01" + pack_lzma(TARGET["d"], 12)[:-8],
            ),
        ),
    ),
    "stream-of-lzma-followed-by-bytes": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_stream_frame(encode_triple(B, 0) + DIFFERENCE, rest=b"\0"), STREAM_D),
    ),
    "good-stream-of-lzma": (None, lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(TARGET["d"], A + B, coder=3))),
    "good-stream-of-triples": (
        None,
        lambda: make_patch(
            COPY_A,
            make_delta_stream_frame(
                encode_triple(4, 3, 3)
                + DIFFERENCE[:4]
                + TARGET["b"][4:7]
                + encode_triple(B - 7, 0, -2)
                + DIFFERENCE[7:]
            ),
            STREAM_D,
        ),
    ),
    "stream-of-an-empty-triple": (
        "patch-corrupt",
        lambda: make_patch(
            COPY_A, make_delta_stream_frame(encode_triple(0, 0) + encode_triple(B, 0) + DIFFERENCE), STREAM_D
        ),
    ),
    "stream-of-a-triple-too-long": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_stream_frame(encode_triple(B, 1) + DIFFERENCE + b"x"), STREAM_D),
    ),
    "stream-of-too-many-triples": (
        "patch-limit-exceeded",
        lambda: make_patch(
            make_delta_stream_frame(
                (encode_triple(0, 1) + b"x") * (2 * FREE_TRIPLES), start=0, base=0, length=2 * FREE_TRIPLES
            ),
            header=replace(HEADER, target=make_file_table({"a": b"x" * (2 * FREE_TRIPLES)})),
        ),
    ),
    "stream-of-triples-outside-base": (
        "patch-range-invalid",
        lambda: make_patch(COPY_A, make_delta_stream_frame(encode_triple(B, 0) + DIFFERENCE, base=A + 1), STREAM_D),
    ),
    "stream-of-triples-before-base": (
        "patch-range-invalid",
        lambda: make_patch(
            COPY_A,
            make_delta_stream_frame(
                encode_triple(1, 0, -A - 2) + DIFFERENCE[:1] + encode_triple(B - 1, 0) + DIFFERENCE[1:]
            ),
            STREAM_D,
        ),
    ),
    "stream-of-triples-that-ends-early": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_stream_frame(encode_triple(B, 0) + DIFFERENCE[:-1]), STREAM_D),
    ),
    "stream-of-triples-that-goes-on": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, make_delta_stream_frame(encode_triple(B, 0) + DIFFERENCE + b"\0"), STREAM_D),
    ),
    "section-of-lzma-longer-than-stated": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, _delta_with_extra(make_lzma_section(bytes(1 << 20), B)), STREAM_D),
    ),
    "section-of-lzma-shorter-than-stated": (
        "patch-corrupt",
        lambda: make_patch(COPY_A, _delta_with_extra(make_lzma_section(TARGET["b"][:-1], B)), STREAM_D),
    ),
    "section-of-lzma-damaged": (
        "patch-corrupt",
        lambda: make_patch(
            COPY_A, _delta_with_extra(b"\x03" + encode_varint(B) + encode_varint(20) + b"\x99" * 20), STREAM_D
        ),
    ),
    "section-of-lzma-too-long": (
        "patch-limit-exceeded",
        lambda: make_patch(
            encode_frame(Op.COPY, b"\x03" + encode_varint((1 << 22) + 1) + b"\x01\x00"),
            header=header_with_limits(payload_bytes=5 << 20),
        ),
    ),
    "good-section-of-lzma": (
        None,
        lambda: make_patch(COPY_A, _delta_with_extra(make_lzma_section(TARGET["b"], B)), STREAM_D),
    ),
    "more-without-stream": ("patch-corrupt", lambda: make_patch(COPY_A, DELTA_B, encode_frame(Op.MORE, b"\x01"))),
    "good-typed-base": (None, lambda: make_patch_after_a(TYPED_B)),
    "good-typed-from-nothing": (
        None,
        lambda: make_patch_after_a(make_typed_b([U8, NONE, 0, 0], write_section(TARGET["b"]), encode_segment(A, B))),
    ),
    "good-typed-affine": (
        None,
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, AFFINE, 0, 0],
                struct.pack("<dd", 2.0, 0.0)
                + make_planes(bytes((n - o) % 256 for n, o in zip(TARGET["b"], DOUBLED, strict=True))),
            )
        ),
    ),
    "good-typed-gain": (
        None,
        lambda: make_patch_after_a(
            make_gain_frame([HALF_GAIN]), make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(GAINED))
        ),
    ),
    "good-typed-gain-of-singles": (
        None,
        lambda: make_patch_after_a(
            make_gain_frame([TIE_GAIN]), make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(TIED))
        ),
    ),
    "good-typed-low-rank": (
        None,
        lambda: make_patch_after_a(
            encode_frame(Op.PARAM, b"\0"),
            make_factor_frame(2, [3, 3], 1),
            make_factor_frame(3, [2] * 13, 1, 1),
            make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(LOW_RANK)),
        ),
    ),
    "good-typed-transposed": (
        None,
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 0, 1],
                encode_varint(0)
                + encode_varint(2)
                + encode_varint(13)
                + make_planes(bytes((n - BASE["b"][i % 13 * 2 + i // 13]) % 256 for i, n in enumerate(TARGET["b"]))),
            )
        ),
    ),
    "good-typed-transposed-in-segments": (None, lambda: make_patch_after_a(make_transposed_in_segments())),
    "good-typed-transposed-from-its-second-row": (
        None,
        lambda: make_patch_after_a(make_transposed_in_segments(first=13, rows=3, start=A - 13)),
    ),
    "good-typed-keyed-by-place": (
        None,
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 2, 8],
                b"\x00\x20"
                + write_section(b"\x01")
                + b"\x01\x03"
                + write_section(b"\x00\x02\xff")
                + make_byte_part(DIFFERENCE),
            )
        ),
    ),
    "good-typed-keyed-in-two-parts": (
        None,
        lambda: make_patch_after_a(make_keyed_in_two_parts(16)),
    ),
    "good-typed-keyed-by-rows": (
        None,
        lambda: make_patch_after_a(make_keyed_in_two_parts(13)),
    ),
    "good-typed-keyed-in-units": (None, lambda: make_patch_after_a(make_frame_in_units())),
    "typed-units-missing": ("patch-corrupt", lambda: make_patch_after_a(make_frame_in_units(missing=1))),
    "typed-units-of-integers": ("patch-corrupt", lambda: make_patch_after_a(make_frame_in_units((U16, BASE_, 2, 16)))),
    "typed-units-without-prediction": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_frame_in_units((F16, NONE, 2, 16))),
    ),
    "typed-pattern-empty": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 2, 8],
                b"\x00\x20" + write_section(b"\x01") + b"\x01\x00" + write_section(b"") + make_byte_part(DIFFERENCE),
            )
        ),
    ),
    "typed-pattern-of-zero-elements": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 2, 8],
                b"\x00\x20"
                + write_section(b"\x01")
                + b"\x00\x00"
                + write_section(b"\x00")
                + make_byte_part(DIFFERENCE),
            )
        ),
    ),
    "typed-exponent-of-integers": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b([U8, BASE_, 2, 4], b"\x00\x20" + write_section(b"\x01") + make_byte_part(DIFFERENCE)),
        ),
    ),
    "typed-feature-not-named": (
        "patch-feature-unsupported",
        lambda: make_patch(COPY_A, TYPED_B, header=replace(HEADER, features=("stream",))),
    ),
    "typed-unknown-type": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([12, BASE_, 0, 0], make_planes(DIFFERENCE))),
    ),
    "typed-unknown-predictor": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, 4, 0, 0], make_planes(DIFFERENCE))),
    ),
    "typed-unknown-coder": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 3, 0], make_planes(DIFFERENCE))),
    ),
    "typed-unknown-flag": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 0, 16], make_planes(DIFFERENCE))),
    ),
    "typed-near-without-arithmetic": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 0, 2], make_planes(DIFFERENCE))),
    ),
    "typed-trailing-byte": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 0, 0], make_planes(DIFFERENCE) + b"\0")),
    ),
    "typed-segments-longer-than-frame": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b([U8, BASE_, 0, 0], make_planes(DIFFERENCE), encode_segment(A, B + 1, A))
        ),
    ),
    "typed-segments-shorter-than-frame": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b([U8, BASE_, 0, 0], make_planes(DIFFERENCE), encode_segment(A, B - 1, A))
        ),
    ),
    "typed-base-outside": (
        "patch-range-invalid",
        lambda: make_patch_after_a(
            make_typed_b([U8, BASE_, 0, 0], make_planes(DIFFERENCE), encode_segment(A, B, A + 1))
        ),
    ),
    "typed-block-beyond-announced": (
        "patch-limit-exceeded",
        lambda: make_patch(COPY_A, TYPED_B, STREAM_D, header=header_with_limits(block_elements=B - 1)),
    ),
    "typed-not-whole-elements": (
        "patch-limit-exceeded",
        lambda: make_patch_after_a(
            make_typed_frame([0, BASE_, 0, 0], encode_segment(A, 6, A), make_planes(DIFFERENCE), TARGET["b"][:25])
        ),
    ),
    "typed-plane-of-another-length": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 0, 0], make_planes(DIFFERENCE[:-1]))),
    ),
    "typed-part-of-unknown-coder": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 1, 0], b"\x02\x00")),
    ),
    "typed-keyed-sub-block-too-large": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b([U8, BASE_, 2, 0], b"\x00" + encode_varint((1 << 30) + 1) + write_section(b"\x01"))
        ),
    ),
    "typed-keyed-sub-block-of-nothing": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 2, 0], b"\x00\x00" + write_section(b"\x01"))),
    ),
    "typed-keyed-classes-missing": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 2, 0], b"\x00\x08" + write_section(b"\x01"))),
    ),
    "typed-keyed-part-missing": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b([U8, BASE_, 2, 0], b"\x00\x20" + write_section(b"\x01") + make_byte_part(DIFFERENCE[:20]))
        ),
    ),
    "typed-keyed-part-empty": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 2, 0],
                b"\x00\x20" + write_section(b"\x01") + make_byte_part(b"") + make_byte_part(DIFFERENCE),
            )
        ),
    ),
    "typed-keyed-part-longer-than-left": (
        "patch-limit-exceeded",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 2, 0],
                b"\x00\x20"
                + write_section(b"\x01")
                + make_byte_part(DIFFERENCE[:20])
                + make_byte_part(DIFFERENCE[19:]),
            )
        ),
    ),
    "typed-keyed-part-after-the-last": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 2, 0],
                b"\x00\x20" + write_section(b"\x01") + make_byte_part(DIFFERENCE) + make_byte_part(b"\0"),
            )
        ),
    ),
    "typed-pcodec-damaged": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_typed_b([U8, BASE_, 1, 0], b"\x00\x04pco!")),
    ),
    "typed-rows-beyond-left-factor": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_factor_frame(2, [3], 1),
            make_factor_frame(3, [2] * 13, 1, 1),
            make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(LOW_RANK)),
        ),
    ),
    "typed-one-factor-only": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_factor_frame(2, [3, 3], 1), make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(LOW_RANK))
        ),
    ),
    "typed-transposed-of-zero-rows": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 0, 1], encode_varint(0) + encode_varint(0) + encode_varint(13) + make_planes(DIFFERENCE)
            )
        ),
    ),
    "typed-transposed-of-two-ranges": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_transposed_in_segments(second=encode_signed_varint(0))),
    ),
    "typed-transposed-without-rows-enough": (
        "patch-corrupt",
        lambda: make_patch_after_a(make_transposed_in_segments(first=14)),
    ),
    "typed-transposed-outside-base": (
        "patch-range-invalid",
        lambda: make_patch_after_a(
            make_typed_b(
                [U8, BASE_, 0, 1], encode_varint(0) + encode_varint(3) + encode_varint(13) + make_planes(DIFFERENCE)
            )
        ),
    ),
    "param-unknown-kind": ("patch-corrupt", lambda: make_patch_after_a(encode_frame(Op.PARAM, b"\x04"))),
    "param-beyond-announced": ("patch-limit-exceeded", lambda: make_patch_after_a(make_gain_frame([0], count=33))),
    "param-empty-gain": ("patch-corrupt", lambda: make_patch_after_a(make_gain_frame([], count=0))),
    "param-gain-not-finite": ("patch-corrupt", lambda: make_patch_after_a(make_gain_frame([0x7F800000 - 0x3F800000]))),
    "param-numbers-missing": ("patch-corrupt", lambda: make_patch_after_a(make_gain_frame([0], count=2))),
    "param-rank-zero": (
        "patch-corrupt",
        lambda: make_patch_after_a(encode_frame(Op.PARAM, b"\x03" + encode_varint(4) + encode_varint(0))),
    ),
    "param-shift-too-large": ("patch-corrupt", lambda: make_patch_after_a(make_factor_frame(3, [1], 1, 257))),
    "param-ranks-differ": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_factor_frame(2, [1] * 4, 2),
            make_factor_frame(3, [1] * 13, 1),
            make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(LOW_RANK)),
        ),
    ),
    "param-product-not-exact": (
        "patch-corrupt",
        lambda: make_patch_after_a(
            make_factor_frame(2, [1 << 27] * 2, 1),
            make_factor_frame(3, [1 << 27] * 13, 1),
            make_typed_b([U8, PARAM, 0, 0], encode_varint(0) + make_planes(LOW_RANK)),
        ),
    ),
    "file-digest": (
        "patch-target-mismatch",
        lambda: make_patch(COPY_A, DELTA_B, make_stream_frame(b"ADDED" * 20, A + B)),
    ),
}


def _delta_with_extra(section: bytes) -> bytes:
    """Return a DELTA frame with extra bytes only."""
    control = encode_varint(0) + encode_varint(B) + encode_signed_varint(0)
    body = encode_varint(A) + encode_varint(A) + write_section(control) + write_section(b"") + section
    return encode_frame(Op.DELTA, body, TARGET["b"])


def _raw_frame(op: int) -> bytes:
    """Return an empty frame with any operation code."""
    head = struct.pack("<BIII", op, 0, 0, 0)
    return head + struct.pack("<I", zlib.crc32(head))


def main() -> None:
    """Write all patches, both bundles and expected.json."""
    expected = {}
    for name, (reason, build) in VECTORS.items():
        (FOLDER / f"{name}.patch").write_bytes(build())
        expected[name] = reason
    for name, files in (("base", BASE), ("target", TARGET)):
        for path, data in files.items():
            place = FOLDER / name / path
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(data)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
