"""A section: a run of bytes inside a payload, packed or not; its plain length is known, and bounded, before unpacking.

Layout: coder (1 byte), plain length (varint), then for coder 0 the bytes; else stored length (varint) and that many.
Coders: 0 stored, 1 zstd (one frame, RFC 8878), 2 bzip2 (one stream), 3 LZMA (one raw LZMA2 stream, whose dictionary is
the smallest power of two from 2^12 on that is not below the plain length).

Rules:
1. The plain length is compared with the caller's limit before anything is allocated.
2. A section of LZMA is at most `MAX_LZMA_BYTES`, since its dictionary is as large again.
3. Unpacking yields exactly the plain length, or the section is refused: a bomb costs its stated length at most.
"""

import bz2
from typing import Final

import zstandard

from bundle.errors import PatchCorrupt, PatchFeatureUnsupported, PatchLimitExceeded
from bundle.patch.numbers import Cursor, encode_varint

STORED: Final = 0
ZSTD: Final = 1
BZIP2: Final = 2
LZMA: Final = 3

MAX_LZMA_BYTES: Final = 1 << 22
LZMA2_FILTER: Final = 0x21  # its id in the .xz format
# of its literals and positions: the preset's own, for text, for words of 32 bits
LZMA_CONTEXTS: Final[tuple[dict[str, int], ...]] = ({}, {"lc": 4, "pb": 0}, {"lc": 0, "lp": 2})

MIN_DICTIONARY_BYTES: Final = 8  # zstd takes shorter raw dictionaries for none at all


def read_section(cursor: Cursor, limit: int, what: str) -> bytes | memoryview:
    """Unpack the section at the cursor.

    Args:
        limit: bytes, the most that the plain section may be.
        what: its name in an error.

    Raises:
        PatchLimitRefused, PatchCorruptRefused.
    """
    coder = cursor.read_byte()
    plain = cursor.read_varint()
    if plain > limit:
        raise PatchLimitExceeded(f"{cursor.where}: {what} is {plain} bytes unpacked, at most {limit} are allowed")
    if coder == STORED:
        return cursor.take(plain)
    stored = cursor.take(cursor.read_varint())
    if coder == ZSTD:
        return unpack_zstd(stored, plain, f"{cursor.where}: {what}")
    if coder == BZIP2:
        return unpack_bzip2(stored, plain, f"{cursor.where}: {what}")
    if coder == LZMA:
        if plain > MAX_LZMA_BYTES:
            raise PatchLimitExceeded(f"{cursor.where}: {what} of LZMA is {plain} bytes, at most {MAX_LZMA_BYTES} are")
        return unpack_lzma(stored, plain, f"{cursor.where}: {what}")
    raise PatchCorrupt(f"{cursor.where}: {what} has coder {coder}, expected 0 to 3")


def write_section(data: bytes, level: int = 19, *, can_use_bzip2: bool = False, can_use_lzma: bool = False) -> bytes:
    """The smallest section that holds `data`."""
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
    """Exactly `plain` bytes from one zstd frame, with raw content `dictionary` if there is one.

    Raises:
        PatchCorruptRefused: another length, a damaged frame, bytes after it.
    """
    if expected_bytes == 0:
        if len(stored):
            raise PatchCorrupt(f"{where}: {len(stored)} bytes stored for an empty section")
        return b""
    try:
        stated = zstandard.get_frame_parameters(stored).content_size
        # A frame that states its size makes the library allocate that, whatever max_output_size says.
        if stated not in (zstandard.CONTENTSIZE_UNKNOWN, expected_bytes):
            raise PatchCorrupt(f"{where}: zstd frame states {stated} bytes, expected {expected_bytes}")
        data = _decompressor(dictionary).decompress(stored, max_output_size=expected_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PatchCorrupt(f"{where}: {error}") from error
    if len(data) != expected_bytes:
        raise PatchCorrupt(f"{where}: unpacked to {len(data)} bytes, expected {expected_bytes}")
    return data


def pack_zstd(data: bytes | memoryview, level: int) -> bytes:
    """One zstd frame without checksum and content size: the section knows its length, the frame has its CRC."""
    if len(data) == 0:
        return b""
    window_log = max(10, (len(data) - 1).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(data),
        window_log=min(window_log, 27),
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def unpack_bzip2(stored: bytes | memoryview, expected_bytes: int, where: str) -> bytes:
    """Exactly `plain` bytes from one bzip2 stream. Raises PatchCorruptRefused."""
    decoder = bz2.BZ2Decompressor()
    out = bytearray()
    feed = bytes(stored)
    try:
        while not decoder.eof and len(out) <= expected_bytes:
            # One byte more than expected tells a stream that is too long from one that fits.
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
    """Exactly `plain` bytes from one raw LZMA2 stream. Raises PatchCorruptRefused, PatchFeatureRefused."""
    try:
        import lzma
    except ImportError as error:
        raise PatchFeatureUnsupported("patch needs the decoder feature 'lzma', which this Python lacks") from error
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(lzma_window_log(expected_bytes)))
    out = bytearray()
    feed = bytes(stored)
    try:
        while not decoder.eof and len(out) <= expected_bytes:
            # One byte more than expected tells a stream that is too long from one that fits.
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
    """One raw LZMA2 stream, which says itself which contexts it was packed with; the smallest of several."""
    import lzma

    ways = LZMA_CONTEXTS if len(data) <= MAX_LZMA_BYTES else LZMA_CONTEXTS[:1]
    (filters,) = lzma_filters(window_log, preset=9 | lzma.PRESET_EXTREME)
    return min((lzma.compress(data, lzma.FORMAT_RAW, filters=[{**filters, **way}]) for way in ways), key=len)


def lzma_window_log(length: int) -> int:
    """Base-two logarithm of a section's dictionary."""
    return max(12, (length - 1).bit_length())


def lzma_filters(window_log: int, preset: int | None = None) -> list[dict[str, int]]:
    """For Python's lzma module; a preset is for packing."""
    filters = {"id": LZMA2_FILTER, "dict_size": 1 << window_log}
    return [filters if preset is None else {**filters, "preset": preset}]


def _decompressor(dictionary: bytes) -> zstandard.ZstdDecompressor:
    if len(dictionary) < MIN_DICTIONARY_BYTES:
        return zstandard.ZstdDecompressor()
    raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=raw)
