"""Pair the rows of two matrices after rows were inserted or removed, as in a grown vocabulary.

Symbols: target T, bits [R, C]; base B, bits [Q, C]; a row's fingerprint, uint64. An anchor is a pair (target row, base
row).

Theory of operation. If a row was inserted, all rows after it move, and every element is predicted from the wrong row.
Rows that did not change are found by their content; rows that were fine-tuned changed in every element, but the
position of their two largest magnitudes rarely changes.

Rules, in order:
1. Anchors are pairs of rows with the same fingerprint that occurs once on either side. The fingerprint is first a hash
   of the row; if fewer than half of the target's rows are anchors, it is the pair of columns of the row's two largest
   magnitudes.
2. Of the anchors, the longest series that ascends on both sides is kept. Two rows may share their largest columns by
   chance: such an anchor needs a neighbor with the same shift.
3. Between two anchors whose shifts differ, each row goes with the anchor that makes the sum of difference bits
   smallest.
4. Matrices with equal row counts are examined only if rows at the same position are no nearer than neighboring rows.
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
MIN_ANCHOR_SHARE: Final = 0.2  # if rows are shuffled, some anchors still ascend by chance
CHUNK_ELEMENTS: Final = 1 << 20
SAMPLED_ROWS: Final = 256
MIN_NEARER_BITS: Final = 1.0
MIN_MOVED_SHARE: Final = 0.02

Fingerprints = npt.NDArray[np.uint64]


class RowRun(NamedTuple):
    """Rows of the target from `target` on that correspond to rows of the base from `base` on."""

    target: int
    base: int
    rows: int


def align_rows(target: Bits, base: Bits, kind: ElementType) -> list[RowRun] | None:
    """Return the runs of corresponding rows, ascending on both sides.

    Args:
        target: bits [R, C].
        base: bits [Q, C].
        kind: type of the elements.

    Returns:
        None if nothing is found, or if all rows are where they were.
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
    """Return whether rows at the same position are no nearer than neighboring rows (rule 4)."""
    rows = np.unique(np.linspace(0, len(target) - 2, SAMPLED_ROWS).astype(np.int64))
    same_row_bits = _mean_difference_bits(target[rows], base[rows], kind)
    next_row_bits = _mean_difference_bits(target[rows], base[rows + 1], kind)
    return bool((same_row_bits > next_row_bits - MIN_NEARER_BITS).mean() > MIN_MOVED_SHARE)


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


def _pair_unique_rows(target_prints: Fingerprints, base_prints: Fingerprints) -> list[tuple[int, int]]:
    """Return pairs of rows whose fingerprint occurs once on either side, in the target's order."""
    prints, first, counts = np.unique(target_prints, return_index=True, return_counts=True)
    other_prints, other_first, other_counts = np.unique(base_prints, return_index=True, return_counts=True)
    single, other = prints[counts == 1], other_prints[other_counts == 1]
    _, target_index, base_index = np.intersect1d(single, other, assume_unique=True, return_indices=True)
    rows, bases = first[counts == 1][target_index], other_first[other_counts == 1][base_index]
    order = np.argsort(rows)
    return list(zip(rows[order].tolist(), bases[order].tolist(), strict=True))


def _longest_ascending(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the longest series whose base rows ascend (patience sorting)."""
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
    """Return the anchors that have a neighbor with the same shift (rule 2)."""
    shifts = [row - base for row, base in anchors]
    return [
        anchor for i, anchor in enumerate(anchors) if shifts[i] in (*shifts[max(0, i - 1) : i], *shifts[i + 1 : i + 2])
    ]


def _make_runs(anchors: list[tuple[int, int]], target: Bits, base: Bits, kind: ElementType) -> list[RowRun]:
    runs: list[RowRun] = []
    for (row, old), (next_row, next_old) in pairwise([(-1, -1), *anchors, (len(target), len(base))]):
        room = min(next_row - row, next_old - old) - 1
        kept_before = room
        if next_row - row != next_old - old:
            first = _mean_difference_bits(target[row + 1 :][:room], base[old + 1 :][:room], kind)
            last = _mean_difference_bits(target[next_row - room : next_row], base[next_old - room : next_old], kind)
            kept_before = int(np.argmin(np.append(0, first.cumsum()) + np.append(last[::-1].cumsum()[::-1], 0)))
        rest = room - kept_before
        _append(runs, RowRun(row + 1, old + 1, kept_before))
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


def _mean_difference_bits(target_rows: Bits, base_rows: Bits, kind: ElementType) -> npt.NDArray[np.float64]:
    """Return the mean bits of the differences of each pair of rows, float64 [rows]."""
    out = np.empty(len(target_rows))
    for begin, end in _chunks(target_rows):
        # Convert each side before subtracting: integers of the element's width would wrap around.
        new, old = (to_ordered(side[begin:end], kind).astype(np.float64) for side in (target_rows, base_rows))
        out[begin:end] = np.log2(np.abs(new - old) + 1).mean(axis=1)
    return out


def _chunks(matrix: Bits) -> list[tuple[int, int]]:
    step = max(1, CHUNK_ELEMENTS // matrix.shape[1])
    return [(begin, min(begin + step, len(matrix))) for begin in range(0, len(matrix), step)]
