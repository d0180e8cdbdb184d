"""What layers multiply, in both models: rows of the float model's inputs on disk, second moments of both in memory.

Rules:
1. Models run one sample at a time; at most MAX_ROWS rows a layer are used, evenly taken from the samples, and no more
   than MAX_STORED_BYTES of them all.
2. The float model's rows are the same for every solution: they are written to a folder once, or what the layer makes of
   them where that is narrower. Those behind chosen levels are never stored, only their moments.
3. A row counts as much as the answers depend on the layer's output there (`gradients`), and no less than EVERY_ROW of
   the mean; a row on which nothing depends, padding for one, does not count at all. The same holds for channels.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.models.inputs import Sample
from packager.models.ordered_map import WORKER_THREADS, ordered_map, prefetch
from packager.models.samples import Samples
from packager.models.sessions import DEFAULT_SETTINGS, ONE_THREAD_SETTINGS, RunSettings, open_session_of, run_session
from packager.quantize.sensitivity import with_outputs
from packager.quantize.update_aware.float_prefix import FloatPrefix
from packager.quantize.update_aware.gradients import GradientWalk, spreads_of
from packager.quantize.update_aware.layers import SharedInput, outputs_of, position_count, rows_of, shape_of
from packager.quantize.update_aware.template import QuantizedWeight, to_matrices

MAX_ROWS: Final = 32_768
BATCH_ROWS: Final = 1024  # rows that are multiplied together, at least
LOCAL_ROWS: Final = 512  # of inputs that are kept as they are
MAX_STORED_BYTES: Final = 4 << 30  # on disk, while an update is solved
UNIFORM_ROW_SHARE: Final = 0.3
UNIFORM_CHANNEL_SHARE: Final = 0.3
MIN_INFLUENCE: Final = 1e-9  # of the mean
MAX_GRADIENT_FLOATS: Final = 1_000_000_000  # inner values over all samples that are walked back

Key = tuple[int, str]


@dataclass(slots=True)
class Moments:
    """Of one group of one input: `h` = E[x_q x_q'], `c` = E[x_q t'] (centred by `finish`), and the means.

    t are rows of the float model [width]: what the layer multiplies there or, where `is_projected`, what it should give
    for its weights, one after another: the float model's output, and what the prefix left over in the value that is
    added to it (layers, rule 3).
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
        """Rows [rows, size] behind the prefix, [rows, width] of the float model, and their weights [rows].

        They are multiplied in bundles, since adding to `h` costs as much as many rows; by `workers`, while the caller
        makes the next one.
        """
        self.pending_rows.append((q, t, weights))
        if sum(len(part[2]) for part in self.pending_rows) >= max(BATCH_ROWS, self.size):
            self._flush()

    @property
    def effective_rows(self) -> float:
        """How many rows of equal weight tell as much (Kish's effective sample size)."""
        return max(1.0, self.total * self.total / (self.squares or 1.0))

    def finish(self) -> None:
        """Sums become centred means."""
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
        """float32 [size, channels]: E[x_q y'] for what a weight should give, y.

        Args:
            matrix: [size, channels], the weight in the float model.
            columns: its channels among those of all weights.
        """
        return np.asarray(self.c[:, columns] if self.is_projected else self.c @ matrix.astype(np.float32))

    def target_mean(self, matrix: np.ndarray, columns: slice) -> np.ndarray:
        """[channels]: the mean of y, as in `wanted`."""
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
        """Sums keep their order: one product is added to each at a time."""
        for product in self.pending_sums:
            product.result()
        self.pending_sums = []


