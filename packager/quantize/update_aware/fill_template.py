"""The base's quantized file with new numbers: levels, biases and float leftovers replaced, everything else byte for
byte.

Rules:
1. Levels are written into copies of the base's initializers; scales and zero points stay, save for channels and
   activations that do not fit any more.
2. Float leftovers (norms, biases, what is kept in float) move on a grid of `leftover_step` of the RMS change of what
   moved or half of it, a power of two, counted in bit patterns, as a patch counts: what is below it is not worth its
   bytes. Of a text classifier's, twice the widest of LEFTOVER_STEPS cost more error than its bytes were worth, and half
   of it bytes for nothing; where layers are kept in float it is far too wide.
3. A bias takes up the mean error of its layer; biases are sent anyway.
4. Pinned ranges of activations change only where the caller says so (`activations`).
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, from_ordered, to_ordered
from packager.models.graphs import FLOAT_TYPES, Scope, array_of, scopes, set_array
from packager.quantize.activation_ranges import ActivationRange
from packager.quantize.nbits import pack_levels
from packager.quantize.static import scale_of
from packager.quantize.update_aware.template import LEVELS_NAME_PATTERN, QuantizedWeight

FLOAT_ROUNDING_STEPS: Final = (1.0, 2.0**-2, 2.0**-4, 2.0**-6, 2.0**-10)
F32: Final = ELEMENT_TYPE_BY_NAME["f32"]

Levels = dict[tuple[int, str], np.ndarray]
Corrections = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class UpdateChoice:
    """What an update changes: levels by (graph, tensor), refitted scales likewise, and errors of means by bias name."""

    levels: Levels = field(default_factory=dict)
    scales: Levels = field(default_factory=dict)
    corrections: Corrections = field(default_factory=dict)


def fill_template(
    template: onnx.ModelProto,
    prepared: onnx.ModelProto,
    weights: list[QuantizedWeight],
    choice: UpdateChoice,
    ranges: dict[str, ActivationRange],
    float_rounding_step: float = FLOAT_ROUNDING_STEPS[0],
) -> onnx.ModelProto:
    """The template with the choice in it (rules above).

    Args:
        template: the base's quantized model.
        prepared: the new float model.
        weights: of the template.
        choice: what changes.
        ranges: new ones of activations that the template pins.
        leftover_step: of rule 2.
    """
    model = onnx.ModelProto()
    model.CopyFrom(template)
    base, ours, theirs = list(scopes(template.graph)), list(scopes(model.graph)), list(scopes(prepared.graph))
    for weight in weights:
        key = (weight.graph, weight.levels.name)
        if key in choice.scales:
            tensor = ours[weight.graph].initializers[weight.scale.name]
            set_array(tensor, choice.scales[key].astype(array_of(tensor).dtype).reshape(tuple(tensor.dims)))
        if key in choice.levels:
            _write_levels(ours[weight.graph].initializers[weight.levels.name], weight, choice.levels[key])
    if ranges:
        _refit_activations(ours[0], ranges)
    for old, new, float_scope, protected in zip(base, ours, theirs, _protected_names(ours), strict=True):
        _round_float_constants(old, new, float_scope, protected, choice.corrections, float_rounding_step)
    _fill_int32_biases(base[0], ours[0], theirs[0], choice.corrections, float_rounding_step)
    return model


def bias_of(weight: QuantizedWeight, prepared: onnx.ModelProto) -> str | None:
    """Name of the constant that is added to the output of `weight`'s layer in the float model, one number a channel."""
    node = weight.float_node
    constants = {tensor.name: tensor for tensor in prepared.graph.initializer}
    if node.op_type in ("Gemm", "Conv"):
        name = str(node.input[2]) if len(node.input) > 2 else ""
        return name if name in constants else None
    _, name = find_addition(prepared, node.output[0])
    channels = weight.float_tensor.dims[-1]
    fits = name in constants and constants[name].dims and int(np.prod(constants[name].dims)) == channels
    return name if fits else None


def find_addition(model: onnx.ModelProto, value: str) -> tuple[str, str]:
    """(sum, what is added) where an Add is all that reads `value`; ("", "") elsewhere."""
    readers = [node for node in model.graph.node if value in node.input]
    is_told = any(value == output.name for output in model.graph.output)
    if is_told or len(readers) != 1 or readers[0].op_type != "Add":
        return "", ""
    return readers[0].output[0], next((str(name) for name in readers[0].input if name != value), "")


