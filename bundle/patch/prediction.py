"""Predictions: elements computed from the base's, bit for bit the same on every CPU.

Rules:
1. Each operation is one IEEE operation on values (bundle/patch/elements.py, rule 3): base * gain, + product, one
   rounding; none are fused. With singles the product is rounded to one first, and so are AFFINE's numbers.
2. Nearness of a float is e or, where e > 3, 7 - e, for the number e of the three bits of the double that follow those
   that the element's mantissa keeps; it was rounded up where e > 3 and the double is positive, or neither. Of an
   integer it is floor(8 * |value - rounded|), at most 3; it was rounded up where value < rounded. f64 has none.
3. A block is computed chunk by chunk, so that what is computed on the way stays in the processor's cache.
4. One operation on singles gives the same bits in singles as in doubles that are rounded then: a double has more than
   twice a single's places and two (Figueroa, "When is double rounding innocuous?", 1995). So what has a gain alone or a
   product of singles alone is computed in singles, unless nearness or a number that is not finite asks for doubles.
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
    """Predicted elements, and how they were rounded where that is asked for.

    Attributes:
        bits: the predicted elements.
        nearness: uint8 0 to 3 by element, or None.
        is_above: was the prediction rounded up, by element, or None.
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
    """How a base's values become predictions.

    Attributes:
        run: changes values in place; takes the index of the first of them too.
        is_single: it is one operation with singles (rule 4).
    """

    run: Callable[[Values, int], None]
    is_single: bool


def affine_computation(factor: float, offset: float) -> Computation:
    """base * factor + offset; one multiplication, one addition."""

    def run(values: Values, _: int) -> None:
        values *= values.dtype.type(factor)
        values += values.dtype.type(offset)

    return Computation(run, is_single=False)


def parameter_computation(parameters: Parameters, has_product: bool) -> Computation:
    """base * gain + low-rank product, for the elements of the tensor that the parameters are for."""
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
    """Rule 3: how a block is cut, from 0 to `count`.

    Args:
        first: index of the block's first element in its tensor.
        columns: of a low-rank product; 0 where there is none. Cuts are between rows then, or they would be multiplied
            twice.
    """
    step = max(1, CHUNK_ELEMENTS // columns) * columns if columns else CHUNK_ELEMENTS
    begin = step - first % columns if columns and first % columns else 0
    return list(pairwise(sorted({0, *range(begin, count, step), count})))


def compute_chunk(
    bits: Bits, kind: ElementType, compute: Computation, start: int, *, has_rounding_class: bool
) -> Prediction:
    """The prediction for one chunk.

    Args:
        bits: the base's elements.
        start: index of the first, for `compute`.
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
    # Both are floats still: an integer type's own values would have to be converted once more.
    nearest = round_to_integers(values, kind)
    np.subtract(values, nearest, out=values)
    is_above = values < 0
    np.abs(values, out=values)
    np.multiply(values, 8.0, out=values)
    np.minimum(values, 3.0, out=values)
    return Prediction(nearest.astype(kind.native).view(kind.bits), values.astype(np.uint8), is_above)


def predict_with_parameters(
    bits: Bits, kind: ElementType, parameters: Parameters, first: int, *, has_rounding_class: bool
) -> Prediction:
    """The prediction for a whole block: base * gain + product, for the elements of a tensor from `first` on."""
    count = len(bits)
    columns = parameters.product_columns(first, count, "parameters")
    compute = parameter_computation(parameters, bool(columns))
    out = np.empty_like(bits)
    nearness = np.empty(count, np.uint8) if has_rounding_class else None
    is_above = np.empty(count, np.bool_) if has_rounding_class else None
    with np.errstate(all="ignore"):
        for start, end in chunk_bounds(first, count, columns):
            part = compute_chunk(bits[start:end], kind, compute, first + start, has_rounding_class=has_rounding_class)
            out[start:end] = part.bits
            if nearness is not None and part.rounding_class is not None:
                nearness[start:end] = part.rounding_class
            if is_above is not None and part.rounded_up is not None:
                is_above[start:end] = part.rounded_up
    return Prediction(out, nearness, is_above)


def _float_rounding_classes(
    values: Values, bits: Bits, kind: ElementType
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Rule 2."""
    # The three bits of the double under the last one that the element keeps; the sign turns with the number's.
    word, shift = divmod(52 - kind.mantissa_bits - 3, 16)
    eighths = np.right_shift(values.view("<u2")[word::4], shift).astype(np.uint8)
    eighths &= 7
    is_above = eighths > 3
    np.minimum(eighths, 7 - eighths, out=eighths)
    is_above ^= bits.view(kind.signed) < 0
    return eighths, is_above


def apply_periodic(
    operation: np.ufunc, out: npt.NDArray[Item], values: npt.NDArray[Any], inner: int, first: int
) -> None:
    """out[i] = operation(out[i], values[((first + i) // inner) % len(values)]), without a division for each element."""
    count, period = len(out), len(values) * inner
    first %= period
    if len(values) == 1:
        operation(out, values[0], out=out)
    elif inner >= MIN_ROW_ELEMENTS:
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
        line = np.tile(values.repeat(inner), 1 + MIN_ROW_ELEMENTS // period)
        head = min(count, len(line) - first)
        rows, rest = divmod(count - head, len(line))
        middle, end = out[head : head + rows * len(line)].reshape(rows, len(line)), count - rest
        operation(out[:head], line[first : first + head], out=out[:head])
        operation(middle, line, out=middle)
        operation(out[end:], line[:rest], out=out[end:])


def flip_signs(residual: Signed, is_flipped: npt.NDArray[np.bool_]) -> None:
    """Negate in place where asked: two's complement by hand, since numpy's masked negation is ten times as slow."""
    masks = np.negative(is_flipped.view(np.int8)).astype(residual.dtype, copy=False)
    residual ^= masks
    residual -= masks
