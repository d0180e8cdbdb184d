"""Encode a STREAM frame and its MORE frames (bundle/patch/stream.py, docs/format.md section 9.4)."""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from bundle.patch.container import Op, encode_frame
from bundle.patch.numbers import encode_varint
from bundle.patch.sections import LZMA, ZSTD, pack_lzma
from bundle.patch.stream import FORM_DELTA, FORM_TARGET, MIN_WINDOW_LOG
from bundle.zstd import CompressionParameter, zstd

ZSTD_LEVEL: Final = 19
PIECE_BYTES: Final = 1 << 18
MAX_WINDOW_LOG: Final = 23  # what zstd -19 itself uses for large input; 8 MiB on the device


def choose_window_log(length: int) -> int:
    """Return the base-two logarithm of the window for a stream of `length` bytes."""
    return max(MIN_WINDOW_LOG, min(MAX_WINDOW_LOG, (length - 1).bit_length()))


def encode_stream_frames(chunks: Iterable[bytes], start: int, length: int, level: int = ZSTD_LEVEL) -> Iterator[bytes]:
    """Encode a stream that zstd compresses.

    Args:
        chunks: the content.
        start: target address of the first byte.
        length: bytes of the content, above zero.
        level: zstd compression level.
    """
    window_log = choose_window_log(length)
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: window_log,
        CompressionParameter.content_size_flag: 0,
        CompressionParameter.checksum_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    compressor.set_pledged_input_size(length)  # chooses the parameters
    yield from _compress_pieces(
        compressor, chunks, encode_varint(start) + encode_varint(length) + bytes([ZSTD, window_log, FORM_TARGET])
    )


def encode_lzma_frames(data: bytes, start: int) -> Iterator[bytes]:
    """Encode a stream that LZMA compresses: slower than zstd, and smaller on text and programs.

    Args:
        data: the content.
        start: target address of the first byte.
    """
    window_log = choose_window_log(len(data))
    head = encode_varint(start) + encode_varint(len(data)) + bytes([LZMA, window_log, FORM_TARGET])
    yield from _compress_pieces(None, [pack_lzma(data, window_log)], head)


def encode_delta_stream_frames(content: bytes, base_start: int, start: int, length: int) -> Iterator[bytes]:
    """Encode a stream of bsdiff's triples that LZMA compresses.

    Args:
        content: the triples with their bytes.
        base_start: base address that the first triple reads from.
        start: target address of the first byte.
        length: target bytes that the triples make.
    """
    window_log = choose_window_log(len(content))
    head = (
        encode_varint(start) + encode_varint(length) + bytes([LZMA, window_log, FORM_DELTA]) + encode_varint(base_start)
    )
    yield from _compress_pieces(None, [pack_lzma(content, window_log)], head)


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compress_pieces(compressor: _Compressor | None, chunks: Iterable[bytes], head: bytes) -> Iterator[bytes]:
    compressed = bytearray()
    op = Op.STREAM
    for chunk in chunks:
        compressed += chunk if compressor is None else compressor.compress(chunk)
        while len(compressed) > PIECE_BYTES:
            yield encode_frame(op, head + b"\x00" + bytes(compressed[:PIECE_BYTES]))
            del compressed[:PIECE_BYTES]
            op, head = Op.MORE, b""
    compressed += b"" if compressor is None else compressor.flush()
    while len(compressed) > PIECE_BYTES:
        yield encode_frame(op, head + b"\x00" + bytes(compressed[:PIECE_BYTES]))
        del compressed[:PIECE_BYTES]
        op, head = Op.MORE, b""
    yield encode_frame(op, head + b"\x01" + bytes(compressed))
