"""Smallest and largest value of every activation over the calibration samples, in the memory of one sample.

Rules:
1. The model itself reduces each tensor to two numbers, so no activation leaves the runtime.
2. Samples are run one at a time; only the running extremes are kept.
3. A tensor that was empty or not finite on every sample has no range and is left in float.
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
    """The range of each of `tensors` (float values of the top graph). Raises ModelDoesNotRun."""
    if not tensors:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    taken = names_in(watched)
    outputs: dict[str, tuple[str, str]] = {}
    for tensor in sorted(tensors):
        reduced = []
        for kind in REDUCTIONS:
            name = unused_name(f"{tensor}_{kind}", taken)
            watched.graph.node.append(onnx.helper.make_node(kind, [tensor], [name], name=name, keepdims=0))
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
            reduced.append(name)
        outputs[tensor] = (reduced[0], reduced[1])
    names = [name for pair in outputs.values() for name in pair]
    lows = np.full(len(outputs), np.inf)
    highs = np.full(len(outputs), -np.inf)
    running = open_session_of(watched)
    for sample in samples:
        values = np.array([float(value) for value in run_session(running, sample, names)]).reshape(-1, 2)
        good = np.isfinite(values).all(axis=1)
        lows[good] = np.minimum(lows[good], values[good, 0])
        highs[good] = np.maximum(highs[good], values[good, 1])
    return {
        tensor: ActivationRange(float(low), float(high))
        for tensor, low, high in zip(outputs, lows, highs, strict=True)
        if np.isfinite(low) and np.isfinite(high)
    }
