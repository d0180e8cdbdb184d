"""What a float model's answers must be like before anything is held against them.

Rules:
1. They are the same from run to run. One sample may hide that they are not: a saturated softmax shows no noise.
2. They are not NaN alone.
"""

from pathlib import Path
from typing import Final

import numpy as np

from packager.errors import QuantizationRefused
from packager.models.samples import Samples
from packager.models.sessions import Runnable, run_session

CHECKED_SAMPLES: Final = 8
MAX_RELATIVE_DIFFERENCE: Final = 1e-3  # of an output's largest magnitude: float sums in another order stay far below


def check_reference_outputs(reference: Runnable, samples: Samples, model: Path) -> None:
    """Both rules, on a few of `samples`. Raises QuantizationRefused."""
    names = [output.name for output in reference.get_outputs()]
    tried = samples.take(CHECKED_SAMPLES)
    is_told = False
    for sample in tried:
        for name, a, b in zip(names, run_session(reference, sample), run_session(reference, sample), strict=True):
            is_told |= a.dtype.kind != "f" or not a.size or not np.isnan(a).all()
            if a.shape != b.shape or (a.dtype.kind == "f" and not _is_close(a, b)):
                raise QuantizationRefused(
                    f"{model}: output {name!r} differs from run to run on the same input, so that nothing can be held "
                    "against it; look for random operators"
                )
    if not is_told:
        raise QuantizationRefused(
            f"{model}: the float model itself answers NaN alone on {len(tried)} samples; look for a root or logarithm "
            "of negative numbers, and for samples that the model was not made for"
        )


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a))) or 1.0
    return bool(np.allclose(a, b, rtol=0.0, atol=MAX_RELATIVE_DIFFERENCE * scale, equal_nan=True))
