"""Hostile models that a device must survive; each does one kind of harm, and most have less than a kilobyte."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def make_hanging_model() -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; a Loop of 2^60 iterations."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("Add", ["acc_in", "acc_in"], ["t"]),
            helper.make_node("Tanh", ["t"], ["acc_out"]),
        ],
        "body",
        [
            _make_value("i", [], TensorProto.INT64),
            _make_value("cond_in", [], TensorProto.BOOL),
            _make_value("acc_in", [4]),
        ],
        [_make_value("cond_out", [], TensorProto.BOOL), _make_value("acc_out", [4])],
    )
    iterations, condition = _make_constant("n", np.array(2**60)), _make_constant("c", np.array(True))
    return _make_model([helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)], [4], [4], [iterations, condition])


def make_huge_kernel_model() -> onnx.ModelProto:
    """x: float32 [1] -> y: float32 []; two products of 9,000 x 9,000 matrices, which no flag can interrupt."""
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["a"]),
        helper.make_node("MatMul", ["a", "a"], ["b"]),
        helper.make_node("MatMul", ["b", "a"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    return _make_model(nodes, [1], [], [_make_constant("shape", np.array([9000, 9000]))])


def make_64_gib_model() -> onnx.ModelProto:
    """x: float32 [1] -> y: float32 []; a tensor of 2^34 elements at run time."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["a"]), helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0)]
    return _make_model(nodes, [1], [], [_make_constant("shape", np.array([1 << 17, 1 << 17]))])


def make_memory_intensive_model(megabytes: int) -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; a run needs so many megabytes for an intermediate tensor."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1),
        helper.make_node("Expand", ["s", "shape"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0),
        helper.make_node("Mul", ["x", "m"], ["y"]),
    ]
    return _make_model(nodes, [4], [4], [_make_constant("shape", np.array([megabytes, 256, 1024]))])


def make_nan_model() -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; the logarithm, which is NaN for negative inputs."""
    return _make_model([helper.make_node("Log", ["x"], ["y"])], [4], [4])


def make_slow_model(turns: int) -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; a Loop of `turns` iterations, about 2 us each."""
    model = make_hanging_model()
    model.graph.initializer[0].CopyFrom(_make_constant("n", np.array(turns)))
    return model


def make_unknown_opset_model() -> onnx.ModelProto:
    """A model of operator set 10,000."""
    model = make_nan_model()
    model.opset_import[0].version = 10_000
    return model


def make_unknown_ir_model() -> onnx.ModelProto:
    """A model of IR version 10,000."""
    model = make_nan_model()
    model.ir_version = 10_000
    return model


def make_unknown_domain_model() -> onnx.ModelProto:
    """An operator of an unknown domain, which needs a native library."""
    model = _make_model([helper.make_node("Run", ["x"], ["y"], domain="com.example.native")], [4], [4])
    model.opset_import.append(helper.make_opsetid("com.example.native", 1))
    return model


