"""Choose which rows of each layer count and how much, and store the float model's values there.

Theory of operation. For a layer with `inputs` input elements per group, and `width` elements of target:

    x   float32 [rows, inputs]   inputs of the layer in the float model
    t   float32 [rows, width]    targets: outputs of all weights of the layer side by side, plus the value that is added
                                 to them (is_projected, the usual case); or the layer's inputs if those are narrower
    i   float64 [rows]           influence: squared gradient of the model's outputs at the layer's output (`gradients`),
                                 summed over its channels
    w   float32 [rows]           weight of a row: w = (1 - u) * i / mean(i) + u, with u = UNIFORM_ROW_SHARE

A row whose influence is below MIN_INFLUENCE of the mean, such as padding, is left out. Channels are weighed by the same
formula, with UNIFORM_CHANNEL_SHARE. Without gradients, all rows and channels count alike.

Limits: models run one sample at a time. A layer uses at most MAX_ROWS rows, evenly from all samples, and all layers
together store at most MAX_STORED_BYTES. The rows are the same for every solution, so they are written once.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.models.inputs import Sample
from packager.models.ordered_map import ordered_map, prefetch
from packager.models.samples import Samples
from packager.models.sessions import DEFAULT_SETTINGS, ONE_THREAD_SETTINGS, RunSettings, open_session_of, run_session
from packager.quantize.sensitivity import with_outputs
from packager.quantize.update_aware.gradients import GradientWalk, spreads_of
from packager.quantize.update_aware.layers import SharedInput, outputs_of, position_count, rows_of, shape_of
from packager.quantize.update_aware.template import QuantizedWeight, to_matrices

MAX_ROWS: Final = 32_768  # rows of one layer over all samples; trades time for less noise in the moments
LOCAL_ROWS: Final = 512  # rows whose inputs are stored as they are, for `Solver`'s sensitivities
MAX_STORED_BYTES: Final = 4 << 30  # on disk while an update is solved (docs/quantization.md)
UNIFORM_ROW_SHARE: Final = 0.3  # part of a row's weight that does not depend on its influence
UNIFORM_CHANNEL_SHARE: Final = 0.3  # part of a channel's weight that does not depend on its influence
MIN_INFLUENCE: Final = 1e-9  # share of the mean influence
# inner values, over all samples, through which gradients are computed; bounds the time
MAX_GRADIENT_FLOATS: Final = 1_000_000_000

Key = tuple[int, str]


@dataclass(slots=True)
class RowSelection:
    """The rows that are used of each layer's input, in the order of the samples, and how much they count.

    Attributes:
        positions: positions of the rows, int64 [rows], by layer number and sample.
        weights: weights of the rows, float32 [rows] with mean 1 over all samples, by layer number and sample.
        channels: influence of each channel, float64 [channels] with mean 1, by weight; missing if it is unknown.
        lookup_counts: weighed look-ups of each row, float64 [table rows] with mean 1, by table.
        local: weights of the rows stored by `local_path`, float32 [few rows], by layer number and sample.
    """

    positions: dict[int, list[np.ndarray]]
    weights: dict[int, list[np.ndarray]]
    channels: dict[Key, np.ndarray]
    lookup_counts: dict[Key, np.ndarray] = field(default_factory=dict)
    local: dict[int, list[np.ndarray]] = field(default_factory=dict)


def measure_rows(
    prepared: onnx.ModelProto,
    shared_inputs: list[SharedInput],
    tables: list[QuantizedWeight],
    samples: Samples,
    folder: Path,
) -> RowSelection:
    """Choose the rows of every layer, and write the float model's values there into `folder`.
    Targets and a few inputs are written, as float32.

    Args:
        prepared: the new float model.
        shared_inputs: all layers, in execution order.
        tables: look-up tables of the top graph.
        samples: calibration samples.
        folder: directory of the row files.
    """
    constants = {tensor.name for tensor in prepared.graph.initializer}
    tables = [table for table in tables if table.float_source and table.float_source not in constants]
    names = sorted(
        {s.first_weight.float_source or "" for s in shared_inputs}
        | {table.float_source or "" for table in tables}
        | {s.added_value for s in shared_inputs if s.added_value}
    )
    running = open_watching_session(prepared, names, ONE_THREAD_SETTINGS)
    limit = max_rows_per_sample(samples, shared_inputs)
    found = RowSelection({s.node_number: [] for s in shared_inputs}, {s.node_number: [] for s in shared_inputs}, {})
    found.local = {s.node_number: [] for s in shared_inputs}
    local_limit = -(-LOCAL_ROWS // max(1, len(samples)))
    matrices = {s.node_number: _exact_matrices(s) for s in shared_inputs if s.is_projected}
    with ExitStack() as open_files:
        streams = {s.node_number: open_files.enter_context(s.path(folder).open("wb")) for s in shared_inputs}
        inputs = {s.node_number: open_files.enter_context(s.local_path(folder).open("wb")) for s in shared_inputs}
        slopes_ahead = prefetch(layer_gradients(prepared, shared_inputs, tables, samples))
        values_ahead = ordered_map(lambda sample: values_at(running, sample, names), samples)
        for values, slopes in zip(values_ahead, slopes_ahead, strict=True):
            for table in tables:
                _count_lookups(table, values[table.float_source or ""], slopes, found)
            for shared in shared_inputs:
                source = values[shared.first_weight.float_source or ""]
                weights = _row_weights(shared, source, slopes, found.channels)
                positions = (
                    np.flatnonzero(weights > MIN_INFLUENCE * weights.mean()) if weights.any() else np.zeros(0, int)
                )
                positions = positions[:: max(1, -(-len(positions) // max(1, limit)))]
                found.positions[shared.node_number].append(positions)
                found.weights[shared.node_number].append(weights[positions].astype(np.float32))
                local_stride = slice(None, None, max(1, -(-len(positions) // local_limit)))
                found.local[shared.node_number].append(weights[positions[local_stride]].astype(np.float32))
                added = added_parts(shared, values, positions)
                rows = rows_of(source, shared.first_weight, positions)
                inputs[shared.node_number].write(
                    np.concatenate([part[local_stride] for part in rows], axis=1).tobytes()
                )
                if shared.is_projected:
                    rows = [part @ matrix for part, matrix in zip(rows, matrices[shared.node_number], strict=True)]
                    if added is not None:
                        rows = [part + more for part, more in zip(rows, added, strict=True)]
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
    prepared: onnx.ModelProto, shared_inputs: list[SharedInput], tables: list[QuantizedWeight], samples: Samples
) -> Iterator[dict[str, np.ndarray]]:
    """Yield for each sample the gradients at the outputs of the layers, by value name.

    The dict is empty if the gradients are unknown, and for the samples that would exceed MAX_GRADIENT_FLOATS.

    Args:
        prepared: the new float model.
        shared_inputs: all layers of the model.
        tables: look-up tables.
        samples: calibration samples.

    Returns:
        float32 arrays, each of the shape of its value.
    """
    layers = [weight for shared in shared_inputs for weight in shared.weights if weight.kind != "recurrent"]
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
    """Count one sample's look-ups of a table's rows, and add the squared gradients of its channels."""
    key = (table.graph, table.levels.name)
    count = int(table.float_tensor.dims[0])
    indices = np.where(index < 0, index + count, index).ravel()
    slope = slopes.get(table.float_node.output[0])
    weights = np.ones(len(indices))
    if slope is not None and slope.any():
        squares = np.square(slope.reshape(len(indices), -1).astype(np.float64))
        if len(table.float_tensor.dims) == 2:
            found.channels[key] = found.channels.get(key, 0.0) + squares.sum(axis=0)
        weights = squares.sum(axis=1)
        weights /= weights.mean()
    seen = np.bincount(indices, weights, minlength=count)[:count]
    found.lookup_counts[key] = found.lookup_counts[key] + seen if key in found.lookup_counts else seen


def _row_weights(
    shared: SharedInput, source: np.ndarray, slopes: dict[str, np.ndarray], channels: dict[Key, np.ndarray]
) -> np.ndarray:
    """Return the influence of each row of a layer, float64 [rows]; add those of its channels."""
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
        # weights that share an input count alike, however much the outputs depend on each
        rows = rows / (rows.mean() or 1.0)
        total = rows if total is None else total + rows
        known += 1
    return np.ones(count) if total is None else total / known


def _exact_matrices(shared: SharedInput) -> list[np.ndarray]:
    """Return the float weights of a layer side by side, float32 [inputs, all channels], for each group."""
    groups = shape_of(shared.first_weight)[1]
    parts = [to_matrices(weight.float_values(), weight.kind, groups) for weight in shared.weights]
    return [np.concatenate([part[group] for part in parts], axis=1).astype(np.float32) for group in range(groups)]


def added_parts(shared: SharedInput, values: dict[str, np.ndarray], positions: np.ndarray) -> list[np.ndarray] | None:
    """Return the value added to a layer's output at some rows, float32 [rows, width] for each group.

    Args:
        shared: the layer.
        values: values of one run by name.
        positions: int64 [rows], positions of the rows.

    Returns:
        None if nothing is added, or a value of another shape.
    """
    if not shared.added_value:
        return None
    groups = shape_of(shared.first_weight)[1]
    outputs = outputs_of(values[shared.added_value], shared.first_weight)
    source = values[shared.first_weight.float_source or ""]
    if outputs.shape != (_row_count(shared, source), shared.width * groups):
        return None
    return np.split(outputs[positions], groups, axis=1)


def _row_count(shared: SharedInput, source: np.ndarray) -> int:
    """Return the number of rows that a value `source` of the layer's input has."""
    if shared.first_weight.kind == "conv":
        return position_count(source.shape, shared.first_weight)
    return source.size // max(1, shape_of(shared.first_weight)[0])


