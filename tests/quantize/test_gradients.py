"""Gradients of a model's outputs with respect to inner values match finite differences."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.models.graphs import array_of
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, samples_from
from packager.models.sessions import open_session_of, run_session
from packager.quantize.prepare import prepare_model
from packager.quantize.update_aware.gradients import GradientWalk, spreads_of
from tests.support import tiny_models

STEP = 1e-3


def make_chain_model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]
) -> onnx.ModelProto:
    """Return a model x -> x + offset -> nodes -> y; gradients are computed for `offset`."""
    start = helper.make_node("Add", ["x", "offset"], ["h"])
    rng = np.random.default_rng(5)
    offset = numpy_helper.from_array((0.1 * rng.standard_normal(shape)).astype(np.float32), "offset")
    graph = helper.make_graph(
        [start, *nodes],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [offset, *(numpy_helper.from_array(array, name) for name, array in constants.items())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def replace_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return copy


def assert_gradient_is_right(model: onnx.ModelProto, samples: Samples, name: str) -> None:
    spreads = spreads_of(model, samples)
    gradients = GradientWalk(model, frozenset({name}))
    assert gradients.known_names == {name}
    one = samples.take(1)
    slope = next(gradients.gradients(one, spreads))[name]
    sample = next(iter(one))
    answers = run_session(open_session_of(model), sample)
    names = [value.name for value in model.graph.output]
    rng = np.random.default_rng(0)  # draws the directions that `of` draws
    directions = [
        (rng.integers(0, 2, answer.shape) * 2 - 1) / (spreads[name] * np.sqrt(answer.size))
        for name, answer in zip(names, answers, strict=True)
        if spreads.get(name, 0.0) > 0
    ]
    values = next(array_of(tensor) for tensor in model.graph.initializer if tensor.name == name)
    way = np.random.default_rng(1).standard_normal(values.shape)

    def along(step: float) -> float:
        moved = run_session(open_session_of(replace_constant(model, name, values + step * way)), sample)
        float_outputs = [answer for answer, n in zip(moved, names, strict=True) if spreads.get(n, 0.0) > 0]
        return sum(float((a.astype(np.float64) * d).sum()) for a, d in zip(float_outputs, directions, strict=True))

    measured = (along(STEP) - along(-STEP)) / (2 * STEP)
    assert float((slope * way).sum()) == pytest.approx(measured, rel=0.05, abs=2e-3)


def make_node(kind: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], **attributes)


RNG = np.random.default_rng(0)
SQUARE = RNG.standard_normal((6, 6)).astype(np.float32)
KERNEL = RNG.standard_normal((6, 2, 3, 3)).astype(np.float32)
WHOLE = {
    "axes": np.array([1], np.int64),
    "starts": np.array([1], np.int64),
    "ends": np.array([5], np.int64),
    "steps": np.array([2], np.int64),
    "picked": np.array([3, 0, 3], np.int64),
    "wide": np.array([2, 1, 6], np.int64),
    "pads": np.array([0, 1, 0, 2], np.int64),
    "flat": np.array([-1], np.int64),
    "two": np.array(2, np.float32),
    "limit": np.array(0.2, np.float32),
}
ROW = {"scale": np.linspace(0.5, 2, 6, dtype=np.float32), "shift": np.linspace(-1, 1, 6, dtype=np.float32)}


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        *[
            ([make_node(kind, ["h"])], [4, 6])
            for kind in ("Tanh", "Sigmoid", "Exp", "Erf", "Softplus", "Elu", "HardSwish")
        ],
        *[([make_node(kind, ["h"])], [4, 6]) for kind in ("Softmax", "LogSoftmax", "Relu", "LeakyRelu", "Neg", "Abs")],
        ([make_node("MatMul", ["h", "square"])], [4, 6]),
        ([make_node("MatMul", ["square", "h"])], [6, 3]),
        ([make_node("Gemm", ["h", "square", "shift"], transB=1, alpha=0.5)], [4, 6]),
        ([make_node("Mul", ["h", "h"], "m"), make_node("Add", ["m", "scale"])], [4, 6]),
        ([make_node("Pow", ["h", "two"])], [4, 6]),
        ([make_node("Div", ["scale", "d"]), make_node("Exp", ["h"], "d")][::-1], [4, 6]),
        ([make_node("Max", ["h", "limit"])], [4, 6]),
        ([make_node("LayerNormalization", ["h", "scale", "shift"])], [4, 6]),
        ([make_node("ReduceMean", ["h"], axes=[1])], [4, 6]),
        ([make_node("ReduceSum", ["h", "axes"], keepdims=0)], [4, 6]),
        ([make_node("Slice", ["h", "starts", "ends", "axes", "steps"])], [4, 6]),
        ([make_node("Gather", ["h", "picked"], axis=1)], [4, 6]),
        ([make_node("Expand", ["h", "wide"])], [1, 6]),
        ([make_node("Pad", ["h", "pads", "limit"])], [4, 6]),
        ([make_node("Reshape", ["h", "flat"])], [4, 6]),
        ([make_node("Transpose", ["h"], "t", perm=[2, 0, 1]), make_node("MatMul", ["t", "h"])], [3, 3, 3]),
        ([helper.make_node("Split", ["h"], ["a", "b"], axis=1), make_node("Mul", ["a", "b"])], [4, 6]),
        ([make_node("Conv", ["h", "kernel"], pads=[1, 1, 1, 1], strides=[2, 2], group=2)], [1, 4, 7, 8]),
        ([make_node("Conv", ["h", "kernel"], auto_pad="SAME_UPPER", strides=[2, 1])], [1, 2, 7, 8]),
        ([make_node("Conv", ["h", "kernel"], dilations=[2, 1])], [1, 2, 7, 8]),
        ([make_node("MaxPool", ["h"], kernel_shape=[2, 2], strides=[2, 2])], [1, 2, 6, 6]),
        ([make_node("GlobalAveragePool", ["h"])], [1, 2, 6, 6]),
    ],
    ids=lambda value: "-".join(n.op_type for n in value) if isinstance(value[0], onnx.NodeProto) else "",
)
def test_every_operator_is_walked_back(nodes: list[onnx.NodeProto], shape: list[int]) -> None:
    read = {name for n in nodes for name in n.input}
    constants = {**WHOLE, **ROW, "square": SQUARE, "kernel": KERNEL}
    model = make_chain_model(nodes, {name: array for name, array in constants.items() if name in read}, shape)
    inputs = np.random.default_rng(2).standard_normal((6, *shape)).astype(np.float32)
    assert_gradient_is_right(model, samples_from([{"x": x} for x in inputs]), "offset")


@pytest.mark.parametrize(("kind", "name"), [("text", "up0_b"), ("text", "down1_b"), ("convolutions", "fb")])
def test_whole_models_are_walked_back(kind: str, name: str, tmp_path: Path) -> None:
    path = tiny_models.save(
        tiny_models.text_encoder() if kind == "text" else tiny_models.conv_net(), tmp_path / "model.onnx"
    )
    samples = random_samples(path, 8)
    assert_gradient_is_right(prepare_model(path, next(iter(samples))).model, samples, name)


def test_half_an_influence_is_none() -> None:
    nodes = [make_node("CumSum", ["h", "one"], "c"), make_node("Add", ["c", "h"])]
    model = make_chain_model(nodes, {"one": np.array(1, np.int64)}, [4, 6])
    assert not GradientWalk(model, frozenset({"offset"})).known_names


def test_padding_has_no_influence(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.text_encoder(), tmp_path / "model.onnx")
    sample = {"input_ids": np.arange(6, dtype=np.int64)[None], "attention_mask": np.array([[1, 1, 1, 1, 0, 0]])}
    samples = random_samples(path, 8)
    model = prepare_model(path, sample).model
    slope = next(GradientWalk(model, frozenset({"u0"})).gradients(samples_from([sample]), spreads_of(model, samples)))[
        "u0"
    ]
    assert slope[0, :4].any()
    assert not slope[0, 4:].any()
