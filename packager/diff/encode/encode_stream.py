"""Encodes bytes that no base helps with: a STREAM frame and its MORE frames (bundle/patch/stream.py)."""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import zstandard

from bundle.patch.container import Op, encode_frame
from bundle.patch.numbers import encode_varint
from bundle.patch.sections import LZMA, ZSTD, pack_lzma
from bundle.patch.stream import FORM_DELTA, FORM_TARGET, MIN_WINDOW_LOG

ZSTD_LEVEL: Final = 19
PIECE_BYTES: Final = 1 << 18
MAX_WINDOW_LOG: Final = 23  # what zstd -19 itself uses for large input; 8 MiB on the device


def choose_window_log(length: int) -> int:
    """The window that a stream of `length` bytes needs."""
    return max(MIN_WINDOW_LOG, min(MAX_WINDOW_LOG, (length - 1).bit_length()))


def encode_stream_frames(chunks: Iterable[bytes], start: int, length: int, level: int = ZSTD_LEVEL) -> Iterator[bytes]:
    """Frames of one stream.

    Args:
        chunks: its content.
        start: target address of its first byte.
        length: bytes in all, above zero.
    """
    window_log = choose_window_log(length)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=length, window_log=window_log, write_content_size=False, write_checksum=False
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    yield from _compress_pieces(
        packer, chunks, encode_varint(start) + encode_varint(length) + bytes([ZSTD, window_log, FORM_TARGET])
    )


def encode_lzma_frames(data: bytes, start: int) -> Iterator[bytes]:
    """Frames of one stream that is packed by LZMA; slow, and smaller than zstd on text and programs."""
    window_log = choose_window_log(len(data))
    head = encode_varint(start) + encode_varint(len(data)) + bytes([LZMA, window_log, FORM_TARGET])
    yield from _compress_pieces(None, [pack_lzma(data, window_log)], head)


def encode_delta_stream_frames(content: bytes, base_start: int, start: int, length: int) -> Iterator[bytes]:
    """Frames of one stream in the form DELTA, packed by LZMA.

    Args:
        content: the triples with their bytes.
        length: target bytes that they make.
    """
    window_log = choose_window_log(len(content))
    head = (
        encode_varint(start) + encode_varint(length) + bytes([LZMA, window_log, FORM_DELTA]) + encode_varint(base_start)
    )
    yield from _compress_pieces(None, [pack_lzma(content, window_log)], head)


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compress_pieces(packer: _Packer | None, chunks: Iterable[bytes], head: bytes) -> Iterator[bytes]:
    stored = bytearray()
    op = Op.STREAM
    for chunk in chunks:
        stored += chunk if packer is None else packer.compress(chunk)
        while len(stored) > PIECE_BYTES:
            yield encode_frame(op, head + b"\x00" + bytes(stored[:PIECE_BYTES]))
            del stored[:PIECE_BYTES]
            op, head = Op.MORE, b""
    stored += b"" if packer is None else packer.flush()
    while len(stored) > PIECE_BYTES:
        yield encode_frame(op, head + b"\x00" + bytes(stored[:PIECE_BYTES]))
        del stored[:PIECE_BYTES]
        op, head = Op.MORE, b""
    yield encode_frame(op, head + b"\x01" + bytes(stored))
