"""Check the float model's outputs before anything is compared with them.

1. Outputs must be the same from run to run. Several samples are tried: a saturated softmax shows no noise.
2. Outputs must not be NaN alone.
"""

from pathlib import Path
from typing import Final

import numpy as np

from packager.errors import QuantizationRefused
from packager.models.samples import Samples
from packager.models.sessions import Runnable, run_session

CHECKED_SAMPLES: Final = 8
MAX_RELATIVE_DIFFERENCE: Final = (
    1e-3  # share of an output's largest magnitude; float sums in another order differ far less
)


def check_reference_outputs(reference: Runnable, samples: Samples, model: Path) -> None:
    """Refuse a model whose outputs are random or NaN alone, on CHECKED_SAMPLES samples.

    Args:
        reference: session of the float model.
        samples: inputs to run the model on.
        model: its path, for messages.

    Raises:
        QuantizationRefused: an output differs between two runs, or all outputs are NaN on all samples.
    """
    names = [output.name for output in reference.get_outputs()]
    checked = samples.take(CHECKED_SAMPLES)
    has_number = False
    for sample in checked:
        for name, a, b in zip(names, run_session(reference, sample), run_session(reference, sample), strict=True):
            has_number |= a.dtype.kind != "f" or not a.size or not np.isnan(a).all()
            if a.shape != b.shape or (a.dtype.kind == "f" and not _is_close(a, b)):
                raise QuantizationRefused(
                    f"{model}: output {name!r} differs from run to run on the same input, so nothing can be compared "
                    "with it; remove random operators from the model"
                )
    if not has_number:
        raise QuantizationRefused(
            f"{model}: the float model outputs only NaN on {len(checked)} samples; look for a root or logarithm of "
            "negative numbers, and for samples that the model was not made for"
        )


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a))) or 1.0
    return bool(np.allclose(a, b, rtol=0.0, atol=MAX_RELATIVE_DIFFERENCE * scale, equal_nan=True))
