"""Predictions: elements computed from the base's, bit for bit the same on every CPU.

The format is docs/format.md sections 9.6 and 9.7.

Symbols, for a chunk of n elements:

    x(i)  float64 [n]    value of the base's element; float32 for elements of one byte
    y(i)  float64 [n]    x(i) * gain(i) + product(i), or x(i) * factor + offset; the prediction before rounding
    p(i)  bits [n]       y(i) rounded to the element type
    c(i)  uint8 [n]      rounding class, 0 to 3: how far p(i) is from y(i)
    up(i) bool [n]       p(i) > y(i)

Theory of rounding classes. The target was often computed from the base by the same formula with slightly other numbers,
and then rounded. If y(i) is close to an element, the target is probably that element; if y(i) is halfway between two
elements, the other one is nearly as likely. So c(i) separates residuals that are nearly always 0 from those that are 0
or 1, and becomes a part of the sort key (keyed.py). The other candidate is below p(i) if up(i), else above. So the
residual is negated if up(i): the likely residual other than 0 is then always +1.

    float    e(i) = the three bits of the double y(i) after the last mantissa bit that the element keeps, 0 to 7;
             c = min(e, 7 - e), which is 0 close to an element and 3 halfway between two;
             up = (e > 3), inverted if the element is negative, since bits of the magnitude are compared
    integer  c = min(3, floor(8 * |y - p|)), up = (y < p)

f64 has no rounding classes: its double keeps no bits beyond the element's.

Rules:
1. Each operation is one IEEE operation on values (rule 3 of elements.py): x * gain, + product, one rounding. None are
   fused. With singles, gains, products and AFFINE's numbers are rounded to singles first.
2. A block is computed in chunks, so that intermediate arrays stay in the processor's cache.
3. One operation on singles gives the same bits as the same operation in doubles followed by a rounding to single,
   because a double has more than twice a single's mantissa bits plus two (Figueroa, "When is double rounding
   innocuous?", 1995). So a gain alone, or a product of singles alone, is computed in singles, unless rounding classes
   or a value that is not finite require doubles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import (
    Bits,
    ElementType,
    Signed,
    Values,
    from_singles,
    from_values,
    round_to_integers,
    to_singles,
    to_values,
)
from bundle.patch.parameters import Parameters

Item = TypeVar("Item", bound=np.generic)

MIN_ROW_ELEMENTS: Final = 256
CHUNK_ELEMENTS: Final = 1 << 15
SINGLE_BYTES: Final = 4


class Prediction:
    """Predicted elements and, on request, how they were rounded.

    Attributes:
        bits: p, the predicted elements [n].
        rounding_class: c, uint8 [n], or None.
        rounded_up: up, bool [n], or None.
    """

    __slots__ = ("bits", "rounded_up", "rounding_class")

    def __init__(
        self, bits: Bits, rounding_class: npt.NDArray[np.uint8] | None, rounded_up: npt.NDArray[np.bool_] | None
    ) -> None:
        self.bits = bits
        self.rounding_class = rounding_class
        self.rounded_up = rounded_up


@dataclass(frozen=True, slots=True)
class Computation:
    """The formula that turns a base's values into predictions.

    Attributes:
        run: changes values in place; its second argument is the index of the first value in its tensor.
        is_single: True if it is one operation with singles (rule 3).
    """

    run: Callable[[Values, int], None]
    is_single: bool


def affine_computation(factor: float, offset: float) -> Computation:
    """Return the formula x * factor + offset: one multiplication and one addition.

    Args:
        factor: float64, as stored in the patch.
        offset: float64, as stored in the patch.
    """

    def run(values: Values, _: int) -> None:
        values *= values.dtype.type(factor)
        values += values.dtype.type(offset)

    return Computation(run, is_single=False)


def parameter_computation(parameters: Parameters, has_product: bool) -> Computation:
    """Return the formula x * gain + product for the parameters in force.

    Args:
        parameters: parameters in force when the block is decoded.
        has_product: False leaves out the low-rank product.
    """
    gain = parameters.gain
    factors = (
        {dtype: gain.factors.astype(dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))} if gain else {}
    )

    def run(values: Values, start: int) -> None:
        if gain is not None:
            apply_periodic(np.multiply, values, factors[values.dtype], gain.inner, start)
        if has_product:
            values += parameters.product(start, len(values)).astype(values.dtype, copy=False)

    return Computation(run, is_single=not has_product or (gain is None and parameters.is_product_single))


def chunk_bounds(first: int, count: int, columns: int) -> list[tuple[int, int]]:
    """Return the start and end of each chunk of a block, in elements from the block's start.

    Args:
        first: index of the block's first element in its tensor.
        count: elements of the block.
        columns: columns of the low-rank product; 0 without one. Cuts then lie between rows, since a row that is cut is
            multiplied twice.
    """
    step = max(1, CHUNK_ELEMENTS // columns) * columns if columns else CHUNK_ELEMENTS
    begin = step - first % columns if columns and first % columns else 0
    return list(pairwise(sorted({0, *range(begin, count, step), count})))


def compute_chunk(
    bits: Bits, kind: ElementType, compute: Computation, start: int, *, has_rounding_class: bool
) -> Prediction:
    """Compute the prediction for one chunk.

    Args:
        bits: the base's elements [n].
        kind: their type.
        compute: the formula.
        start: index of the first element in its tensor.
        has_rounding_class: compute rounding classes too.
    """
    if compute.is_single and not has_rounding_class and kind.is_float and kind.size <= SINGLE_BYTES:
        singles = to_singles(bits, kind)
        compute.run(singles, start)
        if np.isfinite(singles).all():
            return Prediction(from_singles(singles, kind), None, None)
    values = to_values(bits, kind)
    compute.run(values, start)
    if not has_rounding_class:
        return Prediction(from_values(values, kind), None, None)
    if kind.is_float:
        rounded = from_values(values, kind)
        return Prediction(rounded, *_float_rounding_classes(values, rounded, kind))
    # `values` and `nearest` are both floats: comparing with the integer elements would need another conversion.
    nearest = round_to_integers(values, kind)
    np.subtract(values, nearest, out=values)
    rounded_up = values < 0
    np.abs(values, out=values)
    np.multiply(values, 8.0, out=values)
    np.minimum(values, 3.0, out=values)
    return Prediction(nearest.astype(kind.native).view(kind.bits), values.astype(np.uint8), rounded_up)


def predict_with_parameters(
    bits: Bits, kind: ElementType, parameters: Parameters, first: int, *, has_rounding_class: bool
) -> Prediction:
    """Compute the prediction x * gain + product for a whole block; used by the encoder.

    Args:
        bits: the base's elements [n].
        kind: their type.
        parameters: the gain and factors.
        first: index of the block's first element in its tensor.
        has_rounding_class: compute rounding classes too.
    """
    count = len(bits)
    columns = parameters.product_columns(first, count, "parameters")
    compute = parameter_computation(parameters, bool(columns))
    out = np.empty_like(bits)
    rounding_class = np.empty(count, np.uint8) if has_rounding_class else None
    rounded_up = np.empty(count, np.bool_) if has_rounding_class else None
    with np.errstate(all="ignore"):
        for start, end in chunk_bounds(first, count, columns):
            part = compute_chunk(bits[start:end], kind, compute, first + start, has_rounding_class=has_rounding_class)
            out[start:end] = part.bits
            if rounding_class is not None and part.rounding_class is not None:
                rounding_class[start:end] = part.rounding_class
            if rounded_up is not None and part.rounded_up is not None:
                rounded_up[start:end] = part.rounded_up
    return Prediction(out, rounding_class, rounded_up)


def _float_rounding_classes(
    values: Values, bits: Bits, kind: ElementType
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return c and up for floats (see the module's theory)."""
    # The three bits of the double after the last one that the element keeps.
    word, shift = divmod(52 - kind.mantissa_bits - 3, 16)
    eighths = np.right_shift(values.view("<u2")[word::4], shift).astype(np.uint8)
    eighths &= 7
    rounded_up = eighths > 3
    np.minimum(eighths, 7 - eighths, out=eighths)
    rounded_up ^= bits.view(kind.signed) < 0
    return eighths, rounded_up


