"""Models that a device must survive: each does one harm, and most are smaller than a kilobyte."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def hangs() -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; a Loop of 2^60 turns."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("Add", ["acc_in", "acc_in"], ["t"]),
            helper.make_node("Tanh", ["t"], ["acc_out"]),
        ],
        "body",
        [_value("i", [], TensorProto.INT64), _value("cond_in", [], TensorProto.BOOL), _value("acc_in", [4])],
        [_value("cond_out", [], TensorProto.BOOL), _value("acc_out", [4])],
    )
    turns, go_on = _constant("n", np.array(2**60)), _constant("c", np.array(True))
    return _model([helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)], [4], [4], [turns, go_on])


def one_huge_kernel() -> onnx.ModelProto:
    """x: float32 [1] -> y: float32 []; two products of 9,000 x 9,000 matrices, which no flag can interrupt."""
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["a"]),
        helper.make_node("MatMul", ["a", "a"], ["b"]),
        helper.make_node("MatMul", ["b", "a"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    return _model(nodes, [1], [], [_constant("shape", np.array([9000, 9000]))])


def asks_for_64_gib() -> onnx.ModelProto:
    """x: float32 [1] -> y: float32 []; a tensor of 2^34 elements at run time."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["a"]), helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0)]
    return _model(nodes, [1], [], [_constant("shape", np.array([1 << 17, 1 << 17]))])


def takes_memory(megabytes: int) -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; an answer that takes that much memory on the way."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1),
        helper.make_node("Expand", ["s", "shape"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0),
        helper.make_node("Mul", ["x", "m"], ["y"]),
    ]
    return _model(nodes, [4], [4], [_constant("shape", np.array([megabytes, 256, 1024]))])


def answers_nan() -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; the logarithm of what may be negative."""
    return _model([helper.make_node("Log", ["x"], ["y"])], [4], [4])


def is_slow(turns: int) -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; a Loop of that many turns, some 2 us each."""
    model = hangs()
    model.graph.initializer[0].CopyFrom(_constant("n", np.array(turns)))
    return model


def of_a_later_operator_set() -> onnx.ModelProto:
    """Operator set 10,000."""
    model = answers_nan()
    model.opset_import[0].version = 10_000
    return model


def of_a_later_format() -> onnx.ModelProto:
    """IR version 10,000."""
    model = answers_nan()
    model.ir_version = 10_000
    return model


def of_an_unknown_domain() -> onnx.ModelProto:
    """An operator that only a native library of somebody's could run."""
    model = _model([helper.make_node("Run", ["x"], ["y"], domain="com.example.native")], [4], [4])
    model.opset_import.append(helper.make_opsetid("com.example.native", 1))
    return model


def reads_a_file(location: str) -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; a weight that is 16 bytes of a file of the device."""
    tensor = TensorProto(name="w", dims=[4], data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], [4], [4], [tensor])


def nested(depth: int) -> bytes:
    """If within If, beyond what a parser's stack may take; written byte by byte, since onnx itself refuses to."""
    graph = _field(2, b"g")
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"  # its type is GRAPH
        node = _field(1, b"c") + _field(2, b"y") + _field(4, b"If") + _field(5, attribute)
        graph = _field(1, node) + _field(2, b"g")
    opset = _field(8, b"\x10\x11")  # version 17 of the default domain
    return b"\x08\x09" + _field(7, graph) + opset  # IR version 9


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf's wire format."""
    length, size = len(content), b""
    while length >= 0x80:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def _model(
    nodes: list[onnx.NodeProto], x: list[int], y: list[int], constants: list[TensorProto] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "hostile", [_value("x", x)], [_value("y", y)], constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _value(name: str, shape: list[int], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _constant(name: str, value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> TensorProto:
    return numpy_helper.from_array(value, name)
