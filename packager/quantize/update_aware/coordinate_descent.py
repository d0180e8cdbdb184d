"""Chooses integer levels jointly, by what they do to a layer's output and by what it costs to send them.

Rules:
1. Minimize over integers Q: (1/E) sum_n a_n [v' H v - 2 v' T] + lambda * R(Q - base), with v = s (Q - z),
   H = E[x_q x_q'] and T = E[x_q y'], both centred and damped, y being what the layer should give; E is the energy of
   the layer's output over its sensitivity, a_n says how much channel n counts.
2. Coordinate descent, rows by falling H_kk; candidates are the base's level, the nearest, and one step towards the
   base.
3. R is -log2 of the tensor's own histogram of changes, estimated anew in each pass; lambda is annealed from above, so
   that what is worth changing at a high price is changed first. The walk starts at the base's levels; where rounding
   to nearest changes MANY of them it starts there, since from the base it would need more passes than there are.
4. Never a dead zone around the base's level: a typical change is a small fraction of a step, and rounding to nearest
   carries an update as a dither over many weights; a dead zone removes just the part that they have in common.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

ANNEALING_FACTORS: Final = (8.0, 4.0, 2.0, 1.4)
MAX_PASSES: Final = 4
DAMPING_SHARE: Final = 0.3  # of the mean of H's diagonal; from .02 to 1.5 the answers' error differed by a twentieth
FEW_ROWS_DAMPING: Final = 0.1  # more of it, for each input over the rows: a layer with few rows fits their noise
MANY_CHANGED_SHARE: Final = 0.5  # share of levels that rounding to nearest changes
MAX_CHANGE: Final = 20  # changes beyond it share one price
CONVERGED_SHARE: Final = 3e-5  # share of levels that changed in a pass
TABLE_PASSES: Final = 3
TABLE_ROWS: Final = 4_096  # of a table at a time: a vocabulary of doubles would not fit
BLOCK_ROWS: Final = 64  # rows
SPARSE_COLUMN_RATIO: Final = 8  # columns are picked out where less than one in as many changed
MAX_EXTRA_STEPS: Final = 3  # steps beyond what rounding to nearest takes, of what is chosen jointly
UNSEEN_CHANGE_COUNT: Final = 0.5  # pseudo-count of a change that was not seen


@dataclass(frozen=True, slots=True)
class Layer:
    """One matrix [inputs, channels] on the grid of the base: weight, scale and zero, base levels, level limits."""

    weight: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    base: np.ndarray
    low: int
    high: int

    def exact(self) -> np.ndarray:
        """float64 [inputs, channels]: the weight in units of levels."""
        return np.asarray(self.weight.astype(np.float64) / self.scale + self.zero)

    def nearest(self) -> np.ndarray:
        """int32 [inputs, channels]: rounding to nearest on the base's grid."""
        levels: np.ndarray = np.clip(np.rint(self.exact()), self.low, self.high)
        return levels.astype(np.int32)


def bits_of_changes(change: np.ndarray) -> np.ndarray:
    """float32 [2 * MAX_CHANGE + 1]: bits for each change from -MAX_CHANGE on, by the histogram of `change` (rule 3)."""
    spots = np.clip(change, -MAX_CHANGE, MAX_CHANGE).astype(np.int8).ravel() + np.int8(MAX_CHANGE)
    seen = np.bincount(spots, minlength=2 * MAX_CHANGE + 1)
    count = seen + UNSEEN_CHANGE_COUNT * np.exp(-np.abs(np.arange(-MAX_CHANGE, MAX_CHANGE + 1)) / 2)
    return np.asarray(-np.log2(count / count.sum()), dtype=np.float32)


