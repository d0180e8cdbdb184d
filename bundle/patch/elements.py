"""Element types, and exact arithmetic on them: the same bits on every CPU.

Rules:
1. Elements travel as little-endian unsigned integers of their width ("bits").
2. Order: a float's bits are mapped to a signed integer that grows with its value (negative floats have their lower
   bits inverted); integers stay as they are. Differences of ordered integers wrap around.
3. Values are IEEE doubles. A double goes back to an element by one rounding to nearest, ties to even (bfloat16: by way
   of float32); integers saturate. A value that is not finite counts as zero: the bits of computed NaNs differ by CPU.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.unsignedinteger[Any]]
Signed = npt.NDArray[np.signedinteger[Any]]
Doubles = npt.NDArray[np.float64]


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


def _integer(code: int, name: str) -> ElementType:
    size = int(name[1:]) // 8
    signed, unsigned = np.dtype(f"<i{size}"), np.dtype(f"<u{size}")
    return ElementType(code, name, size, unsigned, signed, signed if name[0] == "i" else unsigned)


def _float(code: int, name: str, size: int, mantissa_bits: int, exponent_mask: int) -> ElementType:
    native = None if name == "bf16" else np.dtype(f"<f{size}")
    return ElementType(
        code, name, size, np.dtype(f"<u{size}"), np.dtype(f"<i{size}"), native, mantissa_bits, exponent_mask
    )


TYPES: Final[tuple[ElementType, ...]] = (
    _float(0, "f32", 4, 23, 255),
    _float(1, "f16", 2, 10, 31),
    _float(2, "bf16", 2, 7, 255),
    _float(3, "f64", 8, 52, 2047),
    *(_integer(4 + i, name) for i, name in enumerate(("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"))),
)
BY_NAME: Final = {kind.name: kind for kind in TYPES}


def ordered(bits: Bits, kind: ElementType) -> Signed:
    """Rule 2: bits to ordered integers."""
    values: Signed = bits.view(kind.signed)
    if not kind.is_float:
        return values
    lower: Signed = np.right_shift(values, 8 * kind.size - 1)
    np.bitwise_and(lower, np.iinfo(kind.signed).max, out=lower)
    np.bitwise_xor(lower, values, out=lower)
    return lower


def unordered(values: Signed, kind: ElementType) -> Bits:
    """Rule 2, back: the map is its own inverse."""
    bits: Bits = ordered(values.view(kind.bits), kind).view(kind.bits)
    return bits


def exponents(bits: Bits, kind: ElementType) -> npt.NDArray[np.int16]:
    """The biased exponent field of each float, at least 1 (as denormals have it)."""
    field = np.right_shift(bits, kind.mantissa_bits).astype(np.int16)
    np.bitwise_and(field, kind.exponent_mask, out=field)
    return np.maximum(field, 1, out=field)


def to_doubles(bits: Bits, kind: ElementType) -> Doubles:
    """The elements' values; 64-bit integers are rounded."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if kind.native is None:
            return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32).astype(np.float64)
        values: Doubles = bits.view(kind.native).astype(np.float64)
    return values


def from_doubles(values: Doubles, kind: ElementType) -> Bits:
    """Rule 3. `values` is used up: what is not finite in it becomes zero."""
    if not np.isfinite(values).all():
        values[~np.isfinite(values)] = 0.0
    with np.errstate(over="ignore"):
        if kind.native is None:
            single = values.astype(np.float32).view(np.uint32)
            single += 0x7FFF + ((single >> 16) & 1)
            return (single >> 16).astype(np.uint16)
        if kind.is_float:
            return values.astype(kind.native).view(kind.bits)
    limits = np.iinfo(kind.native)
    rounded = np.rint(values)
    np.clip(rounded, float(limits.min), float(limits.max), out=rounded)
    return rounded.astype(kind.native).view(kind.bits)
