"""Choose the levels of one matrix jointly, by their effect on the layer's output and their bits.

Theory of operation. Symbols (one matrix; K = inputs, N = channels):

    Q       int [K, N]      levels to choose; Q0 are the base's
    s, z    float [K, N]    scales and zero points (broadcast)
    V       float [K, N]    s * (Q - z); v_n is column n
    H       float32 [K, K]  centered second moments of the input, E[x x']
    T       float32 [K, N]  centered moments of input and wanted output, E[x y']
    a       float [N]       how much each channel counts
    E       float           energy of the layer's output over its sensitivity (`solver`)
    lambda  float           rate weight

Minimized is

    J(Q) = (1/E) sum_n a_n (v_n' H v_n - 2 v_n' T_n) + lambda * sum R(Q - Q0)

H and T are damped towards the float weight W: H += d I, T += d W, with
d = (DAMPING_SHARE + FEW_ROWS_DAMPING * K / rows) * mean(diag H).

Coordinate descent: rows k by falling H_kk, all channels of a row at once. With the residual L = T - H V, the best real
level of (k, n) is q* = Q + L_kn / (H_kk s_kn), and a candidate c costs a_n H_kk s_kn^2 (q* - c)^2 / E + lambda R(c -
Q0). Candidates are the base's level, the nearest to q*, and one step from there towards the base.

R(change) = -log2 of the tensor's own histogram of changes, estimated again after each pass. lambda is annealed from
above (ANNEALING_FACTORS), so that the changes with the largest benefit per bit come first. The first pass starts at the
base's levels; if rounding to nearest changes more than MANY_CHANGED_SHARE of them it starts there, since from the base
it would need more passes than there are.

There is no dead zone around the base's level: a typical change is a small fraction of a step, and rounding to nearest
spreads an update over many weights like a dither. A dead zone removes just the part that those weights have in common.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

# multiples of lambda in the first passes; more passes change next to nothing (docs/benchmarks.md)
ANNEALING_FACTORS: Final = (8.0, 4.0, 2.0, 1.4)
MAX_PASSES: Final = 4  # passes at lambda itself
# of the mean of H's diagonal; from 0.02 to 1.5 the outputs' error differed by a twentieth (docs/benchmarks.md)
DAMPING_SHARE: Final = 0.3
FEW_ROWS_DAMPING: Final = 0.1  # more damping for each input over the rows, since a layer with few rows fits their noise
MANY_CHANGED_SHARE: Final = 0.5  # share of levels that rounding to nearest changes
MAX_CHANGE: Final = 20  # levels; larger changes cost as many bits as this one
CONVERGED_SHARE: Final = 3e-5  # share of levels that change in a pass; below it the descent ends
TABLE_PASSES: Final = 3  # passes over a table; only the histogram changes between them
TABLE_ROWS: Final = 4_096  # rows of a table at a time; a whole vocabulary in float would not fit into memory
BLOCK_ROWS: Final = 64  # rows whose effect on the other rows is applied in one matrix product
SPARSE_COLUMN_RATIO: Final = 8  # only the changed columns are multiplied if fewer than one in this many changed
MAX_EXTRA_STEPS: Final = 3  # levels that a joint choice may move beyond rounding to nearest
UNSEEN_CHANGE_COUNT: Final = 0.5  # pseudo-count of a change that was not seen


@dataclass(frozen=True, slots=True)
class Layer:
    """One matrix on the base's grid.

    Attributes:
        weight: float32 [inputs, channels].
        scale: float64 [inputs, channels], s.
        zero: float64 [inputs, channels], z.
        base: int16 [inputs, channels], Q0.
        low: smallest level.
        high: largest level.
    """

    weight: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    base: np.ndarray
    low: int
    high: int

    def exact(self) -> np.ndarray:
        """Return the weight in units of levels, float64 [inputs, channels]: W / s + z."""
        return np.asarray(self.weight.astype(np.float64) / self.scale + self.zero)

    def nearest(self) -> np.ndarray:
        """Return the levels by rounding to nearest, int32 [inputs, channels]."""
        levels: np.ndarray = np.clip(np.rint(self.exact()), self.low, self.high)
        return levels.astype(np.int32)


def bits_of_changes(change: np.ndarray) -> np.ndarray:
    """Return R, the bits of each change in -MAX_CHANGE..MAX_CHANGE, from a histogram.
    The histogram is that of `change`, integers of any shape.

    Returns:
        float32 [2 * MAX_CHANGE + 1].
    """
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
    """Choose the levels of one matrix by coordinate descent (see the module docstring).

    Args:
        layer: the matrix and its grid.
        h: float32 [inputs, inputs], H.
        target_moment: float32 [inputs, channels], T.
        energy: E, the energy of the layer's output over its sensitivity.
        rate_weight: lambda, in error energy per bit.
        rows: effective number of rows that `h` and `target_moment` are means of.
        start: int16 [inputs, channels], levels to start from; if None, the base's or the nearest (module docstring).
        channels: float64 [channels], a; all 1 if None.

    Returns:
        int16 [inputs, channels].
    """
    inputs = layer.weight.shape[0]
    damping = np.float32((DAMPING_SHARE + FEW_ROWS_DAMPING * inputs / rows) * float(np.mean(np.diag(h))) + 1e-12)
    energy_per_channel = np.float32(energy) / (channels.astype(np.float32) if channels is not None else np.float32(1.0))
    # sort the rows in the order of the walk, so that a block of them is a slice
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
    limit = np.abs(nearest) + MAX_EXTRA_STEPS
    low, high = np.maximum(layer.low - base, -limit), np.minimum(layer.high - base, limit)
    starts_at_nearest = np.count_nonzero(nearest) > MANY_CHANGED_SHARE * nearest.size
    if start is not None:
        levels = start[order].astype(np.float32)
    else:
        levels = base + np.clip(nearest, low, high) if starts_at_nearest else base.copy()
    descent = _Descent(h, base, scale, levels, target_moment[order] - h @ (scale * (levels - zero)), low, high)
    bits = bits_of_changes(levels - base) if start is not None or starts_at_nearest else _initial_bits()
    schedule = [rate_weight * factor for factor in (*ANNEALING_FACTORS, *[1.0] * MAX_PASSES)]
    if start is not None:
        schedule = schedule[-MAX_PASSES - 1 :]
    for number, annealed in enumerate(schedule):
        changed = descent.run_pass(bits, np.float32(annealed) * energy_per_channel)
        bits = bits_of_changes(levels - base)
        if number >= len(schedule) - MAX_PASSES and changed < levels.size * CONVERGED_SHARE:
            break
    out = np.empty(levels.shape, np.int16)
    out[order] = levels
    return out


@dataclass(slots=True)
class _Descent:
    """The state of a descent; all arrays are float32 with rows in the order of the walk.

    Within a block of BLOCK_ROWS rows a change is compensated at once, in the other rows after the block. That takes one
    matrix product instead of an outer product for each row.

    Attributes:
        h: [inputs, inputs], H damped.
        base: [inputs, channels], Q0.
        scale: [inputs, channels], s.
        levels: [inputs, channels], Q; changed in place.
        residual: [inputs, channels], L = T - H V; changed in place.
        low: [inputs, channels], smallest change from `base`.
        high: [inputs, channels], largest change from `base`.
    """

    h: np.ndarray
    base: np.ndarray
    scale: np.ndarray
    levels: np.ndarray
    residual: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def run_pass(self, bits: np.ndarray, rate_weight: np.ndarray | np.float32) -> int:
        """Walk over all rows once and return how many levels changed.

        Args:
            bits: float32 [2 * MAX_CHANGE + 1], R.
            rate_weight: float32 [channels] or scalar, lambda * E / a.
        """
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
        """Walk over the rows of a block once.
        Return how many levels changed, and the changes of V, float32 [block, channels].
        """
        inner, step, base = self.h[block, block], self.scale[block], self.base[block]
        own = np.diag(inner)[:, None] * step
        gain, inverse = own * step, np.float32(1.0) / own
        low, high = self.low[block], self.high[block]
        residual, levels, moves = self.residual[block].copy(), self.levels[block] - base, np.zeros_like(step)
        changed = 0
        for k in range(len(inner)):
            exact_change = levels[k] + residual[k] * inverse[k]
            change = _best_levels(exact_change, low[k], high[k], gain[k], bits, rate_weight) - levels[k]
            moved = np.flatnonzero(change)
            if not len(moved):
                continue
            changed += len(moved)
            levels[k] += change
            moves[k] = change * step[k]
            if SPARSE_COLUMN_RATIO * len(moved) > len(change):
                residual[k + 1 :] -= np.multiply.outer(inner[k + 1 :, k], moves[k])
            else:
                residual[k + 1 :, moved] -= np.multiply.outer(inner[k + 1 :, k], moves[k, moved])
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
    """Return the cheapest change from the base's level for each channel of one row, float32 [channels].

    Args:
        exact_change: [channels], q* - Q0.
        low: [channels], smallest change.
        high: [channels], largest change.
        gain: [channels], H_kk s^2: error of one squared level.
        bits: [2 * MAX_CHANGE + 1], R.
        rate_weight: [channels] or scalar, lambda * E / a.
    """
    nearest = np.rint(exact_change)
    np.maximum(nearest, low, out=nearest)
    np.minimum(nearest, high, out=nearest)
    best, least_cost = np.zeros_like(nearest), gain * np.square(exact_change) + rate_weight * bits[MAX_CHANGE]
    for candidate in (nearest, nearest - np.sign(nearest)):
        cost = gain * np.square(exact_change - candidate)
        cost += rate_weight * bits.take(candidate.astype(np.intp) + MAX_CHANGE, mode="clip")
        better = cost < least_cost
        np.copyto(best, candidate, where=better)
        np.copyto(least_cost, cost, where=better)
    return np.asarray(best)


def choose_table_levels(layer: Layer, importance: np.ndarray, rate_weight: float) -> np.ndarray:
    """Choose the levels of a look-up table, whose elements do not interact.

    Args:
        layer: the table and its grid.
        importance: float64 that broadcasts to the table: relative error energy of one squared unit of an element.
        rate_weight: lambda, in relative error energy per bit.

    Returns:
        int16, shape of the table.
    """
    levels = np.array(layer.base, np.int16)
    bits = _initial_bits()
    # skip rows in which every element rounds to the base's level: most of a vocabulary, after a fine-tune
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
    """Return the weights of `rows` in units of levels, float32 [len(rows), ...]."""
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
    """Return R before any change is known.
    One level in a hundred changes, and each further step costs two bits.
    """
    rare = 0.01
    steps = np.abs(np.arange(-MAX_CHANGE, MAX_CHANGE + 1))
    return np.asarray(np.where(steps == 0, -np.log2(1 - rare), -np.log2(rare / 2) + 2 * (steps - 1)), np.float32)
