"""Archives: several small files of a repository in one file, and single compressed documents.

An archive is a copy of files that the repository also serves one by one. A reader trusts nothing in it: each member is
verified as if it had been downloaded alone, and a reader that cannot use an archive downloads the single files.

Rules (docs/format.md section 17; big-endian):
- A compressed document is one zstd frame of the packed document. The frame states its content size. Bytes after it are
  ignored.
- Packing stores each run of at least 32 hexadecimal digits as bytes, because digits of signatures do not compress to
  half their length: u32 number of rows n ‖ n rows of (u16 length of the text before the run, u16 bytes of the run) ‖
  all text ‖ all runs.
- An archive is the compressed document of the magic "AWARCH01", then for each member: u16 length of its path, the path,
  u32 length of its content, the content. The paths are those below the repository's URL, sorted, each at most once.
- A reader stops at its limits: the stored bytes, the decompressed bytes, the window (2^21 bytes), the members.
"""

import re
import struct
from collections.abc import Mapping
from typing import Final

from bundle.errors import ArchiveMalformed, ArchiveTooLarge, ArchiveTruncated
from bundle.files import MAX_PATH_CHARACTERS, PATH_PATTERN
from bundle.zstd import CompressionParameter, ZstdError, make_decompressor, stated_size, zstd

MAGIC: Final = b"AWARCH01"
LEVEL: Final = 19  # 60 ms for the largest archive; the signatures in it do not compress better with more
WINDOW_LOG: Final = 21
MIN_FRAME_BYTES: Final = 18  # the longest header of a zstd frame
MAX_MEMBERS: Final = 2048
MAX_ARCHIVE_BYTES: Final = 1024 * 1024  # as stored
MAX_CONTENT_BYTES: Final = 4 * 1024 * 1024
MAX_ROOTS_BYTES: Final = 4 * 1024 * 1024  # as stored; a hybrid root is 33 kB, and 10 kB beside other roots
MAX_ROOTS_CONTENT_BYTES: Final = 16 * 1024 * 1024
HEX_RUN_PATTERN: Final = re.compile(rb"(?:[0-9a-f]{2}){16,65535}")
MAX_PACKING_BYTES: Final = 1024
MAX_ROW_BYTES: Final = 0xFFFF
_ROW_COUNT: Final = struct.Struct(">I")
_ROW: Final = struct.Struct(">HH")
_PATH_LENGTH: Final = struct.Struct(">H")
_CONTENT_LENGTH: Final = struct.Struct(">I")


def compress_document(data: bytes) -> bytes:
    """Return a compressed document."""
    return _compress(_pack(data))


def decompress_document(stored: bytes, max_bytes: int) -> bytes:
    """Return the document in a compressed document.

    Args:
        stored: the compressed document.
        max_bytes: limit on the document.

    Raises:
        ArchiveMalformed: the bytes are not a zstd frame with its size, or need a larger window.
        ArchiveTooLarge: the document is longer than `max_bytes`.
        ArchiveTruncated: the frame ends early.
    """
    # packed is shorter than plain, but for its rows
    return _unpack(_decompress(stored, max_bytes + MAX_PACKING_BYTES), max_bytes)


def encode_archive(members: Mapping[str, bytes]) -> bytes:
    """Return an archive of files: path below the repository's URL → content."""
    parts = [MAGIC]
    for path, content in sorted(members.items()):
        name = path.encode()
        parts += [_PATH_LENGTH.pack(len(name)), name, _CONTENT_LENGTH.pack(len(content)), content]
    return compress_document(b"".join(parts))


def decode_archive(stored: bytes, max_content_bytes: int = MAX_CONTENT_BYTES) -> dict[str, bytes]:
    """Return the members of an archive: path → content.

    Args:
        stored: the archive.
        max_content_bytes: limit on the decompressed bytes.

    Raises:
        ArchiveMalformed: the bytes are not an archive, or a path is not relative, out of order or repeated.
        ArchiveTooLarge: it has more decompressed bytes or members than allowed.
        ArchiveTruncated: it ends within a frame or a member.
    """
    plain = memoryview(decompress_document(stored, max_content_bytes))
    magic = bytes(plain[: len(MAGIC)])
    if magic != MAGIC:
        raise ArchiveMalformed(f"archive: found {magic!r}, expected {MAGIC!r}")
    members: dict[str, bytes] = {}
    before, position = "", len(MAGIC)
    while position < len(plain):
        name, position = _take(plain, position, _PATH_LENGTH)
        content, position = _take(plain, position, _CONTENT_LENGTH)
        try:
            path = name.decode("ascii")
        except UnicodeDecodeError as error:
            raise ArchiveMalformed(f"archive: path {name[:80]!r} is not ASCII") from error
        if not PATH_PATTERN.fullmatch(path) or len(path) > MAX_PATH_CHARACTERS or path <= before:
            raise ArchiveMalformed(f"archive: path {path[:80]!r} after {before[:80]!r}, expected sorted relative ones")
        if len(members) == MAX_MEMBERS:
            raise ArchiveTooLarge(f"archive: more than {MAX_MEMBERS} members")
        members[path] = content
        before = path
    return members


