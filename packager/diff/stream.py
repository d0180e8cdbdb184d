"""Encodes bytes that no base helps with: a STREAM frame and its MORE frames (bundle/patch/stream.py)."""

from collections.abc import Iterable, Iterator
from typing import Final

import zstandard

from bundle.patch.container import Op, frame_bytes
from bundle.patch.numbers import varint

LEVEL: Final = 19
PIECE_BYTES: Final = 1 << 18
MAX_WINDOW_LOG: Final = 23  # what zstd -19 itself uses for large input; 8 MiB on the device


def window_log_for(length: int) -> int:
    """The window that a stream of `length` bytes needs."""
    return max(10, min(MAX_WINDOW_LOG, (length - 1).bit_length()))


def stream_frames(chunks: Iterable[bytes], start: int, length: int, level: int = LEVEL) -> Iterator[bytes]:
    """Frames of one stream.

    Args:
        chunks: its content.
        start: target address of its first byte.
        length: bytes in all, above zero.
    """
    window_log = window_log_for(length)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=length, window_log=window_log, write_content_size=False, write_checksum=False
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    head = varint(start) + varint(length) + bytes([window_log])
    stored = bytearray()
    op = Op.STREAM
    for chunk in chunks:
        stored += packer.compress(chunk)
        while len(stored) > PIECE_BYTES:
            yield frame_bytes(op, head + b"\x00" + bytes(stored[:PIECE_BYTES]))
            del stored[:PIECE_BYTES]
            op, head = Op.MORE, b""
    stored += packer.flush()
    while len(stored) > PIECE_BYTES:
        yield frame_bytes(op, head + b"\x00" + bytes(stored[:PIECE_BYTES]))
        del stored[:PIECE_BYTES]
        op, head = Op.MORE, b""
    yield frame_bytes(op, head + b"\x01" + bytes(stored))
