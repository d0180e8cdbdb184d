"""Compare how well inputs show damaged weights, with copies of a model in which one weight is damaged.

Rules:
- Up to MAX_PROBES weights, spread over the model, are damaged, one in each copy: set to zero to compare two lists of
  inputs, scaled by SMALL_DAMAGE to rank the inputs of one list. A small damage hardly shows in saturated outputs, such
  as a probability of 1.
- Inputs show the damage as well as others if for every copy the relative RMS error of an output is at least half of
  that of the others, or at least CLEAR_ERROR, which is above every tolerance.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from bundle.golden.relative_error import relative_rms
from packager.errors import ModelCrashes, ModelDoesNotRun
from packager.models.graphs import all_tensors
from packager.models.inputs import Sample, load_proto
from packager.models.model_runs import run_model
from packager.models.sessions import ONE_THREAD_SETTINGS
from packager.models.tflite_model import is_tflite

MAX_PROBES: Final = 4
MIN_WEIGHTS: Final = 64  # elements of a tensor that counts as a weight
CLEAR_ERROR: Final = 0.1
SMALL_DAMAGE: Final = 1.02
Change = Callable[[np.ndarray], np.ndarray]


def shows_damage(model: Path, samples: list[Sample], others: list[Sample]) -> bool:
    """Return whether `others` show damaged weights as well as `samples`.

    Args:
        model: an ONNX file.
        samples: inputs to compare with.
        others: inputs that are to replace them.
    """
    inputs = [*samples, *others]
    try:
        rows = list(_probe(model, inputs, np.zeros_like))
    except (ModelDoesNotRun, ModelCrashes):
        return False
    for errors in rows:
        expected, found = max(errors[: len(samples)]), max(errors[len(samples) :])
        if found < min(CLEAR_ERROR, expected / 2):
            return False
    return bool(rows)


def rank_inputs(model: Path, samples: list[Sample]) -> list[float]:
    """Return how well each input shows small damages: the mean share of the largest error of an input.

    Args:
        model: an ONNX file; for others, all inputs are equal.
        samples: the inputs.
    """
    scores = np.zeros(len(samples))
    try:
        for errors in _probe(model, samples, lambda array: (array * SMALL_DAMAGE).astype(array.dtype)):
            scores += np.asarray(errors) / (max(errors) or 1.0)
    except (ModelDoesNotRun, ModelCrashes):
        return [0.0] * len(samples)
    return [float(score) for score in scores]


def _probe(model: Path, inputs: list[Sample], change: Change) -> Iterator[list[float]]:
    """Yield the errors of all inputs for each damaged copy; nothing if the model is not probed."""
    if is_tflite(model):
        return
    proto = load_proto(model)
    weights = [
        tensor
        for tensor in all_tensors(proto)
        if int(np.prod(tensor.dims)) >= MIN_WEIGHTS and tensor.data_type != onnx.TensorProto.STRING
    ]
    if not weights or proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return
    (whole,) = run_model(model, inputs, (ONE_THREAD_SETTINGS,))
    for index in sorted({round(i * (len(weights) - 1) / (MAX_PROBES - 1)) for i in range(MAX_PROBES)}):
        yield _errors_with(proto, weights[index], change, inputs, whole)


def _errors_with(
    proto: onnx.ModelProto, weight: onnx.TensorProto, change: Change, inputs: list[Sample], whole: list[Sample]
) -> list[float]:
    """Return the largest error of each input's outputs with a damaged weight; 0.0 without outputs."""
    kept = weight.SerializeToString()
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(change(array), weight.name))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(proto, str(path))
            (damaged,) = run_model(path, inputs, (ONE_THREAD_SETTINGS,))
    except ModelDoesNotRun:
        return [0.0] * len(inputs)
    finally:
        weight.ParseFromString(kept)
    return [
        max((_error(found[name], golden) for name, golden in sample.items()), default=0.0)
        for found, sample in zip(damaged, whole, strict=True)
    ]


def _error(found: np.ndarray, golden: np.ndarray) -> float:
    if found.shape != golden.shape:
        return 1.0
    if golden.dtype.kind != "f":
        return float(not np.array_equal(found, golden))
    with np.errstate(all="ignore"):
        error = relative_rms(found, golden)
    return error if np.isfinite(error) else 1.0
