"""Solve one update at a given rate weight: levels of every weight, and corrections of biases.

Theory of operation.

Per weight, with G groups (one for a MatMul; a Conv's groups; a recurrent layer's directions) of matrices
[inputs, channels]:

    W   float32 [inputs, channels]  the new float weight
    x   float32 [inputs]            a row of the layer's input behind the levels chosen so far
    y   float32 [channels]          what the layer should output: the float model's output, plus what the levels before
                                    it left over in the value that is added to it (a residual connection)
    H   float32 [inputs, inputs]    E[x x'] - E[x] E[x]'
    T   float32 [inputs, channels]  E[x y'] - E[x] E[y]'
    a   float64 [channels]          how much each channel counts, mean 1 (`row_selection`)
    S   float                       sensitivity: relative error energy of the model's outputs over that of this layer,
                                    measured with the base's weight in the float model (`output_sensitivity`)
    E   float                       sum_n a_n w_n' H w_n / S; w_n is column n of W

`coordinate_descent` then minimizes (1/E) sum_n a_n (v_n' H v_n - 2 v_n' T_n) + lambda R, so that lambda has one unit,
relative error energy of the model's outputs, for all weights.

Treatment of a weight, from its change in levels |W/s + z - Q0|:
    median above REQUANTIZE_STEPS             requantized: it is not an update of its base
    a channel leaves the level range by more than HALF_STEP_LEVELS   that channel gets a new scale
    MIN_JOINT_ELEMENTS or more, input known   levels are chosen jointly (tables: row by row)
    anything else, small heads included       rounded to nearest on the base's grid

Layers are solved in execution order, each behind the levels chosen before it, so that it compensates for their error.
If all layers were measured at once, each would compensate for the same error (relative RMS 0.07 became 0.22).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from packager.models.graphs import array_of
from packager.models.samples import Samples
from packager.quantize.activation_ranges import ActivationRange
from packager.quantize.update_aware.coordinate_descent import Layer, choose_levels, choose_table_levels
from packager.quantize.update_aware.fill_template import FLOAT_ROUNDING_STEPS, UpdateChoice, bias_of, fill_template
from packager.quantize.update_aware.float_prefix import FloatPrefix
from packager.quantize.update_aware.layer_statistics import Moments, measure_moments
from packager.quantize.update_aware.layers import SharedInput, channels_of, execution_order
from packager.quantize.update_aware.output_sensitivity import OutputSensitivity
from packager.quantize.update_aware.row_selection import RowSelection, local_rows, measure_rows
from packager.quantize.update_aware.template import QuantizedWeight, from_matrices, to_matrices

REQUANTIZE_STEPS: Final = 8.0  # median change in levels; a fine-tune moves weights by a fraction of one
HALF_STEP_LEVELS: Final = 0.5  # levels beyond the range that rounding absorbs
MIN_JOINT_ELEMENTS: Final = 8_192  # elements of a weight; below it a patch saves less than a kilobyte
MAX_JOINT_INPUTS: Final = 8_192  # rows of one matrix; H has the square of it, 256 MiB of float32
UNSEEN_ROW_COUNT: Final = 0.5  # look-ups of a table row that no sample looked up
MAX_PROBED_WEIGHTS: Final = 40  # weights whose sensitivity is measured, the largest first; the others get the median
# to the median, either way; the sensitivity of a weight that hardly changed is mostly noise
MAX_SENSITIVITY_RATIO: Final = 30.0
EPSILON: Final = 1e-9

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """One weight on its grid, and how it is treated.

    Attributes:
        weight: the weight in base and float model.
        values: float32, layout of the levels: the new float weight.
        scales: float64, broadcasts to `values`.
        zeros: float64, broadcasts to `values`.
        base: int16, shape of `values`: levels of the base.
        is_requantized: the weight moved too far to be an update of its base.
        refitted_scales: float64, shape of the stored scales, or None if all scales stay.
    """

    weight: QuantizedWeight
    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    base: np.ndarray
    is_requantized: bool
    refitted_scales: np.ndarray | None

    @property
    def key(self) -> Key:
        """(graph number, name of the levels tensor) of the weight, unique in the template."""
        return self.weight.graph, self.weight.levels.name

    @property
    def is_jointly_optimized(self) -> bool:
        """True if levels are chosen jointly: the input is known, the weight large enough and not too wide."""
        weight = self.weight
        inputs = to_matrices(self.values, weight.kind, groups_of(weight))[0].shape[0]
        is_watched = weight.source is not None and weight.kind in ("matrix", "transposed", "conv", "recurrent", "nbits")
        return (
            is_watched
            and not self.is_requantized
            and self.values.size >= MIN_JOINT_ELEMENTS
            and inputs <= MAX_JOINT_INPUTS
        )

    def layers(self) -> list[Layer]:
        """Return the weight as one `Layer` [inputs, channels] for each group."""
        weight, groups = self.weight, groups_of(self.weight)
        low, high = weight.limits()
        shape = self.values.shape
        parts = [
            to_matrices(np.broadcast_to(array, shape), weight.kind, groups)
            for array in (self.values, self.scales, self.zeros, self.base)
        ]
        return [Layer(v, s, z, b, low, high) for v, s, z, b in zip(*parts, strict=True)]

    def dequantize(self, levels: np.ndarray) -> np.ndarray:
        """Return s * (Q - z), float64, for integer `levels` in the layout of the weight."""
        return np.asarray((levels - self.zeros) * self.scales)

    def nearest(self) -> np.ndarray:
        """Return the levels by rounding to nearest, int16 in the layout of the weight."""
        low, high = self.weight.limits()
        levels: np.ndarray = np.clip(np.rint(self.values / self.scales + self.zeros), low, high)
        return levels.astype(np.int16)


def grid_of(weight: QuantizedWeight) -> WeightGrid:
    """Place one weight on the base's grid, and decide whether it is requantized or needs new scales."""
    values, scales, zeros = weight.float_values(), weight.scales(), weight.zeros()
    base = weight.base_levels().astype(np.int16)
    low, high = weight.limits()
    exact = values / scales + zeros
    steps = float(np.median(np.abs(exact - base))) if weight.kind != "nbits" else 0.0
    is_requantized = steps > REQUANTIZE_STEPS
    refitted = None
    beyond = np.maximum(exact - high, low - exact)
    if weight.kind != "nbits" and (is_requantized or float(beyond.max()) > HALF_STEP_LEVELS):
        stored = array_of(weight.scale).astype(np.float64)
        axes = None if scales.ndim == 0 else tuple(i for i, n in enumerate(scales.shape) if n == 1)
        largest = np.abs(values).max(axis=axes, keepdims=scales.ndim > 0)
        levels = np.minimum(high - zeros, zeros - low)
        fitted = np.where(largest > 0, largest / levels, scales).astype(np.float32).astype(np.float64)
        worst = beyond.max(axis=axes, keepdims=scales.ndim > 0)
        scales = np.where(is_requantized | (worst > HALF_STEP_LEVELS), fitted, scales)
        refitted = scales.reshape(stored.shape)
    return WeightGrid(weight, values, scales, zeros, base, is_requantized, refitted)


