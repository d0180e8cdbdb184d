"""Layers: weights that multiply the same input, in the order in which they run, and how their inputs become rows.

Rules:
1. Layers that share an input share its rows; a Conv's rows are the patches that it cuts from its image.
2. Neighboring layers are measured together where a model has more than MAX_STAGES of them: fewer steps, less exact
   (relative RMS .083 became .086 with two layers a stage).
3. Where something is added to a layer's output (a residual connection), the layer is the last that can make up for what
   is left over in it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from packager.quantize.update_aware.fill_template import find_addition
from packager.quantize.update_aware.template import QuantizedWeight

MAX_STAGES: Final = 160


@dataclass(frozen=True, slots=True)
class SharedInput:
    """Weights that multiply the same rows, the number of the first node that does so, and where the rows lie.

    `beside` is the value that is added to the layer's output, rule 3; "" where there is none.
    """

    node_number: int
    input_index: int
    weights: tuple[QuantizedWeight, ...]
    added_value: str = ""

    @property
    def first_weight(self) -> QuantizedWeight:
        return self.weights[0]

    @property
    def is_projected(self) -> bool:
        """Is it what the layer gives that is stored and aimed at, not what it multiplies? The narrower of the two."""
        return bool(self.added_value) or sum(map(channels_of, self.weights)) <= shape_of(self.first_weight)[0]

    @property
    def width(self) -> int:
        """Columns of what is stored of one group."""
        return sum(map(channels_of, self.weights)) if self.is_projected else shape_of(self.first_weight)[0]

    def path(self, folder: Path) -> Path:
        """Of all rows, those of its groups side by side: a file for each group would be too many open at once."""
        return folder / f"{self.node_number}.rows"

    def local_path(self, folder: Path) -> Path:
        """Of the inputs of a few rows."""
        return folder / f"{self.node_number}.local"


def execution_order(prepared: onnx.ModelProto, weights: list[QuantizedWeight]) -> list[list[SharedInput]]:
    """Watched weights in the order in which the float model reads them, grouped by rules 1 and 2."""
    place = {node.name: i for i, node in enumerate(prepared.graph.node)}
    layers: dict[tuple[str, ...], list[QuantizedWeight]] = {}
    for weight in sorted(weights, key=lambda w: place[w.float_node.name]):
        layers.setdefault(_layer_key(weight), []).append(weight)
    shared = [
        SharedInput(i, min(place[w.float_node.name] for w in group), tuple(group), _find_added_value(prepared, group))
        for i, group in enumerate(layers.values())
    ]
    together = max(1, -(-len(shared) // MAX_STAGES))
    return [shared[i : i + together] for i in range(0, len(shared), together)]


def rows_of(activation: np.ndarray, weight: QuantizedWeight, positions: np.ndarray) -> list[np.ndarray]:
    """float32 [places, inputs] for each group: what `weight` multiplies at `places`."""
    size, groups = shape_of(weight)
    if weight.kind == "conv":
        kernel = tuple(weight.float_tensor.dims[2:])
        return [
            conv_input_rows(activation, weight.float_node, kernel, group, groups, positions) for group in range(groups)
        ]
    return [activation.reshape(-1, size)[positions].astype(np.float32, copy=False)] * groups


def outputs_of(value: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """float32 [places, channels]: what is added to the outputs that `weight` makes."""
    value = np.moveaxis(value, 1, -1) if weight.kind == "conv" and value.ndim > 1 else value
    return value.reshape(-1, value.shape[-1] if value.ndim else 1).astype(np.float32, copy=False)


def conv_input_rows(
    image: np.ndarray, node: onnx.NodeProto, kernel: tuple[int, ...], group: int, groups: int, positions: np.ndarray
) -> np.ndarray:
    """float32 [places, channels / groups * kernel]: the patches that a Conv multiplies for the outputs at `places`."""
    rank = len(kernel)
    strides, dilations, spans, pads = _conv_geometry(image.shape, node, kernel)
    per_group = image.shape[1] // groups
    part = image[:, group * per_group : (group + 1) * per_group].astype(np.float32, copy=False)
    part = np.pad(part, [(0, 0), (0, 0), *[(pads[i], pads[i + rank]) for i in range(rank)]])
    windows = np.lib.stride_tricks.sliding_window_view(part, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilations)
    windows = windows[(slice(None), slice(None), *steps, *inner)]
    # [batch, channels, places..., kernel...] -> [batch, places..., channels, kernel...]
    moved = np.moveaxis(windows, 1, 1 + rank)
    spots = np.unravel_index(positions, moved.shape[: 1 + rank])
    return np.asarray(moved[spots].reshape(len(positions), per_group * math.prod(kernel)))


def _conv_geometry(
    shape: tuple[int, ...], node: onnx.NodeProto, kernel: tuple[int, ...]
) -> tuple[list[int], list[int], tuple[int, ...], list[int]]:
    """(strides, dilations, spans of the dilated kernel, pads) of a Conv on an image of `shape`."""
    attributes = {a.name: list(a.ints) for a in node.attribute if a.ints}
    rank = len(kernel)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    pads = attributes.get("pads", [0] * 2 * rank)
    auto = next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "NOTSET")
    if auto.startswith("SAME"):
        total = [max(0, (-(-n // s) - 1) * s + e - n) for n, s, e in zip(shape[2:], strides, spans, strict=True)]
        first = [t // 2 if auto == "SAME_UPPER" else -(-t // 2) for t in total]
        pads = [*first, *[t - f for t, f in zip(total, first, strict=True)]]
    return strides, dilations, spans, pads


def position_count(shape: tuple[int, ...], weight: QuantizedWeight) -> int:
    """Outputs a channel that a Conv has for an image of `shape`, batch included."""
    kernel = tuple(weight.float_tensor.dims[2:])
    strides, _, spans, pads = _conv_geometry(shape, weight.float_node, kernel)
    rank = len(kernel)
    sizes = [
        (n + pads[i] + pads[i + rank] - e) // s + 1
        for i, (n, e, s) in enumerate(zip(shape[2:], spans, strides, strict=True))
    ]
    return int(shape[0] * np.prod(sizes))


def shape_of(weight: QuantizedWeight) -> tuple[int, int]:
    """(inputs of one group, groups) of a weight's matrices."""
    dims = list(weight.float_tensor.dims)
    match weight.kind:
        case "conv":
            groups = next((int(a.i) for a in weight.float_node.attribute if a.name == "group"), 1)
            return int(np.prod(dims[1:])), groups
        case "recurrent":
            return dims[2], dims[0]
        case "matrix" | "transposed" | "nbits":
            flags = {a.name: a.i for a in weight.float_node.attribute}
            return (dims[1] if flags.get("transB") else dims[0]), 1
        case "table":
            return dims[0], 1
        case _:
            return 0, 1


def channels_of(weight: QuantizedWeight) -> int:
    """Outputs of one group of a weight."""
    size, groups = shape_of(weight)
    return int(math.prod(weight.float_tensor.dims)) // max(1, size * groups)


def _find_added_value(prepared: onnx.ModelProto, group: list[QuantizedWeight]) -> str:
    """The value that is added to what a layer makes, behind its bias (rule 3)."""
    if len(group) != 1 or group[0].kind not in ("matrix", "transposed", "conv", "nbits"):
        return ""
    constants = {tensor.name for tensor in prepared.graph.initializer}
    made, other = find_addition(prepared, group[0].float_node.output[0])
    if other in constants:
        _, other = find_addition(prepared, made)
    return "" if other in constants else other


def _layer_key(weight: QuantizedWeight) -> tuple[str, ...]:
    cut = ""
    if weight.kind == "conv":
        # the same image is cut into other patches by another kernel, stride or padding
        cut = f"{list(weight.float_tensor.dims)[1:]}"
        cut += "".join(sorted(a.SerializeToString().hex() for a in weight.float_node.attribute))
    return weight.float_source or "", weight.source or "", cut
