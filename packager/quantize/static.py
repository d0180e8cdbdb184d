"""Static int8 (QDQ): the scales of activations are fixed by calibration.

1. Only Conv, MatMul and Gemm with a constant weight are quantized. Quantizing the operators around them too lowered the
   cosine of recognizers to 0.43.
2. Each gets QuantizeLinear and DequantizeLinear on its activation, and DequantizeLinear on its weight. A Conv also gets
   them on its output (behind a Relu or Clip that is the only reader), since the runtime fuses that into one integer
   kernel. Outputs of MatMul and Gemm stay float: their integer kernels output float.
3. A bias becomes int32 at the scale activation x weight. If it would not fit, its channel's weight scale is raised
   (onnxruntime.quantization clips it, or crashes on weights without a plain bias).
4. A promoted node reads 16-bit activations: it computes in float, and its bias and output stay float. Operator sets
   below 21 have 16-bit levels only as onnxruntime's own operator (1.16 and later).
5. Other weights (nested graphs, recurrent layers, tables) become int8 by `weight_only`.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from packager.models.graphs import WeightUse, array_of, names_in, opset_version, scopes, unused_name, weight_uses
from packager.models.samples import Samples
from packager.quantize.activation_ranges import ActivationRange, measure_ranges
from packager.quantize.integer_weights import (
    UNSIGNED_LEVELS,
    LevelNames,
    LevelRange,
    add_levels,
    drop_unread_initializers,
    weight_of,
)
from packager.quantize.weight_only import MIN_ELEMENTS, channel_axis, quantize_weights

OPERATORS: Final = ("Conv", "MatMul", "Gemm")
SHAPE_OPERATORS: Final = ("Shape", "Size")
CLIPPING_OPERATORS: Final = ("Relu", "Clip")
ACTIVATION_LEVELS: Final = 255  # largest uint8 level
SIGNED_OFFSET: Final = 128  # difference between uint8 and int8 levels
SIXTEEN_BIT_LEVELS: Final = 65_535  # largest uint16 level
SIXTEEN_BIT_OPSET: Final = 21  # first operator set with 16-bit levels
CONTRIB_DOMAIN: Final = "com.microsoft"
MAX_BIAS_LEVEL: Final = 2**30  # half of int32: leaves room for the sum of products beside the bias
SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)  # least scale


def static_nodes(model: onnx.ModelProto) -> list[WeightUse]:
    """Return the Conv, MatMul and Gemm nodes of the top graph that have a constant weight."""
    return [
        use
        for use in weight_uses(model)
        if use.scope.depth == 0
        and use.node.op_type in OPERATORS
        and use.input_index == 1
        and use.elements >= MIN_ELEMENTS
        and use.tensor.data_type == onnx.TensorProto.FLOAT
        and (use.node.op_type != "MatMul" or len(use.tensor.dims) == 2)
    ]


def measure_activation_ranges(model: onnx.ModelProto, samples: Samples) -> dict[str, ActivationRange]:
    """Return the ranges, by name, of every activation that `quantize_static` may need.

    Args:
        model: the float model after `prepare`.
        samples: calibration samples.

    Raises:
        ModelDoesNotRun: the model does not run on a sample.
    """
    readers = _readers_by_name(model)
    wanted: set[str] = set()
    for use in static_nodes(model):
        wanted.add(use.node.input[0])
        if use.node.op_type == "Conv":
            wanted.add(_conv_output(use.node, readers))
    return measure_ranges(model, wanted - {tensor.name for tensor in model.graph.initializer}, samples)


def quantize_static(
    model: onnx.ModelProto,
    ranges: dict[str, ActivationRange],
    *,
    per_channel: bool,
    levels: LevelRange = UNSIGNED_LEVELS,
    signed_activations: bool = False,
    float_nodes: frozenset[str] = frozenset(),
    promoted: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """Return a quantized copy of a prepared model.

    Args:
        model: the float model after `prepare`.
        ranges: ranges of activations, by name; a node without one stays float.
        per_channel: use one scale per channel, instead of one per weight.
        levels: level range of the weights.
        signed_activations: int8 activations instead of uint8.
        float_nodes: names of nodes that stay float.
        promoted: names of nodes with 16-bit activations.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    rewrite = _Rewrite(
        quantized,
        ranges,
        names_in(quantized),
        _readers_by_name(quantized),
        per_channel,
        levels,
        signed_activations,
        promoted,
    )
    uses = [u for u in static_nodes(quantized) if u.node.name not in float_nodes and u.node.input[0] in ranges]
    for use in uses:
        rewrite.rewrite_node(use)
    drop_unread_initializers(quantized, rewrite.replaced)
    rewrite.insert_nodes()
    quantize_weights(quantized, float_nodes)
    return quantized


