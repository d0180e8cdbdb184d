"""Find blocks of arrays that repeat earlier ones: stacked layers, joined weights, exchanged axes.

Symbols: an array as a matrix of R rows and W columns, in C order; an element, an index in C order; an anchor, an
element with a fingerprint of the WINDOW_BYTES from it on; a block, a rectangle of the matrix.

Theory of operation. Anchors are chosen by content: an element whose first 8 bytes hash to a fixed value, one of about
ANCHOR_PERIOD. So equal content has the same anchors wherever it is, and one pass over the elements finds them. Two
equal fingerprints are a hint, from which the block is grown while the elements are equal: first along the elements, in
both directions; if that ends inside a row, downwards and upwards, then to both sides. For exchanged axes, anchors are
looked for along some columns of the array, and the earlier array is grown as its transpose.

Rules:
1. What a block repeats is written before the block: an earlier array, or earlier elements of the same one.
2. Blocks of an array do not overlap.
3. A block is kept if its content, without the base's at the same place, does not compress to less than
   MIN_GAIN_BYTES: zeros, tables of sines and what hardly changed are cheaper without it.
4. Fewer than MIN_BLOCK_BYTES are left to the coders.
5. After MAX_FAILURES hints of an array that lead to no block, the rest of its hints is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, Bits
from bundle.zstd import zstd
from packager.diff.match.match_arrays import Array, ContentReader

ANCHOR_PERIOD: Final = 64
WINDOW_BYTES: Final = 32
MIN_BLOCK_BYTES: Final = 1024
MIN_ROW_BYTES: Final = 64
MIN_GAIN_BYTES: Final = 512
MAX_FAILURES: Final = 64
SAMPLE_BYTES: Final = 1 << 18
COLUMN_STEP: Final = 32  # every so many columns are looked at for exchanged axes
CHUNK_ELEMENTS: Final = 1 << 19
COMPARED_ELEMENTS: Final = 1 << 16
COMPARED_BYTES: Final = 1 << 22

_MULTIPLIERS: Final = tuple(
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
)
_ANCHOR_SHIFT: Final = np.uint64(64 - ANCHOR_PERIOD.bit_length() + 1)

Positions = npt.NDArray[np.int64]
Fingerprints = npt.NDArray[np.uint64]
Matrix = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of an array that repeats earlier bytes of the target.

    Attributes:
        first: its first element.
        rows: its rows.
        columns: its columns, in elements.
        width: elements from one row of the block to the next in its array.
        earlier: address of the first byte that it repeats; of exchanged axes, of the first byte of that row.
        earlier_width: elements from one row to the next in the earlier array.
        earlier_column: of exchanged axes, the first column of what it repeats.
        is_transposed: True if rows and columns are exchanged.
    """

    first: int
    rows: int
    columns: int
    width: int
    earlier: int
    earlier_width: int
    earlier_column: int = 0
    is_transposed: bool = False


def find_blocks(
    arrays: Sequence[Array],
    wanted: Mapping[int, memoryview | None],
    read: ContentReader,
) -> dict[int, list[Block]]:
    """Return the blocks of arrays by the array's address, in the order of their elements.

    Args:
        arrays: arrays of the target, in the order of its address space.
        wanted: addresses of the arrays whose blocks are looked for, each with the bytes that it is predicted from; None
            without a prediction.
        read: returns the bytes of an array.
    """
    if not wanted:
        return {}
    search = _Search(arrays, read)
    out = {}
    for number, array in enumerate(arrays):
        if array.address in wanted:
            blocks = search.find(number, wanted[array.address])
            if blocks:
                out[array.address] = sorted(blocks, key=lambda block: block.first)
    return out


