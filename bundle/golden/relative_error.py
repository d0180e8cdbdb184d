"""Relative RMS error of two outputs, both of them whole."""

from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

# float32 rounding of activations around 1 leaves errors of this size; a golden output with a smaller RMS is noise
MIN_GOLDEN_RMS: Final = 1e-6


def relative_rms(output: Array, golden: Array) -> float:
    """Return RMS(output - golden) / max(RMS(golden), MIN_GOLDEN_RMS) over finite golden elements.

    Args:
        output: output of the model, any float dtype.
        golden: the golden output, of the same shape.
    """
    a, g = output.astype(np.float64), golden.astype(np.float64)
    finite = np.isfinite(g)
    if not finite.any():
        return 0.0
    error = float(np.sqrt(np.mean((a[finite] - g[finite]) ** 2)))
    return error / max(float(np.sqrt(np.mean(g[finite] ** 2))), MIN_GOLDEN_RMS)
