"""int8 weights with float arithmetic: the form that every operator and every CPU can run.

1. A weight W becomes W_quantized (8 bits, symmetric, one scale per channel). A DequantizeLinear in W's own graph
   outputs W under its old name, so that readers in nested graphs need no change.
2. A table that is only looked up (Gather on axis 0) is looked up in int8 and dequantized after that, one scale
   per column: the whole table is never dequantized. If a MatMul reads the rows directly, the table is dequantized
   first: onnxruntime would take the pair for a product of integers, and fail on the rows' scales.
3. DequantizeLinear outputs float32 (other types came with operator set 19); a Cast follows if the weight was float16 or
   double.
4. Axes are counted from the end. Newer versions of onnxruntime (1.32) turn DequantizeLinear with `axis` 1 before a
   MatMul into MatMulNBits at accuracy level 4, which quantizes activations inside the kernel, differently on each CPU
   (an error of 0.85 was seen where the weights alone cost 0.01).
5. Weights below MIN_ELEMENTS stay float.
"""

from typing import Final

import onnx

from packager.models.graphs import WeightUse, names_in, opset_version, scopes, unused_name, weight_uses
from packager.quantize.integer_weights import add_levels, weight_of

MIN_ELEMENTS: Final = 512  # size of a weight; below it scales and names take as many bytes as quantizing saves
PER_AXIS_OPSET: Final = 13  # first operator set with an axis in DequantizeLinear


def quantize_weights(model: onnx.ModelProto, float_nodes: frozenset[str] = frozenset()) -> list[str]:
    """Quantize every remaining float weight in place; return the names of the nodes that read them.

    Args:
        model: changed in place.
        float_nodes: names of nodes that stay float.
    """
    taken = names_in(model)
    domain = "" if opset_version(model) >= PER_AXIS_OPSET else "com.microsoft"
    if domain and all(entry.domain != domain for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    uses: dict[tuple[int, str], list[WeightUse]] = {}
    for use in weight_uses(model):
        uses.setdefault((id(use.owner.graph), use.tensor.name), []).append(use)
    done: list[str] = []
    for group in uses.values():
        first = group[0]
        is_output = any(value.name == first.tensor.name for value in first.owner.graph.output)
        if first.elements < MIN_ELEMENTS or is_output or any(use.node.name in float_nodes for use in group):
            continue
        if _is_table(group):
            for use in group:
                _look_up_in_int8(use, taken, domain)
            _drop_initializer(first.owner.graph, first.tensor.name)
        else:
            _dequantize_up_front(first, taken, domain)
        done.extend(use.node.name for use in group)
    return done


def channel_axis(use: WeightUse) -> int:
    """Return the axis of the weight along which its node's output channels run."""
    rank = len(use.tensor.dims)
    flags = {attribute.name: attribute.i for attribute in use.node.attribute}
    match use.node.op_type:
        case "MatMul":
            return rank - 1 if use.input_index == 1 else rank - 2
        case "Gemm":
            return int(bool(flags.get("transB")) != (use.input_index == 1))
        case "Conv" | "FusedConv":
            return 0
        case "ConvTranspose":
            return 1 if flags.get("group", 1) == 1 else 0
        case "Gather" | "Einsum" | "FusedMatMul" | "FusedGemm" | "EmbedLayerNormalization":
            return rank - 1
        case _:
            return 1


def _is_table(group: list[WeightUse]) -> bool:
    # any other reader would need the float table
    return all(
        use.node.op_type == "Gather"
        and not any(attribute.name == "axis" and attribute.i != 0 for attribute in use.node.attribute)
        and not any(
            node.op_type in ("MatMul", "Gemm") and use.node.output[0] in node.input for node in use.scope.graph.node
        )
        for use in group
    ) and _reader_count(group[0]) == len(group)


def _reader_count(use: WeightUse) -> int:
    return sum(
        list(node.input).count(use.tensor.name)
        for scope in scopes(use.owner.graph, use.owner.outer)
        for node in scope.graph.node
    )


def _add_levels(use: WeightUse, taken: set[str]) -> tuple[str, str, str]:
    """Add W_quantized, W_scale and W_zero_point to the graph that owns the weight; return their names."""
    names = add_levels(use, weight_of(use), channel_axis(use), taken)
    return names.levels, names.scale, names.zero_point


def _dequantize_up_front(use: WeightUse, taken: set[str], domain: str) -> None:
    levels, scale, zero_point = _add_levels(use, taken)
    graph, name, elem_type = use.owner.graph, use.tensor.name, use.tensor.data_type
    axis = channel_axis(use) - len(use.tensor.dims)  # negative, so that the runtime does not fuse it (module docstring)
    made = _dequantize([levels, scale, zero_point], name, axis, elem_type, taken, domain)
    _drop_initializer(graph, name)
    for node in reversed(made):
        graph.node.insert(0, node)


def _look_up_in_int8(use: WeightUse, taken: set[str], domain: str) -> None:
    graph, node = use.owner.graph, use.node
    existing = {tensor.name for tensor in graph.initializer}
    base = use.tensor.name
    names = (f"{base}_quantized", f"{base}_scale", f"{base}_zero_point")
    levels, scale, zero_point = names if set(names) <= existing else _add_levels(use, taken)
    looked_up = unused_name(f"{node.output[0]}_quantized", taken)
    made = _dequantize([looked_up, scale, zero_point], node.output[0], -1, use.tensor.data_type, taken, domain)
    node.input[0] = levels
    node.output[0] = looked_up
    nodes = use.scope.graph.node
    spot = next(i for i, other in enumerate(nodes) if other.name == node.name) + 1
    for extra in reversed(made):
        nodes.insert(spot, extra)


def _dequantize(
    inputs: list[str], output: str, axis: int, elem_type: int, taken: set[str], domain: str
) -> list[onnx.NodeProto]:
    is_float = elem_type == onnx.TensorProto.FLOAT
    result = output if is_float else unused_name(f"{output}_float", taken)
    name = unused_name(f"{output}_DequantizeLinear", taken)
    made = [onnx.helper.make_node("DequantizeLinear", inputs, [result], name=name, axis=axis, domain=domain)]
    if not is_float:
        made.append(onnx.helper.make_node("Cast", [result], [output], name=f"{name}_cast", to=elem_type))
    return made


def _drop_initializer(graph: onnx.GraphProto, name: str) -> None:
    spot = next((i for i, tensor in enumerate(graph.initializer) if tensor.name == name), None)
    if spot is not None:
        del graph.initializer[spot]