def float_rows(shared: SharedInput, folder: Path) -> list[np.ndarray]:
    """Return the stored targets for each group, float32 [rows, width], mapped from disk.

    Args:
        shared: the layer.
        folder: directory of the row files.
    """
    return _map_rows(shared, shared.path(folder), shared.width)


def local_rows(shared: SharedInput, folder: Path) -> list[np.ndarray]:
    """Return the stored inputs of a few rows of the float model for each group, float32 [rows, inputs].

    Args:
        shared: the layer.
        folder: directory of the row files.
    """
    return _map_rows(shared, shared.local_path(folder), shape_of(shared.first_weight)[0])


def _map_rows(shared: SharedInput, path: Path, width: int) -> list[np.ndarray]:
    groups = shape_of(shared.first_weight)[1]
    if path.stat().st_size == 0:
        return [np.zeros((0, width), np.float32)] * groups
    return np.split(np.memmap(path, np.float32, "r").reshape(-1, width * groups), groups, axis=1)


def max_rows_per_sample(samples: Samples, shared_inputs: list[SharedInput]) -> int:
    """Return how many rows of a layer one sample may give, so that MAX_ROWS and MAX_STORED_BYTES hold.

    Args:
        samples: calibration samples.
        shared_inputs: all layers of the model.
    """
    floats = sum(shared.width * shape_of(shared.first_weight)[1] for shared in shared_inputs)
    rows = min(MAX_ROWS, MAX_STORED_BYTES // (4 * max(1, floats)))
    return max(1, rows // max(1, len(samples)))


def values_at(running: onnxruntime.InferenceSession, sample: Sample, names: list[str]) -> dict[str, np.ndarray]:
    """Return values of one run by name; those that are inputs come from the sample itself.

    Args:
        running: a session with the other names as outputs (`open_watching_session`).
        sample: the inputs.
        names: names of the values.
    """
    outputs = [name for name in names if name not in sample]
    found = dict(zip(outputs, run_session(running, sample, outputs), strict=True)) if outputs else {}
    return {name: sample[name] if name in sample else found[name] for name in names}


def open_watching_session(
    model: onnx.ModelProto, names: list[str], settings: RunSettings = DEFAULT_SETTINGS
) -> onnxruntime.InferenceSession:
    """Open a session that outputs the values `names` and computes no more than they need.

    Args:
        model: any float model.
        names: names of values; inputs are left out, since they need no run.
        settings: threads and optimization of the session.
    """
    inputs = {value.name for value in model.graph.input}
    wanted = {name for name in names if name not in inputs}
    copy = with_outputs(model, sorted(wanted))
    if wanted:
        kept = []
        for value in copy.graph.output:
            if value.name in wanted:
                output = onnx.ValueInfoProto()
                output.CopyFrom(value)
                kept.append(output)
        del copy.graph.output[:]
        copy.graph.output.extend(kept)
    return open_session_of(copy, settings)
