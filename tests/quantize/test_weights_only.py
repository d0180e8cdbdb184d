"""int8 weights with float arithmetic: the stored form, its answers, and what the runtime makes of it while loading."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from packager.models.graphs import all_nodes, all_tensors, array_of, has_integer_weights, is_quantized, set_array
from packager.models.random_inputs import random_samples
from packager.quantize.moved_weights import most_exact_axis, moved_weight_uses
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models

HIDDEN = 16


def moved_weights() -> onnx.ModelProto:
    """Return a model whose branches have one LSTM each; both reorder the gates of the same weights."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(0)
    values: dict[str, np.ndarray] = {
        "w": rng.standard_normal((4 * HIDDEN, 32)).astype(np.float32) / 4,
        "r": rng.standard_normal((4 * HIDDEN, HIDDEN)).astype(np.float32) / 4,
        "zero": np.zeros((), np.float32),
        "first": np.array([0]),
        "middle": np.array([HIDDEN]),
        "last": np.array([4 * HIDDEN]),
    }

    def branch(name: str, direction: str) -> onnx.GraphProto:
        nodes = []
        for weight in ("w", "r"):
            for part, ends in (("a", ("middle", "last")), ("b", ("first", "middle"))):
                nodes.append(helper.make_node("Slice", [weight, *ends, "first"], [f"{name}_{weight}_{part}"]))
            parts = [f"{name}_{weight}_{part}" for part in "ab"]
            nodes.append(helper.make_node("Concat", parts, [f"{name}_{weight}"], axis=0))
            nodes.append(helper.make_node("Unsqueeze", [f"{name}_{weight}", "first"], [f"{name}_{weight}_1"]))
        read = ["x", f"{name}_w_1", f"{name}_r_1"]
        nodes.append(helper.make_node("LSTM", read, [name], name, hidden_size=HIDDEN, direction=direction))
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, float32, None)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
        helper.make_node(
            "If",
            ["is_positive"],
            ["y"],
            then_branch=branch("positive", "forward"),
            else_branch=branch("negative", "reverse"),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "moved",
        [helper.make_tensor_value_info("x", float32, [5, 1, 32])],
        [helper.make_tensor_value_info("y", float32, [5, 1, 1, HIDDEN])],
        [onnx.numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


LEVELS = onnxruntime.GraphOptimizationLevel
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "text encoder": tiny_models.text_encoder,
    "convolutions": tiny_models.conv_net,
    "recurrent": tiny_models.recurrent,
    "nested graphs": tiny_models.branching,
    "moved weights": moved_weights,
}


def open_at(model: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = level, 1, 4
    if level == LEVELS.ORT_DISABLE_ALL:
        # without folding, a weight is no constant, and kernels pack only constants; both sides shall take one kernel
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def quantize(model: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, Path]:
    path = tiny_models.save(model, folder / "float.onnx")
    report = quantize_model(
        path, folder / "out.onnx", "int8-weights", random_samples(path, 32), QuantizeOptions(measure_latency=False)
    )
    assert (report.outcome, report.method, report.numerics) == ("quantized", "weights", "float"), report.reason
    return onnx.load(folder / "out.onnx"), path


def with_folded_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float model that the int8 weights stand for: levels times scales, in place of Cast and Mul."""
    folded = onnx.ModelProto()
    folded.CopyFrom(model)

    def fold(graph: onnx.GraphProto) -> None:
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in list(graph.node):
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    fold(attribute.g)
            levels = tensors.get(node.input[0]) if node.op_type == "Cast" else None
            if levels is None or levels.data_type != onnx.TensorProto.INT8:
                continue
            product = next(n for n in graph.node if node.output[0] in n.input)
            weight = graph.initializer.add()
            weight.name = product.output[0]
            set_array(weight, array_of(levels).astype(np.float32) * array_of(tensors[product.input[1]]))
            graph.node.remove(product)
            graph.node.remove(node)

    fold(folded.graph)
    return folded


@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_those_of_the_weights_in_float_at_every_optimization_level(kind: str, tmp_path: Path) -> None:
    quantized, path = quantize(MODELS[kind](), tmp_path)
    folded = with_folded_weights(quantized)
    assert not any(node.op_type == "DequantizeLinear" for node in all_nodes(quantized))
    assert quantized.ByteSize() < 0.6 * path.stat().st_size
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL):
        left, right = open_at(quantized, level), open_at(folded, level)
        for sample in random_samples(path, 4):
            for a, b in zip(left.run(None, sample), right.run(None, sample), strict=True):
                np.testing.assert_array_equal(a, b)


def test_runtime_folds_the_weights_while_loading_and_keeps_tables_of_int8(tmp_path: Path) -> None:
    quantized, _ = quantize(tiny_models.text_encoder(), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    read = {name: node.op_type for node in all_nodes(loaded) for name in node.input}
    int8 = [tensor.name for tensor in all_tensors(loaded) if tensor.data_type == onnx.TensorProto.INT8]
    assert int8
    assert {read[name] for name in int8} == {"Gather"}


def test_quantized_model_is_recognized_and_an_image_table_is_not(tmp_path: Path) -> None:
    quantized, path = quantize(tiny_models.text_encoder(), tmp_path)
    assert has_integer_weights(quantized)
    assert is_quantized(quantized)
    assert not is_quantized(onnx.load(path))
    levels = onnx.numpy_helper.from_array(np.zeros((64, 64), np.uint8), "palette")
    nodes = [
        onnx.helper.make_node("Gather", ["palette", "x"], ["c"]),
        onnx.helper.make_node("Cast", ["c"], ["y"], to=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 64])],
        [levels],
    )
    assert not is_quantized(onnx.helper.make_model(graph))


def test_a_moved_weight_with_another_reader_stays_float() -> None:
    model = moved_weights()
    assert {use.tensor.name for use in moved_weight_uses(model)} == {"w", "r"}
    assert {use.node.op_type for use in moved_weight_uses(model)} == {"LSTM"}
    branch = model.graph.node[2].attribute[0].g
    branch.node.append(onnx.helper.make_node("Relu", ["positive_r"], ["unused"]))
    assert {use.tensor.name for use in moved_weight_uses(model)} == {"w"}
    branch.output.append(onnx.ValueInfoProto(name="positive_w_a"))
    assert moved_weight_uses(model) == []


@pytest.mark.parametrize("axis", [0, 1])
def test_the_scales_of_a_moved_weight_run_along_the_axis_with_the_smaller_error(axis: int) -> None:
    sizes = np.moveaxis(np.geomspace(1, 1000, 24).reshape(-1, 1), 0, axis)
    weight = np.random.default_rng(0).standard_normal((24, 24)) * sizes
    assert most_exact_axis(onnx.numpy_helper.from_array(weight.astype(np.float32))) == axis
