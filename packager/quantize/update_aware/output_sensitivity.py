"""How much the float model's outputs move when one weight is replaced: a session whose weights can be fed."""

from typing import Final

import numpy as np
import onnx

from packager.models.inputs import Sample
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, run_session

SENSITIVITY_SAMPLES: Final = 12
EPSILON: Final = 1e-30


class OutputSensitivity:
    """Runs the float model with one of `weights` (initializers of the top graph) replaced."""

    def __init__(self, prepared: onnx.ModelProto, weights: list[str], samples: Samples) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(prepared)
        wanted = set(weights)
        for tensor in model.graph.initializer:
            if tensor.name in wanted:
                # an initializer that is also an input may be fed
                model.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        self._running = open_session_of(model)
        self._samples: list[Sample] = list(samples.take(SENSITIVITY_SAMPLES))
        self._reference_outputs = [run_session(self._running, sample) for sample in self._samples]
        self._spread = [
            _spread([answer[i] for answer in self._reference_outputs]) for i in range(len(self._reference_outputs[0]))
        ]

    def error(self, name: str, values: np.ndarray) -> float:
        """Mean over outputs of the squared error relative to the output's variance."""
        fed = np.asarray(values, np.float32, order="C")
        errors = np.zeros(len(self._spread))
        counts = np.zeros(len(self._spread))
        for sample, right in zip(self._samples, self._reference_outputs, strict=True):
            for i, (a, b) in enumerate(zip(run_session(self._running, {**sample, name: fed}), right, strict=True)):
                if a.dtype.kind == "f" and a.shape == b.shape:
                    errors[i] += float(np.square(a.astype(np.float64) - b).sum())
                    counts[i] += a.size
        telling = [errors[i] / counts[i] / s for i, s in enumerate(self._spread) if counts[i] and s > EPSILON]
        return float(np.mean(telling)) if telling else 0.0


def _spread(answers: list[np.ndarray]) -> float:
    if answers[0].dtype.kind != "f" or any(answer.shape != answers[0].shape for answer in answers):
        flat = np.concatenate([answer.ravel() for answer in answers])
        return float(np.var(flat.astype(np.float64))) if flat.dtype.kind == "f" else 0.0
    return float(np.stack(answers).astype(np.float64).var(axis=0).mean())
