"""Predictions: elements computed from the base's, bit for bit the same on every CPU.

Rules:
1. Each operation is one IEEE operation on doubles: base * gain, + product, one rounding; none are fused.
2. Nearness of a float is e or, where e > 3, 7 - e, for the number e of the three bits of the double that follow those
   that the element's mantissa keeps; it was rounded up where e > 3 and the double is positive, or neither. Of an
   integer it is floor(8 * |double - rounded|), at most 3; it was rounded up where double < rounded. f64 has none.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import Bits, Doubles, ElementType, Signed, from_doubles, to_doubles
from bundle.patch.parameters import Parameters

Item = TypeVar("Item", bound=np.generic)
MIN_ROW: Final = 256
CHUNK: Final = 1 << 15


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

    def compute(values: Doubles, _: int) -> None:
        values *= factor
        values += offset

    return _computed(bits, kind, compute, range(0, len(bits), CHUNK), is_near=is_near)


def parameter_prediction(
    bits: Bits, kind: ElementType, parameters: Parameters, first: int, *, is_near: bool, where: str = ""
) -> Prediction:
    """base * gain + low-rank product, for the elements of a tensor from `first` on."""
    gain = parameters.gain
    columns = parameters.columns(first, len(bits), where)

    def compute(values: Doubles, start: int) -> None:
        if gain is not None:
            apply_periodic(np.multiply, values, gain.factors, gain.inner, first + start)
        if columns:
            values += parameters.product(first + start, len(values))

    starts = range(0, len(bits), CHUNK)
    if columns:
        # Cut between rows: those cut in two would be multiplied twice.
        step = max(1, CHUNK // columns) * columns
        starts = range(step - first % columns if first % columns else 0, len(bits), step)
    return _computed(bits, kind, compute, starts, is_near=is_near)


def _computed(
    bits: Bits, kind: ElementType, compute: Callable[[Doubles, int], None], starts: range, *, is_near: bool
) -> Prediction:
    """Chunk by chunk, so that doubles stay in the processor's cache and take little memory."""
    out = np.empty_like(bits)
    nearness = np.empty(len(bits), np.uint8) if is_near else None
    is_above = np.empty(len(bits), np.bool_) if is_near else None
    with np.errstate(all="ignore"):
        for start, end in pairwise(sorted({0, *starts, len(bits)})):
            values = to_doubles(bits[start:end], kind)
            compute(values, start)
            rounded = out[start:end]
            rounded[:] = from_doubles(values, kind)
            if nearness is not None and is_above is not None:
                nearness[start:end], is_above[start:end] = _nearness(values, rounded, kind)
    return Prediction(out, nearness, is_above)


def _nearness(values: Doubles, bits: Bits, kind: ElementType) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Rule 2. `values` are used up."""
    if kind.is_float:
        # The three bits of the double under the last one that the element keeps; the sign turns with the number's.
        word, shift = divmod(52 - kind.mantissa_bits - 3, 16)
        eighths = np.right_shift(values.view("<u2")[word::4], shift).astype(np.uint8)
        eighths &= 7
        is_above = eighths > 3
        np.minimum(eighths, 7 - eighths, out=eighths)
        is_above ^= bits.view(kind.signed) < 0
        return eighths, is_above
    values -= bits.view(kind.native)
    is_above = values < 0
    np.abs(values, out=values)
    return np.minimum(np.multiply(values, 8.0, out=values), 3.0, out=values).astype(np.uint8), is_above


def apply_periodic(
    operation: np.ufunc, out: npt.NDArray[Item], values: npt.NDArray[Any], inner: int, first: int
) -> None:
    """out[i] = operation(out[i], values[((first + i) // inner) % len(values)]), without a division for each element."""
    count, period = len(out), len(values) * inner
    first %= period
    if len(values) == 1:
        operation(out, values[0], out=out)
    elif inner >= MIN_ROW:
        begin = first // inner
        head = min(count, (begin + 1) * inner - first)
        rows = (count - head) // inner
        # One factor for each whole run of `inner` elements, and what is left at both ends.
        factors = values.take(np.arange(begin, begin + rows + 2), mode="wrap")
        middle, end = out[head : head + rows * inner].reshape(rows, inner), head + rows * inner
        operation(out[:head], factors[0], out=out[:head])
        operation(middle, factors[1 : rows + 1, None], out=middle)
        operation(out[end:], factors[rows + 1], out=out[end:])
    elif period > count:
        begin = first // inner
        spans = -(-(first + count) // inner) - begin
        factors = values.take(np.arange(begin, begin + spans), mode="wrap").repeat(inner)
        operation(out, factors[first - begin * inner :][:count], out=out)
    else:
        # The period several times in a row: runs long enough for vector units.
        line = np.tile(values.repeat(inner), 1 + MIN_ROW // period)
        head = min(count, len(line) - first)
        rows, rest = divmod(count - head, len(line))
        middle, end = out[head : head + rows * len(line)].reshape(rows, len(line)), count - rest
        operation(out[:head], line[first : first + head], out=out[:head])
        operation(middle, line, out=middle)
        operation(out[end:], line[:rest], out=out[end:])


def turn_signs(residual: Signed, is_turned: npt.NDArray[np.bool_]) -> None:
    """Negate in place where asked: two's complement by hand, since numpy's masked negation is ten times as slow."""
    masks = np.negative(is_turned.view(np.int8)).astype(residual.dtype, copy=False)
    residual ^= masks
    residual -= masks
