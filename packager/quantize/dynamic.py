"""Dynamic int8: each activation's scale is measured while the model runs; onnxruntime's ONNXQuantizer writes the graph.

Rules:
1. Nested graphs are quantized too (onnxruntime leaves them out unless told, and says it succeeded).
2. What it cannot do (recurrent layers other than LSTM, tables) becomes int8 by `weights`.
3. Weights are unsigned and symmetric around 128, so that no CPU's integer sums overflow.
"""

from typing import Final

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode

from packager.quantize.graphs import WeightUse, weight_uses
from packager.quantize.weights import MIN_ELEMENTS, quantize_weights

OPERATORS: Final = ("Conv", "MatMul", "Gemm")


def dynamic_nodes(model: onnx.ModelProto) -> list[WeightUse]:
    """Nodes with a constant weight that have an integer kernel for activations of unknown range."""
    return [
        use
        for use in weight_uses(model)
        if use.node.op_type in OPERATORS
        and use.input_index == 1
        and use.elements >= MIN_ELEMENTS
        and use.tensor.data_type == onnx.TensorProto.FLOAT
    ]


def quantize_dynamic(
    model: onnx.ModelProto,
    *,
    per_channel: bool,
    signed_weights: bool,
    keep_float: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """A quantized copy of a prepared model; nodes named in `keep_float` stay as they are."""
    wanted = [use.node.name for use in dynamic_nodes(model) if use.node.name not in keep_float]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if wanted:
        quantizer = ONNXQuantizer(
            copy,
            per_channel,
            signed_weights,  # reduce_range, see static.py
            QuantizationMode.IntegerOps,
            False,
            QuantType.QInt8 if signed_weights else QuantType.QUInt8,
            QuantType.QUInt8,
            None,
            wanted,
            [],
            list(OPERATORS),
            {"WeightSymmetric": True, "MatMulConstBOnly": True, "EnableSubgraph": True},
        )
        quantizer.quantize_model()
        copy = quantizer.model.model
    quantize_weights(copy, keep_float)
    return copy
