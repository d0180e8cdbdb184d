"""Sections: runs of bytes inside a payload, compressed or not (docs/format.md section 9.3).

Layout: coder (1 byte), uncompressed length (varint); then, for coder 0, the bytes; else the stored length (varint) and
the stored bytes.
Coders: 0 stored, 1 zstd (one frame, RFC 8878), 2 bzip2 (one stream), 3 LZMA (one raw LZMA2 stream; its dictionary is
the smallest power of two from 2^12 on that is not below the uncompressed length).

Rules:
1. The uncompressed length is compared with the caller's limit before anything is allocated.
2. A section of LZMA is at most `MAX_LZMA_BYTES` uncompressed, since its dictionary needs as much memory again.
3. Decompressing yields exactly the uncompressed length, or the section is refused: a bomb costs its stated length at
   most.
"""

import bz2
from typing import Final

from bundle.errors import PatchCorrupt, PatchFeatureUnsupported, PatchLimitExceeded
from bundle.patch.numbers import Cursor, encode_varint
from bundle.zstd import CompressionParameter, ZstdError, decompress_exactly, stated_size, zstd

STORED: Final = 0
ZSTD: Final = 1
BZIP2: Final = 2
LZMA: Final = 3

MAX_LZMA_BYTES: Final = 1 << 22
LZMA2_FILTER: Final = 0x21  # its id in the .xz format
# Context bits of literals and positions: the preset's own, for text, for 32-bit words.
LZMA_CONTEXTS: Final[tuple[dict[str, int], ...]] = ({}, {"lc": 4, "pb": 0}, {"lc": 0, "lp": 2})

MIN_DICTIONARY_BYTES: Final = 8  # zstd ignores shorter raw dictionaries


def read_section(cursor: Cursor, limit: int, what: str) -> bytes | memoryview:
    """Decompress the section at the cursor.

    Args:
        cursor: positioned at the section.
        limit: maximum uncompressed size of the section, in bytes.
        what: its name in errors.

    Raises:
        PatchLimitExceeded: the section is larger.
        PatchCorrupt: it is damaged, or has another length than stated.
        PatchFeatureUnsupported: this Python has no LZMA.
    """
    coder = cursor.read_byte()
    length = cursor.read_varint()
    if length > limit:
        raise PatchLimitExceeded(f"{cursor.where}: {what} is {length} bytes uncompressed, at most {limit} are allowed")
    if coder == STORED:
        return cursor.take(length)
    stored = cursor.take(cursor.read_varint())
    if coder == ZSTD:
        return unpack_zstd(stored, length, f"{cursor.where}: {what}")
    if coder == BZIP2:
        return unpack_bzip2(stored, length, f"{cursor.where}: {what}")
    if coder == LZMA:
        if length > MAX_LZMA_BYTES:
            raise PatchLimitExceeded(
                f"{cursor.where}: {what} of LZMA is {length} bytes, at most {MAX_LZMA_BYTES} are allowed"
            )
        return unpack_lzma(stored, length, f"{cursor.where}: {what}")
    raise PatchCorrupt(f"{cursor.where}: {what} has coder {coder}, expected 0 to 3")


def write_section(data: bytes, level: int = 19, *, can_use_bzip2: bool = False, can_use_lzma: bool = False) -> bytes:
    """Return the smallest section that decodes to `data`.

    Args:
        data: uncompressed bytes.
        level: zstd compression level.
        can_use_bzip2: try bzip2 too.
        can_use_lzma: try LZMA too; the patch then needs the feature "lzma".
    """
    choices = [bytes([STORED]) + encode_varint(len(data)) + data]
    if data:
        packed = {ZSTD: pack_zstd(data, level)}
        if can_use_bzip2:
            packed[BZIP2] = bz2.compress(data)
        if can_use_lzma and len(data) <= MAX_LZMA_BYTES:
            packed[LZMA] = pack_lzma(data, lzma_window_log(len(data)))
        choices += [
            bytes([k]) + encode_varint(len(data)) + encode_varint(len(part)) + part for k, part in packed.items()
        ]
    return min(choices, key=len)


def unpack_zstd(stored: bytes | memoryview, expected_bytes: int, where: str, dictionary: bytes = b"") -> bytes:
    """Decompress exactly `expected_bytes` bytes from one zstd frame.

    Args:
        stored: the frame.
        expected_bytes: uncompressed length.
        where: name in errors.
        dictionary: raw content dictionary; shorter ones than `MIN_DICTIONARY_BYTES` are ignored.

    Raises:
        PatchCorrupt: the frame is damaged, has another length, or bytes follow it.
    """
    if expected_bytes == 0:
        if len(stored):
            raise PatchCorrupt(f"{where}: {len(stored)} bytes stored for an empty section")
        return b""
    try:
        stated = stated_size(stored)
        if stated not in (None, expected_bytes):
            raise PatchCorrupt(f"{where}: zstd frame states {stated} bytes, expected {expected_bytes}")
        usable = dictionary if len(dictionary) >= MIN_DICTIONARY_BYTES else b""
        data = decompress_exactly(stored, expected_bytes, usable)
    except ZstdError as error:
        raise PatchCorrupt(f"{where}: {error}") from error
    if len(data) != expected_bytes:
        raise PatchCorrupt(f"{where}: decompressed to {len(data)} bytes, expected {expected_bytes}")
    return data


