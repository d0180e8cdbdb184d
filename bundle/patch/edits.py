"""The EDIT op: ranges of the base that are copied, and the few elements of them that differ.

Payload: type (byte); a section with the ranges, as COPY has them; the number of runs of edits (varint); their gaps and
their lengths, as `coders.read_numbers` reads them; a part with a residual for each edit, signed integers of the type's
width.

Rules:
1. Elements count through all ranges, from each range's first byte on: a range holds a whole number of them. A gap is
   the number of elements between a run and the one before it, or the start; a run has an element at least.
2. An edit makes the element whose ordered integer is the base's plus the residual, wrapping.
3. Edits wait with their range until the cursor reaches it, and count `WAITING_BYTES` each as bytes that wait.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorrupt, PatchLimitExceeded
from bundle.patch.coders import read_numbers, read_part
from bundle.patch.container import Frame
from bundle.patch.elements import ELEMENT_TYPES, ElementType, Signed, from_ordered, to_ordered
from bundle.patch.limits import DeclaredLimits
from bundle.patch.numbers import Cursor
from bundle.patch.ranges import CopiedRange, read_copied_ranges
from bundle.patch.sections import read_section

WAITING_BYTES_PER_EDIT: Final = 16  # a place and a residual, at most eight bytes each


@dataclass(frozen=True, slots=True)
class ElementEdits:
    """What differs in one range.

    Attributes:
        kind: type of the elements.
        places: int64, ascending, elements from the range's start.
        residuals: of these elements.
    """

    kind: ElementType
    positions: npt.NDArray[np.int64]
    residuals: Signed

    @property
    def waiting_bytes(self) -> int:
        """Rule 3."""
        return WAITING_BYTES_PER_EDIT * len(self.positions)

    def apply_to(self, data: bytes, offset: int) -> bytes | memoryview:
        """A piece of the range with its edits.

        Args:
            data: the base's bytes; whole elements.
            offset: where in the range, in bytes; whole elements.
        """
        first = offset // self.kind.size
        low, high = np.searchsorted(self.positions, (first, first + len(data) // self.kind.size))
        if low == high:
            return data
        bits = np.frombuffer(data, self.kind.bits).copy()
        places = self.positions[low:high] - first
        bits[places] = from_ordered(to_ordered(bits[places], self.kind) + self.residuals[low:high], self.kind)
        return bits.data.cast("B")


def decode_edits(
    frame: Frame, declared_limits: DeclaredLimits, max_items: int
) -> list[tuple[CopiedRange, ElementEdits]]:
    """Each range, and what differs in it.

    Raises:
        PatchCorruptRefused, PatchLimitRefused, PatchFeatureRefused.
    """
    cursor = Cursor(frame.payload, frame.where)
    code = cursor.read_byte()
    if code >= len(ELEMENT_TYPES):
        raise PatchCorrupt(f"{frame.where}: unknown type {code}")
    kind = ELEMENT_TYPES[code]
    table = read_section(cursor, declared_limits.payload_bytes, "range table")
    ranges = read_copied_ranges(Cursor(table, frame.where), max_items)
    runs = cursor.read_varint()
    _check_count(runs, declared_limits, frame.where)
    gaps, lengths = read_numbers(cursor, runs), read_numbers(cursor, runs)
    if gaps.min() < 0 or lengths.min() < 1:
        raise PatchCorrupt(f"{frame.where}: a gap of {gaps.min()} or a run of {lengths.min()} elements")
    count = int(lengths.sum(dtype=np.int64))
    _check_count(count, declared_limits, frame.where)
    residuals = np.empty(count, kind.signed)
    read_part(cursor, residuals)
    cursor.check_end()
    frame.check_decoded(bytes(table) + residuals.tobytes())
    return list(_split_by_range(ranges, kind, edit_positions(gaps, lengths), residuals, frame.where))


def edit_positions(gaps: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Rule 1: where the edits are, ascending."""
    ends = np.cumsum(lengths, dtype=np.int64)
    before = np.cumsum(gaps, dtype=np.int64)  # elements that are no edits
    places: npt.NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(before, lengths)
    return places


def _check_count(count: int, declared_limits: DeclaredLimits, where: str) -> None:
    if count == 0:
        raise PatchCorrupt(f"{where}: no edits")
    if count > declared_limits.block_elements:
        raise PatchLimitExceeded(f"{where}: {count} edits, announced {declared_limits.block_elements} elements")


def _split_by_range(
    ranges: list[CopiedRange], kind: ElementType, positions: npt.NDArray[np.int64], residuals: Signed, where: str
) -> Iterator[tuple[CopiedRange, ElementEdits]]:
    first = done = 0
    for start, base_start, length in ranges:
        if length % kind.size:
            raise PatchCorrupt(f"{where}: range of {length} bytes of {kind.name}")
        end = first + length // kind.size
        many = int(np.searchsorted(positions, min(end, int(positions[-1]) + 1))) - done
        # Copies, so that what waits is only what is still to come.
        edits = ElementEdits(kind, positions[done : done + many] - first, residuals[done : done + many].copy())
        yield (start, base_start, length), edits
        first, done = end, done + many
    if done < len(positions):
        raise PatchCorrupt(f"{where}: an edit of element {positions[-1]}, the ranges have {first}")