def make_file_reading_model(location: str) -> onnx.ModelProto:
    """x: float32 [4] -> y: float32 [4]; its weight is 16 bytes of a file of the device."""
    tensor = TensorProto(name="w", dims=[4], data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return _make_model([helper.make_node("Add", ["x", "w"], ["y"])], [4], [4], [tensor])


def make_excessive_operator_models() -> dict[str, onnx.ModelProto]:
    """x: float32 [4] -> y: float32 [4]; each model loads, and a run fails because it needs too much or is invalid."""
    total = [helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]

    def through(nodes: list[onnx.NodeProto], **constants: "np.typing.ArrayLike") -> onnx.ModelProto:
        initializers = [_make_constant(name, np.asarray(value)) for name, value in constants.items()]
        return _make_model([*nodes, *total], [4], [4], initializers)

    doubling = [
        helper.make_node("Concat", [f"c{n}" if n else "x"] * 2, [f"c{n + 1}" if n < 49 else "a"], axis=0)
        for n in range(50)
    ]
    image = helper.make_node("Reshape", ["x", "square"], ["i"])
    square, one = np.array([1, 1, 2, 2]), np.ones((1, 1, 1, 1), np.float32)
    return {
        "constant": through([helper.make_node("ConstantOfShape", ["n"], ["a"])], n=[1 << 20, 1 << 20]),
        "constant beyond 64 bits": through([helper.make_node("ConstantOfShape", ["n"], ["a"])], n=[2**62, 2**62]),
        "tile": through([helper.make_node("Tile", ["x", "n"], ["a"])], n=[2**33]),
        "pad": through([helper.make_node("Pad", ["x", "n"], ["a"])], n=[2**40, 2**40]),
        "resize": through(
            [image, helper.make_node("Resize", ["i", "", "n"], ["a"], mode="linear")],
            square=square,
            n=np.array([1, 1, 1e5, 1e5], np.float32),
        ),
        "stride": through(
            [image, helper.make_node("ConvTranspose", ["i", "w"], ["a"], strides=[2**30, 2**30])], square=square, w=one
        ),
        "doubling": through(doubling),
        "range": through(
            [
                helper.make_node("Range", ["n0", "n1", "n2"], ["r"]),
                helper.make_node("Cast", ["r"], ["a"], to=FLOAT),
            ],
            n0=0,
            n1=2**60,
            n2=1,
        ),
        "index": through([helper.make_node("Gather", ["x", "n"], ["a"])], n=[0, 10**9]),
        "split": through([helper.make_node("Split", ["x", "n"], ["a", "b"])], n=[2**40, 4 - 2**40]),
    }


def make_broken_models() -> dict[str, onnx.ModelProto | bytes]:
    """Models that are refused while they are loaded, by their defect."""
    good = _make_model([helper.make_node("Add", ["x", "x"], ["y"])], [4], [4])
    twice, recursive, sparse = onnx.ModelProto(), onnx.ModelProto(), onnx.ModelProto()
    twice.CopyFrom(good)
    twice.graph.input.append(_make_value("x", [4]))
    recursive.CopyFrom(_make_model([helper.make_node("R", ["x"], ["y"], domain="f")], [4], [4]))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    recursive.opset_import.append(opsets[1])
    again = helper.make_node("R", ["a"], ["b"], domain="f")
    recursive.functions.append(helper.make_function("f", "R", ["a"], ["b"], [again], opsets))
    sparse.CopyFrom(_make_model([helper.make_node("Add", ["x", "w"], ["y"])], [4], [4]))
    weights = sparse.graph.sparse_initializer.add()
    weights.values.CopyFrom(TensorProto(name="w", dims=[2], data_type=FLOAT, raw_data=bytes(8)))
    weights.indices.CopyFrom(
        TensorProto(dims=[2], data_type=TensorProto.INT64, raw_data=np.array([2**40, -7]).tobytes())
    )
    weights.dims.append(4)

    def weight(dims: list[int], data_type: int = FLOAT) -> onnx.ModelProto:
        tensor = TensorProto(name="w", dims=dims, data_type=data_type, raw_data=bytes(16))
        return _make_model([helper.make_node("Add", ["x", "w"], ["y"])], [4], [4], [tensor])

    circle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"])]
    training = helper.make_node("Gradient", ["x"], ["y"], domain="ai.onnx.preview.training", xs=["x"], y="x")
    return {
        "an input twice": twice,
        "a result twice": _make_model([helper.make_node(name, ["x", "x"], ["y"]) for name in ("Add", "Mul")], [4], [4]),
        "a circle": _make_model([*circle, helper.make_node("Neg", ["b"], ["y"])], [4], [4]),
        "a function of itself": recursive,
        "an operator of training": _make_model([training], [4], [4]),
        "a weight larger than its bytes": weight([1 << 40]),
        "a weight of negative size": weight([-4]),
        "a weight beyond 64 bits": weight([2**32, 2**32, 2**32]),
        "a weight of no known type": weight([4], 99),
        "sparse indices outside": sparse,
        "no graph": helper.make_model(helper.make_graph([], "", [], []), opset_imports=opsets[:1], ir_version=9),
        "cut off": good.SerializeToString()[:-7],
        "more than a model": good.SerializeToString() + b"\xff" * 50,
        "names that are no text": good.SerializeToString().replace(b"x", b"\xff"),
        "another format": b"\x18\0\0\0ORTM" + bytes(2000),
    }


def make_models_of_other_contracts() -> dict[str, onnx.ModelProto]:
    """Valid models whose contract is not float32 [4] -> float32 [4], by the difference."""

    def shaped(
        node: onnx.NodeProto, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph([node], "other", inputs, outputs)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    x, y = _make_value("x", [4]), _make_value("y", [4])
    double, constant = helper.make_node("Add", ["x", "x"], ["y"]), np.ones(4, np.float32)
    tensor = helper.make_tensor_type_proto(FLOAT, [4])
    sequence = helper.make_value_info("y", helper.make_sequence_type_proto(tensor))
    optional = helper.make_value_info("y", helper.make_optional_type_proto(tensor))
    return {
        "strings": shaped(
            helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING),
            [x],
            [_make_value("y", [4], TensorProto.STRING)],
        ),
        "a sequence": shaped(helper.make_node("SequenceConstruct", ["x"], ["y"]), [x], [sequence]),
        "an optional": shaped(helper.make_node("Optional", ["x"], ["y"]), [x], [optional]),
        "nothing to ask": shaped(
            helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(constant)), [], [y]
        ),
        "no answer": shaped(double, [x], []),
        "an answer twice": shaped(double, [x], [y, y]),
        "no elements": shaped(double, [_make_value("x", [0])], [_make_value("y", [0])]),
        "2^40 elements": shaped(helper.make_node("Neg", ["x"], ["y"]), [_make_value("x", [1 << 40])], [y]),
        "another rank": shaped(double, [_make_value("x", [4, 1])], [_make_value("y", [4, 1])]),
        "another type": shaped(
            double, [_make_value("x", [4], TensorProto.DOUBLE)], [_make_value("y", [4], TensorProto.DOUBLE)]
        ),
    }


