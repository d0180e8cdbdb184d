"""Ordinary quantization of a new model, made the way that a base was: what an update is measured against.

Rules:
1. Method and kind of levels are those that the base's metadata tells, else those that its operators show.
2. What the base keeps in float or gives more bits than the rest, this one does too.
"""

import onnx

from packager.models.graphs import all_nodes, float_bytes, quantization_of, weight_uses
from packager.models.samples import Samples
from packager.quantize.candidates import CandidateBuilder, Method
from packager.quantize.int4 import int4_nodes


def quantize_like_template(
    template: onnx.ModelProto, prepared: onnx.ModelProto, calibration: Samples
) -> onnx.ModelProto:
    """The new model quantized the way the template was (rules 1 and 2). Raises QuantizationRefused."""
    told = quantization_of(template)
    operators = {node.op_type for node in all_nodes(template)}
    method: Method = "int4" if "MatMulNBits" in operators else "weights"
    if "static" in told or (not told and "QuantizeLinear" in operators):
        method = "static"
    elif "dynamic" in told or (not told and "DynamicQuantizeLinear" in operators):
        method = "dynamic"
    floats = {tensor.name for tensor in template.graph.initializer}
    kept = frozenset(use.node.name for use in weight_uses(prepared) if use.tensor.name in floats)
    wide = _promoted_nodes(template, method, {use.node.name for use in int4_nodes(prepared)}) - kept
    workshop = CandidateBuilder(
        prepared,
        calibration,
        float_bytes(prepared),
        signed_weights=told.endswith("u8s7"),
        signed_activations=told.endswith(("s8s8", "u8s8")),
    )
    return workshop.build(method, kept, wide, is_partial=True)


def _promoted_nodes(template: onnx.ModelProto, method: Method, four_bits: set[str]) -> frozenset[str]:
    """Names of the nodes that have more bits in the template: 16 for what they read, or 8 for weights that could have
    4."""
    nodes = list(all_nodes(template))
    if method == "int4":
        return frozenset(node.name for node in nodes if node.op_type in ("MatMul", "Gemm") and node.name in four_bits)
    if method != "static":
        return frozenset()
    types = {tensor.name: tensor.data_type for tensor in template.graph.initializer}
    sixteen = {
        node.output[0]
        for node in nodes
        if node.op_type == "DequantizeLinear"
        and len(node.input) > 2
        and types.get(node.input[2]) == onnx.TensorProto.UINT16
    }
    return frozenset(node.name for node in nodes if sixteen & set(node.input))