def round_to_steps(old: np.ndarray, new: np.ndarray, share: float = FLOAT_ROUNDING_STEPS[0]) -> np.ndarray:
    """float32 like `new`, moved from `old` in whole steps (rule 2)."""
    with np.errstate(invalid="ignore"):
        change = new.astype(np.float64) - old.astype(np.float64)
    moved = change != 0.0
    size = float(np.sqrt(np.mean(np.square(change[moved])))) if moved.any() else 0.0
    if size == 0.0 or not np.isfinite(size):
        return new
    step = np.floor(np.log2(share * size))
    exponent = np.where(old == 0, np.iinfo(np.int16).min, np.frexp(old)[1] - 1)
    zeros = np.clip(step - (exponent - F32.mantissa_bits), 0, F32.mantissa_bits - 1).astype(np.int64)
    start, goal = (to_ordered(np.ascontiguousarray(side).view(F32.bits), F32).astype(np.int64) for side in (old, new))
    # the difference of the bit patterns, which is what a patch holds, ends in that many zeros
    whole = start + (((goal - start) + ((1 << zeros) >> 1)) >> zeros << zeros)
    back = from_ordered(whole.astype(F32.signed), F32).view(np.float32)
    return np.where(moved & np.isfinite(back), back, np.where(moved, new, old))


def _write_levels(tensor: onnx.TensorProto, weight: QuantizedWeight, levels: np.ndarray) -> None:
    old = array_of(tensor)
    if weight.kind == "nbits":
        block = next(int(a.i) for a in weight.node.attribute if a.name == "block_size")
        set_array(tensor, pack_levels(levels.astype(np.uint8), block).reshape(old.shape))
    else:
        set_array(tensor, levels.astype(old.dtype).reshape(old.shape))


def _protected_names(everywhere: list[Scope]) -> list[set[str]]:
    """Names in each graph that belong to quantization: levels, scales, zero points."""
    found = []
    quantizers = ("QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits")
    read = {
        name for s in everywhere for n in s.graph.node if n.op_type in quantizers for i, name in enumerate(n.input) if i
    }
    for scope in everywhere:
        mine = set()
        for name, tensor in scope.initializers.items():
            is_part = name.endswith(("_scale", "_scales", "_zero_point", "_zero_points")) or LEVELS_NAME_PATTERN.match(
                name
            )
            if name in read or is_part or tensor.data_type not in FLOAT_TYPES:
                mine.add(name)
        found.append(mine)
    return found


def _round_float_constants(
    base: Scope, ours: Scope, theirs: Scope, protected: set[str], corrections: Corrections, share: float
) -> None:
    for name, tensor in base.initializers.items():
        counterpart = theirs.initializers.get(name)
        if name in protected or counterpart is None or list(counterpart.dims) != list(tensor.dims):
            continue
        old, new = array_of(tensor), array_of(counterpart)
        if name in corrections:
            new = (new.astype(np.float64) + corrections[name].reshape(new.shape)).astype(new.dtype)
        if not np.array_equal(old, new):
            set_array(ours.initializers[name], round_to_steps(old, new, share) if old.dtype == np.float32 else new)


def _fill_int32_biases(base: Scope, scope: Scope, other: Scope, corrections: Corrections, share: float) -> None:
    makers = {name: node for node in scope.graph.node for name in node.output}
    for node in scope.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        parts = [makers.get(name) for name in node.input[:3]]
        if any(part is None or part.op_type != "DequantizeLinear" for part in parts):
            continue
        activation, weight, bias = (part for part in parts if part is not None)
        levels, scale = scope.initializers.get(bias.input[0]), scope.initializers.get(bias.input[1])
        sides = [scope.initializers.get(part.input[1]) for part in (activation, weight)]
        match = LEVELS_NAME_PATTERN.match(bias.input[0])
        counterpart = other.initializers.get(match["name"]) if match else None
        if levels is None or scale is None or counterpart is None or any(side is None for side in sides):
            continue
        factors = [array_of(side).astype(np.float64) for side in sides if side is not None]
        wanted = (factors[0].reshape(()) * factors[1]).astype(np.float32).reshape(tuple(scale.dims))
        if not np.array_equal(wanted, array_of(scale)):
            set_array(scale, wanted)
        values = array_of(counterpart).astype(np.float64)
        if counterpart.name in corrections:
            values = values + corrections[counterpart.name].reshape(values.shape)
        old = array_of(base.initializers[levels.name])
        exact = values / wanted.astype(np.float64)
        change = exact - old
        size = float(np.sqrt(np.mean(np.square(change)))) if change.size else 0.0
        step = 2.0 ** max(0.0, np.floor(np.log2(max(share * size, 1.0))))
        moved = np.clip(old + np.rint(change / step) * step, -(2**31) + 1, 2**31 - 1)
        set_array(levels, moved.astype(np.int32))


def _refit_activations(scope: Scope, ranges: dict[str, ActivationRange]) -> None:
    for node in scope.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in ranges or len(node.input) < 3:
            continue
        scale, zero = scope.initializers.get(node.input[1]), scope.initializers.get(node.input[2])
        if scale is not None and zero is not None:
            new_scale, new_zero = scale_of(ranges[node.input[0]])
            set_array(scale, np.array(new_scale, np.float32).reshape(tuple(scale.dims)))
            set_array(zero, np.array(new_zero, np.uint8).reshape(tuple(zero.dims)))
