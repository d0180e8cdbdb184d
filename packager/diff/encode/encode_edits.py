"""Find the few elements of an array that differ from the base's, and encode them as EDIT frames.

Symbols, for the edits of one frame: positions p, int64 [E]; runs of consecutive positions r = 0 … R-1; gaps g, int32
[R], from the end of the previous run; lengths n, int32 [R]; residuals d, signed integers of the type's width [E].

Theory of operation. If few elements of an array differ, the cost of coding all elements is mostly the cost of saying
where the changes are. Gaps and lengths of runs state this close to its entropy: with R runs among N elements the gaps
take about log2(N / R) bits each. A residual takes about log2(|d| + 1) bits. Both need a constant overhead,
RUN_OVERHEAD_BITS and VALUE_OVERHEAD_BITS. All arrays of one type share frames, so that the coder's tables are paid
once. Format: docs/format.md section 9.8, decoder: bundle/patch/edits.py.

Rules:
1. Integers are edited if at most `MAX_INTEGER_RUN_SHARE` of the elements begin a run; if more change, the classes of
   KEYED describe rows that change more or less often. Floats are edited if few change, or if they change in short runs;
   in long runs the exponents in the keys of KEYED describe the residuals better.
2. All edited arrays of a type are coded as elements of the type or as bytes, by the smaller estimate.
3. A copied range next to an edited range joins it, so that a file with few changes is one range.
4. At most `MAX_WAITING_EDITS` edits of all types wait at a time in the decoder. A frame spans at most
   `MAX_FRAME_SPAN_BYTES`, so that gaps stay small.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from packager.diff.sources import NOWHERE

MAX_WAITING_EDITS: Final = 1 << 16
MAX_FRAME_SPAN_BYTES: Final = 1 << 30
MAX_FRAME_RANGES: Final = 4096
MAX_EDITED_SHARE: Final = 1 / 16
ALWAYS_EDITED_SHARE: Final = 1 / 256  # up to this share of changed elements, long runs of floats are edited too
LONG_RUN_ELEMENTS: Final = 256
MAX_INTEGER_RUN_SHARE: Final = 1 / 48  # share of the elements that begin a run
STEP_ELEMENTS: Final = 1 << 20
COUNT_STEP_ELEMENTS: Final = 1 << 12  # edits are counted per step of this many elements; frames may be cut there
MAX_UNCHANGED_BYTES: Final = 1 << 22  # a longer range is cut even if nothing in it differs
RUN_OVERHEAD_BITS: Final = 3.0  # bits of a gap beyond the logarithm of the mean gap, and bits of the length
VALUE_OVERHEAD_BITS: Final = 2.5  # bits of a residual beyond its logarithm

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ArrayDiff:
    """The differences between an array and the base's.

    Attributes:
        is_float: True if the elements are floats.
        elements: number of elements of the array.
        runs: number of runs of consecutive changed elements.
        byte_runs: number of runs of consecutive changed bytes.
        value_bits: sum of log2(|residual| + 1) over the changed elements.
        changed_counts: changed elements in each `COUNT_STEP_ELEMENTS` elements, int64.
        changed_byte_counts: changed bytes in each `COUNT_STEP_ELEMENTS` elements, int64.
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
        """True if the array is coded by edits (rule 1)."""
        if not self.is_float:
            return self.runs <= MAX_INTEGER_RUN_SHARE * self.elements
        changed = int(self.changed_counts.sum())
        return changed <= max(ALWAYS_EDITED_SHARE * self.elements, LONG_RUN_ELEMENTS * self.runs)


@dataclass(frozen=True, slots=True)
class EditedRange:
    """A range that is copied except for its edits.

    Attributes:
        target: position in the target.
        base: position in the base; the files matter only if there are edits.
        size: bytes; whole elements.
        edit_count: elements that differ.
    """

    target: BytePosition
    base: BytePosition
    size: int
    edit_count: int

    def is_followed_by(self, other: "EditedRange") -> bool:
        """Return whether `other` follows this range on both sides."""
        return (
            self.target.address + self.size == other.target.address
            and self.base.address + self.size == other.base.address
        )


