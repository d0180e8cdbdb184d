"""Weights as unsigned 8-bit levels for integer kernels, and the names that every scheme gives them.

Rules:
1. Levels are symmetric around the middle of their range, one scale a channel; a channel of zeros has scale 1.
2. Unsigned (0..255 around 128) is exact on every CPU. Signed is 7 bits (-63..63): pairs of full 8-bit products overflow
   the 16-bit sums of CPUs without VNNI (relative L2 0.034, more than the quantization error itself).
3. W becomes W_quantized, W_scale, W_zero_point. An update finds the weights of its base by these names.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from packager.quantize.graphs import WeightUse, array_of, fresh_name

UNSIGNED_LEVELS: Final = 127
SIGNED_LEVELS: Final = 63
MIDDLE: Final = 128


@dataclass(frozen=True, slots=True)
class LevelNames:
    """Names of the three initializers of one quantized weight, and its float32 scales [channels] or []."""

    levels: str
    scale: str
    zero_point: str
    scales: np.ndarray


def to_scales(weight: np.ndarray, axis: int | None, levels: int) -> np.ndarray:
    """float32 [channels], or [] where `axis` is None: the largest magnitude falls on the outermost level (rule 1)."""
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    largest = np.asarray(np.abs(weight.astype(np.float64)).max(axis=others))
    return np.asarray(np.where(largest > 0, largest / levels, 1.0), np.float32)


def to_levels(weight: np.ndarray, scales: np.ndarray, axis: int | None, *, signed: bool) -> np.ndarray:
    """int8 or uint8 levels by rounding to nearest, clipped to the symmetric range."""
    levels = SIGNED_LEVELS if signed else UNSIGNED_LEVELS
    exact = weight.astype(np.float64) / along(scales, axis, weight.ndim)
    ratio: np.ndarray = np.clip(np.rint(exact), -levels, levels)
    return ratio.astype(np.int8) if signed else (ratio + MIDDLE).astype(np.uint8)


def along(values: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
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
    signed: bool,
    min_scales: np.ndarray | None = None,
    scale_dtype: np.dtype | None = None,
) -> LevelNames:
    """Put the levels of `weight` into the graph that owns `use`'s weight.

    Args:
        use: where the weight is read; its name gives the new names.
        weight: the numbers to quantize, perhaps transposed.
        axis: of the channels, or None for one scale.
        taken: names that are in use.
        signed: rule 2.
        min_scales: scales are raised to these where given.
        scale_dtype: of the scales in the file; float32 where not given.
    """
    scales = to_scales(weight, axis, SIGNED_LEVELS if signed else UNSIGNED_LEVELS)
    if min_scales is not None:
        scales = np.maximum(scales, min_scales.astype(np.float32))
    levels = to_levels(weight, scales, axis, signed=signed)
    names = [fresh_name(f"{use.tensor.name}_{part}", taken) for part in ("quantized", "scale", "zero_point")]
    zero = np.full(scales.shape, 0 if signed else MIDDLE, levels.dtype)
    for name, array in zip(names, (levels, scales.astype(scale_dtype or np.float32), zero), strict=True):
        use.owner.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    return LevelNames(names[0], names[1], names[2], scales)


def drop_unread(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove initializers of `names` that no node reads and no graph gives any more, in every graph."""
    from packager.quantize.graphs import scopes

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
