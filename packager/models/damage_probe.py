"""Compare how well inputs show damaged weights, with copies of a model that lack one weight.

Rules:
- Up to MAX_PROBES weights, spread over the model, are set to zero, one in each copy.
- Inputs show the damage as well as others if for every copy the relative RMS error of an output is at least half of
  that of the others, or at least CLEAR_ERROR, which is above every tolerance.
"""

import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from bundle.golden.relative_error import relative_rms
from packager.errors import ModelCrashes, ModelDoesNotRun
from packager.models.inputs import Sample, load_proto
from packager.models.model_runs import run_model
from packager.models.sessions import ONE_THREAD_SETTINGS
from packager.models.tflite_model import is_tflite

MAX_PROBES: Final = 4
MIN_WEIGHTS: Final = 64  # elements of a tensor that counts as a weight
CLEAR_ERROR: Final = 0.1


def shows_damage(model: Path, samples: list[Sample], others: list[Sample]) -> bool:
    """Return whether `others` show damaged weights as well as `samples`.

    Args:
        model: an ONNX file.
        samples: inputs to compare with.
        others: inputs that are to replace them.
    """
    if is_tflite(model):
        return False
    proto = load_proto(model)
    weights = [tensor for tensor in proto.graph.initializer if int(np.prod(tensor.dims)) >= MIN_WEIGHTS]
    if not weights or proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        return False
    chosen = sorted({round(i * (len(weights) - 1) / (MAX_PROBES - 1)) for i in range(MAX_PROBES)})
    inputs = [*samples, *others]
    try:
        (whole,) = run_model(model, inputs, (ONE_THREAD_SETTINGS,))
        for index in chosen:
            errors = _errors_without(proto, weights[index], inputs, whole)
            expected, found = max(errors[: len(samples)]), max(errors[len(samples) :])
            if found < min(CLEAR_ERROR, expected / 2):
                return False
    except (ModelDoesNotRun, ModelCrashes):
        return False
    return True


def _errors_without(
    proto: onnx.ModelProto, weight: onnx.TensorProto, inputs: list[Sample], whole: list[Sample]
) -> list[float]:
    """Return the largest error of each input's outputs with `weight` at zero; 0.0 without outputs."""
    kept = weight.SerializeToString()
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.zeros_like(array), weight.name))
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
