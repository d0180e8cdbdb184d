"""Dynamic int8: the runtime measures each activation's scale, so no calibration is needed.

1. MatMul, Gemm and Conv with a constant weight become DynamicQuantizeLinear and MatMulInteger or ConvInteger, in the
   form that onnxruntime fuses (DynamicQuantizeMatMul). This covers nested graphs, and weights that an outer graph owns:
   onnxruntime.quantization skips the first silently and crashes on the second.
2. Weights without such a kernel (recurrent layers, tables) become int8 by `weight_only`.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from packager.models.graphs import Scope, WeightUse, names_in, unused_name, weight_uses
from packager.quantize.integer_weights import LevelNames, LevelRange, add_levels, drop_unread_initializers, weight_of
from packager.quantize.weight_only import MIN_ELEMENTS, quantize_weights

OPERATORS: Final = ("Conv", "MatMul", "Gemm")
FLOAT: Final = onnx.TensorProto.FLOAT


def dynamic_nodes(model: onnx.ModelProto) -> list[WeightUse]:
    """Return the nodes of every graph that have a constant weight and a kernel for unknown ranges."""
    return [
        use
        for use in weight_uses(model)
        if use.node.op_type in OPERATORS
        and use.input_index == 1
        and use.elements >= MIN_ELEMENTS
        and use.tensor.data_type == FLOAT
        and (use.node.op_type == "Conv" or len(use.tensor.dims) == 2)
        and not (use.node.op_type == "Gemm" and _flag_attribute(use.node, "transA"))
    ]


def quantize_dynamic(
    model: onnx.ModelProto,
    *,
    per_channel: bool,
    levels: LevelRange,
    float_nodes: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """Return a quantized copy of a prepared model.

    Args:
        model: the float model after `prepare`.
        per_channel: use one scale per channel, instead of one per weight.
        levels: level range of the weights.
        float_nodes: names of nodes that stay float.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    rewrite = _Rewrite(names_in(quantized), per_channel, levels)
    by_graph: dict[int, tuple[Scope, list[WeightUse]]] = {}
    for use in dynamic_nodes(quantized):
        if use.node.name not in float_nodes:
            by_graph.setdefault(id(use.scope.graph), (use.scope, []))[1].append(use)
    for scope, uses in by_graph.values():
        rewrite.rewrite_graph(scope, uses)
    drop_unread_initializers(quantized, rewrite.replaced)
    quantize_weights(quantized, float_nodes)
    return quantized


@dataclass(slots=True)
class _Rewrite:
    taken_names: set[str]
    per_channel: bool
    levels: LevelRange
    replaced: set[str] = field(default_factory=set)
    weights: dict[tuple[int, str, str], LevelNames] = field(default_factory=dict)

    def rewrite_graph(self, scope: Scope, uses: list[WeightUse]) -> None:
        """Rewrite the nodes of one graph in place."""
        wanted = {use.node.name: use for use in uses}
        measured: dict[str, tuple[str, str, str]] = {}
        nodes: list[onnx.NodeProto] = []
        for node in scope.graph.node:
            use = wanted.get(node.name)
            if use is None:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                nodes.append(copy)
                continue
            source = node.input[0]
            if source not in measured:
                names = tuple(
                    unused_name(f"{source}_{part}", self.taken_names) for part in ("levels", "scale", "zero_point")
                )
                measured[source] = (names[0], names[1], names[2])
                nodes.append(helper.make_node("DynamicQuantizeLinear", [source], list(names), name=f"{names[0]}_dyn"))
            nodes.extend(self._integer_nodes(use, measured[source]))
        del scope.graph.node[:]
        scope.graph.node.extend(nodes)

    def _integer_nodes(self, use: WeightUse, activation: tuple[str, str, str]) -> list[onnx.NodeProto]:
        node, weight = use.node, weight_of(use)
        is_conv = node.op_type == "Conv"
        if node.op_type == "Gemm":
            weight = (weight.T if _flag_attribute(node, "transB") else weight) * np.float32(
                _float_attribute(node, "alpha", 1.0)
            )
        axis = (0 if is_conv else 1) if self.per_channel else None
        names = self._add_weight_levels(use, weight, axis, is_conv)
        levels, scale, zero = activation
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        result = node.output[0]
        product, number, scaled = (
            unused_name(f"{result}_{part}", self.taken_names) for part in ("int32", "float", "scaled")
        )
        factor = unused_name(f"{result}_factor", self.taken_names)
        operator = "ConvInteger" if is_conv else "MatMulInteger"
        integer = helper.make_node(operator, [levels, names.levels, zero, names.zero_point], [product], name=node.name)
        if is_conv:
            integer.attribute.extend(node.attribute)
        made = [
            integer,
            helper.make_node("Cast", [product], [number], name=f"{node.name}_cast", to=FLOAT),
            helper.make_node("Mul", [scale, names.scale], [factor], name=f"{node.name}_factor"),
            helper.make_node("Mul", [number, factor], [scaled if bias else result], name=f"{node.name}_scale"),
        ]
        if bias:
            made.extend(self._add_bias(use, scaled, bias, result, len(weight.shape) if is_conv else 0))
        return made

    def _add_bias(self, use: WeightUse, scaled: str, bias: str, result: str, conv_rank: int) -> list[onnx.NodeProto]:
        node, made = use.node, []
        if conv_rank:
            # int64 [rank]: the channels of a Conv's output are its axis 1
            shape = numpy_helper.from_array(np.array([1, -1, *[1] * (conv_rank - 2)], np.int64))
            shape.name = unused_name(f"{result}_bias_shape", self.taken_names)
            use.scope.graph.initializer.append(shape)
            shaped = unused_name(f"{result}_bias", self.taken_names)
            made.append(helper.make_node("Reshape", [bias, shape.name], [shaped], name=f"{node.name}_bias_shape"))
            bias = shaped
        beta = _float_attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
        if beta != 1.0:
            constant = numpy_helper.from_array(
                np.array(beta, np.float32), unused_name(f"{result}_beta", self.taken_names)
            )
            use.scope.graph.initializer.append(constant)
            weighed = unused_name(f"{result}_bias_beta", self.taken_names)
            made.append(helper.make_node("Mul", [bias, constant.name], [weighed], name=f"{node.name}_beta"))
            bias = weighed
        made.append(helper.make_node("Add", [scaled, bias], [result], name=f"{node.name}_bias"))
        return made

    def _add_weight_levels(self, use: WeightUse, weight: np.ndarray, axis: int | None, is_conv: bool) -> LevelNames:
        alpha = _float_attribute(use.node, "alpha", 1.0) if use.node.op_type == "Gemm" else 1.0
        key = (id(use.owner.graph), use.tensor.name, f"{axis} {weight.shape} {alpha}")
        if key not in self.weights:
            names = add_levels(use, weight, axis, self.taken_names, levels=self.levels)
            owner = use.owner.graph.initializer
            if is_conv:
                # ConvInteger has one zero point per tensor; its scales multiply axis 1 of the output
                _replace_tensor(owner, names.zero_point, lambda zero: zero.reshape(-1)[:1].reshape(()))
                if axis is not None:
                    shape = (1, -1, *[1] * (weight.ndim - 2))
                    _replace_tensor(owner, names.scale, lambda scales: scales.reshape(shape))
            self.weights[key] = names
            self.replaced.add(use.tensor.name)
        return self.weights[key]


def _replace_tensor(tensors: object, name: str, change: object) -> None:
    assert callable(change)
    for tensor in tensors:  # type: ignore[attr-defined]  # a protobuf repeated field
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor)), order="C"), name))


def _flag_attribute(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _float_attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == name), default)
