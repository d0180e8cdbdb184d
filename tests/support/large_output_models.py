"""Small models with large outputs: detectors, spectrograms, embeddings, maps, many outputs, many classes."""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.tiny_models import FLOAT

Weights = dict[str, np.ndarray]


def _draw(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(shape)
    inputs = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
    return np.asarray(rng.standard_normal(shape) / inputs**0.5, np.float32)


def _build(nodes: list[onnx.NodeProto], shape: list[int], outputs: list[str], weights: Weights) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs if name != "ids"]
    values += [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in outputs if name == "ids"]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", FLOAT, shape)]
    graph = helper.make_graph(nodes, "model", inputs, values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def detector(heads: int = 3, channels: int = 85) -> onnx.ModelProto:
    """Return a model with one output of boxes and classes for each scale."""
    weights: Weights = {"first": _draw(16, 3, 3, 3)}
    nodes = [helper.make_node("Conv", ["x", "first"], ["r0"], strides=[4, 4], pads=[1] * 4)]
    for head in range(heads):
        weights[f"head{head}"] = _draw(channels, 16, 1, 1)
        nodes.append(helper.make_node("Conv", [f"r{head}", f"head{head}"], [f"y{head}"]))
        nodes.append(helper.make_node("MaxPool", [f"r{head}"], [f"r{head + 1}"], kernel_shape=[2, 2], strides=[2, 2]))
    return _build(nodes, [1, 3, 160, 160], [f"y{head}" for head in range(heads)], weights)


def many_outputs(count: int = 40) -> onnx.ModelProto:
    """Return a model with `count` vectors as outputs."""
    weights: Weights = {"first": _draw(64, 64)} | {f"head{i}": _draw(64, 300) for i in range(count)}
    nodes = [helper.make_node("MatMul", ["x", "first"], ["h"])]
    nodes += [helper.make_node("MatMul", ["h", f"head{i}"], [f"y{i}"]) for i in range(count)]
    return _build(nodes, [1, 64], [f"y{i}" for i in range(count)], weights)


def spectrogram(bins: int = 257, frames: int = 300) -> onnx.ModelProto:
    """Return a model of sound, whose output is [1, bins, frames]."""
    nodes = [helper.make_node("Conv", ["x", "filters"], ["c"], strides=[32]), helper.make_node("Abs", ["c"], ["y"])]
    return _build(nodes, [1, 1, 32 * frames + 32], ["y"], {"filters": _draw(bins, 1, 64)})


def embedding(size: int = 4096, rows: int = 1) -> onnx.ModelProto:
    """Return a model whose output is [rows, size], normalized."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("MatMul", ["h", "second"], ["z"]),
        helper.make_node("LpNormalization", ["z"], ["y"], axis=-1),
    ]
    return _build(nodes, [rows, 128], ["y"], {"first": _draw(128, 64), "second": _draw(64, size)})


def map_of_classes(classes: int = 21, side: int = 192) -> onnx.ModelProto:
    """Return a model whose outputs are scores [1, classes, side, side] and the best class of each point."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["y"], pads=[1] * 4),
        helper.make_node("ArgMax", ["y"], ["ids"], axis=1),
    ]
    return _build(nodes, [1, 3, side, side], ["y", "ids"], {"first": _draw(classes, 3, 3, 3)})


def sequence_of_classes(steps: int = 100, classes: int = 5000) -> onnx.ModelProto:
    """Return a model whose output is the probability of each class at each step."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=-1)]
    return _build(nodes, [1, steps, 40], ["y"], {"w": 3 * _draw(40, classes)})


LARGE_OUTPUT_MODELS: Final[dict[str, Callable[[], onnx.ModelProto]]] = {
    "detector": detector,
    "detector of five scales": lambda: detector(5, 91),
    "many outputs": many_outputs,
    "spectrogram": spectrogram,
    "embedding": embedding,
    "embeddings": lambda: embedding(384, 64),
    "map": map_of_classes,
    "map of many classes": lambda: map_of_classes(150, 96),
    "sequence": sequence_of_classes,
}
