"""How much the float model's outputs move when one weight is replaced: a session whose weights can be fed."""

from typing import Final

import numpy as np
import onnx

from packager.models.inputs import Sample
from packager.models.samples import Samples
from packager.models.sessions import run, session_of

SAMPLES: Final = 12
TINY: Final = 1e-30


class OutputProbe:
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
        self._running = session_of(model)
        self._samples: list[Sample] = list(samples.take(SAMPLES))
        self._answers = [run(self._running, sample) for sample in self._samples]
        self._spread = [_spread([answer[i] for answer in self._answers]) for i in range(len(self._answers[0]))]

    def error(self, name: str, values: np.ndarray) -> float:
        """Mean over outputs of the squared error relative to the output's variance."""
        fed = np.asarray(values, np.float32, order="C")
        errors = np.zeros(len(self._spread))
        counts = np.zeros(len(self._spread))
        for sample, right in zip(self._samples, self._answers, strict=True):
            for i, (a, b) in enumerate(zip(run(self._running, {**sample, name: fed}), right, strict=True)):
                if a.dtype.kind == "f" and a.shape == b.shape:
                    errors[i] += float(np.square(a.astype(np.float64) - b).sum())
                    counts[i] += a.size
        telling = [errors[i] / counts[i] / s for i, s in enumerate(self._spread) if counts[i] and s > TINY]
        return float(np.mean(telling)) if telling else 0.0


def _spread(answers: list[np.ndarray]) -> float:
    if answers[0].dtype.kind != "f" or any(answer.shape != answers[0].shape for answer in answers):
        flat = np.concatenate([answer.ravel() for answer in answers])
        return float(np.var(flat.astype(np.float64))) if flat.dtype.kind == "f" else 0.0
    return float(np.stack(answers).astype(np.float64).var(axis=0).mean())