def choose_levels(
    layer: Layer,
    h: np.ndarray,
    target_moment: np.ndarray,
    energy: float,
    rate_weight: float,
    rows: float,
    start: np.ndarray | None = None,
    channels: np.ndarray | None = None,
) -> np.ndarray:
    """int16 levels [inputs, channels] (rules 1 to 3).

    Args:
        layer: the matrix and its grid.
        h: float32 [inputs, inputs], E[x_q x_q'] centred.
        wanted: float32 [inputs, channels], E[x_q y'] centred.
        energy: E of rule 1.
        price: lambda of rule 1, error energy a bit.
        rows: how many `h` and `wanted` are means of.
        start: levels to start from; those of rule 3 where not given.
        channels: float64 [channels], a_n of rule 1; all 1 where not given.
    """
    inputs = layer.weight.shape[0]
    damping = np.float32((DAMPING_SHARE + FEW_ROWS_DAMPING * inputs / rows) * float(np.mean(np.diag(h))) + 1e-12)
    each = np.float32(energy) / (channels.astype(np.float32) if channels is not None else np.float32(1.0))
    # rows in the order in which they are walked, so that a block of them is a slice
    order = np.argsort(-np.diag(h), kind="stable")
    h = h.astype(np.float32)[np.ix_(order, order)]
    h[np.diag_indices(inputs)] += damping
    weight = layer.weight.astype(np.float32)
    target_moment = target_moment.astype(np.float32) + damping * weight
    scale, zero, base = (
        np.ascontiguousarray(np.broadcast_to(part, weight.shape)[order], np.float32)
        for part in (layer.scale, layer.zero, layer.base)
    )
    nearest = np.rint(weight[order] / scale + zero - base)
    reach = np.abs(nearest) + MAX_EXTRA_STEPS
    low, high = np.maximum(layer.low - base, -reach), np.minimum(layer.high - base, reach)
    is_far = np.count_nonzero(nearest) > MANY_CHANGED_SHARE * nearest.size
    if start is not None:
        levels = start[order].astype(np.float32)
    else:
        levels = base + np.clip(nearest, low, high) if is_far else base.copy()
    descent = _Descent(h, base, scale, levels, target_moment[order] - h @ (scale * (levels - zero)), low, high)
    bits = bits_of_changes(levels - base) if start is not None or is_far else _initial_bits()
    schedule = [rate_weight * factor for factor in (*ANNEALING_FACTORS, *[1.0] * MAX_PASSES)]
    if start is not None:
        schedule = schedule[-MAX_PASSES - 1 :]
    for turn, now in enumerate(schedule):
        changed = descent.run_pass(bits, np.float32(now) * each)
        bits = bits_of_changes(levels - base)
        if turn >= len(schedule) - MAX_PASSES and changed < levels.size * CONVERGED_SHARE:
            break
    out = np.empty(levels.shape, np.int16)
    out[order] = levels
    return out


@dataclass(slots=True)
class _Descent:
    """Rule 2; all arrays are float32 in the order of the walk, `levels` and `residual` change in place.

    `low` and `high` limit what is added to `base`.

    Within a block of BLOCK rows a change is made up for at once, in the other rows once the block is done: a product of
    matrices where there would be an outer product a row.
    """

    h: np.ndarray
    base: np.ndarray
    scale: np.ndarray
    levels: np.ndarray
    residual: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def run_pass(self, bits: np.ndarray, rate_weight: np.ndarray | np.float32) -> int:
        """One pass over all rows at a price [channels]; how many levels changed."""
        changed = 0
        for first in range(0, len(self.h), BLOCK_ROWS):
            block = slice(first, min(first + BLOCK_ROWS, len(self.h)))
            count, moves = self._run_block(block, bits, rate_weight)
            if not count:
                continue
            changed += count
            columns = np.flatnonzero(moves.any(axis=0))
            if SPARSE_COLUMN_RATIO * len(columns) > moves.shape[1]:
                self.residual -= self.h[:, block] @ moves
            else:
                self.residual[:, columns] -= self.h[:, block] @ moves[:, columns]
        return changed

    def _run_block(
        self, block: slice, bits: np.ndarray, rate_weight: np.ndarray | np.float32
    ) -> tuple[int, np.ndarray]:
        """One pass over the rows of a block: how many levels changed, and by how much their numbers did."""
        inner, step, base = self.h[block, block], self.scale[block], self.base[block]
        own = np.diag(inner)[:, None] * step
        gain, inverse = own * step, np.float32(1.0) / own
        low, high = self.low[block], self.high[block]
        left, levels, moves = self.residual[block].copy(), self.levels[block] - base, np.zeros_like(step)
        changed = 0
        for k in range(len(inner)):
            wanted = levels[k] + left[k] * inverse[k]
            change = _best_levels(wanted, low[k], high[k], gain[k], bits, rate_weight) - levels[k]
            moved = np.flatnonzero(change)
            if not len(moved):
                continue
            changed += len(moved)
            levels[k] += change
            moves[k] = change * step[k]
            if SPARSE_COLUMN_RATIO * len(moved) > len(change):
                left[k + 1 :] -= np.multiply.outer(inner[k + 1 :, k], moves[k])
            else:
                left[k + 1 :, moved] -= np.multiply.outer(inner[k + 1 :, k], moves[k, moved])
        if changed:
            self.levels[block] = base + levels
        return changed, moves


