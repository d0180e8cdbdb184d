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

from bundle.patch.container import Op, encode_frame
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, ElementType, Signed, to_ordered
from bundle.patch.numbers import encode_varint
from bundle.patch.ranges import CopiedRange, write_copied_ranges
from bundle.patch.sections import write_section
from packager.diff.byte_range import BytePosition
from packager.diff.encode.copy_job import CopyJob, merge_ranges
from packager.diff.encode.entropy import EncoderOptions, write_numbers, write_part

MAX_WAITING_EDITS: Final = 1 << 16
MAX_FRAME_SPAN_BYTES: Final = 1 << 30
MAX_FRAME_RANGES: Final = 4096
MAX_EDITED_SHARE: Final = 1 / 16
ALWAYS_EDITED_SHARE: Final = 1 / 256  # up to here long runs of floats are edited too
LONG_RUN_ELEMENTS: Final = 256
MAX_INTEGER_RUN_SHARE: Final = 1 / 48  # of the elements begin a run
STEP_ELEMENTS: Final = 1 << 20
COUNT_STEP_ELEMENTS: Final = 1 << 12  # edits are counted in so many: where frames may be cut
MAX_UNCHANGED_BYTES: Final = 1 << 22  # longer ones are cut though nothing of them differs
RUN_OVERHEAD_BITS: Final = 3.0  # what the gap takes beyond the logarithm of the mean gap, and the length
VALUE_OVERHEAD_BITS: Final = 2.5  # what a residual takes beyond its logarithm

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ArrayDiff:
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
    changed_counts: Counts
    changed_byte_counts: Counts

    @property
    def is_edited(self) -> bool:
        """Rule 1, of what `compare` found."""
        if not self.is_float:
            return self.runs <= MAX_INTEGER_RUN_SHARE * self.elements
        changed = int(self.changed_counts.sum())
        return changed <= max(ALWAYS_EDITED_SHARE * self.elements, LONG_RUN_ELEMENTS * self.runs)


@dataclass(frozen=True, slots=True)
class EditedRange:
    """A range that is copied but for its edits.

    Attributes:
        target, base: where it is; the files only where there are edits.
        size: bytes; whole elements.
        edits: elements that differ.
    """

    target: BytePosition
    base: BytePosition
    size: int
    edit_count: int

    def is_followed_by(self, other: "EditedRange") -> bool:
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
    edited_ranges: tuple[EditedRange, ...]
    options: EncoderOptions

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(piece.size for piece in self.edited_ranges)

    @property
    def edit_count(self) -> int:
        """How many."""
        return sum(piece.edit_count for piece in self.edited_ranges)

    @property
    def ranges(self) -> tuple[CopiedRange, ...]:
        """Pieces that follow each other are one range."""
        return tuple(
            merge_ranges((piece.target.address, piece.base.address, piece.size) for piece in self.edited_ranges)
        )

    @property
    def features(self) -> frozenset[str]:
        """Of the decoder."""
        return frozenset({"edit", "pcodec"} if self.options.has_pcodec else {"edit"})


