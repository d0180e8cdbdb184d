"""Build small models for every kind of graph that users may have; weights come from a seed.

Rules:
1. Each function returns a ModelProto that onnxruntime runs, with weights that are large enough to be quantized.
2. Weights are scaled so that outputs depend on inputs: a gate must distinguish a good model from a bad one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64


def mlp(seed: int = 0, opset: int = 17, *, batch: int | str = 1, classes: int = 10) -> onnx.ModelProto:
    """x: float32 [batch, 64] -> probabilities: float32 [batch, classes]; two layers and a softmax."""
    rng = np.random.default_rng(seed)
    weights = [_weight("w1", rng, 64, 128), _row("b1", rng, 128), _weight("w2", rng, 128, classes, gain=3.0)]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"]),
        helper.make_node("Add", ["h0", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    return _model(nodes, [_value("x", [batch, 64])], [_value("probabilities", [batch, classes])], weights, opset)


def conv_net(seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """image: float32 [1, 3, height, width] -> logits: float32 [1, 10]; BatchNorm, depthwise, a Constant weight."""
    rng = np.random.default_rng(seed)
    first = _tensor("c1", rng.standard_normal((64, 3, 3, 3)) * 0.3)
    weights = [
        _tensor("c2", rng.standard_normal((64, 1, 3, 3)) * 0.4),
        _tensor("c3", rng.standard_normal((128, 64, 1, 1)) * 0.2),
        _row("cb", rng, 128),
        _tensor("scale", 1 + 0.1 * rng.standard_normal(64)),
        _tensor("shift", 0.1 * rng.standard_normal(64)),
        _tensor("mean", 0.1 * rng.standard_normal(64)),
        _tensor("var", 1 + 0.1 * rng.random(64)),
        _tensor("fc", rng.standard_normal((10, 128)) * 0.3),
        _row("fb", rng, 10),
    ]
    nodes = [
        helper.make_node("Constant", [], ["c1"], value=first),
        helper.make_node("Conv", ["image", "c1"], ["a0"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a0", "scale", "shift", "mean", "var"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["a2"]),
        helper.make_node("Conv", ["a2", "c2"], ["a3"], pads=[1, 1, 1, 1], group=64),
        helper.make_node("Relu", ["a3"], ["a4"]),
        helper.make_node("Conv", ["a4", "c3", "cb"], ["a5"]),
        helper.make_node("Relu", ["a5"], ["a6"]),
        helper.make_node("GlobalAveragePool", ["a6"], ["a7"]),
        helper.make_node("Flatten", ["a7"], ["a8"]),
        helper.make_node("Gemm", ["a8", "fc", "fb"], ["logits"], transB=1),
    ]
    image = _value("image", [1, 3, "height", "width"])
    return _model(nodes, [image], [_value("logits", [1, 10])], weights, opset)


def recurrent(kind: str = "LSTM", seed: int = 0) -> onnx.ModelProto:
    """frames: float32 [steps, 1, 24] and state -> scores: float32 [1, 6] and the next state; `kind` is LSTM or GRU."""
    rng = np.random.default_rng(seed)
    hidden, gates = 32, 4 if kind == "LSTM" else 3
    states = ["hidden_state", "cell_state"][: 2 if kind == "LSTM" else 1]
    weights = [
        _tensor("w", rng.standard_normal((1, gates * hidden, 24)) * 0.3),
        _tensor("r", rng.standard_normal((1, gates * hidden, hidden)) * 0.2),
        _tensor("b", rng.standard_normal((1, 2 * gates * hidden)) * 0.1),
        _weight("head", rng, hidden, 24, gain=2.0),
        _tensor("zero", np.array([0], np.int64)),
    ]
    nodes = [
        helper.make_node(
            kind, ["frames", "w", "r", "b", "", *states], ["y", *[f"next_{s}" for s in states]], hidden_size=hidden
        ),
        helper.make_node("Squeeze", ["next_hidden_state", "zero"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["scores"]),
    ]
    inputs = [_value("frames", ["steps", 1, 24]), *[_value(s, [1, 1, hidden]) for s in states]]
    outputs = [_value("scores", [1, 24]), *[_value(f"next_{s}", [1, 1, hidden]) for s in states]]
    return _model(nodes, inputs, outputs, weights, 17)


def branching(seed: int = 0) -> onnx.ModelProto:
    """x: float32 [1, 64], rate: int64 scalar -> y: float32 [1, 64]; all weights are in the branches of an If."""
    rng = np.random.default_rng(seed)

    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_h"]),
            helper.make_node("Tanh", [f"{name}_h"], [f"{name}_t"]),
            helper.make_node("MatMul", [f"{name}_t", f"{name}_v"], [f"{name}_y"]),
        ]
        weights = [_weight(f"{name}_w", rng, 64, 96), _weight(f"{name}_v", rng, 96, 64)]
        return helper.make_graph(nodes, name, [], [_value(f"{name}_y", [1, 64])], weights)

    nodes = [
        helper.make_node("Equal", ["rate", "wanted"], ["is_wanted"]),
        helper.make_node("If", ["is_wanted"], ["y"], then_branch=branch("yes"), else_branch=branch("no")),
    ]
    inputs = [_value("x", [1, 64]), _value("rate", [], INT64)]
    wanted = numpy_helper.from_array(np.array(16000, np.int64), "wanted")
    return _model(nodes, inputs, [_value("y", [1, 64])], [wanted], 16)


def looping(seed: int = 0) -> onnx.ModelProto:
    """x: float32 [1, 48] -> y: float32 [1, 48]; a Loop multiplies by its own weight three times."""
    rng = np.random.default_rng(seed)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("MatMul", ["v_in", "body_w"], ["v_mid"]),
            helper.make_node("Tanh", ["v_mid"], ["v_out"]),
        ],
        "body",
        [_value("turn", [], INT64), _value("go_on", [], TensorProto.BOOL), _value("v_in", [1, 48])],
        [_value("go_on_out", [], TensorProto.BOOL), _value("v_out", [1, 48])],
        [_weight("body_w", rng, 48, 48)],
    )
    weights = [_tensor("turns", np.array(3, np.int64)), _tensor("true", np.array(True))]
    nodes = [helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=body)]
    return _model(nodes, [_value("x", [1, 48])], [_value("y", [1, 48])], weights, 17)


def text_encoder(seed: int = 0, *, vocabulary: int = 50, width: int = 64, layers: int = 2) -> onnx.ModelProto:
    """input_ids, attention_mask: int64 [batch, sequence] -> logits: float32 [batch, 8]; residual blocks."""
    rng = np.random.default_rng(seed)
    weights = [
        _tensor("table", rng.standard_normal((vocabulary, width))),
        _tensor("axis_last", np.array([-1], np.int64)),
        _tensor("axis_tokens", np.array([1], np.int64)),
        _weight("head", rng, width, 8, gain=3.0),
        _row("head_b", rng, 8),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x0"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_f"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask_f", "axis_last"], ["mask"]),
    ]
    for i in range(layers):
        weights += [_weight(f"up{i}", rng, width, 2 * width), _row(f"up{i}_b", rng, 2 * width)]
        weights += [_weight(f"down{i}", rng, 2 * width, width), _row(f"down{i}_b", rng, width)]
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"up{i}"], [f"u{i}"]),
            helper.make_node("Add", [f"u{i}", f"up{i}_b"], [f"ub{i}"]),
            helper.make_node("Relu", [f"ub{i}"], [f"a{i}"]),
            helper.make_node("MatMul", [f"a{i}", f"down{i}"], [f"d{i}"]),
            helper.make_node("Add", [f"d{i}", f"down{i}_b"], [f"db{i}"]),
            helper.make_node("Add", [f"x{i}", f"db{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("Mul", [f"x{layers}", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis_tokens"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis_tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["summed", "count"], ["pooled"]),
        helper.make_node("Gemm", ["pooled", "head", "head_b"], ["logits"]),
    ]
    inputs = [_value(name, ["batch", "sequence"], INT64) for name in ("input_ids", "attention_mask")]
    return _model(nodes, inputs, [_value("logits", ["batch", 8])], weights, 17)


def einsum(seed: int = 0) -> onnx.ModelProto:
    """x: float32 [batch, 64] -> y: float32 [batch, 48]."""
    rng = np.random.default_rng(seed)
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="bi,io->bo")]
    return _model(nodes, [_value("x", ["batch", 64])], [_value("y", ["batch", 48])], [_weight("w", rng, 64, 48)], 17)


def with_function(seed: int = 0) -> onnx.ModelProto:
    """x: float32 [batch, 64] -> y: float32 [batch, 32]; the layers are calls of a function in the model."""
    rng = np.random.default_rng(seed)
    body = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    dense = helper.make_function("own", "Dense", ["x", "w"], ["y"], body, [helper.make_opsetid("", 17)])
    calls = [
        helper.make_node("Dense", ["x", "w1"], ["a"], domain="own"),
        helper.make_node("Dense", ["a", "w2"], ["y"], domain="own"),
    ]
    weights = [_weight("w1", rng, 64, 96), _weight("w2", rng, 96, 32)]
    graph = helper.make_graph(calls, "model", [_value("x", ["batch", 64])], [_value("y", ["batch", 32])], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[dense])


def with_outlier_feature(size: float, seed: int = 0) -> onnx.ModelProto:
    """x: float32 [batch, 32] -> y: float32 [batch, 16]; one hidden feature is `size` times as large as the others.

    The output does not depend on it, but with 8-bit activations it hides all other features.
    """
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((32, 64)) / 6, rng.standard_normal((64, 16)) / 8
    first[:, 0] *= size
    second[0] = 0
    weights = [_tensor("w1", first), _tensor("w2", second), _weight("w3", rng, 16, 32), _weight("w4", rng, 32, 16)]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["h2"], name="behind the outlier"),
        helper.make_node("MatMul", ["h2", "w3"], ["h3"]),
        helper.make_node("Relu", ["h3"], ["h4"]),
        helper.make_node("MatMul", ["h4", "w4"], ["y"]),
    ]
    return _model(nodes, [_value("x", ["batch", 32])], [_value("y", ["batch", 16])], weights, 17)


def detector(seed: int = 0) -> onnx.ModelProto:
    """x: float32 [1, 64] -> found: float32 [many]; like a detector's, the shape of the output depends on values."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Flatten", ["scores"], ["flat"], axis=0),
        helper.make_node("Greater", ["flat", "least"], ["is_found"]),
        helper.make_node("Compress", ["flat", "is_found"], ["found"]),
    ]
    weights = [_weight("w", rng, 64, 64, gain=2.0), _tensor("least", np.array(0.5))]
    return _model(nodes, [_value("x", [1, 64])], [_value("found", ["many"])], weights, 17)