def _add_product(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    total += left.T @ right


@dataclass(slots=True)
class RowSelection:
    """Which rows of each layer are used, by layer number and then sample: their places and weights (rule 3).

    `local` holds the weights of the rows whose inputs are stored as they are.
    `channels` holds weights [channels] with mean 1 by weight; missing where the influence is not known. `looked_up`
    holds for each table how often each of its rows was looked up, a look-up counting 1 in the mean.
    """

    positions: dict[int, list[np.ndarray]]
    weights: dict[int, list[np.ndarray]]
    channels: dict[Key, np.ndarray]
    lookup_counts: dict[Key, np.ndarray] = field(default_factory=dict)
    local: dict[int, list[np.ndarray]] = field(default_factory=dict)


def measure_rows(
    prepared: onnx.ModelProto,
    everything: list[SharedInput],
    tables: list[QuantizedWeight],
    samples: Samples,
    folder: Path,
) -> RowSelection:
    """Choose the rows of every layer and write the float model's into `folder` (rules 1 to 3), float32."""
    constants = {tensor.name for tensor in prepared.graph.initializer}
    tables = [table for table in tables if table.float_source and table.float_source not in constants]
    names = sorted(
        {s.first_weight.float_source or "" for s in everything}
        | {table.float_source or "" for table in tables}
        | {s.added_value for s in everything if s.added_value}
    )
    running = open_watching_session(prepared, names, ONE_THREAD_SETTINGS)
    limit = max_rows_per_sample(samples, everything)
    found = RowSelection({s.node_number: [] for s in everything}, {s.node_number: [] for s in everything}, {})
    found.local = {s.node_number: [] for s in everything}
    few = -(-LOCAL_ROWS // max(1, len(samples)))
    exact = {s.node_number: _exact_matrices(s) for s in everything if s.is_projected}
    with ExitStack() as open_files:
        streams = {s.node_number: open_files.enter_context(s.path(folder).open("wb")) for s in everything}
        inputs = {s.node_number: open_files.enter_context(s.local_path(folder).open("wb")) for s in everything}
        slopes_ahead = prefetch(layer_gradients(prepared, everything, tables, samples))
        values_ahead = ordered_map(lambda sample: values_at(running, sample, names), samples)
        for values, slopes in zip(values_ahead, slopes_ahead, strict=True):
            for table in tables:
                _count_lookups(table, values[table.float_source or ""], slopes, found)
            for shared in everything:
                source = values[shared.first_weight.float_source or ""]
                weights = _row_weights(shared, source, slopes, found.channels)
                used = np.flatnonzero(weights > MIN_INFLUENCE * weights.mean()) if weights.any() else np.zeros(0, int)
                used = used[:: max(1, -(-len(used) // max(1, limit)))]
                found.positions[shared.node_number].append(used)
                found.weights[shared.node_number].append(weights[used].astype(np.float32))
                some = slice(None, None, max(1, -(-len(used) // few)))
                found.local[shared.node_number].append(weights[used[some]].astype(np.float32))
                left = _added_parts(shared, values, used)
                rows = rows_of(source, shared.first_weight, used)
                inputs[shared.node_number].write(np.concatenate([part[some] for part in rows], axis=1).tobytes())
                if shared.is_projected:
                    rows = [part @ matrix for part, matrix in zip(rows, exact[shared.node_number], strict=True)]
                    if left is not None:
                        rows = [part + more for part, more in zip(rows, left, strict=True)]
                streams[shared.node_number].write(np.concatenate(rows, axis=1).tobytes())
    for parts in found.weights.values():
        mean = float(np.mean(np.concatenate(parts))) if any(len(part) for part in parts) else 1.0
        parts[:] = [
            np.float32(1 - UNIFORM_ROW_SHARE) * part / np.float32(mean or 1.0) + np.float32(UNIFORM_ROW_SHARE)
            for part in parts
        ]
    for key, energy in found.channels.items():
        found.channels[key] = energy / (energy.mean() or 1.0) * (1 - UNIFORM_CHANNEL_SHARE) + UNIFORM_CHANNEL_SHARE
    return found


def layer_gradients(
    prepared: onnx.ModelProto, everything: list[SharedInput], tables: list[QuantizedWeight], samples: Samples
) -> Iterator[dict[str, np.ndarray]]:
    """For each sample the gradients at the outputs of the layers, by name; empty where they are not known or would
    take too long."""
    layers = [weight for shared in everything for weight in shared.weights if weight.kind != "recurrent"]
    gradients = GradientWalk(prepared, frozenset(weight.float_node.output[0] for weight in (*layers, *tables)))
    spreads = spreads_of(prepared, samples)
    if not gradients.known_names or not any(spread > 0 for spread in spreads.values()):
        yield from repeat({}, len(samples))
        return
    count = max(1, MAX_GRADIENT_FLOATS // max(1, gradients.count_inner_floats(next(iter(samples)))))
    step = -(-len(samples) // count)
    walk = gradients.gradients(replace(samples, indices=samples.indices[::step]), spreads)
    for number in range(len(samples)):
        yield next(walk) if number % step == 0 else {}


def _count_lookups(
    table: QuantizedWeight, index: np.ndarray, slopes: dict[str, np.ndarray], found: RowSelection
) -> None:
    key = (table.graph, table.levels.name)
    count = int(table.float_tensor.dims[0])
    places = np.where(index < 0, index + count, index).ravel()
    slope = slopes.get(table.float_node.output[0])
    weights = np.ones(len(places))
    if slope is not None and slope.any():
        squares = np.square(slope.reshape(len(places), -1).astype(np.float64))
        if len(table.float_tensor.dims) == 2:
            found.channels[key] = found.channels.get(key, 0.0) + squares.sum(axis=0)
        weights = squares.sum(axis=1)
        weights /= weights.mean()
    seen = np.bincount(places, weights, minlength=count)[:count]
    found.lookup_counts[key] = found.lookup_counts[key] + seen if key in found.lookup_counts else seen


def _row_weights(
    shared: SharedInput, source: np.ndarray, slopes: dict[str, np.ndarray], channels: dict[Key, np.ndarray]
) -> np.ndarray:
    """Squared gradients of each row of a layer, summed over its channels; adds those of each channel to `channels`."""
    count = _row_count(shared, source)
    total: np.ndarray | None = None
    known = 0
    for weight in shared.weights:
        slope = slopes.get(weight.float_node.output[0])
        if slope is None:
            continue
        if weight.kind == "conv":
            slope = np.moveaxis(slope, 1, -1)
        squares = np.square(slope.reshape(-1, slope.shape[-1]).astype(np.float64))
        if len(squares) != count:
            continue
        key = (weight.graph, weight.levels.name)
        channels[key] = channels.get(key, 0.0) + squares.sum(axis=0)
        rows = squares.sum(axis=1)
        # the weights of one layer count alike, whatever the answers owe to each
        rows = rows / (rows.mean() or 1.0)
        total = rows if total is None else total + rows
        known += 1
    return np.ones(count) if total is None else total / known


def _exact_matrices(shared: SharedInput) -> list[np.ndarray]:
    """float32 [inputs, channels of all weights] for each group."""
    groups = shape_of(shared.first_weight)[1]
    parts = [to_matrices(weight.float_values(), weight.kind, groups) for weight in shared.weights]
    return [np.concatenate([part[group] for part in parts], axis=1).astype(np.float32) for group in range(groups)]


def _added_parts(shared: SharedInput, values: dict[str, np.ndarray], positions: np.ndarray) -> list[np.ndarray] | None:
    """For each group, what is added at `places` to what the layer gives; None where it is of another shape."""
    if not shared.added_value:
        return None
    groups = shape_of(shared.first_weight)[1]
    outputs = outputs_of(values[shared.added_value], shared.first_weight)
    source = values[shared.first_weight.float_source or ""]
    if outputs.shape != (_row_count(shared, source), shared.width * groups):
        return None
    return np.split(outputs[positions], groups, axis=1)


def _row_count(shared: SharedInput, source: np.ndarray) -> int:
    """Rows that a value of the layer's input holds."""
    if shared.first_weight.kind == "conv":
        return position_count(source.shape, shared.first_weight)
    return source.size // max(1, shape_of(shared.first_weight)[0])


def float_rows(shared: SharedInput, folder: Path) -> list[np.ndarray]:
    """For each group the float model's rows [rows, width] (`Moments`), mapped from disk."""
    return _map_rows(shared, shared.path(folder), shared.width)


def local_rows(shared: SharedInput, folder: Path) -> list[np.ndarray]:
    """For each group the inputs [rows, inputs] of a few of them in the float model."""
    return _map_rows(shared, shared.local_path(folder), shape_of(shared.first_weight)[0])


def _map_rows(shared: SharedInput, path: Path, width: int) -> list[np.ndarray]:
    groups = shape_of(shared.first_weight)[1]
    if path.stat().st_size == 0:
        return [np.zeros((0, width), np.float32)] * groups
    return np.split(np.memmap(path, np.float32, "r").reshape(-1, width * groups), groups, axis=1)


def measure_moments(
    prefix: FloatPrefix, shared_inputs: list[SharedInput], rows: RowSelection, folder: Path
) -> list[list[Moments]]:
    """For each of `stage`, the moments of each of its groups, behind what is chosen in `prefix`."""
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
    starts = [np.cumsum([0, *[len(places) for places in rows.positions[s.node_number]]]) for s in shared_inputs]
    names = sorted(
        {s.first_weight.float_source or "" for s in shared_inputs}
        | {s.added_value for s in shared_inputs if s.added_value}
    )
    first = min(shared.input_index for shared in shared_inputs)
    for number, values in enumerate(prefix.walk(first, names)):
        for i, shared in enumerate(shared_inputs):
            places, weights = rows.positions[shared.node_number][number], rows.weights[shared.node_number][number]
            if not len(places):
                continue
            span = slice(starts[i][number], starts[i][number + 1])
            left = _added_parts(shared, values, places)
            for group, q in enumerate(
                rows_of(values[shared.first_weight.float_source or ""], shared.first_weight, places)
            ):
                exact = stored[i][group][span]
                found[i][group].add(q, exact if left is None else exact - left[group], weights)
    for parts in found:
        for part in parts:
            part.finish()
    return found


def max_rows_per_sample(samples: Samples, everything: list[SharedInput]) -> int:
    """Rows of a layer and sample (rule 1)."""
    floats = sum(shared.width * shape_of(shared.first_weight)[1] for shared in everything)
    rows = min(MAX_ROWS, MAX_STORED_BYTES // (4 * max(1, floats)))
    return max(1, rows // max(1, len(samples)))


def values_at(running: onnxruntime.InferenceSession, sample: Sample, names: list[str]) -> dict[str, np.ndarray]:
    """The values `names`: from the sample itself where they are inputs, else from one run."""
    outputs = [name for name in names if name not in sample]
    found = dict(zip(outputs, run_session(running, sample, outputs), strict=True)) if outputs else {}
    return {name: sample[name] if name in sample else found[name] for name in names}


def open_watching_session(
    model: onnx.ModelProto, names: list[str], settings: RunSettings = DEFAULT_SETTINGS
) -> onnxruntime.InferenceSession:
    """A session that gives the values `names` and computes no more than they need."""
    inputs = {value.name for value in model.graph.input}
    wanted = {name for name in names if name not in inputs}
    copy = with_outputs(model, sorted(wanted))
    if wanted:
        kept = []
        for value in copy.graph.output:
            if value.name in wanted:
                twin = onnx.ValueInfoProto()
                twin.CopyFrom(value)
                kept.append(twin)
        del copy.graph.output[:]
        copy.graph.output.extend(kept)
    return open_session_of(copy, settings)
