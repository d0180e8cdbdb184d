"""Measure second moments of each layer's input behind the levels chosen so far.

Theory of operation. For one group of a layer (rows and weights: `row_selection`):

    x   float32 [rows, inputs]      inputs behind the levels chosen so far
    t   float32 [rows, width]       targets: stored rows of the float model, minus the value added to the layer's output
                                    (a residual connection) behind the levels chosen so far
    w   float32 [rows]              weights of the rows
    h   float32 [inputs, inputs]    sum w x x' / sum w - mean_q mean_q'
    c   float32 [inputs, width]     sum w x t' / sum w - mean_q mean_t'
    mean_q  float64 [inputs],  mean_t  float64 [width]

Rows behind chosen levels are reduced to moments at once and never stored.
"""

from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from packager.models.ordered_map import WORKER_THREADS
from packager.quantize.update_aware.float_prefix import FloatPrefix
from packager.quantize.update_aware.layers import SharedInput, rows_of, shape_of
from packager.quantize.update_aware.row_selection import RowSelection, added_parts, float_rows

BATCH_ROWS: Final = 1024  # least rows of one matrix product, since adding to `h` costs as much as many rows


@dataclass(slots=True)
class Moments:
    """Second moments of one group of one input: sums until `finish`, centered means after it.
    Symbols: module docstring.

    Attributes:
        size: number of inputs.
        width: number of target columns.
        is_projected: True if targets are outputs, False if they are the float model's inputs.
        workers: executor of the matrix products.
        h: float32 [size, size].
        c: float32 [size, width].
        mean_q: float64 [size].
        mean_t: float64 [width].
        total: sum of the rows' weights.
        squares: sum of their squares.
        pending_rows: rows that wait for a matrix product: x, t, weights.
        pending_sums: matrix products under way.
    """

    size: int
    width: int
    is_projected: bool
    workers: Executor
    h: np.ndarray = field(init=False)
    c: np.ndarray = field(init=False)
    mean_q: np.ndarray = field(init=False)
    mean_t: np.ndarray = field(init=False)
    total: float = 0.0
    squares: float = 0.0
    pending_rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    pending_sums: list[Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h = np.zeros((self.size, self.size), np.float32)
        self.c = np.zeros((self.size, self.width), np.float32)
        self.mean_q, self.mean_t = np.zeros(self.size), np.zeros(self.width)

    def add(self, q: np.ndarray, t: np.ndarray, weights: np.ndarray) -> None:
        """Add rows of one sample.
        They are multiplied in batches by `workers`, while the caller computes the next rows.

        Args:
            q: float32 [rows, size], inputs behind the chosen levels; scaled in place later.
            t: float32 [rows, width], targets.
            weights: float32 [rows].
        """
        self.pending_rows.append((q, t, weights))
        if sum(len(part[2]) for part in self.pending_rows) >= max(BATCH_ROWS, self.size):
            self._flush()

    @property
    def effective_rows(self) -> float:
        """The number of equally weighted rows that carry as much information (Kish's effective sample size)."""
        return max(1.0, self.total * self.total / (self.squares or 1.0))

    def finish(self) -> None:
        """Turn the sums into centered means."""
        self._flush()
        self._wait()
        total = self.total or 1.0
        self.mean_q /= total
        self.mean_t /= total
        self.h /= np.float32(total)
        self.c /= np.float32(total)
        self.h -= np.outer(self.mean_q, self.mean_q).astype(np.float32)
        self.c -= np.outer(self.mean_q, self.mean_t).astype(np.float32)

    def target_moment(self, matrix: np.ndarray, columns: slice) -> np.ndarray:
        """Return T, the centered moments E[x y'] of inputs and wanted outputs, float32 [size, channels].

        Args:
            matrix: float32 [size, channels], the weight in the float model.
            columns: its channels among those of all weights that share the input.
        """
        return np.asarray(self.c[:, columns] if self.is_projected else self.c @ matrix.astype(np.float32))

    def target_mean(self, matrix: np.ndarray, columns: slice) -> np.ndarray:
        """Return the mean wanted output of one weight, [channels].

        Args:
            matrix: float32 [size, channels], the weight in the float model.
            columns: its channels among those of all weights that share the input.
        """
        return np.asarray(self.mean_t[columns] if self.is_projected else self.mean_t @ matrix)

    def _flush(self) -> None:
        if not self.pending_rows:
            return
        q, t, weights = (np.concatenate([part[i] for part in self.pending_rows]) for i in range(3))
        self.pending_rows = []
        self.total += float(weights.sum(dtype=np.float64))
        self.squares += float(np.square(weights, dtype=np.float64).sum())
        self.mean_q += weights @ q
        self.mean_t += weights @ t
        roots = np.sqrt(weights)[:, None]
        q *= roots
        t *= roots
        self._wait()
        self.pending_sums = [
            self.workers.submit(_add_product, self.h, q, q),
            self.workers.submit(_add_product, self.c, q, t),
        ]

    def _wait(self) -> None:
        """Wait for the products under way.
        Each sum is added to by one product at a time, so that its order is fixed.
        """
        for product in self.pending_sums:
            product.result()
        self.pending_sums = []


def _add_product(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    total += left.T @ right


def measure_moments(
    prefix: FloatPrefix, shared_inputs: list[SharedInput], rows: RowSelection, folder: Path
) -> list[list[Moments]]:
    """Return the moments of each layer of a stage, one for each of its groups.

    Args:
        prefix: the float model with the levels chosen so far.
        shared_inputs: the layers of the stage.
        rows: the rows to use.
        folder: directory of the row files.
    """
    with ThreadPoolExecutor(WORKER_THREADS) as workers:
        return _measure_moments(prefix, shared_inputs, rows, folder, workers)


def _measure_moments(
    prefix: FloatPrefix, shared_inputs: list[SharedInput], rows: RowSelection, folder: Path, workers: Executor
) -> list[list[Moments]]:
    found = [
        [
            Moments(shape_of(s.first_weight)[0], s.width, s.is_projected, workers)
            for _ in range(shape_of(s.first_weight)[1])
        ]
        for s in shared_inputs
    ]
    stored = [float_rows(s, folder) for s in shared_inputs]
    starts = [np.cumsum([0, *[len(positions) for positions in rows.positions[s.node_number]]]) for s in shared_inputs]
    names = sorted(
        {s.first_weight.float_source or "" for s in shared_inputs}
        | {s.added_value for s in shared_inputs if s.added_value}
    )
    first = min(shared.input_index for shared in shared_inputs)
    for number, values in enumerate(prefix.walk(first, names)):
        for i, shared in enumerate(shared_inputs):
            positions, weights = rows.positions[shared.node_number][number], rows.weights[shared.node_number][number]
            if not len(positions):
                continue
            span = slice(starts[i][number], starts[i][number + 1])
            added = added_parts(shared, values, positions)
            for group, q in enumerate(
                rows_of(values[shared.first_weight.float_source or ""], shared.first_weight, positions)
            ):
                exact = stored[i][group][span]
                found[i][group].add(q, exact if added is None else exact - added[group], weights)
    for parts in found:
        for part in parts:
            part.finish()
    return found