def pack_zstd(data: bytes | memoryview, level: int) -> bytes:
    """Compress to one zstd frame without checksum and content size; section and frame store these.

    Args:
        data: uncompressed bytes.
        level: zstd compression level.
    """
    if len(data) == 0:
        return b""
    window_log = max(10, (len(data) - 1).bit_length())
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: min(window_log, 27),
        CompressionParameter.content_size_flag: 0,
        CompressionParameter.checksum_flag: 0,
        CompressionParameter.dict_id_flag: 0,
    }
    return zstd.compress(data, options=options)


def unpack_bzip2(stored: bytes | memoryview, expected_bytes: int, where: str) -> bytes:
    """Decompress exactly `expected_bytes` bytes from one bzip2 stream.

    Args:
        stored: the stream.
        expected_bytes: uncompressed length.
        where: name in errors.

    Raises:
        PatchCorrupt: the stream is damaged, has another length, or bytes follow it.
    """
    decoder = bz2.BZ2Decompressor()
    out = bytearray()
    feed = bytes(stored)
    try:
        while not decoder.eof and len(out) <= expected_bytes:
            # Ask for one byte more than expected: if it arrives, the stream is too long.
            piece = decoder.decompress(feed, max_length=expected_bytes + 1 - len(out))
            feed = b""
            out += piece
            if not piece and decoder.needs_input:
                break
    except (OSError, ValueError) as error:
        raise PatchCorrupt(f"{where}: {error}") from error
    if len(out) != expected_bytes or not decoder.eof or decoder.unused_data:
        raise PatchCorrupt(f"{where}: bzip2 stream is damaged or not {expected_bytes} bytes long")
    return bytes(out)


def unpack_lzma(stored: bytes | memoryview, expected_bytes: int, where: str) -> bytes:
    """Decompress exactly `expected_bytes` bytes from one raw LZMA2 stream.

    Args:
        stored: the stream.
        expected_bytes: uncompressed length.
        where: name in errors.

    Raises:
        PatchCorrupt: the stream is damaged, has another length, or bytes follow it.
        PatchFeatureUnsupported: this Python has no LZMA.
    """
    try:
        import lzma
    except ImportError as error:
        raise PatchFeatureUnsupported("patch needs the decoder feature 'lzma', which this Python lacks") from error
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(lzma_window_log(expected_bytes)))
    out = bytearray()
    feed = bytes(stored)
    try:
        while not decoder.eof and len(out) <= expected_bytes:
            # Ask for one byte more than expected: if it arrives, the stream is too long.
            piece = decoder.decompress(feed, max_length=expected_bytes + 1 - len(out))
            feed = b""
            out += piece
            if not piece and decoder.needs_input:
                break
    except lzma.LZMAError as error:
        raise PatchCorrupt(f"{where}: {error}") from error
    if len(out) != expected_bytes or not decoder.eof or decoder.unused_data:
        raise PatchCorrupt(f"{where}: LZMA stream is damaged or not {expected_bytes} bytes long")
    return bytes(out)


def pack_lzma(data: bytes, window_log: int) -> bytes:
    """Compress to one raw LZMA2 stream, trying several context settings, which the stream states.

    Args:
        data: uncompressed bytes.
        window_log: base-two logarithm of the dictionary.
    """
    import lzma

    ways = LZMA_CONTEXTS if len(data) <= MAX_LZMA_BYTES else LZMA_CONTEXTS[:1]
    (filters,) = lzma_filters(window_log, preset=9 | lzma.PRESET_EXTREME)
    return min((lzma.compress(data, lzma.FORMAT_RAW, filters=[{**filters, **way}]) for way in ways), key=len)


def lzma_window_log(length: int) -> int:
    """Return the base-two logarithm of the dictionary of a section of `length` bytes."""
    return max(12, (length - 1).bit_length())


def lzma_filters(window_log: int, preset: int | None = None) -> list[dict[str, int]]:
    """Return the filter chain for Python's lzma module.

    Args:
        window_log: base-two logarithm of the dictionary.
        preset: LZMA preset for compression; None to decompress.
    """
    filters = {"id": LZMA2_FILTER, "dict_size": 1 << window_log}
    return [filters if preset is None else {**filters, "preset": preset}]
