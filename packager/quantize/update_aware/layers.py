"""Order the layers and cut their inputs into rows; a layer is the weights that share one input.

1. Weights with the same input share its rows. A row of a Conv is the patch of the image that one output position sees.
2. A stage is one layer, or several neighboring ones if the model has more than MAX_STAGES: the walk then has fewer
   steps and is less exact (relative RMS 0.083 became 0.086 with two layers per stage).
3. If something is added to a layer's output (a residual connection), that layer is the last that can compensate for
   the error in it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from packager.quantize.update_aware.fill_template import find_addition
from packager.quantize.update_aware.template import QuantizedWeight

MAX_STAGES: Final = 160  # steps of the walk through the float model for one solution


@dataclass(frozen=True, slots=True)
class SharedInput:
    """A layer: the weights that multiply the same rows.

    Attributes:
        node_number: number of the layer, which names its files.
        input_index: number of the first node in the float graph that reads the rows.
        weights: the weights, in graph order.
        added_value: name of the value that is added to the layer's output; "" if there is none.
    """

    node_number: int
    input_index: int
    weights: tuple[QuantizedWeight, ...]
    added_value: str = ""

    @property
    def first_weight(self) -> QuantizedWeight:
        """The weight that is read first; all weights of the layer have its inputs and groups."""
        return self.weights[0]

    @property
    def is_projected(self) -> bool:
        """True if outputs are stored as targets, False if inputs are: the narrower of the two."""
        return bool(self.added_value) or sum(map(channels_of, self.weights)) <= shape_of(self.first_weight)[0]

    @property
    def width(self) -> int:
        """Number of stored columns of one group: output channels of all weights, or inputs."""
        return sum(map(channels_of, self.weights)) if self.is_projected else shape_of(self.first_weight)[0]

    def path(self, folder: Path) -> Path:
        """Return the file of the targets of all rows, groups side by side.
        One file per group would be too many open files.
        """
        return folder / f"{self.node_number}.rows"

    def local_path(self, folder: Path) -> Path:
        """Return the file of the inputs of a few rows."""
        return folder / f"{self.node_number}.local"


def execution_order(prepared: onnx.ModelProto, weights: list[QuantizedWeight]) -> list[list[SharedInput]]:
    """Return the stages in the order in which the float model runs them.
    A stage is one layer, or several if there are many.

    Args:
        prepared: the new float model.
        weights: the weights whose input is known.
    """
    place = {node.name: i for i, node in enumerate(prepared.graph.node)}
    layers: dict[tuple[str, ...], list[QuantizedWeight]] = {}
    for weight in sorted(weights, key=lambda w: place[w.float_node.name]):
        layers.setdefault(_layer_key(weight), []).append(weight)
    shared = [
        SharedInput(i, min(place[w.float_node.name] for w in group), tuple(group), _find_added_value(prepared, group))
        for i, group in enumerate(layers.values())
    ]
    layers_per_stage = max(1, -(-len(shared) // MAX_STAGES))
    return [shared[i : i + layers_per_stage] for i in range(0, len(shared), layers_per_stage)]


def rows_of(activation: np.ndarray, weight: QuantizedWeight, positions: np.ndarray) -> list[np.ndarray]:
    """Return the rows that `weight` multiplies, float32 [positions, inputs] for each group.

    Args:
        activation: value of the layer's input; [..., inputs], or [batch, channels, height, ...] for a Conv.
        weight: any weight of the layer.
        positions: int64 [positions]: row numbers, or flat output positions of a Conv.
    """
    size, groups = shape_of(weight)
    if weight.kind == "conv":
        kernel = tuple(weight.float_tensor.dims[2:])
        return [
            conv_input_rows(activation, weight.float_node, kernel, group, groups, positions) for group in range(groups)
        ]
    return [activation.reshape(-1, size)[positions].astype(np.float32, copy=False)] * groups


def outputs_of(value: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """Return a value in the form of the layer's outputs, float32 [positions, channels].

    Args:
        value: [..., channels], or [batch, channels, ...] for a Conv.
        weight: any weight of the layer.
    """
    value = np.moveaxis(value, 1, -1) if weight.kind == "conv" and value.ndim > 1 else value
    return value.reshape(-1, value.shape[-1] if value.ndim else 1).astype(np.float32, copy=False)


def conv_input_rows(
    image: np.ndarray, node: onnx.NodeProto, kernel: tuple[int, ...], group: int, groups: int, positions: np.ndarray
) -> np.ndarray:
    """Return the patches that a Conv multiplies, float32 [positions, channels / groups * kernel elements].

    Args:
        image: [batch, channels, *spatial].
        node: the Conv.
        kernel: its spatial sizes.
        group: number of the group.
        groups: number of groups.
        positions: int64 [positions], flat indices into [batch, *output sizes].
    """
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
    """Return (strides, dilations, sizes of the dilated kernel, pads) of a Conv on an image of `shape`."""
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
    """Return the number of output positions of a Conv, batch included.

    Args:
        shape: shape of the image, (batch, channels, *spatial).
        weight: the Conv's weight.
    """
    kernel = tuple(weight.float_tensor.dims[2:])
    strides, _, spans, pads = _conv_geometry(shape, weight.float_node, kernel)
    rank = len(kernel)
    sizes = [
        (n + pads[i] + pads[i + rank] - e) // s + 1
        for i, (n, e, s) in enumerate(zip(shape[2:], spans, strides, strict=True))
    ]
    return int(shape[0] * np.prod(sizes))


def shape_of(weight: QuantizedWeight) -> tuple[int, int]:
    """Return (inputs of one group, number of groups) of a weight's matrices."""
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
    """Return the number of output channels of one group of a weight."""
    size, groups = shape_of(weight)
    return int(math.prod(weight.float_tensor.dims)) // max(1, size * groups)


def _find_added_value(prepared: onnx.ModelProto, group: list[QuantizedWeight]) -> str:
    """Return the name of the value added to the layer's output after its bias; "" if there is none."""
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
        # another kernel, stride or padding cuts the same image into other patches
        cut = f"{list(weight.float_tensor.dims)[1:]}"
        cut += "".join(sorted(a.SerializeToString().hex() for a in weight.float_node.attribute))
    return weight.float_source or "", weight.source or "", cut
