"""Over sixty generated models that are unusual in one way each, from types to structures, all of them valid."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.odd_models import FLOAT, INT64, ODD_MODELS, WIDTH, OddModel, build, two_layers, weights

NUMERIC_TYPES: Final = {
    "bool": (TensorProto.BOOL, np.bool_),
    "uint8": (TensorProto.UINT8, np.uint8),
    "int8": (TensorProto.INT8, np.int8),
    "uint16": (TensorProto.UINT16, np.uint16),
    "int16": (TensorProto.INT16, np.int16),
    "uint32": (TensorProto.UINT32, np.uint32),
    "int32": (TensorProto.INT32, np.int32),
    "uint64": (TensorProto.UINT64, np.uint64),
    "int64": (TensorProto.INT64, np.int64),
    "float16": (TensorProto.FLOAT16, np.float16),
    "float64": (TensorProto.DOUBLE, np.float64),
}
NAMES: Final = {
    "Hebrew": "קלט",
    "Thai": "อินพุต",
    "an emoji": "🦜 in",
    "a combining accent": "e\u0301ntrée",
    "quotes and backslashes": "a\"b'c\\d",
    "one character": "z",
    "256 characters": "n" * 256,
    "dots and colons": "model.0.in:0",
}


def _floats(*shape: int) -> Callable[[np.random.Generator], dict[str, np.ndarray]]:
    return lambda rng: {"x": rng.standard_normal(shape).astype(np.float32)}


def _typed(kind: int, dtype: Any) -> OddModel:
    """Return a model with an input of one type, and an output that is the input itself."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
        helper.make_node("Identity", ["x"], ["same"]),
    ]
    ends: dict[str, Any] = {
        "inputs": [("x", kind, [2, WIDTH])],
        "outputs": [("y", FLOAT, [2, WIDTH]), ("same", kind, [2, WIDTH])],
    }
    made = build(nodes, {"w": weights(WIDTH, WIDTH)}, **ends)
    return OddModel(made, lambda rng: {"x": rng.integers(0, 2, (2, WIDTH)).astype(dtype)})


def _named(name: str) -> OddModel:
    made = two_layers(name, f"{name[:200]} out", f"{name[:200]} weight")
    return OddModel(made, lambda rng: {name: rng.standard_normal((2, WIDTH)).astype(np.float32)})


