"""The op EDIT: ranges that are copied from the base, and the few elements in them that differ.

Payload (docs/format.md section 9.8): type (byte); a section with the ranges, as in COPY; the number R of runs of edits
(varint); R gaps and R lengths, each as `coders.read_numbers` reads them; a part with the E residuals.

Symbols: runs r = 0 … R-1; gaps g, int32 [R]; lengths n, int32 [R]; E = sum of n, the number of edits; positions p,
int64 [E]; residuals d, signed integers of the type's width, [E].

Theory of operation. Elements are counted through all ranges, so an edit is one number: the index of its element. Edits
come in runs of neighbors; a run is the gap to the end of the run before it, and its length. Gaps of edits at random
places are geometrically distributed, and pcodec codes them close to their entropy, for all arrays of a type together.
Decoding inverts this: before run r lie G[r] = g[0] + … + g[r] unedited elements, so the k-th edit, in run r,
is at p[k] = k + G[r].

Rules:
1. A range contains a whole number of elements. Gaps are at least 0, lengths at least 1.
2. An edited element's ordered integer is the base's plus the residual, wrapping.
3. Edits wait with their range until the cursor reaches it. Each counts `WAITING_BYTES_PER_EDIT` pending bytes.
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

WAITING_BYTES_PER_EDIT: Final = 16  # a position and a residual, at most eight bytes each


@dataclass(frozen=True, slots=True)
class ElementEdits:
    """The edits of one range.

    Attributes:
        kind: type of the elements.
        positions: int64 [edits], ascending; elements from the range's start.
        residuals: signed integers of the type's width [edits].
    """

    kind: ElementType
    positions: npt.NDArray[np.int64]
    residuals: Signed

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the edits count against `pending_bytes` while they wait."""
        return WAITING_BYTES_PER_EDIT * len(self.positions)

    def apply_to(self, data: bytes, offset: int) -> bytes | memoryview:
        """Return a piece of the base's range with the edits applied.

        Args:
            data: the base's bytes; whole elements.
            offset: bytes from the start of the range to the piece; whole elements.
        """
        first = offset // self.kind.size
        low, high = np.searchsorted(self.positions, (first, first + len(data) // self.kind.size))
        if low == high:
            return data
        bits = np.frombuffer(data, self.kind.bits).copy()
        positions = self.positions[low:high] - first
        bits[positions] = from_ordered(to_ordered(bits[positions], self.kind) + self.residuals[low:high], self.kind)
        return bits.data.cast("B")


def decode_edits(
    frame: Frame, declared_limits: DeclaredLimits, max_items: int
) -> list[tuple[CopiedRange, ElementEdits]]:
    """Decode an EDIT frame; return each copied range with its edits.

    Args:
        frame: an EDIT frame.
        declared_limits: limits from the header of the patch.
        max_items: maximum number of ranges in the frame.

    Raises:
        PatchCorrupt: the payload is damaged, or an edit lies outside the ranges.
        PatchLimitExceeded: too many ranges or edits.
        PatchFeatureUnsupported: a part needs pcodec, which is not installed.
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
        raise PatchCorrupt(
            f"{frame.where}: gap of {gaps.min()} or run of {lengths.min()} elements, expected at least 0 and 1"
        )
    count = int(lengths.sum(dtype=np.int64))
    _check_count(count, declared_limits, frame.where)
    residuals = np.empty(count, kind.signed)
    read_part(cursor, residuals)
    cursor.check_end()
    frame.check_decoded(bytes(table) + residuals.tobytes())
    return list(_split_by_range(ranges, kind, edit_positions(gaps, lengths), residuals, frame.where))


def edit_positions(gaps: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the positions p of the edits, int64 [E], ascending (see the module's theory of operation).

    Args:
        gaps: int32 [R].
        lengths: int32 [R].
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    unedited_before = np.cumsum(gaps, dtype=np.int64)  # elements that are not edited
    positions: npt.NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(unedited_before, lengths)
    return positions


def _check_count(count: int, declared_limits: DeclaredLimits, where: str) -> None:
    if count == 0:
        raise PatchCorrupt(f"{where}: found no edits, expected at least one")
    if count > declared_limits.block_elements:
        raise PatchLimitExceeded(
            f"{where}: {count} edits, the header announced at most {declared_limits.block_elements}"
        )


def _split_by_range(
    ranges: list[CopiedRange], kind: ElementType, positions: npt.NDArray[np.int64], residuals: Signed, where: str
) -> Iterator[tuple[CopiedRange, ElementEdits]]:
    first = done = 0
    for start, base_start, length in ranges:
        if length % kind.size:
            raise PatchCorrupt(f"{where}: range of {length} bytes, expected whole elements of {kind.name}")
        end = first + length // kind.size
        edit_count = int(np.searchsorted(positions, min(end, int(positions[-1]) + 1))) - done
        # Copies, so that what waits is only what is still to come.
        edits = ElementEdits(
            kind, positions[done : done + edit_count] - first, residuals[done : done + edit_count].copy()
        )
        yield (start, base_start, length), edits
        first, done = end, done + edit_count
    if done < len(positions):
        raise PatchCorrupt(f"{where}: edit of element {positions[-1]}, the ranges have {first} elements")
