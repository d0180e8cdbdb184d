"""Fill the base's quantized file with new numbers; unchanged bytes stay the same.

Levels are written into copies of the base's initializers. Scales and zero points stay, except those of channels and
activations that no longer fit.

Biases take up the mean errors of their layers: they are sent anyway.

Float constants (norms, biases, weights in float) move in steps. With change = new - old over a tensor,

    step = 2 ** floor(log2(share * RMS(change where it is not 0)))

and the difference of the bit patterns ends in as many zeros as the step allows, which is what a patch encodes. Smaller
changes are not worth their bytes. `share` is one of FLOAT_ROUNDING_STEPS (chosen by `rate_search`): for a text
classifier, twice the widest cost more error than its bytes were worth, and half of it cost bytes for nothing; if layers
stay in float it is far too wide.
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

FLOAT_ROUNDING_STEPS: Final = (1.0, 2.0**-2, 2.0**-4, 2.0**-6, 2.0**-10)  # shares of the RMS change, from wide to fine
F32: Final = ELEMENT_TYPE_BY_NAME["f32"]

Levels = dict[tuple[int, str], np.ndarray]
Corrections = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class UpdateChoice:
    """The numbers that an update changes in the template.

    Attributes:
        levels: int16 levels in the layout of the weight, by (graph, levels tensor).
        scales: refitted float64 scales in the shape of the stored ones, by (graph, levels tensor).
        corrections: mean errors that a bias takes up, float64 [channels], by name of the bias.
    """

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
    """Return a copy of the template with the choice written into it.

    Args:
        template: the base.
        prepared: the new float model.
        weights: all quantized weights of the template.
        choice: levels, scales and bias corrections.
        ranges: new ranges of activations, by value name; others stay.
        float_rounding_step: `share` of the module docstring.
    """
    model = onnx.ModelProto()
    model.CopyFrom(template)
    base, update_scopes, float_scopes = (
        list(scopes(template.graph)),
        list(scopes(model.graph)),
        list(scopes(prepared.graph)),
    )
    for weight in weights:
        key = (weight.graph, weight.levels.name)
        if key in choice.scales:
            tensor = update_scopes[weight.graph].initializers[weight.scale.name]
            set_array(tensor, choice.scales[key].astype(array_of(tensor).dtype).reshape(tuple(tensor.dims)))
        if key in choice.levels:
            _write_levels(update_scopes[weight.graph].initializers[weight.levels.name], weight, choice.levels[key])
    if ranges:
        _refit_activations(update_scopes[0], ranges)
    for old, new, float_scope, protected in zip(
        base, update_scopes, float_scopes, _protected_names(update_scopes), strict=True
    ):
        _round_float_constants(old, new, float_scope, protected, choice.corrections, float_rounding_step)
    _fill_int32_biases(base[0], update_scopes[0], float_scopes[0], choice.corrections, float_rounding_step)
    return model


def bias_of(weight: QuantizedWeight, prepared: onnx.ModelProto) -> str | None:
    """Return the name of the constant that is added to the output of the weight's layer, if any.
    It has one element per channel.

    Args:
        weight: a quantized weight of the template.
        prepared: the float model.
    """
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
    """Return (sum, other addend) if an Add is the only reader of `value`, else ("", "").

    Args:
        model: any model.
        value: name of a value.
    """
    readers = [node for node in model.graph.node if value in node.input]
    is_output = any(value == output.name for output in model.graph.output)
    if is_output or len(readers) != 1 or readers[0].op_type != "Add":
        return "", ""
    return readers[0].output[0], next((str(name) for name in readers[0].input if name != value), "")


def round_to_steps(old: np.ndarray, new: np.ndarray, share: float = FLOAT_ROUNDING_STEPS[0]) -> np.ndarray:
    """Return float32 values near `new` whose bit patterns differ from those of `old` by whole steps.

    Args:
        old: float32 array.
        new: float32 array of the same shape.
        share: step as a share of the RMS change.
    """
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
    # the difference of the bit patterns, which a patch encodes, ends in that many zeros
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


def _protected_names(all_scopes: list[Scope]) -> list[set[str]]:
    """Return the names of levels, scales and zero points in each graph."""
    found = []
    quantizers = ("QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits")
    read = {
        name for s in all_scopes for n in s.graph.node if n.op_type in quantizers for i, name in enumerate(n.input) if i
    }
    for scope in all_scopes:
        protected = set()
        for name, tensor in scope.initializers.items():
            is_part = name.endswith(("_scale", "_scales", "_zero_point", "_zero_points")) or LEVELS_NAME_PATTERN.match(
                name
            )
            if name in read or is_part or tensor.data_type not in FLOAT_TYPES:
                protected.add(name)
        found.append(protected)
    return found


def _round_float_constants(
    base: Scope, scope: Scope, float_scope: Scope, protected: set[str], corrections: Corrections, share: float
) -> None:
    for name, tensor in base.initializers.items():
        counterpart = float_scope.initializers.get(name)
        if name in protected or counterpart is None or list(counterpart.dims) != list(tensor.dims):
            continue
        old, new = array_of(tensor), array_of(counterpart)
        if name in corrections:
            new = (new.astype(np.float64) + corrections[name].reshape(new.shape)).astype(new.dtype)
        if not np.array_equal(old, new):
            set_array(scope.initializers[name], round_to_steps(old, new, share) if old.dtype == np.float32 else new)


def _fill_int32_biases(base: Scope, scope: Scope, float_scope: Scope, corrections: Corrections, share: float) -> None:
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
        counterpart = float_scope.initializers.get(match["name"]) if match else None
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