def _best_levels(
    exact_change: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    gain: np.ndarray,
    bits: np.ndarray,
    rate_weight: np.ndarray | np.float32,
) -> np.ndarray:
    """The best of a row's candidates for each channel; all levels are counted from the base's.

    Args:
        wanted: without a price.
        low, high: limits.
        gain: error of a channel a squared level.
        bits: of each change (`prices`).
    """
    nearest = np.rint(exact_change)
    np.maximum(nearest, low, out=nearest)
    np.minimum(nearest, high, out=nearest)
    best, least = np.zeros_like(nearest), gain * np.square(exact_change) + rate_weight * bits[MAX_CHANGE]
    for candidate in (nearest, nearest - np.sign(nearest)):
        cost = gain * np.square(exact_change - candidate)
        cost += rate_weight * bits.take(candidate.astype(np.intp) + MAX_CHANGE, mode="clip")
        better = cost < least
        np.copyto(best, candidate, where=better)
        np.copyto(least, cost, where=better)
    return np.asarray(best)


def choose_table_levels(layer: Layer, importance: np.ndarray, rate_weight: float) -> np.ndarray:
    """int16 levels of a table whose rows stand alone: each by its own error, weighed by `importance`, which has the
    table's shape or broadcasts to it."""
    levels = np.array(layer.base, np.int16)
    bits = _initial_bits()
    # rows whose every number rounds to the base's level stay: most of a vocabulary, after a fine-tune
    moving = [
        rows[np.any(np.rint(_exact_levels(layer, rows)) != layer.base[rows], axis=tuple(range(1, levels.ndim)))]
        for rows in np.array_split(np.arange(len(levels)), -(-len(levels) // TABLE_ROWS))
    ]
    for _ in range(TABLE_PASSES):
        for rows in moving:
            if len(rows):
                levels[rows] = _choose_rows(layer, importance, rate_weight, bits, rows)
        bits = bits_of_changes(levels - layer.base)
    return levels


def _exact_levels(layer: Layer, rows: np.ndarray) -> np.ndarray:
    """float32: the numbers of `rows` in units of levels."""
    shape = layer.base.shape
    scale, zero = (np.broadcast_to(part, shape)[rows].astype(np.float32) for part in (layer.scale, layer.zero))
    exact: np.ndarray = layer.weight[rows].astype(np.float32) / scale + zero
    return exact


def _choose_rows(
    layer: Layer, importance: np.ndarray, rate_weight: float, bits: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    shape = layer.base.shape
    scale = np.broadcast_to(layer.scale, shape)[rows].astype(np.float32)
    exact = _exact_levels(layer, rows)
    base = layer.base[rows].astype(np.float32)
    gain = np.broadcast_to(importance, shape)[rows].astype(np.float32) * scale * scale
    nearest = np.clip(np.rint(exact), layer.low, layer.high)
    best, cost = base.copy(), gain * np.square(exact - base) + np.float32(rate_weight) * bits[MAX_CHANGE]
    for candidate in (nearest, nearest - np.sign(nearest - base)):
        spot = np.clip(candidate - base, -MAX_CHANGE, MAX_CHANGE).astype(np.int32) + MAX_CHANGE
        other = gain * np.square(exact - candidate) + np.float32(rate_weight) * bits[spot]
        better = other < cost
        best, cost = np.where(better, candidate, best), np.where(better, other, cost)
    return np.asarray(best)


def _initial_bits() -> np.ndarray:
    """Before anything is known: one level in a hundred changes, each further step costs two bits."""
    rare = 0.01
    steps = np.abs(np.arange(-MAX_CHANGE, MAX_CHANGE + 1))
    return np.asarray(np.where(steps == 0, -np.log2(1 - rare), -np.log2(rare / 2) + 2 * (steps - 1)), np.float32)
