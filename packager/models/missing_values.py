"""Check samples with missing values: NaN in an input is allowed if the outputs are not NaN.

Tree models and models with IsNaN take NaN for a missing value. For any other model, NaN in an input is a mistake of the
preprocessing, which shows as NaN in the outputs.
"""

from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from packager.errors import SampleHasNan
from packager.models.inputs import ModelInterface, Sample
from packager.models.model_runs import run_model
from packager.models.samples import Samples, open_inputs
from packager.models.sessions import ONE_THREAD_SETTINGS

MAX_CHECKED_SAMPLES: Final = 16  # samples with NaN that the model runs on


def load_inputs(model: Path, inputs: Path) -> Samples:
    """Open an `.npz` or a folder of inputs, and run the model on samples with NaN.

    Args:
        model: an ONNX file.
        inputs: the file or folder.

    Raises:
        SampleHasNan: a sample has NaN, and so have the outputs.
        ModelDoesNotRun: the model does not run on a sample with NaN.
        ModelCrashes: the model crashes its process.
        Invalid: the inputs cannot be read, or do not fit the model (packager.models.samples).
    """
    samples = open_inputs(inputs, ModelInterface.from_file(model))
    with_nan = ((number, sample) for number, sample in enumerate(samples) if _count_nan(sample))
    found: dict[int, Sample] = dict(islice(with_nan, MAX_CHECKED_SAMPLES))
    if not found:
        return samples
    (outputs,) = run_model(model, list(found.values()), (ONE_THREAD_SETTINGS,))
    for (number, sample), tensors in zip(found.items(), outputs, strict=True):
        wrong = next((name for name, array in tensors.items() if _has_nan(array)), None)
        if wrong is not None:
            name, (count, size) = next(iter(_count_nan(sample).items()))
            raise SampleHasNan(
                f"{inputs}: sample {number}: {count} of {size} numbers of {name!r} are NaN, and so is output {wrong!r}",
                hint="leave the sample out, or fill in missing values as the application does",
            )
    return samples


def _count_nan(sample: Sample) -> dict[str, tuple[int, int]]:
    """Return (number of NaN, number of elements) of each input with NaN."""
    counts = {name: (int(np.isnan(a).sum()), a.size) for name, a in sample.items() if a.dtype.kind == "f"}
    return {name: row for name, row in counts.items() if row[0]}


def _has_nan(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())