def _one_node(
    op: str, output: tuple[str, int, list[Any]], shape: tuple[int, ...] = (2, WIDTH), **attrs: Any
) -> OddModel:
    """Return a layer, and one further operator on its result."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node(op, ["a"], [output[0]], **attrs),
    ]
    made = build(nodes, {"w": weights(WIDTH, WIDTH)}, inputs=[("x", FLOAT, list(shape))], outputs=[output])
    return OddModel(made, _floats(*shape))


def _scalar_input() -> OddModel:
    nodes = [helper.make_node("Mul", ["w", "x"], ["a"]), helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0)]
    made = build(nodes, {"w": weights(WIDTH, WIDTH)}, inputs=[("x", FLOAT, [])], outputs=[("y", FLOAT, [])])
    return OddModel(made, lambda rng: {"x": np.asarray(rng.standard_normal(), np.float32)})


def _empty_input() -> OddModel:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = build(nodes, {"w": weights(WIDTH, WIDTH)})
    return OddModel(made, lambda rng: {"x": rng.standard_normal((0, WIDTH)).astype(np.float32)})


def _many_axes() -> OddModel:
    axes = [1, 2, 1, 1, 2, 1, 2, WIDTH]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends: dict[str, Any] = {"inputs": [("x", FLOAT, axes)], "outputs": [("y", FLOAT, axes)]}
    return OddModel(build(nodes, {"w": weights(WIDTH, WIDTH)}, **ends), _floats(*axes))


def _weight_as_output() -> OddModel:
    made = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weights(WIDTH, WIDTH)},
        outputs=[("y", FLOAT, ["n", WIDTH]), ("w", FLOAT, [WIDTH, WIDTH])],
    )
    return OddModel(made, _floats(2, WIDTH))


def _input_as_output() -> OddModel:
    made = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weights(WIDTH, WIDTH)},
        outputs=[("y", FLOAT, ["n", WIDTH]), ("x", FLOAT, ["n", WIDTH])],
    )
    return OddModel(made, _floats(2, WIDTH))


def _unused_input() -> OddModel:
    made = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weights(WIDTH, WIDTH), "unread": weights(WIDTH, WIDTH, seed=3)},
        inputs=[("x", FLOAT, ["n", WIDTH]), ("spare", INT64, [3])],
    )
    draw = _floats(2, WIDTH)
    return OddModel(made, lambda rng: {**draw(rng), "spare": np.arange(3)})


def _overridable_weight() -> OddModel:
    made = two_layers(ir=4)
    made.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [WIDTH, WIDTH]))
    return OddModel(made, _floats(2, WIDTH))


def _quantized_inside(*, is_input_quantized: bool) -> OddModel:
    """Return a model that is quantized already (QDQ), with a float or a quantized input."""
    levels = np.random.default_rng(0).integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
    values = {
        "scale": np.float32(0.02), "zero": np.uint8(128), "levels": levels, "w_scale": np.float32(0.01),
        "w_zero": np.int8(0),
    }  # fmt: skip
    nodes = [] if is_input_quantized else [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])]
    nodes += [
        helper.make_node("DequantizeLinear", ["x" if is_input_quantized else "q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["levels", "w_scale", "w_zero"], ["w"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    kind = TensorProto.UINT8 if is_input_quantized else FLOAT
    made = build(nodes, values, inputs=[("x", kind, ["n", WIDTH])])
    if is_input_quantized:
        return OddModel(made, lambda rng: {"x": rng.integers(0, 256, (2, WIDTH)).astype(np.uint8)})
    return OddModel(made, _floats(2, WIDTH))


def _scan() -> OddModel:
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["row", "w"], ["m"]),
            helper.make_node("Add", ["state", "m"], ["next"]),
            helper.make_node("Identity", ["next"], ["each"]),
        ],
        "body",
        [helper.make_tensor_value_info("state", FLOAT, [WIDTH]), helper.make_tensor_value_info("row", FLOAT, [WIDTH])],
        [helper.make_tensor_value_info("next", FLOAT, [WIDTH]), helper.make_tensor_value_info("each", FLOAT, [WIDTH])],
    )
    nodes = [helper.make_node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    values = {"w": weights(WIDTH, WIDTH), "start": np.zeros(WIDTH, np.float32)}
    return OddModel(build(nodes, values), _floats(3, WIDTH))


def _deep(count: int) -> OddModel:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t0"])]
    nodes += [helper.make_node("Tanh" if i % 2 else "Abs", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    nodes.append(helper.make_node("Identity", [f"t{count}"], ["y"]))
    return OddModel(build(nodes, {"w": weights(WIDTH, WIDTH)}), _floats(2, WIDTH))


def _unnamed_optional_output() -> OddModel:
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=WIDTH)]
    values = {"w": weights(1, 3 * WIDTH, WIDTH), "r": weights(1, 3 * WIDTH, WIDTH, seed=1)}
    ends: dict[str, Any] = {"inputs": [("x", FLOAT, [5, 2, WIDTH])], "outputs": [("h", FLOAT, [1, 2, WIDTH])]}
    return OddModel(build(nodes, values, **ends), _floats(5, 2, WIDTH))


def _recurrent() -> OddModel:
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "", "lengths"], ["y", "h"], hidden_size=WIDTH)]
    values = {"w": weights(1, 4 * WIDTH, WIDTH), "r": weights(1, 4 * WIDTH, WIDTH, seed=1)}
    made = build(
        nodes, values,
        inputs=[("x", FLOAT, [5, 2, WIDTH]), ("lengths", TensorProto.INT32, [2])],
        outputs=[("y", FLOAT, [5, 1, 2, WIDTH]), ("h", FLOAT, [1, 2, WIDTH])],
    )  # fmt: skip
    draw = _floats(5, 2, WIDTH)
    return OddModel(made, lambda rng: {**draw(rng), "lengths": np.array([5, 3], np.int32)})


def _convolution(op: str, **attributes: Any) -> OddModel:
    shape = (8, 8, 3, 3) if op == "Conv" or attributes.get("group", 1) == 1 else (8, 1, 3, 3)
    nodes = [helper.make_node(op, ["x", "w"], ["y"], kernel_shape=[3, 3], **attributes)]
    if attributes.get("group", 1) > 1:
        shape = (8, 8 // attributes["group"], 3, 3)
    ends: dict[str, Any] = {"inputs": [("x", FLOAT, ["n", 8, 12, 12])], "outputs": [("y", FLOAT, ["n", 8, "h", "w"])]}
    return OddModel(build(nodes, {"w": weights(*shape)}, **ends), _floats(1, 8, 12, 12))


def _with_documents() -> OddModel:
    made = two_layers()
    made.doc_string = "über\x1b[2J\n" * 50
    made.producer_name = "者\u202e"
    for number in range(200):
        entry = made.metadata_props.add()
        entry.key, entry.value = f"key {number}", "v" * 500
    for node in made.graph.node:
        node.doc_string = "same"
    return OddModel(made, _floats(2, WIDTH))


def _node_without_inputs() -> OddModel:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights(WIDTH, WIDTH))),
        helper.make_node("Constant", [], ["c"], value_floats=[0.5] * WIDTH),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    return OddModel(build(nodes, {}), _floats(2, WIDTH))


def _shape_from_values() -> OddModel:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("NonZero", ["mask"], ["places"]),
        helper.make_node("Greater", ["a", "zero"], ["g"]),
        helper.make_node("Cast", ["g"], ["mask"], to=FLOAT),
    ]
    nodes = [nodes[0], nodes[2], nodes[3], nodes[1]]
    values = {"w": weights(WIDTH, WIDTH), "zero": np.float32(0)}
    return OddModel(build(nodes, values, outputs=[("places", INT64, [2, "k"])]), _floats(2, WIDTH))


GENERATED_MODELS: Final[dict[str, Callable[[], OddModel]]] = {
    **ODD_MODELS,
    **{f"operator set {v} and format 10": partial(lambda v: OddModel(two_layers(opset=v, ir=10), _floats(2, WIDTH)), v)
       for v in (22, 23)},
    **{f"an input of type {name}": partial(_typed, *pair) for name, pair in NUMERIC_TYPES.items()},
    **{f"a name with {name}": partial(_named, text) for name, text in NAMES.items()},
    "a scalar input": _scalar_input,
    "an empty input": _empty_input,
    "eight axes": _many_axes,
    "a weight as output": _weight_as_output,
    "an input as output": _input_as_output,
    "an input without a reader": _unused_input,
    "a weight that is an input too": _overridable_weight,
    "a quantized model": partial(_quantized_inside, is_input_quantized=False),
    "a quantized input": partial(_quantized_inside, is_input_quantized=True),
    "a scan": _scan,
    "a thousand nodes": partial(_deep, 1000),
    "an output without a name": _unnamed_optional_output,
    "a recurrent layer": _recurrent,
    "a convolution": partial(_convolution, "Conv"),
    "a convolution in groups": partial(_convolution, "Conv", group=4),
    "a transposed convolution": partial(_convolution, "ConvTranspose"),
    "documents and metadata": _with_documents,
    "nodes without inputs": _node_without_inputs,
    "a shape that depends on values": _shape_from_values,
    "an integer output": partial(_one_node, "ArgMax", ("y", INT64, [2, 1]), axis=1),
    "an output of one number": partial(_one_node, "ReduceMax", ("y", FLOAT, []), keepdims=0),
    "an output of Booleans": partial(_one_node, "IsNaN", ("y", TensorProto.BOOL, [2, WIDTH])),
}  # fmt: skip
