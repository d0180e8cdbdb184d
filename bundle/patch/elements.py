"""Element types, and exact arithmetic on them: the same bits on every CPU.

Rules:
1. Elements travel as little-endian unsigned integers of their width ("bits").
2. Order: a float's bits are mapped to a signed integer that grows with its value (negative floats have their lower
   bits inverted); integers stay as they are. Differences of ordered integers wrap around.
3. Values are IEEE doubles, of elements of one byte singles. They go back to an element by one rounding to nearest, ties
   to even (types of two bytes: by way of float32); integers saturate. A value that is not finite counts as zero: the
   bits of computed NaNs differ by CPU.
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
        code: how a patch writes it.
        name: "f32", "i8", …
        size: bytes.
        bits, signed: numpy types of the same width.
        native: numpy type with its values; None for bfloat16, which numpy does not have.
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
        """Has it an exponent?"""
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
    """Rule 2: bits to ordered integers."""
    values: Signed = bits.view(kind.signed)
    return _mirror_negatives(values, kind, None) if kind.is_float else values


def from_ordered(values: Signed, kind: ElementType, out: Bits | None = None) -> Bits:
    """Rule 2, back: the map is its own inverse. Into `out` where there is one."""
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
    """The biased exponent field of each float, at least 1 (as denormals have it)."""
    if kind.exponent_mask > 255:
        field = np.right_shift(bits, kind.mantissa_bits).astype(np.int16)
        np.bitwise_and(field, kind.exponent_mask, out=field)
        return np.maximum(field, 1, out=field)
    small = _exponent_bytes(bits, kind)
    np.bitwise_and(small, kind.exponent_mask, out=small)
    return np.maximum(small, 1, out=small).astype(np.int16)


def exponent_bytes(bits: Bits, kind: ElementType) -> bytes:
    """Each float's exponent field in the lower bits of a byte, what is above it undefined; not of f64."""
    return _exponent_bytes(bits, kind).tobytes()


def _exponent_bytes(bits: Bits, kind: ElementType) -> npt.NDArray[np.uint8]:
    return np.right_shift(bits, kind.mantissa_bits).astype(np.uint8)


def to_values(bits: Bits, kind: ElementType) -> Values:
    """Rule 3: what is computed with."""
    return bits.view(kind.native).astype(np.float32) if kind.size == 1 else to_doubles(bits, kind)


def to_doubles(bits: Bits, kind: ElementType) -> Doubles:
    """The elements' values; 64-bit integers are rounded."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if kind.native is None:
            return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32).astype(np.float64)
        values: Doubles = bits.view(kind.native).astype(np.float64)
    return values


def to_singles(bits: Bits, kind: ElementType) -> Singles:
    """The values of floats of at most four bytes: exact."""
    if kind.native is None:
        return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    return bits.view(kind.native).astype(np.float32) if kind.size > 2 else _from_float16(bits)


def from_singles(singles: Singles, kind: ElementType) -> Bits:
    """Rule 3's last rounding, of finite singles, which are used up."""
    if kind.size > 2:
        return singles.view(kind.bits)
    return _to_float16(singles.view(np.uint32)) if kind.native is not None else _to_bfloat16(singles.view(np.uint32))


def from_values(values: Values, kind: ElementType) -> Bits:
    """Rule 3, back. `values` is used up: what is not finite in it becomes zero."""
    if not kind.is_float:
        return round_to_integers(values, kind).astype(kind.native).view(kind.bits)
    _replace_non_finite(values)
    with np.errstate(over="ignore"):
        if kind.size > 2:
            return values.astype(kind.native, copy=False).view(kind.bits)
        return from_singles(values.astype(np.float32), kind)


def round_to_integers(values: Values, kind: ElementType) -> Values:
    """Rule 3 for integers, before they are converted: rounded and saturated. What is not finite becomes zero."""
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
    """bfloat16 from the bits of float32, which are used up."""
    odd = np.right_shift(single, 16)
    odd &= 1
    odd += 0x7FFF
    single += odd
    return np.right_shift(single, 16, out=single).astype(np.uint16)


def _from_float16(bits: Bits) -> Singles:
    """float32 from float16, by vector operations; the product is exact, of denormals too."""
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
    """float16 from the bits of float32, which are used up. Vector operations: numpy's own conversion is scalar."""
    sign = np.right_shift(single, 16)
    sign &= 0x8000
    single &= 0x7FFFFFFF
    if single.max(initial=0) > 0x47800000:  # 2^16, which becomes infinity, as all above it
        np.minimum(single, 0x47800000, out=single)
    power = single & 0x7F800000
    np.maximum(power, 0x38800000, out=power)  # 2^-14: below it float16 has the places of this exponent
    # The last place of float32 in x + 2^13 times its power of two is the last one of float16 in x.
    single = (single.view(np.float32) + (power + (13 << 23)).view(np.float32)).view(np.uint32)
    single -= power + (13 << 23)
    power >>= 13
    single += power
    single -= 113 << 10  # the exponent's bias from 127 to 15, and the leading one that `single` holds
    single |= sign
    return single.astype(np.uint16)
