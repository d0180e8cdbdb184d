"""Which node of a quantized model spoils the answers: one pass over float and quantized model side by side.

Rules:
1. Node outputs keep their names when a model is quantized, so the same value can be read in both models.
2. A node's blame is the error that it adds: relative RMS at its output beyond the worst of its inputs.
3. Nodes in nested graphs cannot be watched from outside; they come after all others, largest weight first.
"""

from typing import Final

import numpy as np
import onnx

from packager.inputs import Samples
from packager.quantize.graphs import FLOATS, weight_uses
from packager.quantize.runs import run, session_of

SAMPLES: Final = 8
TINY: Final = 1e-12


def blame(
    prepared: onnx.ModelProto, quantized: onnx.ModelProto, nodes: list[str], samples: Samples
) -> list[tuple[str, float]]:
    """(node, added relative error) for each of `nodes`, worst first. Raises ModelDoesNotRun."""
    quantized_names = {name for node in quantized.graph.node for name in node.output}
    by_name = {node.name: node for node in prepared.graph.node}
    produced = {name for node in prepared.graph.node for name in node.output} & quantized_names
    floats = _float_values(prepared)
    watched = sorted(
        {
            name
            for node in (by_name[name] for name in nodes if name in by_name)
            for name in (node.input[0], node.output[0])
            if name in produced and name in floats
        }
    )
    errors = _relative_errors(prepared, quantized, watched, samples.take(SAMPLES))
    weights = {use.node.name: use.elements for use in weight_uses(prepared)}
    found = []
    for name in nodes:
        node = by_name.get(name)
        if node is None or node.output[0] not in errors:
            found.append((name, weights.get(name, 0) * TINY))
            continue
        found.append((name, max(0.0, errors[node.output[0]] - errors.get(node.input[0], 0.0))))
    return sorted(found, key=lambda pair: -pair[1])


def _relative_errors(
    prepared: onnx.ModelProto, quantized: onnx.ModelProto, names: list[str], samples: Samples
) -> dict[str, float]:
    if not names:
        return {}
    left, right = session_of(with_outputs(prepared, names)), session_of(with_outputs(quantized, names))
    error, power, total, count = (np.zeros(len(names)) for _ in range(4))
    for sample in samples:
        for i, (a, b) in enumerate(zip(run(left, sample, names), run(right, sample, names), strict=True)):
            if a.shape != b.shape:
                error[i] = np.inf
                continue
            x, y = a.astype(np.float64), b.astype(np.float64)
            error[i] += np.square(x - y).sum()
            power[i] += np.square(x).sum()
            total[i] += x.sum()
            count[i] += x.size
    variance = power - total**2 / np.maximum(count, 1)
    return {name: float(np.sqrt(error[i] / max(variance[i], TINY))) for i, name in enumerate(names)}


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy whose graph also gives the values `names`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    existing = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in existing)
    return copy


def _float_values(model: onnx.ModelProto) -> set[str]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        inferred = model
    known = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    outputs = {name for node in model.graph.node for name in node.output}
    return {name for name in outputs if types.get(name, onnx.TensorProto.FLOAT) in FLOATS}
