"""A small file-type classifier that is created on this machine, for a demo without a network.

It has the input and the last layer of the published model: tokens → embedding → convolution → largest and mean response
of each channel → linear layer → softmax. Embedding and convolution are random features and are never trained; the last
layer is fitted in closed form (ridge regression on whole files).
"""

import json
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from packager.demo.file_type_model import INPUT_NAME, FileTypeConfig
from packager.demo.head_refit import find_head, run_inner
from packager.demo.snippets import KINDS, LabeledSamples

BEGIN_TOKENS: Final = 256
END_TOKENS: Final = 256
PADDING_TOKEN: Final = 256
BLOCK_BYTES: Final = 4096
EMBEDDING: Final = 16  # numbers of a token
CHANNELS: Final = 512
KERNEL: Final = 4  # neighboring tokens
RIDGE: Final = 1.0
LOGIT_OF_TRUE_CLASS: Final = 8.0
SEED: Final = 1
OPSET: Final = 17
Array = npt.NDArray[np.float32]


def write_config(path: Path) -> FileTypeConfig:
    """Write the configuration of the model, in the format of the published one, and return it."""
    labels = sorted(set(KINDS.values()))
    fields = {
        "target_labels_space": labels,
        "thresholds": {},
        "medium_confidence_threshold": 0.0,
        "overwrite_map": {},
        "beg_size": BEGIN_TOKENS,
        "end_size": END_TOKENS,
        "block_size": BLOCK_BYTES,
        "padding_token": PADDING_TOKEN,
    }
    path.write_text(json.dumps(fields), "utf-8")
    return FileTypeConfig.read(path)


def create_local_model(samples: LabeledSamples, classes: int) -> onnx.ModelProto:
    """Return a classifier whose last layer is fitted to the samples.

    Args:
        samples: tokens of whole files, with their classes.
        classes: number of classes.
    """
    untrained = _graph(np.zeros((2 * CHANNELS, classes), np.float32), np.zeros(classes, np.float32))
    (features,) = run_inner(untrained, (find_head(untrained).features,), samples.tokens)
    inputs = np.hstack([features.astype(np.float64), np.ones((len(features), 1))])
    wanted = LOGIT_OF_TRUE_CLASS * np.eye(classes)[samples.classes]
    gram = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    fitted = np.linalg.solve(gram, inputs.T @ wanted).astype(np.float32)
    return _graph(fitted[:-1], fitted[-1])


def _graph(weight: Array, bias: Array) -> onnx.ModelProto:
    rng = np.random.default_rng(SEED)
    embedding = rng.standard_normal((PADDING_TOKEN + 1, EMBEDDING))
    embedding[PADDING_TOKEN] = 0
    kernel = rng.standard_normal((CHANNELS, EMBEDDING, KERNEL)) / np.sqrt(EMBEDDING * KERNEL)
    shift = -np.abs(rng.standard_normal(CHANNELS))  # a channel responds to few of all sequences
    constants = {"embedding": embedding, "kernel": kernel, "shift": shift, "weight": weight, "bias": bias}
    nodes = [
        helper.make_node("Gather", ["embedding", INPUT_NAME], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["sequence"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["sequence", "kernel", "shift"], ["convolved"]),
        helper.make_node("Relu", ["convolved"], ["responses"]),
        helper.make_node("ReduceMax", ["responses"], ["largest"], axes=[2], keepdims=0),
        helper.make_node("ReduceMean", ["responses"], ["mean"], axes=[2], keepdims=0),
        helper.make_node("Concat", ["largest", "mean"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weight"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    tokens = helper.make_tensor_value_info(INPUT_NAME, TensorProto.INT32, ["batch", BEGIN_TOKENS + END_TOKENS])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(bias)])
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "file_types", [tokens], [scores], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
