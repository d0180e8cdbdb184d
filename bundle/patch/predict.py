"""Predictions: elements computed from the base's, bit for bit the same on every CPU.

Rules:
1. Each operation is one IEEE operation on doubles: base * gain, + product, one rounding; none are fused.
2. Nearness of a float is e or, where e > 3, 7 - e, for the number e of the three bits of the double that follow those
   that the element's mantissa keeps; it was rounded up where e > 3 and the double is positive, or neither. Of an
   integer it is floor(8 * |double - rounded|), at most 3; it was rounded up where double < rounded. f64 has none.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import Bits, Doubles, ElementType, Signed, from_doubles, to_doubles
from bundle.patch.parameters import Parameters

Item = TypeVar("Item", bound=np.generic)


class Prediction:
    """Predicted elements, and how they were rounded where that is asked for.

    Attributes:
        bits: the predicted elements.
        nearness: uint8 0 to 3 by element, or None.
        is_above: was the prediction rounded up, by element, or None.
    """

    __slots__ = ("bits", "is_above", "nearness")

    def __init__(
        self, bits: Bits, nearness: npt.NDArray[np.uint8] | None, is_above: npt.NDArray[np.bool_] | None
    ) -> None:
        self.bits = bits
        self.nearness = nearness
        self.is_above = is_above


def affine_prediction(bits: Bits, kind: ElementType, factor: float, offset: float, *, is_near: bool) -> Prediction:
    """base * factor + offset; one multiplication, one addition, one rounding."""
    with np.errstate(all="ignore"):
        values = to_doubles(bits, kind)
        values *= factor
        values += offset
    return _rounded(values, kind, is_near=is_near)


def parameter_prediction(
    bits: Bits, kind: ElementType, parameters: Parameters, first: int, *, is_near: bool, where: str = ""
) -> Prediction:
    """base * gain + low-rank product, for the elements of a tensor from `first` on."""
    count = len(bits)
    with np.errstate(all="ignore"):
        values = to_doubles(bits, kind)
        gain = parameters.gain
        if gain is not None:
            values *= periodic(gain.factors, gain.inner, first, count)
        product = parameters.product(first, count, where)
        if product is not None:
            values += product
    return _rounded(values, kind, is_near=is_near)


def _rounded(values: Doubles, kind: ElementType, *, is_near: bool) -> Prediction:
    bits = from_doubles(values, kind)
    if not is_near:
        return Prediction(bits, None, None)
    if kind.is_float:
        # The three bits of the double under the last one that the element keeps; the sign turns with the number's.
        raw = values.view(np.int64)
        eighths = np.right_shift(raw, 52 - kind.mantissa_bits - 3).astype(np.int8)
        eighths &= 7
        is_above = eighths > 3
        nearness = np.minimum(eighths, 7 - eighths).view(np.uint8)
        is_above ^= raw < 0
        return Prediction(bits, nearness, is_above)
    values -= bits.view(kind.native)
    is_above = values < 0
    np.abs(values, out=values)
    nearness = np.minimum(np.multiply(values, 8.0, out=values), 3.0, out=values).astype(np.uint8)
    return Prediction(bits, nearness, is_above)


def periodic(values: npt.NDArray[Item], inner: int, first: int, count: int) -> npt.NDArray[Item]:
    """`values[(i // inner) % len(values)]` for i from `first` on, `count` of them, without a division for each."""
    if len(values) == 1:
        return np.broadcast_to(values, count)
    begin = first // inner
    spans = -(-(first + count) // inner) - begin
    repeated = np.resize(np.roll(values, -(begin % len(values))), spans)
    if inner == 1:
        return repeated
    skip = first - begin * inner
    if inner < count:
        return np.repeat(repeated, inner)[skip : skip + count]
    lengths = np.full(spans, inner)
    lengths[0] -= skip
    lengths[-1] -= (begin + spans) * inner - (first + count)
    return np.repeat(repeated, lengths)


def turn_signs(residual: Signed, is_turned: npt.NDArray[np.bool_]) -> None:
    """Negate in place where asked: two's complement by hand, since numpy's masked negation is ten times as slow."""
    masks = np.negative(is_turned.view(np.int8)).astype(residual.dtype, copy=False)
    residual ^= masks
    residual -= masks
