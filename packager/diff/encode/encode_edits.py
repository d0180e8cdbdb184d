"""Few elements of an array that differ from the base's: found, gathered and encoded as EDIT frames.

Rules:
1. An array is edited where few of its elements differ: then their places are most of what there is to tell; gaps and
   lengths of runs tell them nearest to their entropy, for all arrays together. Not so where floats differ in long runs,
   unless these are rare: their exponents tell more of the residuals. Nor where integers differ often: classes tell more
   where rows differ in how much of them changed.
2. Arrays of a type are edited as elements of it, or as bytes, by what promises less.
3. What is copied beside an edited range joins it, so that a file in which little changed is one range.
4. Frames of all types that wait at a time have at most `WAITING_EDITS` edits, and each spans at most `FRAME_SPAN`
   bytes: what waits in the decoder, and gaps, stay small.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.patch.container import Op, frame_bytes
from bundle.patch.elements import BY_NAME, ElementType, Signed, ordered
from bundle.patch.numbers import varint
from bundle.patch.ranges import Copied, write_copied_ranges
from bundle.patch.sections import write_section
from packager.diff.encode.copy_job import CopyJob, merged
from packager.diff.encode.entropy import Effort, write_numbers, write_part
from packager.diff.encode.tensor_job import Place

WAITING_EDITS: Final = 1 << 16
FRAME_SPAN: Final = 1 << 30
FRAME_RANGES: Final = 4096
EDITED_SHARE: Final = 1 / 16
SURE_SHARE: Final = 1 / 256  # up to here long runs of floats are edited too
LONG_RUN: Final = 256
INTEGER_RUNS: Final = 1 / 48  # of the elements begin a run
STEP_ELEMENTS: Final = 1 << 20
PIECE_ELEMENTS: Final = 1 << 12  # edits are counted in so many: where frames may be cut
PIECE_BYTES: Final = 1 << 22  # longer ones are cut though nothing of them differs
RUN_BITS: Final = 3.0  # what the gap takes beyond the logarithm of the mean gap, and the length
VALUE_BITS: Final = 2.5  # what a residual takes beyond its logarithm

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """How an array differs from the base's.

    Attributes:
        is_float: what its elements are.
        elements: of the array.
        runs, byte_runs: of changed elements next to each other, and of changed bytes.
        value_bits: sum over changed elements of the logarithms of their residuals.
        changed, changed_bytes: in each `PIECE_ELEMENTS`.
    """

    is_float: bool
    elements: int
    runs: int
    byte_runs: int
    value_bits: float
    changed: Counts
    changed_bytes: Counts

    @property
    def is_edited(self) -> bool:
        """Rule 1, of what `compare` found."""
        if not self.is_float:
            return self.runs <= INTEGER_RUNS * self.elements
        changed = int(self.changed.sum())
        return changed <= max(SURE_SHARE * self.elements, LONG_RUN * self.runs)


@dataclass(frozen=True, slots=True)
class EditedPiece:
    """A range that is copied but for its edits.

    Attributes:
        target, base: where it is; the files only where there are edits.
        size: bytes; whole elements.
        edits: elements that differ.
    """

    target: Place
    base: Place
    size: int
    edits: int

    def joins(self, other: "EditedPiece") -> bool:
        """Does `other` follow on both sides?"""
        return (
            self.target.address + self.size == other.target.address
            and self.base.address + self.size == other.base.address
        )


@dataclass(frozen=True, slots=True)
class EditJob:
    """One EDIT frame.

    Attributes:
        kind: name of the type of its elements.
        pieces: ascending.
        effort: how hard to pack.
    """

    kind: str
    pieces: tuple[EditedPiece, ...]
    effort: Effort

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(piece.size for piece in self.pieces)

    @property
    def edits(self) -> int:
        """How many."""
        return sum(piece.edits for piece in self.pieces)

    @property
    def ranges(self) -> tuple[Copied, ...]:
        """Pieces that follow each other are one range."""
        return tuple(merged((piece.target.address, piece.base.address, piece.size) for piece in self.pieces))

    @property
    def features(self) -> frozenset[str]:
        """Of the decoder."""
        return frozenset({"edit", "pcodec"} if self.effort.with_pcodec else {"edit"})


def compare(target: memoryview, base: memoryview, kind: ElementType, most: float = EDITED_SHARE) -> Change | None:
    """None where more elements differ than this share."""
    ours, theirs = np.frombuffer(target, kind.bits), np.frombuffer(base, kind.bits)
    count = len(ours)
    changed, changed_bytes = (np.zeros(-(-count // PIECE_ELEMENTS), np.int64) for _ in range(2))
    runs = byte_runs = total = 0
    value_bits = 0.0
    last = last_byte = -2
    for begin in range(0, count, STEP_ELEMENTS):
        places = np.flatnonzero(ours[begin : begin + STEP_ELEMENTS] != theirs[begin : begin + STEP_ELEMENTS]) + begin
        total += len(places)
        if total > most * count:
            return None
        if not len(places):
            continue
        runs += int(np.count_nonzero(np.diff(places, prepend=last) > 1))
        last = int(places[-1])
        new, old = ours[places], theirs[places]
        is_changed = (new.view(np.uint8) != old.view(np.uint8)).reshape(-1, kind.size)
        byte_places = (places[:, None] * kind.size + np.arange(kind.size))[is_changed]
        byte_runs += int(np.count_nonzero(np.diff(byte_places, prepend=last_byte) > 1))
        last_byte = int(byte_places[-1])
        changed += np.bincount(places // PIECE_ELEMENTS, minlength=len(changed))
        changed_bytes += np.bincount(byte_places // (PIECE_ELEMENTS * kind.size), minlength=len(changed))
        residual = ordered(new, kind) - ordered(old, kind)
        value_bits += float(np.log2(np.abs(residual.astype(np.float64)) + 1).sum())
    return Change(kind.is_float, count, runs, byte_runs, value_bits, changed, changed_bytes)


def unit_of(kind: ElementType, changes: Iterable[Change]) -> ElementType:
    """Rule 2: the type as which arrays of a type are edited."""
    if kind.size == 1:
        return BY_NAME["u8"]
    as_elements = as_bytes = 0.0
    for change in changes:
        as_elements += VALUE_BITS * int(change.changed.sum()) + change.value_bits
        as_elements += _run_bits(change.runs, change.elements)
        as_bytes += 8 * int(change.changed_bytes.sum()) + _run_bits(change.byte_runs, change.elements * kind.size)
    return BY_NAME["u8"] if as_bytes < as_elements else kind


def _run_bits(runs: int, elements: int) -> float:
    """What the places and lengths of runs take."""
    return runs * (RUN_BITS + math.log2(elements / runs))


def pieces_of(
    target: Place, base: Place, kind: ElementType, unit: ElementType, change: Change
) -> Iterator[EditedPiece]:
    """An edited array, cut where frames may be."""
    step, size = PIECE_ELEMENTS * kind.size, change.elements * kind.size
    counts = change.changed if unit is kind else change.changed_bytes
    begin = 0
    for end, edits in zip([*range(step, size, step), size], counts.tolist(), strict=True):
        if edits or end - begin >= PIECE_BYTES or end == size:
            yield EditedPiece(target.moved(begin), base.moved(begin), end - begin, edits)
            begin = end


def with_copies(
    edited: dict[str, list[EditedPiece]], copies: list[Copied]
) -> tuple[dict[str, list[EditedPiece]], list[Copied]]:
    """Rule 3.

    Args:
        edited: by the type of their elements.
        copies: ranges of whole bundles.

    Returns:
        Both, ascending: the former with what joins them, the latter without.
    """
    nowhere = Path()
    line = [(piece, kind) for kind, pieces in edited.items() for piece in pieces]
    line += [
        (EditedPiece(Place(nowhere, 0, start), Place(nowhere, 0, base), size, 0), "") for start, base, size in copies
    ]
    line.sort(key=lambda entry: entry[0].target.address)
    for order, neighbour in ((range(1, len(line)), -1), (range(len(line) - 2, -1, -1), 1)):
        for i in order:
            (piece, kind), (other, unit) = line[i], line[i + neighbour]
            before, after = (other, piece) if neighbour < 0 else (piece, other)
            is_short = piece.size <= FRAME_SPAN
            if unit and not kind and is_short and before.joins(after) and piece.size % BY_NAME[unit].size == 0:
                line[i] = (piece, unit)
    joined = {name: [piece for piece, kind in line if kind == name] for name in edited}
    return joined, [(p.target.address, p.base.address, p.size) for p, kind in line if not kind]


def edit_jobs(
    kind: str, pieces: Sequence[EditedPiece], effort: Effort, most_edits: int = WAITING_EDITS
) -> Iterator[EditJob | CopyJob]:
    """Rule 4, of one type; `pieces` ascend. Where nothing of a frame's pieces differs they are copied."""
    held: list[EditedPiece] = []
    edits = size = ranges = 0
    for piece in pieces:
        is_new = not held or not held[-1].joins(piece)
        if held and (
            edits + piece.edits > most_edits or size + piece.size > FRAME_SPAN or ranges + is_new > FRAME_RANGES
        ):
            yield _job(kind, held, effort)
            held, edits, size, ranges = [], 0, 0, 0
        held.append(piece)
        edits, size, ranges = edits + piece.edits, size + piece.size, ranges + is_new
    if held:
        yield _job(kind, held, effort)