def _take(plain: memoryview, position: int, length: struct.Struct) -> tuple[bytes, int]:
    start = position + length.size
    if start > len(plain):
        raise ArchiveTruncated(f"archive: ends at byte {len(plain)}, within a length")
    end = start + int(length.unpack_from(plain, position)[0])
    if end > len(plain):
        raise ArchiveTruncated(f"archive: ends at byte {len(plain)}, a member ends at {end}")
    return bytes(plain[start:end]), end


def _pack(data: bytes) -> bytes:
    rows, texts, runs = [], [], []
    position = 0
    for run in HEX_RUN_PATTERN.finditer(data):
        text = data[position : run.start()]
        while len(text) > MAX_ROW_BYTES:
            rows.append(_ROW.pack(MAX_ROW_BYTES, 0))
            texts.append(text[:MAX_ROW_BYTES])
            text = text[MAX_ROW_BYTES:]
        texts.append(text)
        runs.append(bytes.fromhex(run.group().decode()))
        rows.append(_ROW.pack(len(text), len(runs[-1])))
        position = run.end()
    return b"".join([_ROW_COUNT.pack(len(rows)), *rows, *texts, data[position:], *runs])


def _unpack(packed: bytes, max_bytes: int) -> bytes:
    """Return the text with its runs as digits.

    Raises:
        ArchiveMalformed: the rows do not fit the text and the runs.
        ArchiveTooLarge: it is longer than `max_bytes`.
        ArchiveTruncated: it ends within its rows.
    """
    if len(packed) < _ROW_COUNT.size:
        raise ArchiveTruncated(f"archive: found {len(packed)} bytes, expected the number of its rows")
    text_start = _ROW_COUNT.size + _ROW.size * int(_ROW_COUNT.unpack_from(packed)[0])
    if text_start > len(packed):
        raise ArchiveTruncated(f"archive: ends at byte {len(packed)}, its rows end at {text_start}")
    rows = list(_ROW.iter_unpack(packed[_ROW_COUNT.size : text_start]))
    text_bytes, run_bytes = sum(row[0] for row in rows), sum(row[1] for row in rows)
    rest = len(packed) - text_start - text_bytes - run_bytes  # text after the last run
    if rest < 0:
        raise ArchiveMalformed(f"archive: {-rest} bytes less than its rows say")
    if text_bytes + 2 * run_bytes + rest > max_bytes:
        raise ArchiveTooLarge(f"archive: more than the allowed {max_bytes} bytes when unpacked")
    text, run = text_start, len(packed) - run_bytes
    parts = []
    for text_length, run_length in rows:
        parts += [packed[text : text + text_length], packed[run : run + run_length].hex().encode()]
        text, run = text + text_length, run + run_length
    return b"".join([*parts, packed[text : text + rest]])


def _compress(data: bytes) -> bytes:
    options: dict[int, int] = {
        CompressionParameter.compression_level: LEVEL,
        CompressionParameter.window_log: WINDOW_LOG,
        CompressionParameter.enable_long_distance_matching: int(len(data) > 1 << 20),
    }
    return zstd.compress(data, options=options)


def _decompress(stored: bytes, max_bytes: int) -> bytes:
    try:
        stated = stated_size(stored)
        if stated is None:
            raise ArchiveMalformed("archive: its zstd frame does not state its content size")
        if stated > max_bytes:
            raise ArchiveTooLarge(f"archive: {stated} bytes when decompressed, at most {max_bytes} are allowed")
        decompressor = make_decompressor(WINDOW_LOG)
        plain = decompressor.decompress(stored, max_length=stated + 1)  # bounded, whatever the frame contains
    except ZstdError as error:
        if len(stored) < MIN_FRAME_BYTES:
            raise ArchiveTruncated(f"archive: ends after {len(stored)} bytes") from error
        raise ArchiveMalformed("archive: not a zstd frame, or one with a larger window") from error
    if len(plain) < stated:
        raise ArchiveTruncated(f"archive: ends within its zstd frame, after {len(plain)} of {stated} bytes")
    if len(plain) > stated:
        raise ArchiveMalformed(f"archive: its zstd frame has more than the stated {stated} bytes")
    return bytes(plain)
