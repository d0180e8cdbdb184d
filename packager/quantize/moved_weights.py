"""Find weights that reach their nodes through nodes that only move numbers, such as Slice and Concat.

Exporters of recurrent layers write them so: they reorder the gates of a weight in the graph. Where that is a constant
expression whose result would be larger than the weight (two layers of two branches share it), it is not folded in
advance. The weight is then quantized before it is moved, which gives the same numbers.

1. A moved weight is a float initializer with at least two axes. Every path from it goes through MOVING_OPERATORS to a
   weight input of a node; a weight that also has another reader is none.
2. Which axis the channels run along is not known behind a reshape, so the axis with the smallest error is taken.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx

from packager.models.graphs import FLOAT_TYPES, Scope, WeightUse, array_of, scopes, weight_inputs
from packager.quantize.integer_weights import SIGNED_LEVELS, broadcast_along, to_levels, to_scales

MOVING_OPERATORS: Final = frozenset(
    {"Slice", "Concat", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Flatten", "Identity", "Split"}
)
Readers = dict[str, list[tuple[Scope, onnx.NodeProto, int]]]


def moved_weight_uses(model: onnx.ModelProto) -> list[WeightUse]:
    """Return the nodes at the ends of the paths from moved weights; `tensor` is the weight itself."""
    everywhere = list(scopes(model.graph))
    readers: Readers = {}
    for scope in everywhere:
        for node in scope.graph.node:
            for index, name in enumerate(node.input):
                readers.setdefault(name, []).append((scope, node, index))
    outputs = {value.name for scope in everywhere for value in scope.graph.output}
    found: list[WeightUse] = []
    for owner in everywhere:
        for tensor in owner.graph.initializer:
            is_weight = tensor.data_type in FLOAT_TYPES and len(tensor.dims) >= 2 and all(tensor.dims)
            if is_weight and all(_moves(node, index) for _, node, index in readers.get(tensor.name, [])):
                ends = _find_ends(tensor.name, readers, outputs) or []
                found += [WeightUse(scope, node, index, owner, tensor) for scope, node, index in ends]
    return found


def most_exact_axis(tensor: onnx.TensorProto) -> int:
    """Return the axis along which scales give the smallest error.

    Args:
        tensor: a float weight.
    """
    weight = array_of(tensor)
    return min(range(weight.ndim), key=lambda axis: _rounding_error(weight, axis))


def _rounding_error(weight: np.ndarray, axis: int) -> float:
    scales = to_scales(weight, axis, SIGNED_LEVELS)
    levels = to_levels(weight, scales, axis, SIGNED_LEVELS)
    rounded = levels.astype(np.float64) * broadcast_along(scales, axis, weight.ndim)
    return float(np.square(rounded - weight).sum())


def _moves(node: onnx.NodeProto, index: int) -> bool:
    """Return whether a node only moves the numbers of this input."""
    is_moving = node.domain in ("", "ai.onnx") and node.op_type in MOVING_OPERATORS
    return is_moving and (index == 0 or node.op_type == "Concat")


def _find_ends(name: str, readers: Readers, outputs: set[str]) -> list[tuple[Scope, onnx.NodeProto, int]] | None:
    """Return the readers at the ends of all paths; None if one of them is no weight input.

    Args:
        name: the value at the start.
        readers: readers of each value.
        outputs: outputs of all graphs.
    """
    ends: list[tuple[Scope, onnx.NodeProto, int]] = []
    seen: set[str] = set()
    pending: list[str] = [name]
    while pending:
        value = pending.pop()
        if value in outputs:
            return None
        for scope, node, index in readers.get(value, []):
            if _moves(node, index):
                pending += _unseen(node, seen)
            elif index in weight_inputs(node):
                ends.append((scope, node, index))
            else:
                return None
    return ends


def _unseen(node: onnx.NodeProto, seen: set[str]) -> Iterator[str]:
    for name in node.output:
        if name and name not in seen:
            seen.add(name)
            yield name