class _Search:
    """The first anchor with each fingerprint, in all arrays of the target."""

    def __init__(self, arrays: Sequence[Array], read: ContentReader) -> None:
        self._arrays = arrays
        self._read = read
        found = [_find_anchors(_bits(array, read)) for array in arrays]
        self._positions = [positions for positions, _ in found]
        self._prints = [prints for _, prints in found]
        numbers = np.repeat(np.arange(len(arrays)), [len(positions) for positions in self._positions])
        prints = np.concatenate([*self._prints, np.empty(0, np.uint64)])
        self._known, first = np.unique(prints, return_index=True)
        self._known_array = numbers[first]
        self._known_position = np.concatenate([*self._positions, np.empty(0, np.int64)])[first]

    def find(self, number: int, base: memoryview | None) -> list[Block]:
        """Return the blocks of one array, in any order.

        Args:
            number: index of the array.
            base: what the array is predicted from; None without a prediction.
        """
        growth = _Growth(self._arrays, number, base, self._read)
        positions, prints = self._positions[number], self._prints[number]
        for i, earlier, place in self._look_up(number, positions, prints):
            if growth.failures > MAX_FAILURES:
                break
            growth.try_equal(i, earlier, place)
        for width in _widths(self._arrays[number]):
            growth.failures = 0
            columns = growth.bits.reshape(-1, width)[:, ::COLUMN_STEP].T
            rows = columns.shape[1]
            if min(rows, width) * growth.bits.itemsize < WINDOW_BYTES:
                continue
            places, prints = _find_anchors(np.ascontiguousarray(columns).reshape(-1))
            elements = places % rows * width + places // rows * COLUMN_STEP
            for i, earlier, place in self._look_up(number, elements, prints):
                if growth.failures > MAX_FAILURES:
                    break
                growth.try_transposed(i, width, earlier, place)
        return growth.blocks

    def _look_up(self, number: int, positions: Positions, prints: Fingerprints) -> Iterator[tuple[int, int, int]]:
        """Yield (element, number of the array, element of that array) for fingerprints that are known earlier."""
        if not len(self._known):
            return
        at = np.minimum(np.searchsorted(self._known, prints), len(self._known) - 1)
        arrays, places = self._known_array[at], self._known_position[at]
        is_earlier = (arrays < number) | ((arrays == number) & (places < positions))
        hits = np.flatnonzero((self._known[at] == prints) & is_earlier)
        hits = hits[np.argsort(positions[hits], kind="stable")]
        yield from zip(positions[hits].tolist(), arrays[hits].tolist(), places[hits].tolist(), strict=True)


