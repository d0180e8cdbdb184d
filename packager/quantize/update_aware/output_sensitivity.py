"""Measure how much the float model's outputs move if one weight is replaced."""

from typing import Final

import numpy as np
import onnx

from packager.models.inputs import Sample
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, run_session

SENSITIVITY_SAMPLES: Final = 12  # runs per weight, for up to 40 weights; trades time for less noise
EPSILON: Final = 1e-30


class OutputSensitivity:
    """A session of the float model in which some initializers of the top graph can be replaced.

    Args:
        prepared: the float model.
        weights: names of the initializers.
        samples: inputs; SENSITIVITY_SAMPLES of them are used.
    """

    def __init__(self, prepared: onnx.ModelProto, weights: list[str], samples: Samples) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(prepared)
        wanted = set(weights)
        for tensor in model.graph.initializer:
            if tensor.name in wanted:
                # an initializer that is also an input can be fed
                model.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        self._running = open_session_of(model)
        self._samples: list[Sample] = list(samples.take(SENSITIVITY_SAMPLES))
        self._reference_outputs = [run_session(self._running, sample) for sample in self._samples]
        self._variances = [
            _variance([output[i] for output in self._reference_outputs]) for i in range(len(self._reference_outputs[0]))
        ]

    def error(self, name: str, values: np.ndarray) -> float:
        """Return the error of the outputs with one weight replaced.
        It is the mean over outputs o of E[(o' - o)^2] / variance of o.

        Args:
            name: name of the initializer.
            values: its new values, in its own shape.
        """
        fed = np.asarray(values, np.float32, order="C")
        errors = np.zeros(len(self._variances))
        counts = np.zeros(len(self._variances))
        for sample, right in zip(self._samples, self._reference_outputs, strict=True):
            for i, (a, b) in enumerate(zip(run_session(self._running, {**sample, name: fed}), right, strict=True)):
                if a.dtype.kind == "f" and a.shape == b.shape:
                    errors[i] += float(np.square(a.astype(np.float64) - b).sum())
                    counts[i] += a.size
        relative = [errors[i] / counts[i] / s for i, s in enumerate(self._variances) if counts[i] and s > EPSILON]
        return float(np.mean(relative)) if relative else 0.0


def _variance(outputs: list[np.ndarray]) -> float:
    if outputs[0].dtype.kind != "f" or any(output.shape != outputs[0].shape for output in outputs):
        flat = np.concatenate([output.ravel() for output in outputs])
        return float(np.var(flat.astype(np.float64))) if flat.dtype.kind == "f" else 0.0
    return float(np.stack(outputs).astype(np.float64).var(axis=0).mean())
