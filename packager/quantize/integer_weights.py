"""Weights as 8-bit levels, and the names of their initializers in every scheme.

1. Levels are symmetric around the middle of their range, one scale per channel; a channel of zeros has scale 1.
2. UNSIGNED_LEVELS (1..255 around 128) are exact on every CPU. REDUCED_LEVELS are signed and have 7 bits (-63..63):
   pairs of full 8-bit products overflow the 16-bit sums of x86 CPUs without VNNI (relative L2 error 0.034, more than
   that of quantization). SIGNED_LEVELS have the full range (-127..127): for ARM, whose kernels have wider sums.
3. W becomes W_quantized, W_scale and, for integer kernels, W_zero_point. An update finds the weights of its base by
   these names.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from packager.models.graphs import WeightUse, array_of, unused_name


@dataclass(frozen=True, slots=True)
class LevelRange:
    """Integers from `middle - outermost` to `middle + outermost`, stored as `dtype`."""

    dtype: type[np.signedinteger] | type[np.unsignedinteger]
    outermost: int
    middle: int


UNSIGNED_LEVELS: Final = LevelRange(np.uint8, 127, 128)
REDUCED_LEVELS: Final = LevelRange(np.int8, 63, 0)
SIGNED_LEVELS: Final = LevelRange(np.int8, 127, 0)


# least scale: a scale of zero would divide by zero
SMALLEST_SUBNORMAL: Final = float(np.finfo(np.float32).smallest_subnormal)


@dataclass(frozen=True, slots=True)
class LevelNames:
    """Names of the initializers of one quantized weight, and its float32 scales, [channels] or [].

    `zero_point` is "" if none is stored.
    """

    levels: str
    scale: str
    zero_point: str
    scales: np.ndarray


def to_scales(weight: np.ndarray, axis: int | None, levels: LevelRange) -> np.ndarray:
    """Return the scales at which the largest magnitude falls on the outermost level.

    Args:
        weight: float array.
        axis: axis of the channels; None for one scale.
        levels: allowed levels of the weights.

    Returns:
        float32 [channels], or [] if `axis` is None.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    largest = np.asarray(np.abs(weight.astype(np.float64)).max(axis=others))
    return np.asarray(
        np.where(largest > 0, np.maximum(largest / levels.outermost, SMALLEST_SUBNORMAL), 1.0), np.float32
    )


def to_levels(weight: np.ndarray, scales: np.ndarray, axis: int | None, levels: LevelRange) -> np.ndarray:
    """Return the levels by rounding to nearest, in the shape of `weight`, as `levels.dtype`.
    They are clipped to the symmetric range.

    Args:
        weight: float array.
        scales: float32 [channels] or [].
        axis: axis of the channels; None for one scale.
        levels: allowed levels of the weights.
    """
    exact = weight.astype(np.float64) / broadcast_along(scales, axis, weight.ndim)
    rounded: np.ndarray = np.clip(np.rint(exact), -levels.outermost, levels.outermost) + levels.middle
    return rounded.astype(levels.dtype)


def broadcast_along(values: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """Return `values` in the shape that broadcasts along one axis of an array.

    Args:
        values: [channels], or [].
        axis: axis of the channels; None for one value.
        rank: number of axes of the array.
    """
    if axis is None or values.ndim == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def add_levels(
    use: WeightUse,
    weight: np.ndarray,
    axis: int | None,
    taken: set[str],
    *,
    levels: LevelRange = UNSIGNED_LEVELS,
    min_scales: np.ndarray | None = None,
    scale_dtype: np.dtype | None = None,
    has_zero_point: bool = True,
) -> LevelNames:
    """Add the levels of `weight` to the graph that owns the weight of `use`.

    Args:
        use: the node that reads the weight; new names derive from the weight's.
        weight: float array to quantize, perhaps transposed.
        axis: axis of the channels; None for one scale.
        taken: names in use; the new ones are added.
        levels: allowed levels of the weights.
        min_scales: float [channels] or [], below which no scale falls; None for no limit.
        scale_dtype: dtype of the scales in the file; float32 if None.
        has_zero_point: whether to store zero points; symmetric levels in float arithmetic need none.
    """
    scales = to_scales(weight, axis, levels)
    if min_scales is not None:
        scales = np.maximum(scales, min_scales.astype(np.float32))
    integers = to_levels(weight, scales, axis, levels)
    arrays = {"quantized": integers, "scale": scales.astype(scale_dtype or np.float32)}
    if has_zero_point:
        arrays["zero_point"] = np.full(scales.shape, levels.middle, levels.dtype)
    names = {part: unused_name(f"{use.tensor.name}_{part}", taken) for part in arrays}
    for part, array in arrays.items():
        use.owner.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), names[part]))
    return LevelNames(names["quantized"], names["scale"], names.get("zero_point", ""), scales)


def drop_unread_initializers(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove, from every graph, initializers that no node reads and no graph outputs any more.

    Args:
        model: changed in place.
        names: names of the initializers to consider.
    """
    from packager.models.graphs import scopes

    everywhere = list(scopes(model.graph))
    read = {name for scope in everywhere for node in scope.graph.node for name in node.input}
    read |= {value.name for scope in everywhere for value in scope.graph.output}
    for scope in everywhere:
        doomed = [i for i, t in enumerate(scope.graph.initializer) if t.name in names and t.name not in read]
        for i in reversed(doomed):
            del scope.graph.initializer[i]


def weight_of(use: WeightUse) -> np.ndarray:
    """Return the float weight in the layout of the model."""
    return array_of(use.tensor)
