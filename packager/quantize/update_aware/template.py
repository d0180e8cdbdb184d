"""Read a quantized model as a template, and match its weights with those of the new float model.

1. A quantized weight is an 8-bit or 4-bit initializer NAME_quantized (or NAME_Q4) that a DequantizeLinear, a Cast
   before a Mul, an integer kernel, a look-up or a MatMulNBits reads. Its float counterpart is the weight NAME of the
   new model, in the same graph.
2. Every weight is seen as matrices [inputs, channels], one per group or direction, whatever its layout in the file.
3. A weight without counterpart, or with another shape, means that the graph changed: the template does not fit.
4. Levels are chosen jointly only for weights of the top graph whose input can be read; others are rounded to nearest.
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
    """One quantized weight of the template and its counterpart in the float model.

    Attributes:
        name: name of the float weight.
        graph: number of the graph, in the order of `graphs.scopes`.
        kind: mapping from the layout to matrices (`to_matrices`).
        levels: initializer of the levels.
        scale: initializer of the scales.
        zero: initializer of the zero points; None for symmetric levels.
        axis: axis of the levels along which the scales run; None for MatMulNBits.
        node: node of the template that multiplies by the weight.
        float_tensor: initializer in the float model.
        is_flipped: True if the float tensor is the transpose of the levels.
        factor: factor between float tensor and levels (a Gemm's alpha).
        source: value in the template that the weight multiplies (a table: the indices); None if it cannot be read.
        float_source: the same value in the float model.
        float_node: node of the float model that multiplies by the weight.
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
        """Return the new float weight, float32 in the layout of the levels."""
        values = array_of(self.float_tensor).astype(np.float32)
        values = values.T if self.is_flipped else values
        return np.asarray(values * np.float32(self.factor))

    def base_levels(self) -> np.ndarray:
        """Return the base's levels, int32 in the layout of the weight.
        Those of MatMulNBits are unpacked, [channels, inputs].
        """
        levels = array_of(self.levels)
        if self.kind == "nbits":
            return unpack_levels(levels, self.float_values().shape[1])
        return levels.astype(np.int32)

    def scales(self) -> np.ndarray:
        """Return the base's scales, float64 that broadcast over `base_levels`."""
        return self._spread(array_of(self.scale).astype(np.float64))

    def zeros(self) -> np.ndarray:
        """Return the base's zero points, float64 that broadcast over `base_levels`."""
        if self.zero is None:
            return np.asarray(8.0 if self.kind == "nbits" else 0.0)
        if self.kind == "nbits":
            # packed like the levels: two to a byte, one per block
            channels, inputs = self.float_values().shape
            block = next(int(a.i) for a in self.node.attribute if a.name == "block_size")
            zeros = unpack_levels(array_of(self.zero).reshape(channels, -1), -(-inputs // block))
            return np.repeat(zeros.astype(np.float64), block, axis=1)[:, :inputs]
        return self._spread(array_of(self.zero).astype(np.float64))

    def limits(self) -> tuple[int, int]:
        """Return the smallest and largest level: symmetric if the type is signed, or if the base used them so."""
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
    """Return every quantized weight of `template`, matched with its counterpart.

    Args:
        template: the base.
        prepared: the new float model.

    Raises:
        BaseIncompatible: the graphs differ, a weight has no counterpart or another shape, or no weight was recognized.
    """
    template_scopes, float_scopes = list(scopes(template.graph)), list(scopes(prepared.graph))
    if len(template_scopes) != len(float_scopes):
        raise BaseIncompatible(
            f"the base has {len(template_scopes)} graphs, the new model has {len(float_scopes)}, expected as many"
        )
    found: list[QuantizedWeight] = []
    for number, (scope, float_scope) in enumerate(zip(template_scopes, float_scopes, strict=True)):
        for tensor in scope.graph.initializer:
            match = LEVELS_NAME_PATTERN.match(tensor.name)
            if match is None or tensor.data_type not in EIGHT_BIT_TYPES:
                continue
            weight = _match_weight(tensor, match["name"], number, template_scopes, scope, float_scopes, float_scope)
            if weight is not None:
                found.append(weight)
    if not found:
        raise BaseIncompatible("the base has no 8-bit or 4-bit weight in a form that updates support")
    return found


def _match_weight(
    tensor: onnx.TensorProto,
    name: str,
    number: int,
    template_scopes: list[Scope],
    scope: Scope,
    float_scopes: list[Scope],
    float_scope: Scope,
) -> QuantizedWeight | None:
    reader = _find_reader(tensor.name, template_scopes)
    if reader is None:
        return None
    holder, node, index = reader
    # onnxruntime's quantizer turns a Gemm into a MatMul and adds this suffix
    name = name if name in float_scope.initializers else name.removesuffix("_Transposed")
    counterpart = float_scope.initializers.get(name)
    if counterpart is None:
        raise BaseIncompatible(f"weight {name!r} of the base is not in the new model")
    uses = [n for s in float_scopes for n in s.graph.node if name in n.input]
    float_node = next((n for n in uses if n.op_type not in ("Shape", "Size")), None)
    if float_node is None:
        raise BaseIncompatible(f"weight {name!r} is read by no node of the new model")
    axis: int | None = None
    match node.op_type:
        case "DequantizeLinear":
            scale, zero = node.input[1], node.input[2] if len(node.input) > 2 else ""
            axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
            axis = axis if axis >= 0 else axis + len(tensor.dims)
            consumer = _find_reader(node.output[0], template_scopes)
            if consumer is None:
                return None
            holder, node, index = consumer
        case "MatMulInteger" | "ConvInteger":
            zero = node.input[3] if len(node.input) > 3 else ""
            scale = tensor.name.replace("_quantized", "_scale")
            axis = 0 if node.op_type == "ConvInteger" else 1
        case "Cast":
            product = _find_reader(node.output[0], template_scopes)
            consumer = _find_reader(product[1].output[0], template_scopes) if product is not None else None
            if product is None or product[1].op_type != "Mul" or consumer is None:
                return None
            scale, zero = product[1].input[1 - product[2]], ""
            axis = _scale_axis(scope.initializers.get(scale), len(tensor.dims))
            holder, node, index = consumer
        case "Gather":
            behind = _find_reader(node.output[0], template_scopes)
            if behind is not None and behind[1].op_type == "Cast":
                behind = _find_reader(behind[1].output[0], template_scopes)
            if behind is None or behind[1].op_type not in ("DequantizeLinear", "Mul"):
                return None
            scale, zero = behind[1].input[1], behind[1].input[2] if len(behind[1].input) > 2 else ""
            axis = len(tensor.dims) - 1
        case "MatMulNBits":
            scale, zero = node.input[2], node.input[3] if len(node.input) > 3 else ""
        case _:
            return None
    if scale not in scope.initializers:
        return None
    kind, source = _kind_of_node(node, index, len(tensor.dims), template_scopes)
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


def _scale_axis(scale: onnx.TensorProto | None, rank: int) -> int | None:
    """Return the axis of the levels along which the scales run; None if there is one scale.

    Args:
        scale: the scales, which broadcast over the levels.
        rank: number of axes of the levels.
    """
    sizes = list(scale.dims) if scale is not None else []
    return next((rank - len(sizes) + i for i, size in enumerate(sizes) if size != 1), None)


def _find_reader(name: str, everywhere: list[Scope]) -> tuple[Scope, onnx.NodeProto, int] | None:
    for scope in everywhere:
        for node in scope.graph.node:
            if name in node.input:
                return scope, node, list(node.input).index(name)
    return None


def _kind_of_node(node: onnx.NodeProto, index: int, rank: int, everywhere: list[Scope]) -> tuple[Kind, str | None]:
    """Return (kind, name of the value that the weight multiplies) for the node that reads it.

    Args:
        node: the node that reads the weight.
        index: number of its input.
        rank: number of axes of the weight.
        everywhere: the graphs of the template.
    """
    match node.op_type:
        case "MatMul" if index == 1 and rank == 2:
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
            is_matrix = node.op_type == "MatMulInteger" and rank == 2
            return ("conv" if node.op_type == "ConvInteger" else "matrix" if is_matrix else "other"), source
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
        # MatMulNBits stores [channels, inputs]
        return float_node.op_type == "MatMul" or not flags["transB"].i if "transB" in flags else True, 1.0
    if node.op_type != "MatMulInteger" or float_node.op_type != "Gemm":
        return False, 1.0
    is_flipped = "transB" in flags and bool(flags["transB"].i)
    return is_flipped, float(flags["alpha"].f) if "alpha" in flags else 1.0


def to_matrices(values: np.ndarray, kind: Kind, groups: int) -> list[np.ndarray]:
    """Return [inputs, channels] views of a weight, one per group or direction.

    Args:
        values: array in the layout of the weight.
        kind: layout of the weight.
        groups: number of groups of a Conv.
    """
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
    """Return the weight whose matrices `to_matrices` gave.

    Args:
        matrices: [inputs, channels] for each group or direction.
        kind: layout of the weight.
        shape: shape of the weight.
    """
    match kind:
        case "transposed" | "nbits":
            return matrices[0].T
        case "conv":
            return np.concatenate([matrix.T for matrix in matrices]).reshape(shape)
        case "recurrent":
            return np.stack([matrix.T for matrix in matrices])
        case _:
            return matrices[0]
