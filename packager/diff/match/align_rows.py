"""Finds which rows of a matrix are which rows of the base, where rows were put in or left out: a grown vocabulary.

Rules:
1. Rows that occur once on either side and have the same print are anchors; of these the longest series that ascends on
   both sides counts. A print is first all of a row; where few rows have the same one, where its two largest magnitudes
   are, which an update moves in few rows.
2. Anchors by where magnitudes are need a neighbor that says the same, since two rows may agree by chance.
3. Between two anchors that differ in what was put in before them, rows go with the anchor that they are nearer to.
4. Matrices of equally many rows are looked at only where rows at the same place are no nearer than others.
"""

from bisect import bisect_left
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import Bits, ElementType, to_ordered

MAX_RUNS: Final = 128
MIN_ROWS: Final = 64
MIN_COLUMNS: Final = 16
MIN_EXACT_ANCHOR_SHARE: Final = 0.5
MIN_ANCHOR_SHARE: Final = 0.2  # where rows are in any order, some ascend by chance
CHUNK_ELEMENTS: Final = 1 << 20
SAMPLED_ROWS: Final = 256
MIN_NEARER_BITS: Final = 1.0
MIN_MOVED_SHARE: Final = 0.02

Fingerprints = npt.NDArray[np.uint64]


class RowRun(NamedTuple):
    """`rows` rows of the target from `target` on are those of the base from `base` on."""

    target: int
    base: int
    rows: int


def align_rows(target: Bits, base: Bits, kind: ElementType) -> list[RowRun] | None:
    """Ascending on both sides; None where nothing is found, or all rows are where they were.

    Args:
        target, base: [rows, columns], with equally many columns.
    """
    if min(len(target), len(base)) < MIN_ROWS or target.shape[1] < MIN_COLUMNS:
        return None
    if len(target) == len(base) and not _has_moved(target, base, kind):
        return None
    anchors = _longest_ascending(_pair_unique_rows(_row_fingerprints(target), _row_fingerprints(base)))
    if len(anchors) < MIN_EXACT_ANCHOR_SHARE * len(target):
        found = _longest_ascending(_pair_unique_rows(_peak_fingerprints(target, kind), _peak_fingerprints(base, kind)))
        anchors = max(anchors, _keep_confirmed(found), key=len)
    if len(anchors) < MIN_ANCHOR_SHARE * min(len(target), len(base)):
        return None
    runs = _make_runs(anchors, target, base, kind)
    return runs if 0 < len(runs) <= MAX_RUNS and runs != [RowRun(0, 0, len(target))] else None


def _has_moved(target: Bits, base: Bits, kind: ElementType) -> bool:
    """Rule 4."""
    rows = np.unique(np.linspace(0, len(target) - 2, SAMPLED_ROWS).astype(np.int64))
    same = _mean_difference_bits(target[rows], base[rows], kind)
    other = _mean_difference_bits(target[rows], base[rows + 1], kind)
    return bool((same > other - MIN_NEARER_BITS).mean() > MIN_MOVED_SHARE)