@dataclass(slots=True)
class _Rewrite:
    model: onnx.ModelProto
    ranges: dict[str, ActivationRange]
    taken_names: set[str]
    readers: dict[str, list[onnx.NodeProto]]
    per_channel: bool
    weight_levels: LevelRange
    signed_activations: bool
    promoted: frozenset[str]
    replaced: set[str] = field(default_factory=set)
    activations: dict[tuple[str, bool], tuple[str, float]] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    weights: dict[tuple[str, str, bytes], LevelNames] = field(default_factory=dict)
    nodes_before: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    nodes_after: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def rewrite_node(self, use: WeightUse) -> None:
        node = use.node
        is_wide = node.name in self.promoted
        end = _conv_output(node, self.readers) if node.op_type == "Conv" and not is_wide else None
        if end is not None and any(reader.name in self.promoted for reader in self.readers.get(end, [])):
            end = None  # an 8-bit output would leave a promoted reader no 16-bit activation
        dequantized, input_scale = self._quantize_activation(node.input[0], is_16bit=is_wide)
        axis = channel_axis(use) if self.per_channel else None
        bias = None if is_wide else self._constant_bias(use)
        names = self._add_weight_levels(use, axis, input_scale, bias)
        node.input[0] = dequantized
        # a float MatMul must not be fused with its weights (packager.quantize.lint)
        counted = axis - len(use.tensor.dims) if axis is not None and is_wide else axis
        node.input[1] = self._add_dequantize(node, names.levels, names.scale, names.zero_point, counted)
        if bias is not None:
            self._add_int32_bias(node, bias, input_scale * names.scales.astype(np.float64))
        if end is not None and end in self.ranges and not any(v.name == end for v in self.model.graph.output):
            self._quantize_output(end)

    def insert_nodes(self) -> None:
        """Insert the new nodes before the node that reads them, or after the node that makes their input."""
        nodes = []
        made_by_input = self.nodes_after.pop("", [])
        for node in (*made_by_input, *self.model.graph.node):
            nodes.extend(self.nodes_before.get(node.name, []))
            nodes.append(node)
            for name in node.output:
                nodes.extend(self.nodes_after.get(name, []))
        copies = []
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copies.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)

    def _quantize_activation(self, name: str, *, is_16bit: bool = False) -> tuple[str, float]:
        if name in self.scales:
            return name, self.scales[name]
        if (name, is_16bit) not in self.activations:
            scale, zero = scale_of(self.ranges[name], SIXTEEN_BIT_LEVELS if is_16bit else ACTIVATION_LEVELS)
            made = {output for node in self.model.graph.node for output in node.output}
            pair = self._add_qdq_pair(name, scale, zero, name if name in made else "", is_16bit=is_16bit)
            self.activations[name, is_16bit] = pair, scale
        return self.activations[name, is_16bit]

    def _add_qdq_pair(self, source: str, scale: float, zero: int, maker_of: str, *, is_16bit: bool) -> str:
        """Add QuantizeLinear and DequantizeLinear on `source`.
        They follow the node that makes the value `maker_of`; "" stands for a graph input.
        """
        scale_name, zero_name = (unused_name(f"{source}_{part}", self.taken_names) for part in ("scale", "zero_point"))
        levels = unused_name(f"{source}_levels", self.taken_names)
        out = unused_name(f"{source}_dequantized", self.taken_names)
        zeros = np.array(zero, np.uint16 if is_16bit else np.uint8)
        if self.signed_activations and not is_16bit:
            zeros = np.array(zero - SIGNED_OFFSET, np.int8)
        initializers = self.model.graph.initializer
        initializers.append(numpy_helper.from_array(np.array(scale, np.float32), scale_name))
        initializers.append(numpy_helper.from_array(zeros, zero_name))
        domain = CONTRIB_DOMAIN if is_16bit and opset_version(self.model) < SIXTEEN_BIT_OPSET else ""
        if domain and all(entry.domain != domain for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(domain, 1))
        parts = [scale_name, zero_name]
        pair = [
            helper.make_node("QuantizeLinear", [source, *parts], [levels], name=f"{levels}_q", domain=domain),
            helper.make_node("DequantizeLinear", [levels, *parts], [out], name=f"{levels}_dq", domain=domain),
        ]
        self.nodes_after.setdefault(maker_of, []).extend(pair)
        self.scales[out] = scale
        return out

    def _quantize_output(self, end: str) -> None:
        out, _ = self._quantize_activation(end)
        for scope in scopes(self.model.graph):
            for node in scope.graph.node:
                for i, name in enumerate(node.input):
                    if name == end and node.op_type not in SHAPE_OPERATORS:
                        node.input[i] = out

    def _constant_bias(self, use: WeightUse) -> np.ndarray | None:
        if use.node.op_type == "MatMul" or len(use.node.input) < 3 or not use.node.input[2]:
            return None
        behind = use.scope.find(use.node.input[2])
        if behind is None or behind[1].data_type != onnx.TensorProto.FLOAT:
            return None
        bias = array_of(behind[1])
        return bias if bias.size == _channel_count(use) and bias.ndim == 1 else None

    def _add_weight_levels(
        self, use: WeightUse, axis: int | None, input_scale: float, bias: np.ndarray | None
    ) -> LevelNames:
        smallest = None
        if bias is not None:
            smallest = np.abs(bias.astype(np.float64)) / (MAX_BIAS_LEVEL * input_scale)
            smallest = smallest if axis is not None else np.asarray(smallest.max(initial=0.0))
        key = (use.tensor.name, str(axis), b"" if smallest is None else smallest.tobytes())
        if key not in self.weights:
            self.weights[key] = add_levels(
                use, weight_of(use), axis, self.taken_names, levels=self.weight_levels, min_scales=smallest
            )
            self.replaced.add(use.tensor.name)
        return self.weights[key]

    def _add_int32_bias(self, node: onnx.NodeProto, bias: np.ndarray, scales: np.ndarray) -> None:
        rounded = np.clip(np.rint(bias.astype(np.float64) / scales), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        base = node.input[2]
        names = [unused_name(f"{base}_{part}", self.taken_names) for part in ("quantized", "scale", "zero_point")]
        zeros = np.zeros(scales.shape, np.int32)
        for name, array in zip(names, (rounded, scales.astype(np.float32), zeros), strict=True):
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        node.input[2] = self._add_dequantize(node, names[0], names[1], names[2], 0 if scales.ndim else None)
        self.replaced.add(base)

    def _add_dequantize(self, node: onnx.NodeProto, levels: str, scale: str, zero: str, axis: int | None) -> str:
        out = unused_name(f"{levels}_dequantized", self.taken_names)
        added = helper.make_node("DequantizeLinear", [levels, scale, zero], [out], name=out)
        if axis is not None:
            added.attribute.append(helper.make_attribute("axis", axis))
        self.nodes_before.setdefault(node.name, []).append(added)
        return out


def scale_of(found: ActivationRange, levels: int = ACTIVATION_LEVELS) -> tuple[float, int]:
    """Return (scale, zero point) of unsigned levels 0..`levels` whose span contains the range and zero.

    Args:
        found: the range.
        levels: largest level.
    """
    low, high = min(0.0, found.low), max(0.0, found.high)
    scale = float(np.float32(max((high - low) / levels, SMALLEST_NORMAL)))
    if high == low:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, levels))


def _channel_count(use: WeightUse) -> int:
    return int(use.tensor.dims[channel_axis(use)])


def _readers_by_name(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for scope in scopes(model.graph):
        for node in scope.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
    return found


def _conv_output(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> str:
    behind = readers.get(node.output[0], [])
    is_alone = len(behind) == 1 and behind[0].op_type in CLIPPING_OPERATORS
    return str(behind[0].output[0] if is_alone else node.output[0])