def groups_of(weight: QuantizedWeight) -> int:
    """Return the number of matrices in one weight.
    That is a Conv's groups, a recurrent layer's directions, else 1.
    """
    match weight.kind:
        case "conv":
            return next((int(a.i) for a in weight.float_node.attribute if a.name == "group"), 1)
        case "recurrent":
            return int(weight.float_tensor.dims[0])
        case _:
            return 1


@dataclass(slots=True)
class Solver:
    """Solves one update at several rate weights; rows and sensitivities are measured once.

    Attributes:
        template: the base.
        prepared: the new float model.
        grids: all quantized weights of the base.
        samples: calibration samples.
        ranges: new ranges of activations, by value name, for the models that `model` makes.
        folder: directory for rows and prefix values, up to some 4 GiB.
        float_rounding_step: step of float constants, as a share of their RMS change (`fill_template`).
        execution_order: stages of layers, in the order in which they are solved.
        rows: the rows of every layer's input that are used, and their weights.
        sensitivity: S for each weight.
    """

    template: onnx.ModelProto
    prepared: onnx.ModelProto
    grids: list[WeightGrid]
    samples: Samples
    ranges: dict[str, ActivationRange]
    folder: Path
    float_rounding_step: float = FLOAT_ROUNDING_STEPS[0]
    execution_order: list[list[SharedInput]] = field(init=False)
    rows: RowSelection = field(init=False)
    sensitivity: dict[Key, float] = field(init=False)

    def __post_init__(self) -> None:
        watched = [grid.weight for grid in self.grids if grid.weight.source is not None and _has_rows(grid)]
        self.execution_order = execution_order(self.prepared, watched)
        all_inputs = [shared for stage in self.execution_order for shared in stage]
        tables = [g.weight for g in self.grids if g.weight.kind == "table" and g.weight.graph == 0]
        self.rows = measure_rows(self.prepared, all_inputs, tables, self.samples, self.folder)
        self.sensitivity = self._measure_sensitivity(all_inputs)

    def nearest(self) -> UpdateChoice:
        """Return the choice that rounds every weight to nearest, without joint choice: rate weight 0."""
        scales = {grid.key: grid.refitted_scales for grid in self.grids if grid.refitted_scales is not None}
        return UpdateChoice({grid.key: grid.nearest() for grid in self.grids}, scales, {})

    def solve(self, rate_weight: float, start: UpdateChoice | None = None) -> UpdateChoice:
        """Choose the levels of every weight at one rate weight, layer by layer in execution order.

        Args:
            rate_weight: lambda, in relative error energy of the model's outputs per bit.
            start: an earlier solution at another rate weight, from whose levels coordinate descent starts.
        """
        by_key = {grid.key: grid for grid in self.grids}
        choice = self.nearest()
        prefix = FloatPrefix(self.prepared, self.samples, self.folder)
        watched = {
            (w.graph, w.levels.name) for stage in self.execution_order for shared in stage for w in shared.weights
        }
        for grid in self.grids:
            if grid.weight.kind == "table" and not grid.is_requantized:
                choice.levels[grid.key] = self._choose_table_levels(grid, rate_weight)
            if grid.key not in watched:
                prefix.set_weight(grid.weight, grid.dequantize(choice.levels[grid.key]))
        for stage in self.execution_order:
            found = measure_moments(prefix, stage, self.rows, self.folder)
            for shared, parts in zip(stage, found, strict=True):
                end = 0
                for weight in shared.weights:
                    columns = slice(end, end := end + channels_of(weight))
                    grid = by_key[(weight.graph, weight.levels.name)]
                    if grid.is_jointly_optimized:
                        warm = start.levels.get(grid.key) if start is not None else None
                        choice.levels[grid.key] = self._choose_jointly(grid, parts, columns, rate_weight, warm)
                    levels = choice.levels[grid.key]
                    prefix.set_weight(weight, grid.dequantize(levels))
                    correction = self._correction(grid, levels, parts, columns)
                    if correction is not None:
                        name, values = correction
                        choice.corrections[name] = values
                        prefix.correct_bias(name, values)
        return choice

    def model(self, choice: UpdateChoice) -> onnx.ModelProto:
        """Return the quantized model of a choice."""
        weights = [grid.weight for grid in self.grids]
        return fill_template(self.template, self.prepared, weights, choice, self.ranges, self.float_rounding_step)

    def _choose_jointly(
        self,
        grid: WeightGrid,
        parts: list[Moments],
        columns: slice,
        rate_weight: float,
        start_levels: np.ndarray | None,
    ) -> np.ndarray:
        groups = groups_of(grid.weight)
        starts = to_matrices(start_levels, grid.weight.kind, groups) if start_levels is not None else [None] * groups
        chosen = []
        layers = grid.layers()
        # E of the module docstring
        shares = self._channel_weights(grid)
        energy = sum(
            _layer_energy(layer, part, share) for layer, part, share in zip(layers, parts, shares, strict=True)
        )
        energy /= self.sensitivity.get(grid.key, 1.0)
        for layer, part, first, share in zip(layers, parts, starts, shares, strict=True):
            target = part.target_moment(layer.weight, columns)
            chosen.append(choose_levels(layer, part.h, target, energy, rate_weight, part.effective_rows, first, share))
        return from_matrices(chosen, grid.weight.kind, grid.values.shape)

    def _channel_weights(self, grid: WeightGrid) -> list[np.ndarray]:
        """Return a, float64 [channels], for each group; ones if the influence of the channels is unknown."""
        groups = groups_of(grid.weight)
        matrices = to_matrices(grid.values, grid.weight.kind, groups)
        known = self.rows.channels.get(grid.key)
        if known is None or known.size != sum(matrix.shape[1] for matrix in matrices):
            return [np.ones(matrix.shape[1]) for matrix in matrices]
        return np.split(known, groups)

    def _correction(
        self, grid: WeightGrid, levels: np.ndarray, parts: list[Moments], columns: slice
    ) -> tuple[str, np.ndarray] | None:
        """Return the layer's bias and its mean output error, float64 [channels]; None if it has no bias."""
        name = bias_of(grid.weight, self.prepared)
        if name is None or grid.weight.kind == "recurrent":
            return None
        values = to_matrices(grid.dequantize(levels), grid.weight.kind, groups_of(grid.weight))
        exact = to_matrices(grid.values, grid.weight.kind, groups_of(grid.weight))
        error = [
            part.target_mean(float_part, columns) - part.mean_q @ part_values
            for part, float_part, part_values in zip(parts, exact, values, strict=True)
        ]
        return name, np.concatenate(error)

    def _choose_table_levels(self, grid: WeightGrid, rate_weight: float) -> np.ndarray:
        importance = self._importance(grid)
        energy = float((importance * np.square(grid.values)).sum()) or 1.0
        energy /= self.sensitivity.get(grid.key, 1.0)
        low, high = grid.weight.limits()
        layer = Layer(grid.values, grid.scales, grid.zeros, grid.base, low, high)
        return choose_table_levels(layer, importance / energy, rate_weight)

    def _importance(self, grid: WeightGrid) -> np.ndarray:
        """Return how much each element of a table counts, by look-ups of its row and by channel.
        The result is float64 and broadcasts to the table.
        """
        counts = self.rows.lookup_counts.get(grid.key, np.zeros(grid.values.shape[0])) + UNSEEN_ROW_COUNT
        shares = self.rows.channels.get(grid.key, np.ones(1))
        rows = (counts / counts.sum()).reshape(-1, *[1] * (grid.values.ndim - 1))
        return np.asarray(rows * shares)

    def _measure_sensitivity(self, all_inputs: list[SharedInput]) -> dict[Key, float]:
        """Return S for each weight: error of the outputs over error of the layer.
        Both are measured with the base's weight in the float model.
        """
        shared_inputs = {(w.graph, w.levels.name): shared for shared in all_inputs for w in shared.weights}
        probed = [
            g
            for g in self.grids
            if g.weight.graph == 0 and not g.is_requantized and (g.is_jointly_optimized or g.weight.kind == "table")
        ]
        probed = sorted(probed, key=lambda g: -g.values.size)[:MAX_PROBED_WEIGHTS]
        probe = OutputSensitivity(self.prepared, [g.weight.float_tensor.name for g in probed], self.samples)
        found: dict[Key, float] = {}
        for grid in probed:
            base_values = (grid.base - grid.zeros) * grid.scales
            local = self._local_error(grid, base_values, shared_inputs.get(grid.key))
            if local <= EPSILON:
                continue
            values = (
                (base_values / grid.weight.factor).T if grid.weight.is_flipped else base_values / grid.weight.factor
            )
            found[grid.key] = float(probe.error(grid.weight.float_tensor.name, values)) / local
        median = float(np.median(list(found.values()))) if found else 1.0
        return {
            grid.key: min(
                max(found.get(grid.key, median), median / MAX_SENSITIVITY_RATIO), median * MAX_SENSITIVITY_RATIO
            )
            for grid in self.grids
        }

    def _local_error(self, grid: WeightGrid, base_values: np.ndarray, shared: SharedInput | None) -> float:
        """Return the relative error energy of the layer's output with the base's weight.
        `base_values` are float64 in the layout of the weight.
        """
        if grid.weight.kind == "table":
            share = self._importance(grid)
            return float((share * np.square(base_values - grid.values)).sum() / (share * np.square(grid.values)).sum())
        if shared is None:
            return 0.0
        groups = groups_of(grid.weight)
        error, energy = 0.0, 1e-30
        parts = zip(
            to_matrices(base_values - grid.values, grid.weight.kind, groups),
            to_matrices(grid.values, grid.weight.kind, groups),
            self._channel_weights(grid),
            strict=True,
        )
        weights = np.concatenate(self.rows.local[shared.node_number])
        for inputs, (difference, exact, share) in zip(local_rows(shared, self.folder), parts, strict=True):
            rows = inputs * np.sqrt(weights[:, None])
            error += float(np.square(rows @ difference.astype(np.float32)).sum(axis=0) @ share)
            energy += float(np.square(rows @ exact.astype(np.float32)).sum(axis=0) @ share)
        return error / energy


def _has_rows(grid: WeightGrid) -> bool:
    kinds = ("matrix", "transposed", "conv", "recurrent", "nbits")
    inputs = to_matrices(grid.values, grid.weight.kind, groups_of(grid.weight))[0].shape[0]
    return grid.weight.kind in kinds and inputs <= MAX_JOINT_INPUTS


def _layer_energy(layer: Layer, part: Moments, share: np.ndarray) -> float:
    weight = layer.weight.astype(np.float32)
    return float((weight * (part.h @ weight)).sum(axis=0) @ share) + 1e-12