def apply_periodic(
    operation: np.ufunc, out: npt.NDArray[Item], values: npt.NDArray[Any], inner: int, first: int
) -> None:
    """Combine `out` with values that repeat along it, without a division per element.

    out[i] = operation(out[i], values[((first + i) // inner) % len(values)])

    Args:
        operation: a binary numpy function.
        out: changed in place [n].
        values: one period's values.
        inner: consecutive elements that share a value.
        first: index of the first element.
    """
    count, period = len(out), len(values) * inner
    first %= period
    if len(values) == 1:
        operation(out, values[0], out=out)
    elif inner >= MIN_ROW_ELEMENTS:
        first_value = first // inner
        head = min(count, (first_value + 1) * inner - first)
        rows = (count - head) // inner
        # One factor for each whole run of `inner` elements; the partial runs at both ends are handled separately.
        factors = values.take(np.arange(first_value, first_value + rows + 2), mode="wrap")
        middle, end = out[head : head + rows * inner].reshape(rows, inner), head + rows * inner
        operation(out[:head], factors[0], out=out[:head])
        operation(middle, factors[1 : rows + 1, None], out=middle)
        operation(out[end:], factors[rows + 1], out=out[end:])
    elif period > count:
        first_value = first // inner
        spans = -(-(first + count) // inner) - first_value
        factors = values.take(np.arange(first_value, first_value + spans), mode="wrap").repeat(inner)
        operation(out, factors[first - first_value * inner :][:count], out=out)
    else:
        # Repeat the period until a row is long enough for vector units.
        repeated = np.tile(values.repeat(inner), 1 + MIN_ROW_ELEMENTS // period)
        head = min(count, len(repeated) - first)
        rows, rest = divmod(count - head, len(repeated))
        middle, end = out[head : head + rows * len(repeated)].reshape(rows, len(repeated)), count - rest
        operation(out[:head], repeated[first : first + head], out=out[:head])
        operation(middle, repeated, out=middle)
        operation(out[end:], repeated[:rest], out=out[end:])


def flip_signs(residual: Signed, is_flipped: npt.NDArray[np.bool_]) -> None:
    """Invert the signs of residuals by two's complement; numpy's masked negation takes ten times as long.

    Args:
        residual: signed integers [n], changed.
        is_flipped: bool [n].
    """
    masks = np.negative(is_flipped.view(np.int8)).astype(residual.dtype, copy=False)
    residual ^= masks
    residual -= masks