def fixed_length(size: int) -> onnx.ModelProto:
    """x: float32 [batch, length] -> y: float32 [batch, 32]; runs only if length is `size`."""
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = [_weight("w", rng, size, 32)]
    return _model(nodes, [_value("x", ["batch", "length"])], [_value("y", ["batch", 32])], weights, 17)


def convolution(shape: tuple[int, int, int, int], **attributes: Any) -> onnx.ModelProto:
    """x: float32 [n, c, h, w] -> y: a convolution with weights of `shape` and with `attributes`, valid or not."""
    weights = [_tensor("w", np.random.default_rng(0).standard_normal(shape).astype(np.float32))]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    return _model(nodes, [_value("x", ["n", "c", "h", "w"])], [_value("y", ["n", shape[0], "v", "u"])], weights, 17)


def constant_output() -> onnx.ModelProto:
    """x: float32 [1, 64] -> y: float32 [1, 32]: the output is the same for every input, although there are weights."""
    rng = np.random.default_rng(0)
    weights = [_weight("w", rng, 64, 32), _tensor("zero", np.zeros(1, np.float32)), _row("b", rng, 32)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "zero"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["y"]),
    ]
    return _model(nodes, [_value("x", [1, 64])], [_value("y", [1, 32])], weights, 17)


def saturating(width: int, seed: int = 0) -> onnx.ModelProto:
    """x: float32 [1, width] -> scores: float32 [1, 2], which are 0 and 1 for large inputs."""
    weights = [_weight("w", np.random.default_rng(seed), width, 2, gain=30.0)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    return _model(nodes, [_value("x", [1, width])], [_value("scores", [1, 2])], weights, 17)


def missing_values(seed: int = 0) -> onnx.ModelProto:
    """x: float32 [n, 64], NaN where a value is missing -> y: float32 [n, 8]."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "typical", "x"], ["filled"]),
        helper.make_node("MatMul", ["filled", "w"], ["y"]),
    ]
    weights = [_row("typical", rng, 64), _weight("w", rng, 64, 8)]
    return _model(nodes, [_value("x", ["n", 64])], [_value("y", ["n", 8])], weights, 17)


def large_outputs(seed: int = 0, *, samples: int = 8_000) -> onnx.ModelProto:
    """sound: float32 [1, samples] -> spectrum: float32 [1, 40, 400], boxes: float32 [1, 400, 4], best: int64 [1]."""
    rng = np.random.default_rng(seed)
    weights = [
        _tensor("filters", rng.standard_normal((40, 1, 20)) * 0.2),
        _weight("head", rng, 40, 4, gain=30.0),
        _weight("pool", rng, 40, 40),
        _tensor("flat", np.array([1, 1, samples], np.int64)),
    ]
    nodes = [
        helper.make_node("Reshape", ["sound", "flat"], ["s0"]),
        helper.make_node("Conv", ["s0", "filters"], ["s1"], strides=[samples // 400], pads=[10, 9]),
        helper.make_node("Tanh", ["s1"], ["s2"]),
        helper.make_node("Transpose", ["s2"], ["s3"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["s3", "head"], ["boxes"]),
        helper.make_node("MatMul", ["s3", "pool"], ["s4"]),
        helper.make_node("Transpose", ["s4"], ["spectrum"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["s4"], ["s5"], axes=[1], keepdims=0),
        helper.make_node("ArgMax", ["s5"], ["best"], axis=1, keepdims=0),
    ]
    outputs = [_value("spectrum", [1, 40, 400]), _value("boxes", [1, 400, 4]), _value("best", [1], INT64)]
    return _model(nodes, [_value("sound", [1, samples])], outputs, weights, 17)


def without_weights() -> onnx.ModelProto:
    """x: float32 [1, 8] -> y: float32 [1, 8]: nothing to quantize."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return _model(nodes, [_value("x", [1, 8])], [_value("y", [1, 8])], [], 17)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model to `path`, and return `path`."""
    path.write_bytes(model.SerializeToString())
    return path


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
    opset: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "model", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _value(name: str, shape: list[int | str], elem_type: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def _tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    floats = values.astype(np.float32) if values.dtype.kind == "f" else values
    return numpy_helper.from_array(floats, name)


def _weight(name: str, rng: np.random.Generator, rows: int, columns: int, gain: float = 1.5) -> onnx.TensorProto:
    return _tensor(name, rng.standard_normal((rows, columns)) * gain / np.sqrt(rows))


def _row(name: str, rng: np.random.Generator, count: int) -> onnx.TensorProto:
    return _tensor(name, 0.1 * rng.standard_normal(count))
