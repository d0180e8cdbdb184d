"""Pairs of an old and a new model, and the quantized base between them, for tests of updates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from packager.models.graphs import array_of
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models

STATIC: Final = QuantizeOptions(methods=("static",), measure_latency=False)


@dataclass(frozen=True, slots=True)
class QuantizedBase:
    """A float model on disk, its int8 form, and samples for both."""

    model: onnx.ModelProto
    float_path: Path
    path: Path
    samples: Samples

    def write_fine_tuned(self, folder: Path, amount: float) -> Path:
        """Write a fine-tuned copy of the float model into `folder` and return its path.

        Args:
            folder: a directory.
            amount: as for `fine_tuned`.
        """
        return tiny_models.save(fine_tune(self.model, 1, amount), folder / "new.onnx")


def quantize_base(
    model: onnx.ModelProto, folder: Path, samples: int, options: QuantizeOptions = STATIC
) -> QuantizedBase:
    """Quantize a model to int8 as the base of updates.

    Args:
        model: a float model.
        folder: directory of the files.
        samples: number of random samples.
        options: how to quantize.
    """
    old = tiny_models.save(model, folder / "old.onnx")
    drawn = random_samples(old, samples)
    report = quantize_model(old, folder / "base.onnx", "int8", drawn, options)
    assert report.outcome == "quantized", report.as_lines()
    return QuantizedBase(model, old, folder / "base.onnx", drawn)


def fine_tune(model: onnx.ModelProto, seed: int, amount: float) -> onnx.ModelProto:
    """Return a copy whose float weights moved by `amount` of their RMS, half of it along one direction a matrix.

    Args:
        model: a float model.
        seed: of the random direction.
        amount: RMS of the change over the RMS of the weight.
    """
    rng = np.random.default_rng(seed)
    tuned = onnx.ModelProto()
    tuned.CopyFrom(model)
    for tensor in tuned.graph.initializer:
        values = array_of(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        flat = values.reshape(len(values), -1)
        shared = np.outer(rng.standard_normal(len(flat)), rng.standard_normal(flat.shape[1]))
        step = (shared + rng.standard_normal(flat.shape)) * amount * np.sqrt(np.mean(values**2)) / np.sqrt(2)
        tensor.CopyFrom(numpy_helper.from_array((flat + step).reshape(values.shape).astype(np.float32), tensor.name))
    return tuned
