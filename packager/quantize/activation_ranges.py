"""Measure the smallest and largest value of activations over the calibration samples.

The model itself reduces each tensor to two numbers, so that no activation leaves the runtime, and one sample runs at a
time. A tensor that was empty or not finite on every sample has no range and stays in float.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from packager.models.graphs import names_in, unused_name
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, run_session

REDUCTIONS: Final = ("ReduceMin", "ReduceMax")


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """Extremes of one activation; `low` <= `high`, both finite."""

    low: float
    high: float


def measure_ranges(model: onnx.ModelProto, tensors: set[str], samples: Samples) -> dict[str, ActivationRange]:
    """Return the range of each of `tensors` that was finite on at least one sample, by name.

    Args:
        model: a float model.
        tensors: names of float values of the top graph.
        samples: calibration samples.

    Raises:
        ModelDoesNotRun: the model does not run on a sample.
    """
    if not tensors:
        return {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken = names_in(copy)
    outputs: dict[str, tuple[str, str]] = {}
    for tensor in sorted(tensors):
        reduced = []
        for kind in REDUCTIONS:
            name = unused_name(f"{tensor}_{kind}", taken)
            copy.graph.node.append(onnx.helper.make_node(kind, [tensor], [name], name=name, keepdims=0))
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
            reduced.append(name)
        outputs[tensor] = (reduced[0], reduced[1])
    names = [name for pair in outputs.values() for name in pair]
    lows = np.full(len(outputs), np.inf)
    highs = np.full(len(outputs), -np.inf)
    running = open_session_of(copy)
    for sample in samples:
        values = np.array([float(value) for value in run_session(running, sample, names)]).reshape(-1, 2)
        is_finite = np.isfinite(values).all(axis=1)
        lows[is_finite] = np.minimum(lows[is_finite], values[is_finite, 0])
        highs[is_finite] = np.maximum(highs[is_finite], values[is_finite, 1])
    return {
        tensor: ActivationRange(float(low), float(high))
        for tensor, low, high in zip(outputs, lows, highs, strict=True)
        if np.isfinite(low) and np.isfinite(high)
    }
