"""Reads a quantized model as a template: its graph stays as it is, its weights are matched with a new float model's.

Rules:
1. A quantized weight is an 8-bit or 4-bit initializer NAME_quantized (or NAME_Q4) that a DequantizeLinear, an integer
   kernel, a lookup or a MatMulNBits reads; its float counterpart is the weight NAME of the new model, in the same
   graph.
2. Every weight is seen as matrices [inputs, channels], one a group or direction, whatever its layout in the file.
3. A weight without counterpart, or with another shape, means that the graph changed: the template does not fit.
4. Only weights of the top graph whose input can be watched are chosen jointly; others are rounded to nearest.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx

from packager.errors import BaseIncompatible
from packager.models.graphs import Scope, array_of, scopes
from packager.quantize.nbits import unpack_levels

Kind = Literal["matrix", "transposed", "conv", "table", "recurrent", "nbits", "other"]

LEVELS_NAME_PATTERN: Final = re.compile(r"^(?P<name>.*?)_(?:quantized|Q4)(?:_\d+)?$")
SYMMETRIC_ZERO: Final = 128
EIGHT_BIT_TYPES: Final = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """One quantized weight of the template and where its numbers live.

    `source` is the value in the template, and `float_source` the value in the float model, that the weight is
    multiplied with; None where it cannot be watched (rule 4). `kind` says how the layout maps to matrices (rule 2).
    """

    name: str
    graph: int
    kind: Kind
    levels: onnx.TensorProto
    scale: onnx.TensorProto
    zero: onnx.TensorProto | None
    axis: int | None
    node: onnx.NodeProto
    float_tensor: onnx.TensorProto
    is_flipped: bool
    factor: float
    source: str | None
    float_source: str | None
    float_node: onnx.NodeProto

    def float_values(self) -> np.ndarray:
        """float32, in the layout of the levels."""
        values = array_of(self.float_tensor).astype(np.float32)
        values = values.T if self.is_flipped else values
        return np.asarray(values * np.float32(self.factor))

    def base_levels(self) -> np.ndarray:
        """int32, in the layout of the weight (nbits: unpacked [channels, inputs])."""
        levels = array_of(self.levels)
        if self.kind == "nbits":
            return unpack_levels(levels, self.float_values().shape[1])
        return levels.astype(np.int32)

    def scales(self) -> np.ndarray:
        """float64, shaped to broadcast over `base_levels`."""
        return self._spread(array_of(self.scale).astype(np.float64))

    def zeros(self) -> np.ndarray:
        """float64, shaped to broadcast over `base_levels`."""
        if self.zero is None:
            return np.asarray(8.0 if self.kind == "nbits" else 0.0)
        if self.kind == "nbits":
            # two to a byte, one a block, as the levels are
            channels, inputs = self.float_values().shape
            block = next(int(a.i) for a in self.node.attribute if a.name == "block_size")
            zeros = unpack_levels(array_of(self.zero).reshape(channels, -1), -(-inputs // block))
            return np.repeat(zeros.astype(np.float64), block, axis=1)[:, :inputs]
        return self._spread(array_of(self.zero).astype(np.float64))

    def limits(self) -> tuple[int, int]:
        """Smallest and largest level: symmetric where the type is signed, or as the base used them."""
        if self.kind == "nbits":
            return 0, 15
        base = self.base_levels()
        if self.levels.data_type == onnx.TensorProto.UINT8:
            is_symmetric = bool((np.asarray(self.zeros()) == SYMMETRIC_ZERO).all())
            return (1, 255) if is_symmetric else (0, 255)
        largest = int(np.abs(base).max(initial=0))
        return (-63, 63) if largest <= 63 else (-127, 127)

    def _spread(self, values: np.ndarray) -> np.ndarray:
        if self.kind == "nbits":
            channels, inputs = self.float_values().shape
            block = next(int(a.i) for a in self.node.attribute if a.name == "block_size")
            blocks = values.reshape(channels, -1)
            return np.repeat(blocks, block, axis=1)[:, :inputs]
        if values.size == 1:
            return values.reshape(())
        rank = len(self.levels.dims)
        axis = self.axis if self.axis is not None else 1
        shape = [1] * rank
        shape[axis] = -1
        return values.reshape(shape)


def read_template(template: onnx.ModelProto, prepared: onnx.ModelProto) -> list[QuantizedWeight]:
    """Every quantized weight of `template`, matched (rules 1 and 3). Raises UpdateDoesNotFit."""
    ours, theirs = list(scopes(template.graph)), list(scopes(prepared.graph))
    if len(ours) != len(theirs):
        raise BaseIncompatible(f"the base has {len(ours)} graphs, the new model {len(theirs)}")
    found: list[QuantizedWeight] = []
    for number, (scope, other) in enumerate(zip(ours, theirs, strict=True)):
        for tensor in scope.graph.initializer:
            match = LEVELS_NAME_PATTERN.match(tensor.name)
            if match is None or tensor.data_type not in EIGHT_BIT_TYPES:
                continue
            weight = _match_weight(tensor, match["name"], number, ours, scope, theirs, other)
            if weight is not None:
                found.append(weight)
    if not found:
        raise BaseIncompatible("the base holds no quantized weight that is known here")
    return found


def _match_weight(
    tensor: onnx.TensorProto,
    name: str,
    number: int,
    ours: list[Scope],
    scope: Scope,
    theirs: list[Scope],
    other: Scope,
) -> QuantizedWeight | None:
    reader = _find_reader(tensor.name, ours)
    if reader is None:
        return None
    holder, node, index = reader
    # onnxruntime's quantizer turns Gemm into MatMul and names the weight so
    name = name if name in other.initializers else name.removesuffix("_Transposed")
    counterpart = other.initializers.get(name)
    if counterpart is None:
        raise BaseIncompatible(f"weight {name!r} of the base is not in the new model")
    uses = [n for s in theirs for n in s.graph.node if name in n.input]
    float_node = next((n for n in uses if n.op_type not in ("Shape", "Size")), None)
    if float_node is None:
        raise BaseIncompatible(f"weight {name!r} is read by no node of the new model")
    axis: int | None = None
    match node.op_type:
        case "DequantizeLinear":
            scale, zero = node.input[1], node.input[2] if len(node.input) > 2 else ""
            axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
            axis = axis if axis >= 0 else axis + len(tensor.dims)
            consumer = _find_reader(node.output[0], ours)
            if consumer is None:
                return None
            holder, node, index = consumer
        case "MatMulInteger" | "ConvInteger":
            zero = node.input[3] if len(node.input) > 3 else ""
            scale = tensor.name.replace("_quantized", "_scale")
            axis = 0 if node.op_type == "ConvInteger" else 1
        case "Gather":
            behind = _find_reader(node.output[0], ours)
            if behind is None or behind[1].op_type != "DequantizeLinear":
                return None
            scale, zero = behind[1].input[1], behind[1].input[2] if len(behind[1].input) > 2 else ""
            axis = len(tensor.dims) - 1
        case "MatMulNBits":
            scale, zero = node.input[2], node.input[3] if len(node.input) > 3 else ""
        case _:
            return None
    if scale not in scope.initializers:
        return None
    kind, source = _kind_of_node(node, index, ours)
    is_flipped, factor = _orientation(node, float_node, kind)
    shape = list(counterpart.dims)[::-1] if is_flipped else list(counterpart.dims)
    if kind != "nbits" and shape != list(tensor.dims):
        raise BaseIncompatible(f"weight {name!r} is {shape} in the new model, {list(tensor.dims)} in the base")
    is_watched = holder.depth == 0 and len(uses) == 1 and source is not None and float_node.input[0] != name
    return QuantizedWeight(
        name=name,
        graph=number,
        kind=kind,
        levels=tensor,
        scale=scope.initializers[scale],
        zero=scope.initializers.get(zero),
        axis=axis,
        node=node,
        float_tensor=counterpart,
        is_flipped=is_flipped,
        factor=factor,
        source=(float_node.input[1] if kind == "table" else source) if is_watched or kind == "table" else None,
        float_source=float_node.input[1 if kind == "table" else 0] if is_watched or kind == "table" else None,
        float_node=float_node,
    )


def _find_reader(name: str, everywhere: list[Scope]) -> tuple[Scope, onnx.NodeProto, int] | None:
    for scope in everywhere:
        for node in scope.graph.node:
            if name in node.input:
                return scope, node, list(node.input).index(name)
    return None


def _kind_of_node(node: onnx.NodeProto, index: int, everywhere: list[Scope]) -> tuple[Kind, str | None]:
    """(kind, value that the weight is multiplied with) for the node that reads it."""
    match node.op_type:
        case "MatMul" if index == 1:
            return "matrix", node.input[0]
        case "Gemm" if index == 1:
            flags = {a.name: a.i for a in node.attribute}
            source = None if flags.get("transA") else node.input[0]
            return ("transposed" if flags.get("transB") else "matrix"), source
        case "Conv" if index == 1:
            return "conv", node.input[0]
        case "MatMulInteger" | "ConvInteger":
            maker = next((n for s in everywhere for n in s.graph.node if node.input[0] in n.output), None)
            source = maker.input[0] if maker is not None and maker.op_type == "DynamicQuantizeLinear" else None
            return ("conv" if node.op_type == "ConvInteger" else "matrix"), source
        case "LSTM" | "GRU" | "RNN" if index == 1:
            return "recurrent", node.input[0]
        case "Gather":
            return "table", node.input[1]
        case "MatMulNBits":
            return "nbits", node.input[0]
    return "other", None


def _orientation(node: onnx.NodeProto, float_node: onnx.NodeProto, kind: Kind) -> tuple[bool, float]:
    flags = {a.name: a for a in float_node.attribute}
    if kind == "nbits":
        # MatMulNBits holds [channels, inputs]
        return float_node.op_type == "MatMul" or not flags["transB"].i if "transB" in flags else True, 1.0
    if node.op_type != "MatMulInteger" or float_node.op_type != "Gemm":
        return False, 1.0
    is_flipped = "transB" in flags and bool(flags["transB"].i)
    return is_flipped, float(flags["alpha"].f) if "alpha" in flags else 1.0


def to_matrices(values: np.ndarray, kind: Kind, groups: int) -> list[np.ndarray]:
    """[inputs, channels] views of a weight (rule 2), one a group or direction."""
    match kind:
        case "transposed" | "nbits":
            return [values.T]
        case "conv":
            parts = np.split(values, groups, axis=0)
            return [part.reshape(part.shape[0], -1).T for part in parts]
        case "recurrent":
            return [direction.T for direction in values]
        case _:
            return [values]


def from_matrices(matrices: list[np.ndarray], kind: Kind, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of `shape` that `to_matrices` took apart."""
    match kind:
        case "transposed" | "nbits":
            return matrices[0].T
        case "conv":
            return np.concatenate([matrix.T for matrix in matrices]).reshape(shape)
        case "recurrent":
            return np.stack([matrix.T for matrix in matrices])
        case _:
            return matrices[0]
