"""Element types and exact arithmetic on them: the same bits on every CPU (docs/format.md section 9.5).

Words and rules:
1. Bits: elements are stored as little-endian unsigned integers of their width.
2. Ordered integers: the bits of a float, as a signed integer that grows with the float's value (the lower bits of
   negative floats are inverted). Integers stay as they are. Differences of ordered integers wrap around.
3. Values: IEEE doubles; IEEE singles for elements of one byte. A value becomes an element by one rounding to nearest,
   ties to even (types of two bytes: first to float32); integers saturate. A value that is not finite becomes zero,
   since the bits of computed NaNs differ between CPUs.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.unsignedinteger[Any]]
Signed = npt.NDArray[np.signedinteger[Any]]
Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Values = npt.NDArray[np.floating[Any]]  # float64, or float32 of elements of one byte


@dataclass(frozen=True, slots=True)
class ElementType:
    """One type of element.

    Attributes:
        code: its number in a patch.
        name: "f32", "i8", ….
        size: size in bytes.
        bits, signed: unsigned and signed numpy types of the same width.
        native: numpy type of its values; None for bfloat16, which numpy does not have.
        mantissa_bits, exponent_mask: of a float; zero for an integer.
    """

    code: int
    name: str
    size: int
    bits: Any
    signed: Any
    native: Any
    mantissa_bits: int = 0
    exponent_mask: int = 0

    @property
    def is_float(self) -> bool:
        """True if the type has an exponent."""
        return self.exponent_mask != 0


def _integer_type(code: int, name: str) -> ElementType:
    size = int(name[1:]) // 8
    signed, unsigned = np.dtype(f"<i{size}"), np.dtype(f"<u{size}")
    return ElementType(code, name, size, unsigned, signed, signed if name[0] == "i" else unsigned)


def _float_type(code: int, name: str, size: int, mantissa_bits: int, exponent_mask: int) -> ElementType:
    native = None if name == "bf16" else np.dtype(f"<f{size}")
    return ElementType(
        code, name, size, np.dtype(f"<u{size}"), np.dtype(f"<i{size}"), native, mantissa_bits, exponent_mask
    )


ELEMENT_TYPES: Final[tuple[ElementType, ...]] = (
    _float_type(0, "f32", 4, 23, 255),
    _float_type(1, "f16", 2, 10, 31),
    _float_type(2, "bf16", 2, 7, 255),
    _float_type(3, "f64", 8, 52, 2047),
    *(_integer_type(4 + i, name) for i, name in enumerate(("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"))),
)
ELEMENT_TYPE_BY_NAME: Final = {kind.name: kind for kind in ELEMENT_TYPES}


def to_ordered(bits: Bits, kind: ElementType) -> Signed:
    """Return the ordered integers of elements (rule 2).

    Args:
        bits: elements, any shape.
        kind: their type.
    """
    values: Signed = bits.view(kind.signed)
    return _mirror_negatives(values, kind, None) if kind.is_float else values


def from_ordered(values: Signed, kind: ElementType, out: Bits | None = None) -> Bits:
    """Return the elements of ordered integers (rule 2); the map is its own inverse.

    Args:
        values: ordered integers, any shape.
        kind: the type of the elements.
        out: takes the result if given; same shape.
    """
    if not kind.is_float:
        if out is None:
            return values.view(kind.bits)
        out[:] = values.view(kind.bits)
        return out
    bits: Bits = _mirror_negatives(values, kind, None if out is None else out.view(kind.signed)).view(kind.bits)
    return bits


def _mirror_negatives(values: Signed, kind: ElementType, out: Signed | None) -> Signed:
    lower = np.right_shift(values, 8 * kind.size - 1, out=out)
    np.bitwise_and(lower, np.iinfo(kind.signed).max, out=lower)
    mirrored: Signed = np.bitwise_xor(lower, values, out=lower)
    return mirrored


def exponent_fields(bits: Bits, kind: ElementType) -> npt.NDArray[np.int16]:
    """Return the biased exponent field of each float; 1 for subnormal numbers, whose stored field is 0.

    Args:
        bits: elements of a float type.
        kind: their type.
    """
    if kind.exponent_mask > 255:
        field = np.right_shift(bits, kind.mantissa_bits).astype(np.int16)
        np.bitwise_and(field, kind.exponent_mask, out=field)
        return np.maximum(field, 1, out=field)
    small = _exponent_bytes(bits, kind)
    np.bitwise_and(small, kind.exponent_mask, out=small)
    return np.maximum(small, 1, out=small).astype(np.int16)


def exponent_bytes(bits: Bits, kind: ElementType) -> bytes:
    """Return one byte per float: its low bits are the exponent field, its high bits are undefined.

    Args:
        bits: elements of a float type other than f64.
        kind: their type.
    """
    return _exponent_bytes(bits, kind).tobytes()


def _exponent_bytes(bits: Bits, kind: ElementType) -> npt.NDArray[np.uint8]:
    return np.right_shift(bits, kind.mantissa_bits).astype(np.uint8)


def to_values(bits: Bits, kind: ElementType) -> Values:
    """Return the values that predictions are computed with (rule 3).

    Args:
        bits: elements.
        kind: their type.

    Returns:
        float32 for elements of one byte, else float64.
    """
    return bits.view(kind.native).astype(np.float32) if kind.size == 1 else to_doubles(bits, kind)


def to_doubles(bits: Bits, kind: ElementType) -> Doubles:
    """Return the elements' values as float64; 64-bit integers are rounded.

    Args:
        bits: elements.
        kind: their type.
    """
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if kind.native is None:
            return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32).astype(np.float64)
        values: Doubles = bits.view(kind.native).astype(np.float64)
    return values


def to_singles(bits: Bits, kind: ElementType) -> Singles:
    """Return the exact float32 values of floats of at most four bytes.

    Args:
        bits: elements.
        kind: a float type of at most four bytes.
    """
    if kind.native is None:
        return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    return bits.view(kind.native).astype(np.float32) if kind.size > 2 else _from_float16(bits)


def from_singles(singles: Singles, kind: ElementType) -> Bits:
    """Round finite float32 values to elements (the last rounding of rule 3).

    Args:
        singles: overwritten.
        kind: a float type of at most four bytes.
    """
    if kind.size > 2:
        return singles.view(kind.bits)
    return _to_float16(singles.view(np.uint32)) if kind.native is not None else _to_bfloat16(singles.view(np.uint32))


def from_values(values: Values, kind: ElementType) -> Bits:
    """Round values to elements (rule 3).

    Args:
        values: overwritten: values that are not finite become zero.
        kind: the type of the elements.
    """
    if not kind.is_float:
        return round_to_integers(values, kind).astype(kind.native).view(kind.bits)
    _replace_non_finite(values)
    with np.errstate(over="ignore"):
        if kind.size > 2:
            return values.astype(kind.native, copy=False).view(kind.bits)
        return from_singles(values.astype(np.float32), kind)


def round_to_integers(values: Values, kind: ElementType) -> Values:
    """Round values to the integers of a type and saturate them, as floats (rule 3).

    Args:
        values: overwritten: values that are not finite become zero.
        kind: an integer type.
    """
    _replace_non_finite(values)
    limits = np.iinfo(kind.native)
    rounded: Values = np.rint(values)
    np.maximum(rounded, float(limits.min), out=rounded)
    return np.minimum(rounded, float(limits.max), out=rounded)


def _replace_non_finite(values: Values) -> None:
    is_finite = np.isfinite(values)
    if not is_finite.all():
        values[~is_finite] = 0.0


def _to_bfloat16(single: npt.NDArray[np.uint32]) -> Bits:
    """Round the bits of float32, which are overwritten, to bfloat16."""
    odd = np.right_shift(single, 16)
    odd &= 1
    odd += 0x7FFF
    single += odd
    return np.right_shift(single, 16, out=single).astype(np.uint16)


def _from_float16(bits: Bits) -> Singles:
    """Convert float16 to float32 by vector operations; the product is exact, for subnormal numbers too."""
    wide = bits.astype(np.uint32)
    sign = wide & 0x8000
    wide &= 0x7FFF
    if wide.max(initial=0) >= 0x7C00:  # infinity, NaN
        return bits.view(np.float16).astype(np.float32)
    wide <<= 13
    singles = wide.view(np.float32)
    singles *= np.float32(2.0**112)
    sign <<= 16
    wide |= sign
    return singles


def _to_float16(single: npt.NDArray[np.uint32]) -> Bits:
    """Round the bits of float32, which are overwritten, to float16; numpy's conversion is scalar."""
    sign = np.right_shift(single, 16)
    sign &= 0x8000
    single &= 0x7FFFFFFF
    if single.max(initial=0) > 0x47800000:  # 2^16: it becomes infinity, as everything above it does
        np.minimum(single, 0x47800000, out=single)
    power = single & 0x7F800000
    np.maximum(power, 0x38800000, out=power)  # 2^-14: smaller float16 numbers have the last place of this exponent
    # The last place of float32 in x + 2^13 * power is the last place of float16 in x: the sum rounds x to float16.
    single = (single.view(np.float32) + (power + (13 << 23)).view(np.float32)).view(np.uint32)
    single -= power + (13 << 23)
    power >>= 13
    single += power
    single -= (
        113 << 10
    )  # changes the exponent's bias from 127 to 15, and removes the leading one that `single` contains
    single |= sign
    return single.astype(np.uint16)
