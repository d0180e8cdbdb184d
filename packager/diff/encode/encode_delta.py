"""Encodes DELTA frames from the matches that bsdiff finds (bundle/patch/delta.py has the layout).

Rules:
1. A frame makes at most `FRAME_BYTES` target bytes: about one of bzip2's blocks, so that memory stays small. Where
   little has changed in a long file, frames four times as long save more than a few of their heads: then these.
2. Each section takes the smallest of bzip2, zstd and LZMA: so a frame is never much above what bsdiff4 itself would
   need, and as control, difference and extra are apart, it is mostly below what LZMA makes of all of them in a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import bsdiff4.core
import numpy as np

from bundle.patch.container import Op, frame_bytes
from bundle.patch.delta import MAX_CONTROL_BYTES
from bundle.patch.numbers import signed_varint, varint
from bundle.patch.sections import LZMA, write_section

DELTA_BYTES: Final = 64 << 20  # bsdiff takes 17 bytes of memory a byte, and minutes above this
FRAME_BYTES: Final = 900_000  # the block of bzip2 -9
LONG_FRAME_BYTES: Final = 4 * FRAME_BYTES
WORTH_BYTES: Final = 128  # what long frames have to save
MAX_PIECES: Final = MAX_CONTROL_BYTES // 27  # three numbers of nine bytes each


@dataclass(frozen=True, slots=True)
class _Piece:
    """`add` bytes from `position` of the base, with a difference; then `extra` bytes of their own."""

    position: int
    add: int
    extra: int

    def cut(self, length: int) -> tuple["_Piece", "_Piece"]:
        """Two pieces, the first one of `length` target bytes."""
        add = min(self.add, length)
        extra = length - add
        return _Piece(self.position, add, extra), _Piece(self.position + add, self.add - add, self.extra - extra)


@dataclass(frozen=True, slots=True)
class Found:
    """What bsdiff found: its pieces, and all their difference bytes and extra bytes."""

    pieces: tuple[_Piece, ...]
    difference: bytes
    extra: bytes


@dataclass(frozen=True, slots=True)
class DeltaFrame:
    """One frame.

    Attributes:
        made: target bytes.
        has_lzma: the decoder needs the feature.
    """

    frame: bytes
    made: int
    has_lzma: bool


def find_pieces(base: bytes, target: bytes) -> Found:
    """Run bsdiff: about 17 bytes of memory for each byte of `base`."""
    control, difference, extra = bsdiff4.core.diff(base, target)
    return Found(tuple(_pieces(control)), difference, extra)


def nothing_found(target: bytes) -> Found:
    """As if no byte of the base were of use: all is extra."""
    return Found((_Piece(0, 0, len(target)),), b"", target)


def delta_frames(
    found: Found, target: bytes, base_start: int, target_start: int, frame_limit: int | None = None
) -> list[DeltaFrame]:
    """Frames that make `target` from `base`.

    Args:
        target: whole content.
        base_start, target_start: addresses of their first bytes.
        frame_limit: most target bytes of a frame; None for rule 1.
    """
    made = list(_encoded(found, target, base_start, target_start, frame_limit or FRAME_BYTES))
    if frame_limit is None and len(made) > 1:
        longer = list(_encoded(found, target, base_start, target_start, LONG_FRAME_BYTES))
        if _size(longer) + WORTH_BYTES < _size(made):
            return longer
    return made


def delta_content(found: Found) -> bytes:
    """The content of a stream in the form DELTA; the base is read from the first piece's position on."""
    out = []
    added = inserted = 0
    for piece, seek in zip(found.pieces, _seeks(found.pieces), strict=True):
        out += [
            varint(piece.add) + varint(piece.extra) + signed_varint(seek),
            found.difference[added : added + piece.add],
            found.extra[inserted : inserted + piece.extra],
        ]
        added, inserted = added + piece.add, inserted + piece.extra
    return b"".join(out)


def _size(frames: list[DeltaFrame]) -> int:
    return sum(len(frame.frame) for frame in frames)


def _encoded(found: Found, target: bytes, base_start: int, target_start: int, frame_limit: int) -> Iterator[DeltaFrame]:
    difference, extra = found.difference, found.extra
    done = added = inserted = 0
    for pieces in _frames(iter(found.pieces), frame_limit):
        adds, extras = sum(piece.add for piece in pieces), sum(piece.extra for piece in pieces)
        parts = (_control(pieces), difference[added : added + adds], extra[inserted : inserted + extras])
        sections = [write_section(part, with_bzip2=True, with_lzma=True) for part in parts]
        head = varint(target_start + done) + varint(base_start + pieces[0].position)
        frame = frame_bytes(Op.DELTA, head + b"".join(sections), target[done : done + adds + extras])
        yield DeltaFrame(frame, adds + extras, any(section[0] == LZMA for section in sections))
        done, added, inserted = done + adds + extras, added + adds, inserted + extras


def _pieces(control: bytes) -> Iterator[_Piece]:
    # bsdiff's integers are sign and magnitude, little-endian, 64 bits.
    raw = np.frombuffer(control, "<u8")
    magnitude = (raw & np.uint64((1 << 63) - 1)).astype(np.int64)
    numbers = np.where(raw >> np.uint64(63), -magnitude, magnitude).reshape(-1, 3)
    position = last = 0
    for add, extra, seek in numbers.tolist():
        if add:
            last = position
        if add + extra:
            yield _Piece(last, add, extra)
        position += add + seek
        last += add


def _frames(pieces: Iterator[_Piece], limit: int) -> Iterator[list[_Piece]]:
    frame: list[_Piece] = []
    room = limit
    for piece in pieces:
        left = piece
        while left.add + left.extra:
            if not room or len(frame) == MAX_PIECES:
                yield frame
                frame, room = [], limit
            now, left = left.cut(min(room, left.add + left.extra))
            frame.append(now)
            room -= now.add + now.extra
    if frame:
        yield frame


def _control(pieces: Sequence[_Piece]) -> bytes:
    return b"".join(
        varint(piece.add) + varint(piece.extra) + signed_varint(seek)
        for piece, seek in zip(pieces, _seeks(pieces), strict=True)
    )


def _seeks(pieces: Sequence[_Piece]) -> list[int]:
    """How far the base position moves after each piece; not at all after the last."""
    nexts = [piece.position for piece in pieces[1:]] + [pieces[-1].position + pieces[-1].add]
    return [nxt - piece.position - piece.add for piece, nxt in zip(pieces, nexts, strict=True)]