def _job(kind: str, pieces: list[EditedPiece], effort: Effort) -> EditJob | CopyJob:
    job = EditJob(kind, tuple(pieces), effort)
    return job if job.edits else CopyJob(job.ranges)


def encode_edits(job: EditJob) -> bytes:
    """The frame; runs in any process."""
    kind = BY_NAME[job.kind]
    places: list[Counts] = []
    residuals: list[Signed] = []
    first = 0
    for piece in job.pieces:
        if piece.edits:
            new, old = (np.frombuffer(place.read(piece.size), kind.bits) for place in (piece.target, piece.base))
            found = np.flatnonzero(new != old)
            places.append(found + first)
            residuals.append(ordered(new[found], kind) - ordered(old[found], kind))
        first += piece.size // kind.size
    table = write_copied_ranges(job.ranges)
    gaps, lengths = _runs(np.concatenate(places))
    residual = np.concatenate(residuals)
    payload = bytes([kind.code]) + write_section(table) + varint(len(gaps))
    payload += b"".join(_smaller(_in_one_part, numbers, job.effort) for numbers in (gaps, lengths))
    payload += _smaller(write_part, residual, job.effort)
    return frame_bytes(Op.EDIT, payload, table + residual.tobytes())


def _runs(places: Counts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Gaps before runs, and the runs' lengths."""
    starts = np.flatnonzero(np.diff(places, prepend=-2) > 1)
    lengths = np.diff(starts, append=len(places))
    gaps = places[starts] - np.append(0, (places[starts] + lengths)[:-1])
    return gaps.astype(np.int32), lengths.astype(np.int32)


def _smaller(write: Callable[[Signed, Effort], bytes], numbers: Signed, effort: Effort) -> bytes:
    """As `effort` has it, or as planes, which see what repeats."""
    return min(write(numbers, effort), write(numbers, replace(effort, with_pcodec=False)), key=len)


def _in_one_part(numbers: Signed, effort: Effort) -> bytes:
    return write_numbers(numbers, effort, len(numbers))
