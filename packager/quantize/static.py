"""Static int8 (QDQ): scales of activations are fixed from calibration; onnxruntime's QDQQuantizer writes the graph.

Rules:
1. Only Conv, MatMul and Gemm with a constant weight are quantized: on recognisers, quantizing the operators around them
   as well was the difference between a useful model and cosine 0.43.
2. Outputs of MatMul and Gemm stay float: the runtime's integer kernels give float there, and nothing is lost.
3. onnxruntime's rescaling of weights for int32 biases is off: it crashes on weights without a plain bias.
4. Types that onnxruntime fails to infer are told to it from what was seen while calibrating.
5. Weights that static QDQ does not reach (nested graphs, recurrent layers, tables) become int8 by `weights`.
"""

from typing import Final

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from packager.inputs import Samples
from packager.quantize.graphs import WeightUse, weight_uses
from packager.quantize.ranges import Range, activation_ranges
from packager.quantize.weights import MIN_ELEMENTS, quantize_weights

OPERATORS: Final = ("Conv", "MatMul", "Gemm")


def static_nodes(model: onnx.ModelProto) -> list[WeightUse]:
    """The nodes that rule 1 allows."""
    return [
        use
        for use in weight_uses(model)
        if use.scope.depth == 0
        and use.node.op_type in OPERATORS
        and use.input_index == 1
        and use.elements >= MIN_ELEMENTS
        and use.tensor.data_type == onnx.TensorProto.FLOAT
    ]


def calibrate(model: onnx.ModelProto, samples: Samples) -> dict[str, Range]:
    """Ranges of every activation that `quantize_static` may need. Raises ModelDoesNotRun."""
    uses = static_nodes(model)
    constant = {tensor.name for tensor in model.graph.initializer}
    wanted = {use.node.input[0] for use in uses} | {use.node.output[0] for use in uses if use.node.op_type == "Conv"}
    # a Relu or Clip behind a Conv is folded into its output scale, which is then the scale of what follows it
    outputs = {use.node.output[0] for use in uses}
    wanted |= {n.output[0] for n in model.graph.node if n.op_type in ("Relu", "Clip") and n.input[0] in outputs}
    return activation_ranges(model, wanted - constant, samples)


def quantize_static(
    model: onnx.ModelProto,
    ranges: dict[str, Range],
    *,
    per_channel: bool,
    signed_weights: bool,
    keep_float: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """A quantized copy of a prepared model; nodes named in `keep_float` stay as they are."""
    uses = [use for use in static_nodes(model) if use.node.input[0] in ranges and use.node.name not in keep_float]
    quantized = onnx.ModelProto()
    if not uses:
        quantized.CopyFrom(model)
        quantize_weights(quantized, keep_float)
        return quantized
    typed = _with_types(model, ranges)
    quantizer = QDQQuantizer(
        typed,
        per_channel,
        signed_weights,  # reduce_range: 7-bit signed weights cannot overflow 16-bit sums on CPUs without VNNI
        QuantType.QInt8 if signed_weights else QuantType.QUInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, {name: _tensor_data(found) for name, found in ranges.items()}),
        [use.node.name for use in uses],
        [],
        list(OPERATORS),
        {
            "WeightSymmetric": True,
            "ActivationSymmetric": False,
            "QDQDisableWeightAdjustForInt32Bias": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
        },
    )
    quantizer.quantize_model()
    quantized.CopyFrom(quantizer.model.model)
    quantize_weights(quantized, keep_float)
    return quantized


def _with_types(model: onnx.ModelProto, ranges: dict[str, Range]) -> onnx.ModelProto:
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    known = {value.name for value in (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)}
    for name in sorted(ranges.keys() - known):
        value = onnx.ValueInfoProto(name=name)
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        typed.graph.value_info.append(value)
    return typed


def _tensor_data(found: Range) -> TensorData:
    return TensorData(lowest=np.float32(found.low), highest=np.float32(found.high))
