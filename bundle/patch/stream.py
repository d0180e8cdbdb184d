"""The op STREAM: one long compressed stream (docs/format.md section 9.4).

A long stream finds repetitions that are far apart in a file.

Payload of STREAM: target start (varint), length (varint), coder (byte: 1 zstd, 3 LZMA), base-two logarithm of the
window (byte), form (byte), in form 1 base start (varint), then a piece. While a piece is not the last one, the next
frame is MORE, and its payload is a piece. A piece is 1 if it is the last, else 0 (byte), then compressed bytes. The
joined compressed bytes are one zstd frame or one raw LZMA2 stream.

Forms: in form 0 (TARGET) the content is target bytes. In form 1 (DELTA) it is a run of (add, extra: varints; seek:
signed varint; `add` difference bytes; `extra` bytes), as in bundle/patch/delta.py.

Rules:
1. The stream starts at the cursor and makes exactly its length. The content is written as it is decompressed.
2. The window is at most the announced one. zstd refuses a frame that needs more; the LZMA decoder gets no more.
3. The frames' decoded length is zero: only the files' digests check the content.
4. There are at most length / 8 + 2^14 triples. Each can be compressed to less than a byte, so a short stream of triples
   without this limit could keep a device busy for hours.
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

from bundle.errors import PatchCorrupt, PatchFeatureUnsupported, PatchLimitExceeded, PatchRangeInvalid
from bundle.patch.address_space import BaseBytes, TargetBytes
from bundle.patch.byte_math import add_bytes
from bundle.patch.container import Frame, Op
from bundle.patch.limits import IO_CHUNK_BYTES, DeclaredLimits
from bundle.patch.numbers import MAX_VARINT_BYTES, Cursor
from bundle.patch.sections import LZMA, ZSTD, lzma_filters
from bundle.zstd import ZstdError, make_decompressor

FORM_TARGET: Final = 0
FORM_DELTA: Final = 1
MIN_WINDOW_LOG: Final = 12
BYTES_PER_TRIPLE: Final = 8
FREE_TRIPLES: Final = 1 << 14


class _CompressedSource:
    """The compressed bytes of a stream, read from its frames."""

    def __init__(self, first: memoryview, frames: Iterator[Frame], where: str) -> None:
        self._unread = first[1:]
        self._is_last = _is_last(first, where)
        self._frames = frames
        self._where = where

    def read(self, size: int = -1, /) -> bytes:
        while not len(self._unread) and not self._is_last:
            frame = next(self._frames, None)
            if frame is None or frame.op is not Op.MORE:
                raise PatchCorrupt(f"{self._where}: the stream is incomplete, but no MORE frame follows")
            frame.check_decoded(b"")
            self._is_last = _is_last(memoryview(frame.payload), frame.where)
            self._unread = memoryview(frame.payload)[1:]
        piece = self._unread[:size]
        self._unread = self._unread[len(piece) :]
        return bytes(piece)

    def is_exhausted(self) -> bool:
        return self._is_last and not len(self._unread)


def _is_last(piece: memoryview, where: str) -> bool:
    if not len(piece) or piece[0] > 1:
        raise PatchCorrupt(f"{where}: found no piece that starts with 0 or 1")
    return piece[0] == 1


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _DecoderReader:
    """Decompresses while it is read; uses no memory but the dictionary or window."""

    def __init__(self, source: _CompressedSource, decoder: Any, error: type[Exception], where: str) -> None:
        self._source, self._decoder, self._error, self._where = source, decoder, error, where

    def read(self, size: int, /) -> bytes:
        while not self._decoder.eof:
            feed = self._source.read(IO_CHUNK_BYTES) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not feed:
                raise PatchCorrupt(f"{self._where}: compressed stream is incomplete")
            try:
                piece: bytes = self._decoder.decompress(feed, max_length=size)
            except self._error as error:
                raise PatchCorrupt(f"{self._where}: {error}") from error
            if piece:
                return piece
        if self._decoder.unused_data:
            raise PatchCorrupt(f"{self._where}: bytes after the compressed stream")
        return b""


class _Content:
    """The decompressed content, for callers that need exact numbers of bytes."""

    def __init__(self, reader: _Reader, where: str) -> None:
        self._reader, self._where = reader, where
        self._unread = b""

    def read_up_to(self, size: int) -> bytes:
        """Return at least one byte and at most `size`."""
        piece = self._unread or self._reader.read(min(IO_CHUNK_BYTES, size))
        if not piece:
            raise PatchCorrupt(f"{self._where}: stream ends too early")
        self._unread = piece[size:]
        return piece[:size]

    def read_varint(self) -> int:
        number = bytearray()
        while not number or (number[-1] > 0x7F and len(number) < MAX_VARINT_BYTES):
            number += self.read_up_to(1)
        return Cursor(bytes(number), self._where).read_varint()

    def is_exhausted(self) -> bool:
        return not self._unread and not self._reader.read(1)


def decode_stream(
    frame: Frame, frames: Iterator[Frame], base: BaseBytes, target: TargetBytes, declared_limits: DeclaredLimits
) -> None:
    """Decode a STREAM frame and the MORE frames after it, and write the content to the target.

    Args:
        frame: the STREAM frame.
        frames: the frames after it.
        base: the source of form 1.
        target: the destination.
        declared_limits: limits from the header of the patch.

    Raises:
        PatchCorrupt: the stream is damaged, or has another length than stated.
        PatchRangeInvalid: the stream does not start at the cursor, or reads or writes outside a table.
        PatchLimitExceeded: the window is too large, or there are too many triples.
        PatchFeatureUnsupported: this Python has no LZMA.
    """
    cursor = Cursor(frame.payload, frame.where)
    start, length, coder, window_log, form = (
        cursor.read_varint(), cursor.read_varint(), cursor.read_byte(), cursor.read_byte(), cursor.read_byte()
    )  # fmt: skip
    if start != target.cursor or length == 0 or length > target.size - start:
        raise PatchRangeInvalid(
            f"{frame.where}: stream of {length} bytes at {start}, expected one in [{target.cursor}, {target.size})"
        )
    if not MIN_WINDOW_LOG <= window_log <= declared_limits.window_log:
        raise PatchLimitExceeded(
            f"{frame.where}: window of 2^{window_log} bytes, the header announced 2^{declared_limits.window_log}"
        )
    if coder not in (ZSTD, LZMA) or form not in (FORM_TARGET, FORM_DELTA):
        raise PatchCorrupt(f"{frame.where}: stream with coder {coder} and form {form}")
    frame.check_decoded(b"")
    position = cursor.read_varint() if form == FORM_DELTA else 0
    source = _CompressedSource(cursor.take_rest(), frames, frame.where)
    content = _Content(_open_decoder(source, coder, window_log, frame.where), frame.where)
    if form == FORM_TARGET:
        _copy_content(content, length, target, frame.where)
    else:
        _apply_delta(content, position, length, base, target, frame.where)
    if not content.is_exhausted() or not source.is_exhausted():
        raise PatchCorrupt(f"{frame.where}: stream contains more than its {length} bytes")


def max_triples(length: int) -> int:
    """Return the maximum number of triples of a stream of `length` target bytes (rule 4)."""
    return length // BYTES_PER_TRIPLE + FREE_TRIPLES


def _open_decoder(source: _CompressedSource, coder: int, window_log: int, where: str) -> _DecoderReader:
    if coder == ZSTD:
        return _DecoderReader(source, make_decompressor(window_log), ZstdError, where)
    try:
        import lzma
    except ImportError as error:
        raise PatchFeatureUnsupported("patch needs the decoder feature 'lzma', which this Python lacks") from error
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filters(window_log))
    return _DecoderReader(source, decoder, lzma.LZMAError, where)


def _copy_content(content: _Content, length: int, target: TargetBytes, where: str) -> None:
    while length:
        piece = content.read_up_to(length)
        target.write_at_cursor(piece, where)
        length -= len(piece)


def _apply_delta(
    content: _Content, position: int, length: int, base: BaseBytes, target: TargetBytes, where: str
) -> None:
    total = length
    left = max_triples(total)
    while length:
        if not left:
            raise PatchLimitExceeded(f"{where}: too many triples, at most {max_triples(total)} are allowed")
        left -= 1
        add, extra, seek = content.read_varint(), content.read_varint(), content.read_varint()
        if add + extra == 0 or add + extra > length:
            raise PatchCorrupt(f"{where}: triple makes {add + extra} bytes, {length} are left")
        length -= add + extra
        base.check_range(position, add, where)
        end = position + add
        while position < end:
            difference = content.read_up_to(end - position)
            bytes_ = base.read(position, len(difference))
            target.write_at_cursor(add_bytes(bytes_, difference), where)
            position += len(difference)
        _copy_content(content, extra, target, where)
        position += -(seek + 1 >> 1) if seek & 1 else seek >> 1
