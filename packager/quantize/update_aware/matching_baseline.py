"""Quantize the new model by the base's method without regard to the base: the baseline of an update.

Method and kind of levels come from the base's metadata, or from its operators if it was made by another tool. Nodes
that the base keeps in float or gives more bits are treated alike here, so that the two errors can be compared.
"""

import onnx

from packager.models.graphs import all_nodes, float_bytes, quantization_of, weight_uses
from packager.models.samples import Samples
from packager.quantize.candidates import CandidateBuilder, Method
from packager.quantize.int4 import int4_nodes
from packager.quantize.moved_weights import moved_weight_uses


def quantize_like_template(
    template: onnx.ModelProto, prepared: onnx.ModelProto, calibration: Samples
) -> onnx.ModelProto:
    """Return the new model quantized by the method of `template`.
    The same nodes stay float or get more bits.

    Args:
        template: the base.
        prepared: the new float model, prepared for quantization.
        calibration: inputs for the ranges of activations.

    Raises:
        QuantizationRefused: the method does not fit the new model.
    """
    recorded = quantization_of(template)
    operators = {node.op_type for node in all_nodes(template)}
    method: Method = "int4" if "MatMulNBits" in operators else "weights"
    if "static" in recorded or (not recorded and "QuantizeLinear" in operators):
        method = "static"
    elif "dynamic" in recorded or (not recorded and "DynamicQuantizeLinear" in operators):
        method = "dynamic"
    float_tensors = {tensor.name for tensor in template.graph.initializer}
    uses = (*weight_uses(prepared), *moved_weight_uses(prepared))
    float_nodes = frozenset(use.node.name for use in uses if use.tensor.name in float_tensors)
    promoted = _promoted_nodes(template, method, {use.node.name for use in int4_nodes(prepared)}) - float_nodes
    builder = CandidateBuilder(
        prepared,
        calibration,
        float_bytes(prepared),
        signed_weights=recorded.endswith("u8s7"),
        signed_activations=recorded.endswith(("s8s8", "u8s8")),
    )
    return builder.build(method, float_nodes, promoted, is_partial=True)


def _promoted_nodes(template: onnx.ModelProto, method: Method, four_bits: set[str]) -> frozenset[str]:
    """Return the names of the nodes with more bits in the template.
    Those are 16-bit activations, or 8-bit weights beside 4-bit ones.
    """
    nodes = list(all_nodes(template))
    if method == "int4":
        return frozenset(node.name for node in nodes if node.op_type in ("MatMul", "Gemm") and node.name in four_bits)
    if method != "static":
        return frozenset()
    types = {tensor.name: tensor.data_type for tensor in template.graph.initializer}
    dequantized_16bit = {
        node.output[0]
        for node in nodes
        if node.op_type == "DequantizeLinear"
        and len(node.input) > 2
        and types.get(node.input[2]) == onnx.TensorProto.UINT16
    }
    return frozenset(node.name for node in nodes if dequantized_16bit & set(node.input))