def compare_arrays(
    target: memoryview, base: memoryview, kind: ElementType, max_share: float = MAX_EDITED_SHARE
) -> ArrayDiff | None:
    """None where more elements differ than this share."""
    ours, theirs = np.frombuffer(target, kind.bits), np.frombuffer(base, kind.bits)
    count = len(ours)
    changed, changed_bytes = (np.zeros(-(-count // COUNT_STEP_ELEMENTS), np.int64) for _ in range(2))
    runs = byte_runs = total = 0
    value_bits = 0.0
    last = last_byte = -2
    for begin in range(0, count, STEP_ELEMENTS):
        places = np.flatnonzero(ours[begin : begin + STEP_ELEMENTS] != theirs[begin : begin + STEP_ELEMENTS]) + begin
        total += len(places)
        if total > max_share * count:
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
        changed += np.bincount(places // COUNT_STEP_ELEMENTS, minlength=len(changed))
        changed_bytes += np.bincount(byte_places // (COUNT_STEP_ELEMENTS * kind.size), minlength=len(changed))
        residual = to_ordered(new, kind) - to_ordered(old, kind)
        value_bits += float(np.log2(np.abs(residual.astype(np.float64)) + 1).sum())
    return ArrayDiff(kind.is_float, count, runs, byte_runs, value_bits, changed, changed_bytes)


def choose_edit_type(kind: ElementType, diffs: Iterable[ArrayDiff]) -> ElementType:
    """Rule 2: the type as which arrays of a type are edited."""
    if kind.size == 1:
        return ELEMENT_TYPE_BY_NAME["u8"]
    as_elements = as_bytes = 0.0
    for change in diffs:
        as_elements += VALUE_OVERHEAD_BITS * int(change.changed_counts.sum()) + change.value_bits
        as_elements += _run_bits(change.runs, change.elements)
        as_bytes += 8 * int(change.changed_byte_counts.sum()) + _run_bits(change.byte_runs, change.elements * kind.size)
    return ELEMENT_TYPE_BY_NAME["u8"] if as_bytes < as_elements else kind


def _run_bits(runs: int, elements: int) -> float:
    """What the places and lengths of runs take."""
    return runs * (RUN_OVERHEAD_BITS + math.log2(elements / runs))


def split_edited_array(
    target: BytePosition, base: BytePosition, kind: ElementType, unit: ElementType, diff: ArrayDiff
) -> Iterator[EditedRange]:
    """An edited array, cut where frames may be."""
    step, size = COUNT_STEP_ELEMENTS * kind.size, diff.elements * kind.size
    counts = diff.changed_counts if unit is kind else diff.changed_byte_counts
    begin = 0
    for end, edits in zip([*range(step, size, step), size], counts.tolist(), strict=True):
        if edits or end - begin >= MAX_UNCHANGED_BYTES or end == size:
            yield EditedRange(target.shifted_by(begin), base.shifted_by(begin), end - begin, edits)
            begin = end


def join_copies(
    edited: dict[str, list[EditedRange]], copies: list[CopiedRange]
) -> tuple[dict[str, list[EditedRange]], list[CopiedRange]]:
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
        (EditedRange(BytePosition(nowhere, 0, start), BytePosition(nowhere, 0, base), size, 0), "")
        for start, base, size in copies
    ]
    line.sort(key=lambda entry: entry[0].target.address)
    for order, neighbor in ((range(1, len(line)), -1), (range(len(line) - 2, -1, -1), 1)):
        for i in order:
            (piece, kind), (other, unit) = line[i], line[i + neighbor]
            before, after = (other, piece) if neighbor < 0 else (piece, other)
            is_short = piece.size <= MAX_FRAME_SPAN_BYTES
            if (
                unit
                and not kind
                and is_short
                and before.is_followed_by(after)
                and piece.size % ELEMENT_TYPE_BY_NAME[unit].size == 0
            ):
                line[i] = (piece, unit)
    joined = {name: [piece for piece, kind in line if kind == name] for name in edited}
    return joined, [(p.target.address, p.base.address, p.size) for p, kind in line if not kind]


def make_edit_jobs(
    kind: str, edited_ranges: Sequence[EditedRange], options: EncoderOptions, max_edits: int = MAX_WAITING_EDITS
) -> Iterator[EditJob | CopyJob]:
    """Rule 4, of one type; `pieces` ascend. Where nothing of a frame's pieces differs they are copied."""
    held: list[EditedRange] = []
    edits = size = ranges = 0
    for piece in edited_ranges:
        is_new = not held or not held[-1].is_followed_by(piece)
        if held and (
            edits + piece.edit_count > max_edits
            or size + piece.size > MAX_FRAME_SPAN_BYTES
            or ranges + is_new > MAX_FRAME_RANGES
        ):
            yield _make_job(kind, held, options)
            held, edits, size, ranges = [], 0, 0, 0
        held.append(piece)
        edits, size, ranges = edits + piece.edit_count, size + piece.size, ranges + is_new
    if held:
        yield _make_job(kind, held, options)


def _make_job(kind: str, edited_ranges: list[EditedRange], options: EncoderOptions) -> EditJob | CopyJob:
    job = EditJob(kind, tuple(edited_ranges), options)
    return job if job.edit_count else CopyJob(job.ranges)


def encode_edits(job: EditJob) -> bytes:
    """The frame; runs in any process."""
    kind = ELEMENT_TYPE_BY_NAME[job.kind]
    places: list[Counts] = []
    residuals: list[Signed] = []
    first = 0
    for piece in job.edited_ranges:
        if piece.edit_count:
            new, old = (np.frombuffer(place.read(piece.size), kind.bits) for place in (piece.target, piece.base))
            found = np.flatnonzero(new != old)
            places.append(found + first)
            residuals.append(to_ordered(new[found], kind) - to_ordered(old[found], kind))
        first += piece.size // kind.size
    table = write_copied_ranges(job.ranges)
    gaps, lengths = _find_runs(np.concatenate(places))
    residual = np.concatenate(residuals)
    payload = bytes([kind.code]) + write_section(table) + encode_varint(len(gaps))
    payload += b"".join(_write_smaller(_write_single_part, numbers, job.options) for numbers in (gaps, lengths))
    payload += _write_smaller(write_part, residual, job.options)
    return encode_frame(Op.EDIT, payload, table + residual.tobytes())


def _find_runs(positions: Counts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Gaps before runs, and the runs' lengths."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
    lengths = np.diff(starts, append=len(positions))
    gaps = positions[starts] - np.append(0, (positions[starts] + lengths)[:-1])
    return gaps.astype(np.int32), lengths.astype(np.int32)


def _write_smaller(write: Callable[[Signed, EncoderOptions], bytes], numbers: Signed, options: EncoderOptions) -> bytes:
    """As `effort` has it, or as planes, which see what repeats."""
    return min(write(numbers, options), write(numbers, replace(options, has_pcodec=False)), key=len)


def _write_single_part(numbers: Signed, options: EncoderOptions) -> bytes:
    return write_numbers(numbers, options, len(numbers))
