"""Weights as 8-bit levels for integer kernels, and the names that every scheme gives them.

Rules:
1. Levels are symmetric around the middle of their range, one scale a channel; a channel of zeros has scale 1.
2. UNSIGNED (1..255 around 128) is exact on every CPU. REDUCED is signed and of 7 bits (-63..63): pairs of full 8-bit
   products overflow the 16-bit sums of x86 CPUs without VNNI (relative L2 0.034, more than the quantization error
   itself). SIGNED is the full range (-127..127): for ARM, whose kernels have wider sums.
3. W becomes W_quantized, W_scale, W_zero_point. An update finds the weights of its base by these names.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from packager.models.graphs import WeightUse, array_of, unused_name


@dataclass(frozen=True, slots=True)
class LevelRange:
    """Integers from `middle - outermost` to `middle + outermost`, stored as `dtype` (rule 2)."""

    dtype: type[np.signedinteger] | type[np.unsignedinteger]
    outermost: int
    middle: int


UNSIGNED_LEVELS: Final = LevelRange(np.uint8, 127, 128)
REDUCED_LEVELS: Final = LevelRange(np.int8, 63, 0)
SIGNED_LEVELS: Final = LevelRange(np.int8, 127, 0)


SMALLEST_SUBNORMAL: Final = float(np.finfo(np.float32).smallest_subnormal)  # a scale of zero would divide by zero


@dataclass(frozen=True, slots=True)
class LevelNames:
    """Names of the three initializers of one quantized weight, and its float32 scales [channels] or []."""

    levels: str
    scale: str
    zero_point: str
    scales: np.ndarray


def to_scales(weight: np.ndarray, axis: int | None, levels: LevelRange) -> np.ndarray:
    """float32 [channels], or [] where `axis` is None: the largest magnitude falls on the outermost level (rule 1)."""
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    largest = np.asarray(np.abs(weight.astype(np.float64)).max(axis=others))
    return np.asarray(
        np.where(largest > 0, np.maximum(largest / levels.outermost, SMALLEST_SUBNORMAL), 1.0), np.float32
    )


def to_levels(weight: np.ndarray, scales: np.ndarray, axis: int | None, levels: LevelRange) -> np.ndarray:
    """Levels by rounding to nearest, clipped to the symmetric range."""
    exact = weight.astype(np.float64) / broadcast_along(scales, axis, weight.ndim)
    rounded: np.ndarray = np.clip(np.rint(exact), -levels.outermost, levels.outermost) + levels.middle
    return rounded.astype(levels.dtype)


def broadcast_along(values: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """`values` [channels] shaped so that they broadcast along `axis` of an array of `rank` axes."""
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
) -> LevelNames:
    """Put the levels of `weight` into the graph that owns `use`'s weight.

    Args:
        use: where the weight is read; its name gives the new names.
        weight: the numbers to quantize, perhaps transposed.
        axis: of the channels, or None for one scale.
        taken: names that are in use.
        levels: rule 2.
        min_scales: scales are raised to these where given.
        scale_dtype: of the scales in the file; float32 where not given.
    """
    scales = to_scales(weight, axis, levels)
    if min_scales is not None:
        scales = np.maximum(scales, min_scales.astype(np.float32))
    integers = to_levels(weight, scales, axis, levels)
    names = [unused_name(f"{use.tensor.name}_{part}", taken) for part in ("quantized", "scale", "zero_point")]
    zero = np.full(scales.shape, levels.middle, levels.dtype)
    for name, array in zip(names, (integers, scales.astype(scale_dtype or np.float32), zero), strict=True):
        use.owner.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    return LevelNames(names[0], names[1], names[2], scales)


def drop_unread_initializers(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove initializers of `names` that no node reads and no graph gives any more, in every graph."""
    from packager.models.graphs import scopes

    everywhere = list(scopes(model.graph))
    read = {name for scope in everywhere for node in scope.graph.node for name in node.input}
    read |= {value.name for scope in everywhere for value in scope.graph.output}
    for scope in everywhere:
        doomed = [i for i, t in enumerate(scope.graph.initializer) if t.name in names and t.name not in read]
        for i in reversed(doomed):
            del scope.graph.initializer[i]


def weight_of(use: WeightUse) -> np.ndarray:
    """The float weight, as it lies in the model."""
    return array_of(use.tensor)