def make_slow_loading_models() -> dict[str, onnx.ModelProto]:
    """Small models (except the chain of nodes) whose loading takes almost forever."""
    folding = [helper.make_node("ConstantOfShape", ["n"], ["a0"])]
    folding += [helper.make_node("Tanh", [f"a{n}"], [f"a{n + 1}"]) for n in range(40)]
    folding += [helper.make_node("ReduceSum", ["a40"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    growing = _make_model([helper.make_node("F0", ["x"], ["y"], domain="f")], [4], [4])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    growing.opset_import.append(opsets[1])
    for n in range(30):
        name, domain = ("Neg", "") if n == 29 else (f"F{n + 1}", "f")
        body = [helper.make_node(name, [a], [b], domain=domain) for a, b in (("a", "t"), ("t", "b"))]
        growing.functions.append(helper.make_function("f", f"F{n}", ["a"], ["b"], body, opsets))
    chain = [helper.make_node("Neg", [f"c{n}" if n else "x"], [f"c{n + 1}"]) for n in range(200_000)]
    return {
        "constants to fold": _make_model(folding, [4], [4], [_make_constant("n", np.array([1 << 13, 1 << 13]))]),
        "functions that double": growing,
        "a chain of nodes": _make_model([*chain, helper.make_node("Neg", ["c200000"], ["y"])], [4], [4]),
    }


def make_nested_model(depth: int) -> bytes:
    """Nested If nodes, too deep for a parser's stack; written as bytes, since onnx refuses to write them."""
    graph = _make_field(2, b"g")
    for _ in range(depth):
        attribute = _make_field(1, b"then_branch") + _make_field(6, graph) + b"\xa0\x01\x05"  # its type is GRAPH
        node = _make_field(1, b"c") + _make_field(2, b"y") + _make_field(4, b"If") + _make_field(5, attribute)
        graph = _make_field(1, node) + _make_field(2, b"g")
    opset = _make_field(8, b"\x10\x11")  # version 17 of the default domain
    return b"\x08\x09" + _make_field(7, graph) + opset  # IR version 9


def _make_field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field of the protobuf wire format."""
    length, size = len(content), b""
    while length >= 0x80:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def _make_model(
    nodes: list[onnx.NodeProto], x: list[int], y: list[int], constants: list[TensorProto] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "hostile", [_make_value("x", x)], [_make_value("y", y)], constants or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _make_value(name: str, shape: list[int], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _make_constant(name: str, value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> TensorProto:
    return numpy_helper.from_array(value, name)
