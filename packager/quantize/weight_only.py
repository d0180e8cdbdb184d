"""int8 weights with float arithmetic: the form that every operator and every CPU can run.

1. A weight W becomes W_quantized (int8, symmetric, one scale per channel) and W_scale, which broadcasts over it. Cast
   and Mul in W's own graph output W under its old name, so that readers in nested graphs need no change.
2. The runtime folds Cast and Mul while it loads the model, so that a run takes as long as that of the float model.
   DequantizeLinear on a constant is not folded: it would be computed in every run.
3. A table that is only looked up (Gather on axis 0) stays int8 in memory: its rows are cast and multiplied after the
   look-up, with one scale per column.
4. Arithmetic is float32; a second Cast follows if the weight was float16, bfloat16 or double.
5. A weight stays float if it has fewer than MIN_ELEMENTS, or if levels and scales take more than MAX_STORED_SHARE of
   its bytes.
6. A weight that is moved before it is read is quantized, too (packager.quantize.moved_weights).
"""

from typing import Final

import onnx

from packager.models.graphs import WeightUse, names_in, scopes, set_array, unused_name, weight_uses
from packager.quantize.integer_weights import SIGNED_LEVELS, add_levels, broadcast_along, weight_of
from packager.quantize.moved_weights import most_exact_axis, moved_weight_uses

MIN_ELEMENTS: Final = 512  # size of a weight; below it scales and names take as many bytes as quantizing saves
SCALE_BYTES: Final = 4  # float32
MAX_STORED_SHARE: Final = 0.75  # of the float weight's bytes; a weight with few elements per channel saves less


def quantize_weights(model: onnx.ModelProto, float_nodes: frozenset[str] = frozenset()) -> list[str]:
    """Quantize every remaining float weight in place; return the names of the nodes that read them.

    Args:
        model: changed in place.
        float_nodes: names of nodes that stay float.
    """
    taken = names_in(model)
    uses: dict[tuple[int, str], list[WeightUse]] = {}
    for use in weight_uses(model):
        uses.setdefault((id(use.owner.graph), use.tensor.name), []).append(use)
    moved: dict[tuple[int, str], list[WeightUse]] = {}
    for use in moved_weight_uses(model):
        moved.setdefault((id(use.owner.graph), use.tensor.name), []).append(use)
    done: list[str] = []
    for key, group in (uses | moved).items():
        first = group[0]
        axis = most_exact_axis(first.tensor) if key in moved else channel_axis(first)
        is_output = any(value.name == first.tensor.name for value in first.owner.graph.output)
        if not is_worth_storing(first, axis) or is_output or any(use.node.name in float_nodes for use in group):
            continue
        levels, scale = _add_levels(first, axis, taken)
        if key not in moved and _is_table(group):
            for use in group:
                _look_up_in_int8(use, levels, scale, taken)
        else:
            made = _dequantize(levels, scale, first.tensor.name, first.tensor.data_type, taken)
            for node in reversed(made):
                first.owner.graph.node.insert(0, node)
        _drop_initializer(first.owner.graph, first.tensor.name)
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


def is_worth_storing(use: WeightUse, axis: int) -> bool:
    """Return whether int8 levels and their scales take clearly fewer bytes than the float weight.

    Args:
        use: the node that reads the weight.
        axis: axis of the channels.
    """
    if use.elements < MIN_ELEMENTS:
        return False
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(use.tensor.data_type).itemsize
    scales = use.tensor.dims[axis] * SCALE_BYTES
    return bool(use.elements + scales <= MAX_STORED_SHARE * itemsize * use.elements)


def _is_table(group: list[WeightUse]) -> bool:
    # any other reader would need the float table
    return all(
        use.node.op_type == "Gather"
        and not any(attribute.name == "axis" and attribute.i != 0 for attribute in use.node.attribute)
        for use in group
    ) and _reader_count(group[0]) == len(group)


def _reader_count(use: WeightUse) -> int:
    return sum(
        list(node.input).count(use.tensor.name)
        for scope in scopes(use.owner.graph, use.owner.outer)
        for node in scope.graph.node
    )


def _add_levels(use: WeightUse, axis: int, taken: set[str]) -> tuple[str, str]:
    """Add W_quantized and W_scale to the graph that owns the weight; return their names."""
    names = add_levels(use, weight_of(use), axis, taken, levels=SIGNED_LEVELS, has_zero_point=False)
    # trailing axes only: the scale of a table must also broadcast over rows of another rank
    spread = broadcast_along(names.scales, axis, len(use.tensor.dims))
    shape = spread.shape[next((i for i, size in enumerate(spread.shape) if size != 1), len(spread.shape)) :]
    stored = next(tensor for tensor in use.owner.graph.initializer if tensor.name == names.scale)
    set_array(stored, spread.reshape(shape))
    return names.levels, names.scale


def _look_up_in_int8(use: WeightUse, levels: str, scale: str, taken: set[str]) -> None:
    node = use.node
    looked_up = unused_name(f"{node.output[0]}_quantized", taken)
    made = _dequantize(looked_up, scale, node.output[0], use.tensor.data_type, taken)
    node.input[0], node.output[0] = levels, looked_up
    nodes = use.scope.graph.node
    spot = next(i for i, other in enumerate(nodes) if other.name == node.name) + 1
    for extra in reversed(made):
        nodes.insert(spot, extra)


def _dequantize(levels: str, scale: str, output: str, elem_type: int, taken: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that make `output` of int8 levels: Cast, Mul, and a Cast to the weight's own type.

    Args:
        levels: name of the int8 value.
        scale: name of the scales.
        output: name of the result.
        elem_type: ONNX type of the result.
        taken: names in use; new ones are added.
    """
    is_float = elem_type == onnx.TensorProto.FLOAT
    integers, name = unused_name(f"{output}_integers", taken), unused_name(f"{output}_dequantize", taken)
    result = output if is_float else unused_name(f"{output}_float", taken)
    made = [
        onnx.helper.make_node("Cast", [levels], [integers], name=f"{name}_cast", to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", [integers, scale], [result], name=name),
    ]
    if not is_float:
        made.append(onnx.helper.make_node("Cast", [result], [output], name=f"{name}_narrow", to=elem_type))
    return made


def _drop_initializer(graph: onnx.GraphProto, name: str) -> None:
    spot = next((i for i, tensor in enumerate(graph.initializer) if tensor.name == name), None)
    if spot is not None:
        del graph.initializer[spot]