@dataclass(frozen=True, slots=True)
class EditJob:
    """The edited ranges of one EDIT frame.

    Attributes:
        kind: name of the type of the elements.
        edited_ranges: ascending by target address.
        options: encoder settings, such as the zstd level.
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
        """Edits of all ranges."""
        return sum(piece.edit_count for piece in self.edited_ranges)

    @property
    def ranges(self) -> tuple[CopiedRange, ...]:
        """The copied ranges; edited ranges that follow each other are merged."""
        return tuple(
            merge_ranges((piece.target.address, piece.base.address, piece.size) for piece in self.edited_ranges)
        )

    @property
    def features(self) -> frozenset[str]:
        """Decoder features that the frame needs."""
        return frozenset({"edit", "pcodec"} if self.options.has_pcodec else {"edit"})


def compare_arrays(
    target: memoryview, base: memoryview, kind: ElementType, max_share: float = MAX_EDITED_SHARE
) -> ArrayDiff | None:
    """Compare an array with the base's; return None if more than `max_share` of the elements differ.

    Args:
        target: bytes of the target array.
        base: bytes of the base array; equally many.
        kind: type of the elements.
        max_share: largest share of changed elements, 0 to 1.
    """
    target_bits, base_bits = np.frombuffer(target, kind.bits), np.frombuffer(base, kind.bits)
    count = len(target_bits)
    changed, changed_bytes = (np.zeros(-(-count // COUNT_STEP_ELEMENTS), np.int64) for _ in range(2))
    runs = byte_runs = total = 0
    value_bits = 0.0
    last = last_byte = -2
    for begin in range(0, count, STEP_ELEMENTS):
        positions = (
            np.flatnonzero(target_bits[begin : begin + STEP_ELEMENTS] != base_bits[begin : begin + STEP_ELEMENTS])
            + begin
        )
        total += len(positions)
        if total > max_share * count:
            return None
        if not len(positions):
            continue
        runs += int(np.count_nonzero(np.diff(positions, prepend=last) > 1))
        last = int(positions[-1])
        new_bits, old_bits = target_bits[positions], base_bits[positions]
        is_changed = (new_bits.view(np.uint8) != old_bits.view(np.uint8)).reshape(-1, kind.size)
        byte_positions = (positions[:, None] * kind.size + np.arange(kind.size))[is_changed]
        byte_runs += int(np.count_nonzero(np.diff(byte_positions, prepend=last_byte) > 1))
        last_byte = int(byte_positions[-1])
        changed += np.bincount(positions // COUNT_STEP_ELEMENTS, minlength=len(changed))
        changed_bytes += np.bincount(byte_positions // (COUNT_STEP_ELEMENTS * kind.size), minlength=len(changed))
        residual = to_ordered(new_bits, kind) - to_ordered(old_bits, kind)
        value_bits += float(np.log2(np.abs(residual.astype(np.float64)) + 1).sum())
    return ArrayDiff(kind.is_float, count, runs, byte_runs, value_bits, changed, changed_bytes)


def choose_edit_type(kind: ElementType, diffs: Iterable[ArrayDiff]) -> ElementType:
    """Return the type that the edited arrays of a type are coded as: the type itself or u8 (rule 2).

    Args:
        kind: type of the arrays.
        diffs: differences of all edited arrays of that type.
    """
    if kind.size == 1:
        return ELEMENT_TYPE_BY_NAME["u8"]
    as_elements = as_bytes = 0.0
    for diff in diffs:
        as_elements += VALUE_OVERHEAD_BITS * int(diff.changed_counts.sum()) + diff.value_bits
        as_elements += _run_bits(diff.runs, diff.elements)
        as_bytes += 8 * int(diff.changed_byte_counts.sum()) + _run_bits(diff.byte_runs, diff.elements * kind.size)
    return ELEMENT_TYPE_BY_NAME["u8"] if as_bytes < as_elements else kind


def _run_bits(runs: int, elements: int) -> float:
    """Estimate the bits that the positions and lengths of runs take."""
    return runs * (RUN_OVERHEAD_BITS + math.log2(elements / runs))


def split_edited_array(
    target: BytePosition, base: BytePosition, kind: ElementType, unit: ElementType, diff: ArrayDiff
) -> Iterator[EditedRange]:
    """Cut an edited array into ranges at which frames may be cut.

    Args:
        target: position of the target array.
        base: position of the base array.
        kind: type of the array.
        unit: type that it is coded as.
        diff: differences of the array.
    """
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
    """Move copied ranges that touch edited ranges to these (rule 3).

    Args:
        edited: edited ranges by the type of their elements.
        copies: copied ranges of the whole bundle.

    Returns:
        The edited ranges with the joined copies, and the remaining copies; both ascending.
    """
    line = [(piece, kind) for kind, pieces in edited.items() for piece in pieces]
    line += [
        (EditedRange(BytePosition(NOWHERE, 0, start), BytePosition(NOWHERE, 0, base), size, 0), "")
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
    """Group the edited ranges of one type into jobs (rule 4); ranges without edits become a CopyJob.

    Args:
        kind: name of the type of the elements.
        edited_ranges: ascending by target address.
        options: encoder settings, such as the zstd level.
        max_edits: largest number of edits of one job.
    """
    group: list[EditedRange] = []
    edits = size = ranges = 0
    for piece in edited_ranges:
        is_new = not group or not group[-1].is_followed_by(piece)
        if group and (
            edits + piece.edit_count > max_edits
            or size + piece.size > MAX_FRAME_SPAN_BYTES
            or ranges + is_new > MAX_FRAME_RANGES
        ):
            yield _make_job(kind, group, options)
            group, edits, size, ranges = [], 0, 0, 0
        group.append(piece)
        edits, size, ranges = edits + piece.edit_count, size + piece.size, ranges + is_new
    if group:
        yield _make_job(kind, group, options)


def _make_job(kind: str, edited_ranges: list[EditedRange], options: EncoderOptions) -> EditJob | CopyJob:
    job = EditJob(kind, tuple(edited_ranges), options)
    return job if job.edit_count else CopyJob(job.ranges)


def encode_edits(job: EditJob) -> bytes:
    """Encode a job as an EDIT frame; runs in any process."""
    kind = ELEMENT_TYPE_BY_NAME[job.kind]
    positions: list[Counts] = []
    residuals: list[Signed] = []
    first = 0
    for piece in job.edited_ranges:
        if piece.edit_count:
            new, old = (np.frombuffer(position.read(piece.size), kind.bits) for position in (piece.target, piece.base))
            found = np.flatnonzero(new != old)
            positions.append(found + first)
            residuals.append(to_ordered(new[found], kind) - to_ordered(old[found], kind))
        first += piece.size // kind.size
    table = write_copied_ranges(job.ranges)
    gaps, lengths = _find_runs(np.concatenate(positions))
    residual = np.concatenate(residuals)
    payload = bytes([kind.code]) + write_section(table) + encode_varint(len(gaps))
    payload += b"".join(_write_smaller(_write_single_part, numbers, job.options) for numbers in (gaps, lengths))
    payload += _write_smaller(write_part, residual, job.options)
    return encode_frame(Op.EDIT, payload, table + residual.tobytes())


def _find_runs(positions: Counts) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the gaps g and lengths n of runs of consecutive positions."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
    lengths = np.diff(starts, append=len(positions))
    gaps = positions[starts] - np.append(0, (positions[starts] + lengths)[:-1])
    return gaps.astype(np.int32), lengths.astype(np.int32)


def _write_smaller(write: Callable[[Signed, EncoderOptions], bytes], numbers: Signed, options: EncoderOptions) -> bytes:
    """Write numbers with the given options or as byte planes, which find repetition; return the smaller."""
    return min(write(numbers, options), write(numbers, replace(options, has_pcodec=False)), key=len)


def _write_single_part(numbers: Signed, options: EncoderOptions) -> bytes:
    return write_numbers(numbers, options, len(numbers))
