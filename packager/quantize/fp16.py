"""Store weights in half precision; they are cast back on loading, and arithmetic stays float32.

1. Every float32 initializer of MIN_ELEMENTS or more becomes float16 with a Cast in its own graph. The runtime folds the
   Cast while loading, so that speed is that of float32 and no operator needs a half-precision kernel.
2. A weight stays float32 if an element exceeds FP16_MAX, or if underflow would lose more than MAX_ROUNDING_LOSS of its
   energy.
"""

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from packager.models.graphs import array_of, names_in, scopes, unused_name
from packager.quantize.weight_only import MIN_ELEMENTS

FP16_MAX: Final = float(np.finfo(np.float16).max)
MAX_ROUNDING_LOSS: Final = 1e-5  # share of the sum of squares; rounding to 11 bits alone loses 1e-7


def quantize_fp16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a copy with half-precision weights, and the names of the weights that stayed float32."""
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    taken, kept = names_in(halved), []
    for scope in scopes(halved.graph):
        outputs = {value.name for value in scope.graph.output}
        casts = []
        for tensor in scope.graph.initializer:
            size = int(np.prod(tensor.dims, dtype=np.int64))
            if tensor.data_type != onnx.TensorProto.FLOAT or size < MIN_ELEMENTS or tensor.name in outputs:
                continue
            values = array_of(tensor)
            if not _fits_fp16(values):
                kept.append(tensor.name)
                continue
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), unused_name(f"{name}_half", taken)))
            casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{tensor.name}_cast", to=1))
        for cast in reversed(casts):
            scope.graph.node.insert(0, cast)
    return halved, tuple(kept)


def _fits_fp16(values: np.ndarray) -> bool:
    if not np.abs(values).max(initial=0.0) <= FP16_MAX:
        return False
    wide = values.astype(np.float64)
    loss = float(np.square(wide - values.astype(np.float16)).sum())
    return loss <= MAX_ROUNDING_LOSS * (float(np.square(wide).sum()) + 1e-300)