def _row_fingerprints(matrix: Bits) -> Fingerprints:
    weights = np.random.default_rng(0).integers(0, 1 << 63, matrix.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    out = np.empty(len(matrix), np.uint64)
    for begin, end in _chunks(matrix):
        out[begin:end] = (matrix[begin:end].astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return out


def _peak_fingerprints(matrix: Bits, kind: ElementType) -> Fingerprints:
    columns = matrix.shape[1]
    out = np.empty(len(matrix), np.uint64)
    for begin, end in _chunks(matrix):
        magnitudes = _magnitudes(matrix[begin:end], kind)
        rows = np.arange(len(magnitudes))
        largest = magnitudes.argmax(axis=1)
        magnitudes[rows, largest] = 0
        second = magnitudes.argmax(axis=1)
        out[begin:end] = largest.astype(np.uint64) * np.uint64(columns) + second.astype(np.uint64)
    return out


def _magnitudes(bits: Bits, kind: ElementType) -> Bits:
    if kind.is_float:
        return bits & bits.dtype.type(np.iinfo(kind.signed).max)
    signed = (
        to_ordered(bits, kind)
        if kind.name[0] == "i"
        else (bits ^ bits.dtype.type(1 << (8 * kind.size - 1))).view(kind.signed)
    )
    return np.where(signed < 0, ~signed, signed).view(kind.bits)


def _pair_unique_rows(ours: Fingerprints, theirs: Fingerprints) -> list[tuple[int, int]]:
    """Rows of the same print, which none other on their side has; in the target's order."""
    prints, first, counts = np.unique(ours, return_index=True, return_counts=True)
    other_prints, other_first, other_counts = np.unique(theirs, return_index=True, return_counts=True)
    single, other = prints[counts == 1], other_prints[other_counts == 1]
    _, here, there = np.intersect1d(single, other, assume_unique=True, return_indices=True)
    rows, bases = first[counts == 1][here], other_first[other_counts == 1][there]
    order = np.argsort(rows)
    return list(zip(rows[order].tolist(), bases[order].tolist(), strict=True))


def _longest_ascending(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest series whose base rows ascend (patience sorting)."""
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for i, (_, base) in enumerate(pairs):
        at = bisect_left(tails, base)
        before.append(ends[at - 1] if at else -1)
        tails[at : at + 1], ends[at : at + 1] = [base], [i]
    out = []
    at = ends[-1] if ends else -1
    while at >= 0:
        out.append(pairs[at])
        at = before[at]
    return out[::-1]


def _keep_confirmed(anchors: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rule 2."""
    shifts = [row - base for row, base in anchors]
    return [
        anchor for i, anchor in enumerate(anchors) if shifts[i] in (*shifts[max(0, i - 1) : i], *shifts[i + 1 : i + 2])
    ]


def _make_runs(anchors: list[tuple[int, int]], target: Bits, base: Bits, kind: ElementType) -> list[RowRun]:
    runs: list[RowRun] = []
    for (row, old), (next_row, next_old) in pairwise([(-1, -1), *anchors, (len(target), len(base))]):
        room = min(next_row - row, next_old - old) - 1
        kept = room
        if next_row - row != next_old - old:
            first = _mean_difference_bits(target[row + 1 :][:room], base[old + 1 :][:room], kind)
            last = _mean_difference_bits(target[next_row - room : next_row], base[next_old - room : next_old], kind)
            kept = int(np.argmin(np.append(0, first.cumsum()) + np.append(last[::-1].cumsum()[::-1], 0)))
        rest = room - kept
        _append(runs, RowRun(row + 1, old + 1, kept))
        _append(runs, RowRun(next_row - rest, next_old - rest, rest + (next_row < len(target))))
        if len(runs) > MAX_RUNS:
            return []
    return runs


def _append(runs: list[RowRun], run: RowRun) -> None:
    if not run.rows:
        return
    last = runs[-1] if runs else RowRun(0, 0, 0)
    if (last.target + last.rows, last.base + last.rows) == (run.target, run.base):
        runs[-1:] = [RowRun(last.target, last.base, last.rows + run.rows)]
    else:
        runs.append(run)


def _mean_difference_bits(ours: Bits, theirs: Bits, kind: ElementType) -> npt.NDArray[np.float64]:
    """Of each row: mean bits of the differences."""
    out = np.empty(len(ours))
    for begin, end in _chunks(ours):
        # Each side on its own: differences of integers of their width wrap around.
        new, old = (to_ordered(side[begin:end], kind).astype(np.float64) for side in (ours, theirs))
        out[begin:end] = np.log2(np.abs(new - old) + 1).mean(axis=1)
    return out


def _chunks(matrix: Bits) -> list[tuple[int, int]]:
    step = max(1, CHUNK_ELEMENTS // matrix.shape[1])
    return [(begin, min(begin + step, len(matrix))) for begin in range(0, len(matrix), step)]
