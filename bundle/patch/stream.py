"""The STREAM op: one long zstd frame with a window of its own, for bytes that no base helps with.

STREAM payload: target start (varint), length (varint), base-two logarithm of the window (byte), then a piece; while the
piece is not the last, a MORE frame follows whose payload is the next piece. Piece: 1 if it is the last, else 0 (byte),
compressed bytes. The pieces' bytes, joined, are one zstd frame; its content is written at the cursor as it comes.

Rules:
1. The stream starts at the cursor and makes exactly its length.
2. The window is at most the announced one; zstd refuses a frame that wants more.
3. The frames' decoded length is zero: what the stream makes is checked by the files' digests alone.
"""

from collections.abc import Iterator
from typing import IO, cast

import zstandard

from bundle.errors import PatchCorruptRefused, PatchLimitRefused, PatchRangeRefused
from bundle.patch.container import Frame, Op
from bundle.patch.layout import TargetLine
from bundle.patch.limits import IO_CHUNK_BYTES, Announced
from bundle.patch.numbers import Cursor


class _Source:
    """The compressed bytes of a stream, pulled from its frames."""

    def __init__(self, first: memoryview, frames: Iterator[Frame], where: str) -> None:
        self._left = first[1:]
        self._is_last = _is_last(first, where)
        self._frames = frames
        self._where = where

    def read(self, size: int = -1, /) -> bytes:
        while not len(self._left) and not self._is_last:
            frame = next(self._frames, None)
            if frame is None or frame.op is not Op.MORE:
                raise PatchCorruptRefused(f"{self._where}: the stream goes on, but no MORE frame follows")
            frame.check_plain(b"")
            self._is_last = _is_last(memoryview(frame.payload), frame.where)
            self._left = memoryview(frame.payload)[1:]
        piece = self._left[:size]
        self._left = self._left[len(piece) :]
        return bytes(piece)

    def is_used_up(self) -> bool:
        return self._is_last and not len(self._left)


def _is_last(piece: memoryview, where: str) -> bool:
    if not len(piece) or piece[0] > 1:
        raise PatchCorruptRefused(f"{where}: found no piece of a stream that starts with 0 or 1")
    return piece[0] == 1


def decode_stream(frame: Frame, frames: Iterator[Frame], target: TargetLine, announced: Announced) -> None:
    """Write a STREAM frame and the MORE frames after it to the target.

    Raises:
        PatchCorruptRefused, PatchRangeRefused, PatchLimitRefused.
    """
    cursor = Cursor(frame.payload, frame.where)
    start, length, window_log = cursor.varint(), cursor.varint(), cursor.byte()
    if start != target.cursor or length == 0 or length > target.size - start:
        raise PatchRangeRefused(
            f"{frame.where}: stream of {length} bytes at {start}, expected one in [{target.cursor}, {target.size})"
        )
    if not 10 <= window_log <= announced.window_log:
        raise PatchLimitRefused(
            f"{frame.where}: window of 2^{window_log} bytes, the header announced 2^{announced.window_log}"
        )
    frame.check_plain(b"")
    source = _Source(cursor.rest(), frames, frame.where)
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << window_log)
    done = 0
    try:
        # The stub wants all of IO; the library calls `read` only.
        with decoder.stream_reader(
            cast(IO[bytes], source), read_size=IO_CHUNK_BYTES, read_across_frames=False
        ) as reader:
            while done < length:
                piece = reader.read(min(IO_CHUNK_BYTES, length - done))
                if not piece:
                    raise PatchCorruptRefused(f"{frame.where}: stream ends after {done} bytes, expected {length}")
                target.write_here(piece, frame.where)
                done += len(piece)
            if reader.read(1) or not source.is_used_up():
                raise PatchCorruptRefused(f"{frame.where}: stream goes on after its {length} bytes")
    except zstandard.ZstdError as error:
        raise PatchCorruptRefused(f"{frame.where}: {error}") from error
