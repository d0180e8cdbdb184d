"""Fine-tune a classifier: fit its last layer anew, in closed form.

The last layer computes the logits z = h W + b, h float [samples, features], W [features, classes]. The wanted logits t
equal z, except for the true class of a sample, which must lead every other class by at least MARGIN. The change of W
and b is the ridge regression of t - z on (h, 1), with the penalty RIDGE. It is solved through the samples' Gram matrix,
since there are fewer samples than features. Samples that are right by the margin ask for no change.

Rules:
- All other layers keep their weights, bit by bit.
- Numbers are float64 until the result is rounded to float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from packager.demo.file_type_model import INPUT_NAME
from packager.demo.snippets import LabeledSamples
from packager.errors import ModelUnreadable

MARGIN: Final = 4.0  # of the logits: 50 to 1
RIDGE: Final = 30.0  # 3 to 30 hardly differ on held-out snippets; 100 is worse
BATCH: Final = 16
LOG_LEVEL_ERROR: Final = 3

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Head:
    """The last layer of a classifier, by the names of its tensors."""

    features: str
    weight: str
    bias: str
    logits: str


def find_head(proto: onnx.ModelProto) -> Head:
    """Return the last MatMul with a constant weight and the Add of its constant bias.

    Raises:
        ModelUnreadable: the model does not end with such a layer.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    readers = {name: node for node in proto.graph.node for name in node.input}
    for node in reversed(proto.graph.node):
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        add = readers.get(node.output[0])
        if add is not None and add.op_type == "Add" and add.input[1] in constants:
            return Head(node.input[0], node.input[1], add.input[1], add.output[0])
        break
    raise ModelUnreadable("found no last MatMul with a constant weight and a constant bias, expected one")


def refit_head(proto: onnx.ModelProto, samples: LabeledSamples) -> onnx.ModelProto:
    """Return a copy of the model whose last layer is fitted to the samples.

    Args:
        proto: classifier of tokens; it is not changed.
        samples: tokens and their true classes.

    Raises:
        ModelUnreadable: the model does not end with a layer that can be fitted.
    """
    head = find_head(proto)
    features, logits = (
        array.astype(np.float64) for array in run_inner(proto, (head.features, head.logits), samples.tokens)
    )
    step = head_step(features, logits, samples.classes)
    tuned = onnx.ModelProto()
    tuned.CopyFrom(proto)
    for tensor in tuned.graph.initializer:
        if tensor.name in (head.weight, head.bias):
            values = numpy_helper.to_array(tensor)
            change = step[:-1] if tensor.name == head.weight else step[-1]
            changed = (values.astype(np.float64) + change.reshape(values.shape)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return tuned


def head_step(features: Floats, logits: Floats, classes: npt.NDArray[np.int64]) -> Floats:
    """Return the change of weight and bias, float64 [features + 1, classes]; the last row is the bias.

    Args:
        features: h, float64 [samples, features].
        logits: z, float64 [samples, classes].
        classes: true classes, int64 [samples].
    """
    rows = np.arange(len(classes))
    others = logits.copy()
    others[rows, classes] = -np.inf
    gaps = np.zeros_like(logits)
    gaps[rows, classes] = np.maximum(0, others.max(axis=1) + MARGIN - logits[rows, classes])
    inputs = np.hstack([features, np.ones((len(features), 1))])
    gram = inputs @ inputs.T + RIDGE * np.eye(len(inputs))
    return np.asarray(inputs.T @ np.linalg.solve(gram, gaps))


def count_correct(proto: onnx.ModelProto, samples: LabeledSamples) -> int:
    """Return how many samples have their largest logit at their true class.

    Args:
        proto: classifier of tokens.
        samples: tokens and their true classes.
    """
    (logits,) = run_inner(proto, (find_head(proto).logits,), samples.tokens)
    return int((logits.argmax(axis=1) == samples.classes).sum())


def run_inner(proto: onnx.ModelProto, names: Sequence[str], tokens: npt.NDArray[np.int32]) -> list[Floats]:
    """Return inner tensors of a model; it runs batches of BATCH samples.

    Args:
        proto: classifier of tokens.
        names: the tensors.
        tokens: int32 [samples, tokens].
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_LEVEL_ERROR
    running = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [
        running.run(list(names), {INPUT_NAME: tokens[start : start + BATCH]}) for start in range(0, len(tokens), BATCH)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