class _Growth:
    """The blocks of one array, grown from hints.

    Attributes:
        bits: elements of the array.
        blocks: blocks so far.
        failures: hints that led to no block.
    """

    def __init__(self, arrays: Sequence[Array], number: int, base: memoryview | None, read: ContentReader) -> None:
        self._arrays, self._number, self._read = arrays, number, read
        self.bits = _bits(arrays[number], read)
        self._base = None if base is None else np.frombuffer(base, self.bits.dtype)
        self._is_covered = np.zeros(len(self.bits), np.bool_)
        self.blocks: list[Block] = []
        self.failures = 0

    def try_equal(self, element: int, earlier: int, place: int) -> None:
        """Grow a block from a hint.

        Args:
            element: element of this array.
            earlier: number of the array that has the same content.
            place: element of that array.
        """
        other = self._other(earlier)
        if self._is_covered[element] or other is None or self.bits[element] != other[place]:
            return
        before = _common_prefix(self.bits[:element][::-1], other[:place][::-1])
        size = before + _common_prefix(self.bits[element:], other[place:])
        ours, theirs = _widths(self._arrays[self._number]), _widths(self._arrays[earlier])
        if size < 2 * max((*ours, *theirs), default=0):
            for width, other_width in product(ours, theirs):
                rectangle = _grow(
                    self.bits.reshape(-1, width),
                    other.reshape(-1, other_width),
                    divmod(element, width),
                    divmod(place, other_width),
                )
                if rectangle[2] * rectangle[3] > size and self._add_rectangle(rectangle, width, earlier, other_width):
                    return
        self._add_run(earlier, element, place, before, size)

    def try_transposed(self, element: int, width: int, earlier: int, place: int) -> None:
        """Grow a block of exchanged axes from a hint.

        Args:
            element: element of this array.
            width: elements of a row of this array.
            earlier: number of the array whose row has the same content as a column from the element on.
            place: element of that array.
        """
        other = self._other(earlier)
        if self._is_covered[element] or other is None:
            return
        for other_width in _widths(self._arrays[earlier]):
            row, column = divmod(place, other_width)
            rectangle = _grow(
                self.bits.reshape(-1, width), other.reshape(-1, other_width).T, divmod(element, width), (column, row)
            )
            if self._add_rectangle(rectangle, width, earlier, other_width, is_transposed=True):
                return
        self.failures += 1

    def _other(self, earlier: int) -> Bits | None:
        same = self._arrays[earlier].region.dtype == self._arrays[self._number].region.dtype
        return _bits(self._arrays[earlier], self._read) if same else None

    def _add_run(self, earlier: int, element: int, place: int, before: int, size: int) -> None:
        """Add consecutive elements; within one array in pieces, each after what it repeats.

        Args:
            earlier: number of the array that they repeat.
            element: an element among them.
            place: the element of the other array that it repeats.
            before: number of elements before it.
            size: number of all elements.
        """
        begin, end = element - before, element - before + size
        covered = np.flatnonzero(self._is_covered[begin:end]) + begin
        at = int(np.searchsorted(covered, element))
        begin = int(covered[at - 1]) + 1 if at else begin
        end = int(covered[at]) if at < len(covered) else end
        shift = element - place
        piece = min(end - begin, shift) if earlier == self._number else end - begin  # each piece repeats the first one
        if piece * self.bits.itemsize < MIN_BLOCK_BYTES:
            if piece < end - begin:  # content with a short period: its other hints lead to the same run
                self._is_covered[begin:end] = True
            self.failures += 1
            return
        for first in range(begin, end, piece):
            count = min(piece, end - first)
            self._add(Block(first, 1, count, count, self._address(earlier, begin - shift), count))

    def _add_rectangle(
        self, rectangle: "_Rectangle", width: int, earlier: int, other_width: int, *, is_transposed: bool = False
    ) -> bool:
        row, column, rows, columns, other_row, other_column = rectangle
        itemsize = self.bits.itemsize
        if min(columns, rows if is_transposed else columns) * itemsize < MIN_ROW_BYTES:
            return False
        if rows * columns * itemsize < MIN_BLOCK_BYTES:
            return False
        if self._is_covered.reshape(-1, width)[row : row + rows, column : column + columns].any():
            return False
        first = row * width + column
        if is_transposed:
            end = (other_column + columns) * other_width
            place = other_column * other_width
        else:
            place = other_row * other_width + other_column
            end = place + columns
            if other_width > width:
                end += (rows - 1) * (other_width - width)  # its last row is the one that comes latest
        piece = columns
        if earlier == self._number and not is_transposed and place < first and width == other_width:
            piece = min(columns, first - place)  # each piece repeats the first one
        if piece * itemsize < MIN_ROW_BYTES:
            return False
        if earlier == self._number and end - columns + piece > (row * width if is_transposed else first):
            return False
        skipped = other_row if is_transposed else 0
        address = self._address(earlier, place)
        for begin in range(0, columns, piece):
            count = min(piece, columns - begin)
            self._add(Block(first + begin, rows, count, width, address, other_width, skipped, is_transposed))
        return True

    def _add(self, block: Block) -> None:
        region, content = self._view(self._is_covered, block), self._view(self.bits, block)
        itemsize = self.bits.itemsize
        limit = SAMPLE_BYTES // itemsize
        rows = max(1, limit // block.columns)
        sample = content[:rows, :limit]
        if self._base is not None:
            sample = sample ^ self._view(self._base, block)[:rows, :limit]
        if len(zstd.compress(np.ascontiguousarray(sample).tobytes(), 1)) < MIN_GAIN_BYTES:
            self.failures += 1
        else:
            self.blocks.append(block)
        region[:] = True

    def _view(self, elements: Matrix, block: Block) -> Matrix:
        """Return a block of an array that has one entry for each element of this one."""
        begin = block.first // block.width * block.width if block.rows > 1 else block.first
        column = block.first - begin
        return elements[begin : begin + block.rows * block.width].reshape(-1, block.width)[
            :, column : column + block.columns
        ]

    def _address(self, number: int, element: int) -> int:
        return self._arrays[number].address + element * self.bits.itemsize


_Rectangle = tuple[int, int, int, int, int, int]  # row, column, rows, columns; row and column in the other matrix


def _grow(matrix: Matrix, other: Matrix, at: tuple[int, int], other_at: tuple[int, int]) -> _Rectangle:
    """Return the rectangle of equal elements around a hint.

    Args:
        matrix: this array [R, W].
        other: the earlier array, or its transpose.
        at: row and column of the hint.
        other_at: row and column of the hint in `other`.
    """
    (row, column), (other_row, other_column) = at, other_at
    core = max(1, MIN_ROW_BYTES // 2 // matrix.itemsize)
    core = min(core, matrix.shape[1] - column, other.shape[1] - other_column)
    across, other_across = slice(column, column + core), slice(other_column, other_column + core)
    down = _equal_rows(matrix[row:, across], other[other_row:, other_across])
    up = _equal_rows(matrix[:row, across][::-1], other[:other_row, other_across][::-1])
    rows = slice(row - up, row + down)
    other_rows = slice(other_row - up, other_row + down)
    if up + down == 0:
        return row, column, 0, 0, other_row, other_column
    right = _equal_rows(matrix[rows, column:].T, other[other_rows, other_column:].T)
    left = _equal_rows(matrix[rows, :column].T[::-1], other[other_rows, :other_column].T[::-1])
    return row - up, column - left, up + down, left + right, other_row - up, other_column - left


def _equal_rows(matrix: Matrix, other: Matrix) -> int:
    """Return the number of leading rows that are equal."""
    count = min(len(matrix), len(other))
    step = max(1, COMPARED_ELEMENTS // max(1, matrix.shape[1]))
    for begin in range(0, count, step):
        differs = (matrix[begin : min(count, begin + step)] != other[begin : min(count, begin + step)]).any(axis=1)
        if differs.any():
            return begin + int(differs.argmax())
    return count


def _common_prefix(bits: Bits, other: Bits) -> int:
    count = min(len(bits), len(other))
    begin, step = 0, 256
    while begin < count:
        end = min(count, begin + step)
        differs = bits[begin:end] != other[begin:end]
        if differs.any():
            return begin + int(differs.argmax())
        begin, step = end, min(2 * step, COMPARED_ELEMENTS)
    return count


def _find_anchors(bits: Bits) -> tuple[Positions, Fingerprints]:
    """Return the anchors of an array: their elements, ascending, and their fingerprints."""
    size, itemsize = bits.nbytes, bits.itemsize
    count = (size - WINDOW_BYTES) // itemsize + 1
    if count <= 0:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    words: Fingerprints = np.ndarray(((size - 8) // itemsize + 1,), "<u8", bits, 0, (itemsize,))
    found = []
    turn = np.uint64(8 * itemsize % 64)
    for begin in range(0, count, CHUNK_ELEMENTS):
        chunk = words[begin : min(count, begin + CHUNK_ELEMENTS)].copy()
        at = np.flatnonzero((chunk * _MULTIPLIERS[0]) >> _ANCHOR_SHIFT == 0)
        chosen = chunk[at]
        if turn:  # elements that are all alike begin no block
            at = at[chosen != ((chosen >> turn) | (chosen << (np.uint64(64) - turn)))]
        found.append(at + begin)
    positions = np.concatenate(found)
    prints = np.zeros(len(positions), np.uint64)
    for number, multiplier in enumerate(_MULTIPLIERS):
        prints = (prints ^ (prints >> np.uint64(29))) * _MULTIPLIERS[0]
        prints += words[positions + number * (8 // itemsize)] * multiplier
    return positions, prints


def _bits(array: Array, read: ContentReader) -> Bits:
    return np.frombuffer(read(array), ELEMENT_TYPE_BY_NAME[array.region.dtype].bits)


def _widths(array: Array) -> list[int]:
    """Return the numbers of elements of a row: with all axes but the first, and with the last axis alone."""
    shape = [side for side in array.region.shape if side > 1]
    size = ELEMENT_TYPE_BY_NAME[array.region.dtype].size
    if len(shape) < 2 or int(np.prod(shape, dtype=np.int64)) * size != array.region.size:
        return []
    first = int(np.prod(shape[1:], dtype=np.int64))
    return list(dict.fromkeys((first, shape[-1])))
