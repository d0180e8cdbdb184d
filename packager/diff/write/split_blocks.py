"""Cut an array with repeated blocks into jobs: copies, exchanged blocks, elements between them.

Rules:
1. Blocks of whole rows, or of consecutive elements, are copied ranges of the bundle. Of other blocks each row is one.
2. An array is cut into bands of rows. Of each band, ranges to be copied come first, then exchanged blocks, then the
   elements between them. So only exchanged blocks wait in the decoder, of which a band has at most MAX_BAND_BYTES. A
   band begins where an exchanged block begins, so that what it repeats is written.
3. Unchanged rows are copied from the base as in other arrays (packager/diff/write/split_tensors.py).
4. An array is cut if its blocks have MIN_COVERED_SHARE of it, or MIN_COVERED_BYTES. An array whose base has rows and
   columns exchanged, or that is too small to have a job of its own, is cut only if its blocks contain all of it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from bundle.patch.ranges import CopiedRange
from packager.diff.encode.copy_job import CopyJob, merge_ranges
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.tensor_job import SLICE_ELEMENTS, Exchange, Segment, TensorJob
from packager.diff.match.find_blocks import Block
from packager.diff.match.match_arrays import ArrayMatch
from packager.diff.write.mapped_bundle import MappedBundle
from packager.diff.write.planned_job import PlannedJob
from packager.diff.write.split_tensors import LARGE_TENSOR_ELEMENTS, MAX_RUNS, RowSpan, count_elements

MAX_BAND_BYTES: Final = 1 << 20
MIN_COVERED_SHARE: Final = 1 / 16
MIN_COVERED_BYTES: Final = 1 << 16

Mask = npt.NDArray[np.bool_]


def can_be_cut(match: ArrayMatch, blocks: list[Block]) -> bool:
    """Return whether an array is cut at its blocks (rule 4).

    Args:
        match: the array and its base.
        blocks: its blocks.
    """
    size = match.target.region.size
    covered = sum(block.rows * block.columns for block in blocks) * _itemsize(match)
    if match.is_transposed or count_elements(match.target.region) < LARGE_TENSOR_ELEMENTS:
        return covered == size
    return covered >= min(MIN_COVERED_BYTES, int(MIN_COVERED_SHARE * size))


class BlockPlan:
    """The jobs of one array with blocks.

    Args:
        match: the array and its base.
        blocks: its blocks, in the order of their elements.
        spans: runs of its rows, each with whether they changed; None if no row is copied from the base.
        target_bundle: bundle that contains the array.
        base_bundle: None for a full download.
        origin: base address of the target's first byte.
        options: encoder settings, such as the zstd level.

    Attributes:
        copies: ranges that are copied and need no place before others.
    """

    def __init__(
        self,
        match: ArrayMatch,
        blocks: list[Block],
        spans: list[RowSpan] | None,
        target_bundle: MappedBundle,
        base_bundle: MappedBundle | None,
        origin: int,
        options: EncoderOptions,
    ) -> None:
        self._match, self._origin, self._options = match, origin, options
        self._target_bundle, self._base_bundle = target_bundle, base_bundle
        self._itemsize = _itemsize(match)
        count = match.target.region.size // self._itemsize
        shape = tuple(side for side in match.target.region.shape if side > 1)
        self._shape = shape if len(shape) > 1 and math.prod(shape) == count else (1, count)
        self._width = count // self._shape[0]
        self._is_left = np.ones(count, np.bool_)
        self.copies: list[CopiedRange] = []
        self._row_copies: list[tuple[int, int, int]] = []  # element, base address, elements
        self._exchanged: list[Block] = []
        for block in blocks:
            self._take(block)
        for begin, end, is_changed in spans or []:
            if not is_changed and match.base is not None:
                self._copy_from_base(begin * self._width, end * self._width)

    def _take(self, block: Block) -> None:
        for row in range(block.rows):
            first = block.first + row * block.width
            self._is_left[first : first + block.columns] = False
            if not block.is_transposed:
                source = self._origin + block.earlier + row * block.earlier_width * self._itemsize
                self._row_copies.append((first, source, block.columns))
        if block.is_transposed:
            self._exchanged.append(block)
        elif block.rows == 1:
            first, source, size = self._row_copies.pop()
            self.copies.append((self._address(first), source, size * self._itemsize))

    def _copy_from_base(self, begin: int, end: int) -> None:
        assert self._match.base is not None
        left = np.flatnonzero(np.diff(self._is_left[begin:end].astype(np.int8), prepend=0, append=0)) + begin
        for first, last in left.reshape(-1, 2).tolist():
            self._row_copies.append((first, self._match.base.address + first * self._itemsize, last - first))
            self._is_left[first:last] = False

    def jobs(self) -> Iterator[PlannedJob]:
        """Yield the jobs of what is not in `copies`."""
        self._row_copies.sort()
        at = 0
        for begin, end in self._bands():
            ranges = []
            while at < len(self._row_copies) and self._row_copies[at][0] < end:
                first, source, size = self._row_copies[at]
                ranges.append((self._address(first), source, size * self._itemsize))
                at += 1
            start = self._address(begin)
            merged = merge_ranges(ranges, self._origin)
            if merged:
                yield self._planned(start, CopyJob(tuple(merged)), " (repeated)", ())
            for block in self._exchanged:
                yield from self._plan_exchanged(block, begin, end)
            yield from self._plan_rest(begin, end)

    def _bands(self) -> Iterator[tuple[int, int]]:
        """Cut the array at rows, so that each band has few ranges, elements and exchanged bytes."""
        rows = len(self._is_left) // self._width
        edges = np.zeros(rows, np.int64)  # runs that begin in each row
        starts = np.flatnonzero(np.diff(self._is_left.astype(np.int8), prepend=0) == 1)
        np.add.at(edges, starts // self._width, 1)
        np.add.at(edges, np.array([first for first, _, _ in self._row_copies], np.int64) // self._width, 1)
        elements = self._is_left.reshape(rows, self._width).sum(axis=1)
        exchanged = np.zeros(rows, np.int64)
        cuts = {rows}
        for block in self._exchanged:
            first = block.first // self._width
            last = -(-(block.first + (block.rows - 1) * block.width + block.columns) // self._width)
            cuts |= {first, last}
            if block.columns < self._width:
                exchanged[first:last] += block.columns * block.rows // (last - first)
        begin = runs = left = waiting = 0
        for row in range(rows):
            runs, left, waiting = runs + edges[row], left + elements[row], waiting + exchanged[row]
            is_full = runs >= MAX_RUNS or left >= SLICE_ELEMENTS or waiting * self._itemsize >= MAX_BAND_BYTES
            if is_full or row + 1 in cuts:
                yield begin * self._width, (row + 1) * self._width
                begin, runs, left, waiting = row + 1, 0, 0, 0

    def _plan_exchanged(self, block: Block, begin: int, end: int) -> Iterator[PlannedJob]:
        first_row = max(0, -(-(begin - block.first) // block.width))
        last_row = min(block.rows, -(-(end - block.first) // block.width))
        if last_row <= first_row:
            return
        source = self._target_bundle.position_at(block.earlier)
        base = replace(source, address=self._origin + source.address)
        size = block.columns * self._itemsize
        firsts = [block.first + row * block.width for row in range(first_row, last_row)]
        if block.columns == block.width:
            firsts, size = firsts[:1], size * len(firsts)
        array = self._target_bundle.array_position
        segments = tuple(Segment(array(self._match.target, first * self._itemsize), base, size) for first in firsts)
        shape = (last_row - first_row, block.columns)
        exchange = Exchange(block.earlier_width, block.columns, (block.earlier_column + first_row) * block.columns)
        job = TensorJob(self._match.target.region.dtype, segments, shape, exchange, False, self._options)
        yield self._planned(self._address(begin), job, " (exchanged)", shape)

    def _plan_rest(self, begin: int, end: int) -> Iterator[PlannedJob]:
        left = self._is_left[begin:end]
        edges = (np.flatnonzero(np.diff(left.astype(np.int8), prepend=0, append=0)) + begin).reshape(-1, 2)
        if not len(edges):
            return
        match, base_bundle = self._match, self._base_bundle
        segments = tuple(
            Segment(
                self._target_bundle.array_position(match.target, first * self._itemsize),
                base_bundle.array_position(match.base, first * self._itemsize)
                if base_bundle is not None and match.base is not None
                else None,
                (last - first) * self._itemsize,
            )
            for first, last in edges.tolist()
        )
        shape = self._shape_of(left)
        job = TensorJob(match.target.region.dtype, segments, shape, None, match.base is not None, self._options)
        yield self._planned(self._address(begin), job, "", shape)

    def _shape_of(self, left: Mask) -> tuple[int, ...]:
        counts = left.reshape(-1, self._width).sum(axis=1)
        counts = counts[counts > 0]
        if len(left) == self._width or (counts != counts[0]).any():
            return ()
        if counts[0] == self._width:
            return (len(counts), *self._shape[1:])
        return len(counts), int(counts[0])

    def _address(self, element: int) -> int:
        return self._match.target.address + element * self._itemsize

    def _planned(self, start: int, job: CopyJob | TensorJob, note: str, shape: tuple[int, ...]) -> PlannedJob:
        region = self._match.target.region
        path = self._target_bundle.directory.files[self._match.target.file].path
        return PlannedJob(start, job, path, f"{region.name}{note}", region.dtype, shape)


def _itemsize(match: ArrayMatch) -> int:
    return ELEMENT_TYPE_BY_NAME[match.target.region.dtype].size
