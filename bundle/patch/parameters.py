"""Predictor parameters: what PARAM frames put in force for the TYPED frames after them.

Payload: kind (byte), then
    CLEAR  nothing: all parameters are dropped.
    GAIN   count, inner (varints), numbers: the gain of element i is factor (i // inner) % count.
    LEFT   first row, rows, rank (varints), shift (signed varint), rank finer shifts (bytes), numbers (rank runs of
           `rows` integers). The shift of a rank is the sum of the two.
    RIGHT  columns, rank, shift, finer shifts, numbers (rank runs of `columns` integers).
Element i of the tensor lies at row i // columns, column i % columns; what LEFT and RIGHT add to it is the sum over k of
(left[k, row] / 2^shift) * (right[k, column] / 2^shift). Numbers are parts, as `coders.read_numbers` reads them.

Rules:
1. Gains are bits of float32, stored as differences from 1.0 and finite.
2. The sums of products are exact in doubles, in any order: the decoder checks that they stay below 2^53 units of the
   smallest product, and refuses parameters where they may not. So no BLAS and no fused multiply changes a bit. Where
   they stay below 2^24 it computes with singles, which are as exact then and twice as fast.
3. All parameters in force, at eight bytes a number, stay within the announced `parameter_bytes`.
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
MAX_SINGLE_SHIFT: Final = 50  # sums of products are from 2^-100 to 2^123: no single is too small or too large for them


class ParameterKind(IntEnum):
    """What a PARAM frame sets."""

    CLEAR = 0
    GAIN = 1
    LEFT = 2
    RIGHT = 3


@dataclass(frozen=True, slots=True)
class Gain:
    """factors: float64 [count], each a float32 value; rule in the module's text."""

    factors: Doubles
    inner: int


@dataclass(frozen=True, slots=True)
class Factor:
    """One side of a low-rank product.

    Attributes:
        values: float64 [rank, rows or columns], the integers times their 2^-shift.
        shifts: of each rank, for rule 2.
        first: the first row; 0 for the right side.
    """

    values: Doubles
    shifts: tuple[int, ...]
    first_row: int


class Parameters:
    """The parameters in force."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.gain: Gain | None = None
        self.left: Factor | None = None
        self.right: Factor | None = None
        self._is_checked = False
        self._single_factors: tuple[Values, Values] | None = None

    def decode(self, payload: bytes, where: str) -> None:
        """Take a PARAM frame's payload. Raises PatchCorruptRefused, PatchLimitRefused, PatchFeatureRefused."""
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
        """Columns of the low-rank product in force, 0 where there is none; checks that it covers these elements."""
        if self.left is None and self.right is None:
            return 0
        if self.left is None or self.right is None:
            raise PatchCorrupt(f"{where}: only one side of a low-rank product is in force")
        self._check_exact(self.left, self.right, where)
        columns = int(self.right.values.shape[1])
        row, end = first // columns, -(-(first + count) // columns)
        if row < self.left.first_row or end > self.left.first_row + self.left.values.shape[1]:
            raise PatchCorrupt(f"{where}: rows {row} to {end} are not those of the left factor")
        return columns

    @property
    def is_product_single(self) -> bool:
        """Are the products singles? `columns` has been asked."""
        return self._single_factors is not None

    def product(self, first: int, count: int) -> Values:
        """What the low-rank factors add to elements `first` to `first + count`, which `columns` has checked."""
        assert self.left is not None
        assert self.right is not None
        left, right = self._single_factors or (self.left.values, self.right.values)
        columns = right.shape[1]
        row, end = first // columns, -(-(first + count) // columns)
        skip = first - row * columns
        rows = left[:, row - self.left.first_row : end - self.left.first_row]
        if end - row == 1:
            # Not more columns than asked for: a row may be far longer than a block.
            return (rows.T @ right[:, skip : skip + count]).reshape(-1)
        product: Values = (rows.T @ right).reshape(-1)
        return product[skip : skip + count]

    def _read_gain(self, cursor: Cursor) -> Gain:
        count, inner = cursor.read_varint(), cursor.read_varint()
        if count == 0 or inner == 0:
            raise PatchCorrupt(f"{cursor.where}: a gain of {count} factors over {inner} elements")
        self._reserve(count, cursor.where)
        factors = (read_numbers(cursor, count) + np.int32(FLOAT32_ONE_BITS)).view(np.float32)
        if not np.isfinite(factors).all():
            raise PatchCorrupt(f"{cursor.where}: a gain that is not finite")
        return Gain(factors.astype(np.float64), inner)

    def _read_factor(self, cursor: Cursor, first: int) -> Factor:
        length, rank = cursor.read_varint(), cursor.read_varint()
        if not 0 < rank <= MAX_RANK or length == 0:
            raise PatchCorrupt(f"{cursor.where}: a factor of rank {rank} and length {length}")
        self._reserve(rank * length, cursor.where)
        lowest = cursor.read_signed_varint()
        shifts = tuple(lowest + finer for finer in cursor.take(rank))
        if lowest < -MAX_SHIFT or max(shifts) > MAX_SHIFT:
            raise PatchCorrupt(f"{cursor.where}: a shift beyond {MAX_SHIFT}")
        values = read_numbers(cursor, rank * length).astype(np.float64).reshape(rank, length)
        values *= np.ldexp(1.0, [-shift for shift in shifts])[:, None]
        return Factor(values, shifts, first)

    def _reserve(self, numbers: int, where: str) -> None:
        held = sum(part.values.size for part in (self.left, self.right) if part is not None)
        held += self.gain.factors.size if self.gain is not None else 0
        if 8 * (held + numbers) > self._limit_bytes:
            raise PatchLimitExceeded(
                f"{where}: parameters of {8 * (held + numbers)} bytes, announced {self._limit_bytes}"
            )

    def _check_exact(self, left: Factor, right: Factor, where: str) -> None:
        if self._is_checked:
            return
        if len(left.shifts) != len(right.shifts):
            raise PatchCorrupt(f"{where}: factors of rank {len(left.shifts)} and {len(right.shifts)}")
        if not is_exact(left, right):
            raise PatchCorrupt(f"{where}: low-rank sums may not be exact in doubles")
        self._single_factors = None
        shifts = left.shifts + right.shifts
        if max(map(abs, shifts)) <= MAX_SINGLE_SHIFT and is_exact(left, right, EXACT_SINGLE_BITS):
            self._single_factors = left.values.astype(np.float32), right.values.astype(np.float32)
        self._is_checked = True


def is_exact(left: Factor, right: Factor, bits: int = EXACT_BITS) -> bool:
    """Rule 2: are the sums of products below 2^(bits - 1) units of the smallest?"""
    unit = max(a + b for a, b in zip(left.shifts, right.shifts, strict=True))
    largest = (_row_maxima(left.values) * _row_maxima(right.values)).sum()
    return bool(largest < np.ldexp(1.0, bits - 1 - unit))


def _row_maxima(values: Doubles) -> Doubles:
    """Of each row, the largest magnitude."""
    largest: Doubles = np.maximum(values.max(axis=1), -values.min(axis=1))
    return largest
