"""Predictor parameters: set by PARAM frames, used by TYPED frames (docs/format.md section 9.6).

Payload: kind (byte), then

    CLEAR  nothing: all parameters are dropped.
    GAIN   count, inner (varints), numbers.
    LEFT   first row, rows, rank (varints), shift (signed varint), rank finer shifts (bytes), numbers.
    RIGHT  columns, rank (varints), shift (signed varint), rank finer shifts (bytes), numbers.

Symbols, for element i of a tensor seen as a matrix [rows, columns], row = i // columns, column = i % columns:

    g  gains, float32 values [count]        of element i: g[(i // inner) % count]
    L  left factor, int32 [rank, rows]      with shifts l[k] = shift + finer[k]
    R  right factor, int32 [rank, columns]  with shifts r[k] = shift + finer[k]

    prediction(i) = base(i) * g[(i // inner) % count] + sum over k of (L[k, row] / 2^l[k]) * (R[k, column] / 2^r[k])

Rules:
1. Gains are finite. They are stored as differences of their float32 bits from the bits of 1.0, as gains are near 1.
2. The sums of products are exact in doubles, in any order: with u = max over k of (l[k] + r[k]), the products are
   multiples of 2^-u, and the decoder refuses factors whose sums may reach 2^(52 - u). So neither the order of a BLAS
   nor a fused multiply changes a bit. If the sums stay below 2^(23 - u), singles are exact too, and twice as fast.
3. All parameters in force, at eight bytes per number, stay within the announced `parameter_bytes`.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from bundle.errors import PatchCorrupt, PatchLimitExceeded
from bundle.patch.coders import read_numbers
from bundle.patch.elements import Doubles, Values
from bundle.patch.numbers import Cursor

MAX_SHIFT: Final = 256
MAX_RANK: Final = 1024
FLOAT32_ONE_BITS: Final = 0x3F800000  # the bits of 1.0 in float32
EXACT_BITS: Final = 53
EXACT_SINGLE_BITS: Final = 24
MAX_SINGLE_SHIFT: Final = 50  # sums of products then lie between 2^-100 and 2^123, inside the range of singles


class ParameterKind(IntEnum):
    """The parameter that a PARAM frame sets."""

    CLEAR = 0
    GAIN = 1
    LEFT = 2
    RIGHT = 3


@dataclass(frozen=True, slots=True)
class Gain:
    """Factors by channel: element i of the tensor is multiplied by factors[(i // inner) % count].

    Attributes:
        factors: float64 [count], each the value of a float32.
        inner: consecutive elements that share a factor.
    """

    factors: Doubles
    inner: int


@dataclass(frozen=True, slots=True)
class Factor:
    """One side of a low-rank product.

    Attributes:
        values: float64 [rank, rows or columns], the integers times 2^-shift.
        shifts: binary shift of each rank.
        first_row: row of the tensor that the first value of each rank is for; 0 for the right side.
    """

    values: Doubles
    shifts: tuple[int, ...]
    first_row: int


class Parameters:
    """The parameters in force.

    Args:
        limit_bytes: the announced `parameter_bytes`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.gain: Gain | None = None
        self.left: Factor | None = None
        self.right: Factor | None = None
        self._is_checked = False
        self._single_factors: tuple[Values, Values] | None = None

    def decode(self, payload: bytes, where: str) -> None:
        """Apply the payload of a PARAM frame.

        Args:
            payload: content of the frame.
            where: name of the frame in errors.

        Raises:
            PatchCorrupt: the payload is damaged or breaks a rule of docs/format.md section 9.6.
            PatchLimitExceeded: more parameters than announced.
            PatchFeatureUnsupported: a part needs pcodec, which is not installed.
        """
        cursor = Cursor(payload, where)
        kind = cursor.read_byte()
        self._is_checked, self._single_factors = False, None
        match kind:
            case ParameterKind.CLEAR:
                self.gain = self.left = self.right = None
            case ParameterKind.GAIN:
                self.gain = None
                self.gain = self._read_gain(cursor)
            case ParameterKind.LEFT:
                self.left = None
                self.left = self._read_factor(cursor, cursor.read_varint())
            case ParameterKind.RIGHT:
                self.right = None
                self.right = self._read_factor(cursor, 0)
            case _:
                raise PatchCorrupt(f"{where}: unknown parameter kind {kind}")
        cursor.check_end()

    def product_columns(self, first: int, count: int, where: str) -> int:
        """Return the columns of the low-rank product in force, or 0 without one.

        Args:
            first: index of the block's first element in its tensor.
            count: elements of the block.
            where: name of the frame in errors.

        Raises:
            PatchCorrupt: only one factor is in force, the factors do not fit, or they do not cover the block.
        """
        if self.left is None and self.right is None:
            return 0
        if self.left is None or self.right is None:
            raise PatchCorrupt(f"{where}: only one side of a low-rank product is in force")
        self._check_exact(self.left, self.right, where)
        columns = int(self.right.values.shape[1])
        row, end = first // columns, -(-(first + count) // columns)
        if row < self.left.first_row or end > self.left.first_row + self.left.values.shape[1]:
            raise PatchCorrupt(
                f"{where}: rows {row} to {end}, the left factor has {self.left.first_row} to "
                f"{self.left.first_row + self.left.values.shape[1]}"
            )
        return columns

    @property
    def is_product_single(self) -> bool:
        """True if the products are singles; `product_columns` must have been called."""
        return self._single_factors is not None

    def product(self, first: int, count: int) -> Values:
        """Return the low-rank product for a range of elements; `product_columns` must have checked it.

        Args:
            first: index of the first element in its tensor.
            count: number of elements.

        Returns:
            float32 or float64 [count].
        """
        assert self.left is not None
        assert self.right is not None
        left, right = self._single_factors or (self.left.values, self.right.values)
        columns = right.shape[1]
        row, end = first // columns, -(-(first + count) // columns)
        skip = first - row * columns
        rows = left[:, row - self.left.first_row : end - self.left.first_row]
        if end - row == 1:
            # Multiply only the needed columns: a row may be far longer than a block.
            return (rows.T @ right[:, skip : skip + count]).reshape(-1)
        product: Values = (rows.T @ right).reshape(-1)
        return product[skip : skip + count]

    def _read_gain(self, cursor: Cursor) -> Gain:
        count, inner = cursor.read_varint(), cursor.read_varint()
        if count == 0 or inner == 0:
            raise PatchCorrupt(
                f"{cursor.where}: gain of {count} factors over {inner} elements, expected at least 1 of both"
            )
        self._reserve(count, cursor.where)
        factors = (read_numbers(cursor, count) + np.int32(FLOAT32_ONE_BITS)).view(np.float32)
        if not np.isfinite(factors).all():
            raise PatchCorrupt(f"{cursor.where}: gain that is not finite")
        return Gain(factors.astype(np.float64), inner)

    def _read_factor(self, cursor: Cursor, first: int) -> Factor:
        length, rank = cursor.read_varint(), cursor.read_varint()
        if not 0 < rank <= MAX_RANK or length == 0:
            raise PatchCorrupt(
                f"{cursor.where}: factor of rank {rank} and length {length}, expected rank 1 to {MAX_RANK} and length "
                "above 0"
            )
        self._reserve(rank * length, cursor.where)
        lowest = cursor.read_signed_varint()
        shifts = tuple(lowest + finer for finer in cursor.take(rank))
        if lowest < -MAX_SHIFT or max(shifts) > MAX_SHIFT:
            raise PatchCorrupt(f"{cursor.where}: shift outside of [-{MAX_SHIFT}, {MAX_SHIFT}]")
        values = read_numbers(cursor, rank * length).astype(np.float64).reshape(rank, length)
        values *= np.ldexp(1.0, [-shift for shift in shifts])[:, None]
        return Factor(values, shifts, first)

    def _reserve(self, numbers: int, where: str) -> None:
        numbers_in_force = sum(part.values.size for part in (self.left, self.right) if part is not None)
        numbers_in_force += self.gain.factors.size if self.gain is not None else 0
        if 8 * (numbers_in_force + numbers) > self._limit_bytes:
            raise PatchLimitExceeded(
                f"{where}: parameters of {8 * (numbers_in_force + numbers)} bytes, the header announced "
                f"{self._limit_bytes}"
            )

    def _check_exact(self, left: Factor, right: Factor, where: str) -> None:
        if self._is_checked:
            return
        if len(left.shifts) != len(right.shifts):
            raise PatchCorrupt(
                f"{where}: factors of rank {len(left.shifts)} and {len(right.shifts)}, expected equal ranks"
            )
        if not is_exact(left, right):
            raise PatchCorrupt(f"{where}: low-rank sums might not be exact in doubles")
        self._single_factors = None
        shifts = left.shifts + right.shifts
        if max(map(abs, shifts)) <= MAX_SINGLE_SHIFT and is_exact(left, right, EXACT_SINGLE_BITS):
            self._single_factors = left.values.astype(np.float32), right.values.astype(np.float32)
        self._is_checked = True


def is_exact(left: Factor, right: Factor, bits: int = EXACT_BITS) -> bool:
    """Return whether all sums of products stay below 2^(bits - 1) units of the smallest product.

    Args:
        left: float64 [rank, rows].
        right: float64 [rank, columns].
        bits: precision of the floats that the sums are computed with.
    """
    unit = max(a + b for a, b in zip(left.shifts, right.shifts, strict=True))
    largest = (_row_maxima(left.values) * _row_maxima(right.values)).sum()
    return bool(largest < np.ldexp(1.0, bits - 1 - unit))


def _row_maxima(values: Doubles) -> Doubles:
    """Return the largest magnitude of each row."""
    largest: Doubles = np.maximum(values.max(axis=1), -values.min(axis=1))
    return largest
