"""What layers multiply, in both models: rows of the float model's inputs on disk, second moments of both in memory.

Rules:
1. Models run one sample at a time; at most MAX_ROWS rows a layer are used, evenly taken from the samples, and no more
   than MAX_STORED_BYTES of them all.
2. The float model's rows are the same for every solution: they are written to a folder once. Those behind chosen levels
   are never stored, only their moments.
3. A row counts as much as the answers depend on the layer's output there (`gradients`), and no less than EVERY_ROW of
   the mean; a row on which nothing depends, padding for one, does not count at all. The same holds for channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.inputs import Sample
from packager.quantize.runs import run, session_of
from packager.quantize.sensitivity import with_outputs
from packager.quantize.update.gradients import Gradients, spreads_of
from packager.quantize.update.layers import Shared, channels_of, outputs_of, places_of, rows_of, shape_of
from packager.quantize.update.prefix import Prefix
from packager.quantize.update.template import QuantizedWeight
from packager.samples import Samples

MAX_ROWS: Final = 32_768
MAX_STORED_BYTES: Final = 4 << 30  # on disk, while an update is solved
EVERY_ROW: Final = 0.3
EVERY_CHANNEL: Final = 0.3
NO_INFLUENCE: Final = 1e-9  # of the mean
MAX_GRADIENT_FLOATS: Final = 1_000_000_000  # inner values over all samples that are walked back

Key = tuple[int, str]


@dataclass(slots=True)
class Moments:
    """Of one group of one input: `h` = E[x_q x_q'], `c` = E[x_q x_f'] (centred by `finish`), and the means.

    `d` = E[x_q r'] and `mean_r` are of r, what the prefix left over in the value that is added to the layer's output
    (layers, rule 3), [size, channels] and [channels]; of no channels where there is no such value.
    """

    size: int
    channels: int = 0
    h: np.ndarray = field(init=False)
    c: np.ndarray = field(init=False)
    mean_q: np.ndarray = field(init=False)
    mean_f: np.ndarray = field(init=False)
    d: np.ndarray = field(init=False)
    mean_r: np.ndarray = field(init=False)
    total: float = 0.0
    waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h = np.zeros((self.size, self.size), np.float32)
        self.c = np.zeros((self.size, self.size), np.float32)
        self.d = np.zeros((self.size, self.channels), np.float32)
        self.mean_q, self.mean_f = np.zeros(self.size), np.zeros(self.size)
        self.mean_r = np.zeros(self.channels)

    def add(self, q: np.ndarray, f: np.ndarray, weights: np.ndarray, left: np.ndarray | None = None) -> None:
        """Rows [rows, size] of both models, their weights, and what is left over [rows, channels]; multiplied in
        bundles, since adding to `h` costs as much as many rows."""
        roots = np.sqrt(weights)[:, None]
        self.mean_q += weights @ q.astype(np.float64)
        self.mean_f += weights @ f.astype(np.float64)
        self.total += float(weights.sum(dtype=np.float64))
        if left is not None:
            self.mean_r += weights @ left.astype(np.float64)
            self.d += (q * roots).T @ (left * roots)
        self.waiting.append((q * roots, f * roots))
        if sum(len(pair[0]) for pair in self.waiting) >= max(256, self.size):
            self._flush()

    def finish(self) -> None:
        """Sums become centred means."""
        self._flush()
        total = self.total or 1.0
        self.mean_q /= total
        self.mean_f /= total
        self.h /= np.float32(total)
        self.c /= np.float32(total)
        self.mean_r /= total
        self.d /= np.float32(total)
        self.d -= np.outer(self.mean_q, self.mean_r).astype(np.float32)
        self.h -= np.outer(self.mean_q, self.mean_q).astype(np.float32)
        self.c -= np.outer(self.mean_q, self.mean_f).astype(np.float32)

    def _flush(self) -> None:
        if self.waiting:
            q = np.concatenate([pair[0] for pair in self.waiting])
            f = np.concatenate([pair[1] for pair in self.waiting])
            self.waiting.clear()
            self.h += q.T @ q
            self.c += q.T @ f


@dataclass(slots=True)
class Rows:
    """Which rows of each layer are used, by layer number and then sample: their places and weights (rule 3).

    `besides` are the numbers of the layers whose value beside them is of their outputs' shape.
    `channels` holds weights [channels] with mean 1 by weight; missing where the influence is not known. `looked_up`
    holds for each table how often each of its rows was looked up, a look-up counting 1 in the mean.
    """

    places: dict[int, list[np.ndarray]]
    weights: dict[int, list[np.ndarray]]
    channels: dict[Key, np.ndarray]
    looked_up: dict[Key, np.ndarray] = field(default_factory=dict)
    besides: set[int] = field(default_factory=set)


def measure_rows(
    prepared: onnx.ModelProto, everything: list[Shared], tables: list[QuantizedWeight], samples: Samples, folder: Path
) -> Rows:
    """Choose the rows of every layer and write the float model's into `folder` (rules 1 to 3), float32."""
    constants = {tensor.name for tensor in prepared.graph.initializer}
    tables = [table for table in tables if table.float_source and table.float_source not in constants]
    names = sorted(
        {s.first.float_source or "" for s in everything}
        | {table.float_source or "" for table in tables}
        | {s.beside for s in everything if s.beside}
    )
    running = watching(prepared, names)
    limit = row_limit(samples, everything)
    found = Rows({s.number: [] for s in everything}, {s.number: [] for s in everything}, {})
    found.besides = {s.number for s in everything if s.beside}
    paths = {(s.number, g): s.path(folder, g) for s in everything for g in range(shape_of(s.first)[1])}
    streams = {key: path.open("wb") for key, path in paths.items()}
    besides = {s.number: s.beside_path(folder).open("wb") for s in everything if s.beside}
    try:
        for sample, slopes in zip(samples, influences(prepared, everything, tables, samples), strict=True):
            values = values_at(running, sample, names)
            for table in tables:
                _look_up(table, values[table.float_source or ""], slopes, found)
            for shared in everything:
                source = values[shared.first.float_source or ""]
                weights = _row_weights(shared, source, slopes, found.channels)
                used = np.flatnonzero(weights > NO_INFLUENCE * weights.mean()) if weights.any() else np.zeros(0, int)
                used = used[:: max(1, -(-len(used) // max(1, limit)))]
                found.places[shared.number].append(used)
                found.weights[shared.number].append(weights[used].astype(np.float32))
                for group, rows in enumerate(rows_of(source, shared.first, used)):
                    streams[shared.number, group].write(np.ascontiguousarray(rows, np.float32).tobytes())
                if shared.number in found.besides:
                    outputs = outputs_of(values[shared.beside], shared.first)
                    if outputs.shape != (len(weights), channels_of(shared.first) * shape_of(shared.first)[1]):
                        found.besides.remove(shared.number)
                    else:
                        besides[shared.number].write(np.ascontiguousarray(outputs[used]).tobytes())
    finally:
        for stream in (*streams.values(), *besides.values()):
            stream.close()
    for parts in found.weights.values():
        mean = float(np.mean(np.concatenate(parts))) if any(len(part) for part in parts) else 1.0
        parts[:] = [
            np.float32(1 - EVERY_ROW) * part / np.float32(mean or 1.0) + np.float32(EVERY_ROW) for part in parts
        ]
    for key, energy in found.channels.items():
        found.channels[key] = energy / (energy.mean() or 1.0) * (1 - EVERY_CHANNEL) + EVERY_CHANNEL
    return found


def influences(
    prepared: onnx.ModelProto, everything: list[Shared], tables: list[QuantizedWeight], samples: Samples
) -> Iterator[dict[str, np.ndarray]]:
    """For each sample the gradients at the outputs of the layers, by name; empty where they are not known or would
    take too long."""
    layers = [weight for shared in everything for weight in shared.weights if weight.kind != "recurrent"]
    gradients = Gradients(prepared, frozenset(weight.float_node.output[0] for weight in (*layers, *tables)))
    spreads = spreads_of(prepared, samples)
    if not gradients.known or not any(spread > 0 for spread in spreads.values()):
        yield from repeat({}, len(samples))
        return
    count = max(1, MAX_GRADIENT_FLOATS // max(1, gradients.floats(next(iter(samples)))))
    step = -(-len(samples) // count)
    walk = gradients.of(replace(samples, indices=samples.indices[::step]), spreads)
    for number in range(len(samples)):
        yield next(walk) if number % step == 0 else {}


def _look_up(table: QuantizedWeight, index: np.ndarray, slopes: dict[str, np.ndarray], found: Rows) -> None:
    key = (table.graph, table.levels.name)
    count = int(table.counterpart.dims[0])
    places = np.where(index < 0, index + count, index).ravel()
    slope = slopes.get(table.float_node.output[0])
    weights = np.ones(len(places))
    if slope is not None and slope.any():
        squares = np.square(slope.reshape(len(places), -1).astype(np.float64))
        if len(table.counterpart.dims) == 2:
            found.channels[key] = found.channels.get(key, 0.0) + squares.sum(axis=0)
        weights = squares.sum(axis=1)
        weights /= weights.mean()
    seen = np.bincount(places, weights, minlength=count)[:count]
    found.looked_up[key] = found.looked_up[key] + seen if key in found.looked_up else seen


def _row_weights(
    shared: Shared, source: np.ndarray, slopes: dict[str, np.ndarray], channels: dict[Key, np.ndarray]
) -> np.ndarray:
    """Squared gradients of each row of a layer, summed over its channels; adds those of each channel to `channels`."""
    size = shape_of(shared.first)[0]
    count = places_of(source.shape, shared.first) if shared.first.kind == "conv" else source.size // max(1, size)
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


def float_rows(shared: Shared, group: int, folder: Path) -> np.ndarray:
    """The stored rows [rows, inputs] of one group, mapped from disk."""
    size = shape_of(shared.first)[0]
    path = shared.path(folder, group)
    if path.stat().st_size == 0:
        return np.zeros((0, size), np.float32)
    return np.memmap(path, np.float32, "r").reshape(-1, size)


def moments(
    prefix: Prefix, stage: list[Shared], numbers: Sequence[int], rows: Rows, folder: Path
) -> list[list[Moments]]:
    """For each of `stage`, the moments of each of its groups, behind what is chosen in `prefix`.

    `numbers` are those of the samples that `prefix` walks with.
    """
    found = [
        [
            Moments(shape_of(s.first)[0], channels_of(s.first) if s.number in rows.besides else 0)
            for _ in range(shape_of(s.first)[1])
        ]
        for s in stage
    ]
    stored = [[float_rows(s, g, folder) for g in range(shape_of(s.first)[1])] for s in stage]
    starts = [np.cumsum([0, *[len(places) for places in rows.places[s.number]]]) for s in stage]
    besides = [
        np.memmap(s.beside_path(folder), np.float32, "r").reshape(-1, channels_of(s.first) * shape_of(s.first)[1])
        if s.number in rows.besides
        else None
        for s in stage
    ]
    wanted = {shared.first.float_source or "" for shared in stage}
    names = sorted(wanted | {shared.beside for shared in stage if shared.number in rows.besides})
    first = min(shared.place for shared in stage)
    for number, values in zip(numbers, prefix.walk(first, names), strict=True):
        for i, shared in enumerate(stage):
            places, weights = rows.places[shared.number][number], rows.weights[shared.number][number]
            if not len(places):
                continue
            span = slice(starts[i][number], starts[i][number + 1])
            exact, left = besides[i], None
            if exact is not None:
                outputs = outputs_of(values[shared.beside], shared.first)
                left = np.split(exact[span] - outputs[places], len(found[i]), axis=1)
            for group, q in enumerate(rows_of(values[shared.first.float_source or ""], shared.first, places)):
                found[i][group].add(q, stored[i][group][span], weights, left[group] if left is not None else None)
    for parts in found:
        for part in parts:
            part.finish()
    return found


def row_limit(samples: Samples, everything: list[Shared]) -> int:
    """Rows of a layer and sample (rule 1)."""
    floats = 0
    for shared in everything:
        size, groups = shape_of(shared.first)
        floats += size * groups + (channels_of(shared.first) * groups if shared.beside else 0)
    rows = min(MAX_ROWS, MAX_STORED_BYTES // (4 * max(1, floats)))
    return max(1, rows // max(1, len(samples)))


def values_at(running: onnxruntime.InferenceSession, sample: Sample, names: list[str]) -> dict[str, np.ndarray]:
    """The values `names`: from the sample itself where they are inputs, else from one run."""
    outputs = [name for name in names if name not in sample]
    found = dict(zip(outputs, run(running, sample, outputs), strict=True)) if outputs else {}
    return {name: sample[name] if name in sample else found[name] for name in names}


def watching(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
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
    return session_of(copy)
