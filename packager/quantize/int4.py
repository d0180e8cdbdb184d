"""int4: weights of 4 bits in blocks (MatMulNBits), float arithmetic, the same numbers on every CPU.

1. MatMul and Gemm with a constant weight become MatMulNBits (com.microsoft), 4 bits, BLOCK inputs per block, symmetric
   around level 8. The sign of a block's scale is chosen so that its largest magnitude falls on level 0, which has no
   counterpart at the other end.
2. `accuracy_level` stays 0: float32 sums. Higher levels quantize activations inside the kernel, differently on each
   CPU.
3. Other weights (convolutions, recurrent layers, tables), and nodes that need more than 4 bits, become int8 by
   `weight_only`.
"""

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from packager.models.graphs import WeightUse, array_of, names_in, unused_name, weight_uses
from packager.quantize.integer_weights import drop_unread_initializers
from packager.quantize.nbits import pack_levels
from packager.quantize.weight_only import MIN_ELEMENTS, quantize_weights

BLOCK: Final = 32  # inputs that share one scale
LEVELS: Final = 15  # largest level
MIDDLE: Final = 8  # level that stands for 0
CONTRIB_DOMAIN: Final = "com.microsoft"


def int4_nodes(model: onnx.ModelProto) -> list[WeightUse]:
    """Return the nodes, in every graph, that MatMulNBits can replace."""
    return [
        use
        for use in weight_uses(model)
        if use.node.op_type in ("MatMul", "Gemm")
        and use.input_index == 1
        and use.elements >= MIN_ELEMENTS
        and len(use.tensor.dims) == 2
        and use.tensor.data_type == onnx.TensorProto.FLOAT
        and not _integer_attributes(use.node).get("transA")
        and _float_attribute(use.node, "alpha") == 1.0
        and _float_attribute(use.node, "beta") == 1.0
    ]


def quantize_int4(
    model: onnx.ModelProto, float_nodes: frozenset[str] = frozenset(), promoted: frozenset[str] = frozenset()
) -> onnx.ModelProto:
    """Return a quantized copy of a prepared model.

    Args:
        model: the float model after `prepare`.
        float_nodes: names of nodes that stay float.
        promoted: names of nodes whose weights get 8 bits.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    taken = names_in(quantized)
    replaced: set[str] = set()
    done: dict[tuple[int, str, bool], tuple[str, str]] = {}
    for use in int4_nodes(quantized):
        if use.node.name not in float_nodes | promoted:
            _rewrite(use, taken, done)
            replaced.add(use.tensor.name)
    drop_unread_initializers(quantized, replaced)
    if replaced and all(entry.domain != CONTRIB_DOMAIN for entry in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    quantize_weights(quantized, float_nodes)
    return quantized


def to_blocks(weight: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Return the 4-bit levels, uint8 [channels, inputs], and scales, float32 [channels, blocks].

    Args:
        weight: float [channels, inputs].
        block: inputs per block; the last block may be shorter.
    """
    channels, inputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((channels, blocks * block))
    padded[:, :inputs] = weight
    parts = padded.reshape(channels, blocks, block)
    spots = np.abs(parts).argmax(axis=2)[..., None]
    largest = np.take_along_axis(parts, spots, axis=2)[..., 0]
    scales = np.where(largest == 0, 1.0, largest / -MIDDLE).astype(np.float32)
    levels = np.clip(np.rint(parts / scales[..., None].astype(np.float64)) + MIDDLE, 0, LEVELS)
    return levels.reshape(channels, -1)[:, :inputs].astype(np.uint8), scales


def _rewrite(use: WeightUse, taken: set[str], done: dict[tuple[int, str, bool], tuple[str, str]]) -> None:
    node = use.node
    is_flipped = bool(_integer_attributes(node).get("transB"))
    weight = array_of(use.tensor)
    rows = weight if is_flipped else weight.T
    key = (id(use.owner.graph), use.tensor.name, is_flipped)
    if key not in done:
        levels, scales = to_blocks(rows)
        names = unused_name(f"{use.tensor.name}_Q4", taken), unused_name(f"{use.tensor.name}_scales", taken)
        use.owner.graph.initializer.append(numpy_helper.from_array(pack_levels(levels, BLOCK), names[0]))
        use.owner.graph.initializer.append(numpy_helper.from_array(scales.reshape(-1), names[1]))
        done[key] = names
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else None
    result = unused_name(f"{node.output[0]}_nbits", taken) if bias else node.output[0]
    made = [
        helper.make_node(
            "MatMulNBits",
            [node.input[0], *done[key]],
            [result],
            name=node.name,
            domain=CONTRIB_DOMAIN,
            K=rows.shape[1],
            N=rows.shape[0],
            bits=4,
            block_size=BLOCK,
            accuracy_level=0,
        )
    ]
    if bias:
        made.append(helper.make_node("Add", [result, bias], [node.output[0]], name=f"{node.name}_bias"))
    nodes = use.scope.graph.node
    spot = next(i for i, other in enumerate(nodes) if other.name == node.name)
    del nodes[spot]
    for extra in reversed(made):
        nodes.insert(spot, extra)


def _integer_attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: int(attribute.i) for attribute in node.attribute}


def _float_attribute(node: onnx.NodeProto, name: str) -> float:
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == name), 1.0)
