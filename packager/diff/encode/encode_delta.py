"""Encode bsdiff's matches as DELTA frames or DELTA streams (layout: bundle/patch/delta.py).

Rules:
1. A frame makes at most `MAX_FRAME_BYTES` target bytes, about one block of bzip2, so that the decoder's memory stays
   small. If a long file has few changes, frames of `MAX_LONG_FRAME_BYTES` are used if they save `MIN_SAVED_BYTES`.
2. Each section is stored by the smallest of bzip2, zstd and LZMA. So a frame is never much larger than what bsdiff4
   needs; and because control, difference and extra bytes are separate, it is usually smaller than one LZMA stream of
   all three.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import bsdiff4.core
import numpy as np

from bundle.patch.container import Op, encode_frame
from bundle.patch.delta import MAX_CONTROL_BYTES
from bundle.patch.numbers import encode_signed_varint, encode_varint
from bundle.patch.sections import LZMA, write_section

MAX_DELTA_BYTES: Final = 64 << 20  # bsdiff takes 17 bytes of memory per byte, and minutes above this size
MAX_FRAME_BYTES: Final = 900_000  # the block of bzip2 -9
MAX_LONG_FRAME_BYTES: Final = 4 * MAX_FRAME_BYTES
MIN_SAVED_BYTES: Final = 128  # long frames must save this much to be used
MAX_FRAME_TRIPLES: Final = MAX_CONTROL_BYTES // 27  # three numbers of nine bytes each


@dataclass(frozen=True, slots=True)
class _Triple:
    """A bsdiff match: `add` target bytes from base bytes plus a difference, then `extra` new bytes.

    Attributes:
        position: offset of the base bytes, from the start of the base.
        add: number of bytes made from base bytes.
        extra: number of new bytes.
    """

    position: int
    add: int
    extra: int

    def split_at(self, length: int) -> tuple["_Triple", "_Triple"]:
        """Split after `length` target bytes."""
        add = min(self.add, length)
        extra = length - add
        return _Triple(self.position, add, extra), _Triple(self.position + add, self.add - add, self.extra - extra)


@dataclass(frozen=True, slots=True)
class BsdiffResult:
    """The matches of a whole file.

    Attributes:
        triples: the triples, in target order.
        difference: the difference bytes of all triples, joined.
        extra: the new bytes of all triples, joined.
    """

    triples: tuple[_Triple, ...]
    difference: bytes
    extra: bytes


@dataclass(frozen=True, slots=True)
class DeltaFrame:
    """An encoded DELTA frame.

    Attributes:
        frame: the bytes.
        target_bytes: number of target bytes that it makes.
        has_lzma: True if the decoder needs the feature "lzma".
    """

    frame: bytes
    target_bytes: int
    has_lzma: bool


def find_matches(base: bytes, target: bytes) -> BsdiffResult:
    """Find matches by bsdiff, which takes about 17 bytes of memory for each byte of `base`.

    Args:
        base: content of the base file.
        target: content of the target file.
    """
    control, difference, extra = bsdiff4.core.diff(base, target)
    return BsdiffResult(tuple(_parse_triples(control)), difference, extra)


def make_unmatched_result(target: bytes) -> BsdiffResult:
    """Return a result without matches, in which every target byte is new."""
    return BsdiffResult((_Triple(0, 0, len(target)),), b"", target)


def encode_delta_frames(
    matches: BsdiffResult, target: bytes, base_start: int, target_start: int, frame_limit: int | None = None
) -> list[DeltaFrame]:
    """Encode the DELTA frames that make a file.

    Args:
        matches: bsdiff matches of the file.
        target: content of the file.
        base_start: address of the base file's first byte.
        target_start: address of the target file's first byte.
        frame_limit: maximum number of target bytes in a frame; None chooses by rule 1.
    """
    frames = list(_encode_frames(matches, target, base_start, target_start, frame_limit or MAX_FRAME_BYTES))
    if frame_limit is None and len(frames) > 1:
        long_frames = list(_encode_frames(matches, target, base_start, target_start, MAX_LONG_FRAME_BYTES))
        if _total_bytes(long_frames) + MIN_SAVED_BYTES < _total_bytes(frames):
            return long_frames
    return frames


def encode_delta_content(matches: BsdiffResult) -> bytes:
    """Encode the content of a STREAM of form 1; the base is read from the first triple's position on."""
    out = []
    added = inserted = 0
    for piece, seek in zip(matches.triples, _seek_distances(matches.triples), strict=True):
        out += [
            encode_varint(piece.add) + encode_varint(piece.extra) + encode_signed_varint(seek),
            matches.difference[added : added + piece.add],
            matches.extra[inserted : inserted + piece.extra],
        ]
        added, inserted = added + piece.add, inserted + piece.extra
    return b"".join(out)


def _total_bytes(frames: list[DeltaFrame]) -> int:
    return sum(len(frame.frame) for frame in frames)


def _encode_frames(
    matches: BsdiffResult, target: bytes, base_start: int, target_start: int, frame_limit: int
) -> Iterator[DeltaFrame]:
    difference, extra = matches.difference, matches.extra
    done = added = inserted = 0
    for pieces in _group_into_frames(iter(matches.triples), frame_limit):
        adds, extras = sum(piece.add for piece in pieces), sum(piece.extra for piece in pieces)
        parts = (_encode_control(pieces), difference[added : added + adds], extra[inserted : inserted + extras])
        sections = [write_section(part, can_use_bzip2=True, can_use_lzma=True) for part in parts]
        head = encode_varint(target_start + done) + encode_varint(base_start + pieces[0].position)
        frame = encode_frame(Op.DELTA, head + b"".join(sections), target[done : done + adds + extras])
        yield DeltaFrame(frame, adds + extras, any(section[0] == LZMA for section in sections))
        done, added, inserted = done + adds + extras, added + adds, inserted + extras


def _parse_triples(control: bytes) -> Iterator[_Triple]:
    # bsdiff's integers are sign and magnitude, little-endian, 64 bits.
    raw = np.frombuffer(control, "<u8")
    magnitude = (raw & np.uint64((1 << 63) - 1)).astype(np.int64)
    numbers = np.where(raw >> np.uint64(63), -magnitude, magnitude).reshape(-1, 3)
    position = last = 0
    for add, extra, seek in numbers.tolist():
        if add:
            last = position
        if add + extra:
            yield _Triple(last, add, extra)
        position += add + seek
        last += add


def _group_into_frames(triples: Iterator[_Triple], limit: int) -> Iterator[list[_Triple]]:
    frame: list[_Triple] = []
    room = limit
    for piece in triples:
        left = piece
        while left.add + left.extra:
            if not room or len(frame) == MAX_FRAME_TRIPLES:
                yield frame
                frame, room = [], limit
            now, left = left.split_at(min(room, left.add + left.extra))
            frame.append(now)
            room -= now.add + now.extra
    if frame:
        yield frame


def _encode_control(triples: Sequence[_Triple]) -> bytes:
    return b"".join(
        encode_varint(piece.add) + encode_varint(piece.extra) + encode_signed_varint(seek)
        for piece, seek in zip(triples, _seek_distances(triples), strict=True)
    )


def _seek_distances(triples: Sequence[_Triple]) -> list[int]:
    """Return how far the base position moves after each triple; 0 after the last one."""
    nexts = [piece.position for piece in triples[1:]] + [triples[-1].position + triples[-1].add]
    return [nxt - piece.position - piece.add for piece, nxt in zip(triples, nexts, strict=True)]
