"""The coder KEYED: residuals sorted by a key that predicts their size (docs/format.md section 9.7).

Data: offset (signed varint), elements of a sub-block (varint), a section of classes; if UNIT is set, a section of
units; if PATTERN is set, inner and phase (varints) and a section of steps; then parts until all residuals are read.

Symbols, for a block of n elements in B = ceil(n / s) sub-blocks of s elements each:

    b(i)     sub-block of element i: i // s
    class    uint8 [B]   expected size of the sub-block's residuals, in half octaves; 0: all of them are zero
    unit     uint8 [B]   with UNIT: exponent of the step that the sub-block's residuals are multiples of
    steps    int8 [P]    with PATTERN: correction for the element's position in a period of P * inner elements
    phase    index of the block's first element in its tensor, modulo the period
    e(i)     int16 [n]   with EXPONENT: exponent field of the prediction, at least 1
    r(i)     uint8 [n]   with ROUNDING_CLASS: rounding class of the prediction, 0 to 3
    key(i)   uint8 [n]   0 to 63; 0 to 255 with ROUNDING_CLASS

Theory of operation. A coder of numbers does best if all numbers of a part have the same distribution. The key estimates
the size of a residual from data that the decoder has before it reads the residual: one class byte for each sub-block
(often a row), and the prediction itself. The steps of an optimizer have about the same absolute size everywhere, so a
residual, counted in units of the last place, halves with each step of the exponent of the prediction: one exponent step
is two half octaves, hence the factor 2 in

    key(i) = clip(class[b(i)] + steps[((phase + i) // inner) % P] - 2 * e(i) - offset, 0, 63)

Terms whose flag is not set are left out. With ROUNDING_CLASS the key becomes 4 * key(i) + r(i), because a prediction
that was hardly rounded is rarely wrong. The encoder sorts the residuals by key, stably, and cuts the sequence into
parts where the distribution changes (packager/diff/encode/residual_partitions.py). The decoder computes the same keys
from the predictions, sorts them the same way, and so knows the element of each residual. PATTERN serves convolutions,
where some positions of the kernel hardly move.

With UNIT the parts contain residual / 2^z, with z = clip(unit[b(i)] - e(i), 0, mantissa bits - 1): the values that a
quantizer leaves in float move in steps of one absolute size.

Rules:
1. Elements of class 0 equal the prediction, and have no residual in the parts.
2. If there is only one part, its residuals are in element order, and no keys are needed.
3. With UNIT all residuals are multiples of 2^z.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorrupt
from bundle.patch.coders import fill_start
from bundle.patch.elements import ElementType, Signed, exponent_bytes, exponent_fields
from bundle.patch.numbers import Cursor
from bundle.patch.prediction import Prediction, apply_periodic
from bundle.patch.sections import read_section

KEY_COUNT: Final = 64
ROUNDING_CLASS_BITS: Final = 2
MAX_SUB_BLOCK_ELEMENTS: Final = 1 << 30
MAX_OFFSET: Final = 1 << 14
MAX_TABLE_BITS: Final = 8  # bits of an exponent for which keys are looked up in a table of bytes

Keys = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]
Item = TypeVar("Item", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A correction of the key by the element's position in its tensor.

    Attributes:
        steps: int8 [P].
        inner: consecutive elements that share a step.
        phase: index of the block's first element in its tensor; may be reduced modulo P * inner.
    """

    steps: npt.NDArray[np.int8]
    inner: int
    phase: int


@dataclass(frozen=True, slots=True)
class Keying:
    """The tables that keys are computed from (see the module's symbols).

    Attributes:
        classes: uint8 [B].
        sub_block: elements of a sub-block.
        offset: subtracted from all keys.
        pattern: None without PATTERN.
        has_exponent: subtract the prediction's exponent.
        units: uint8 [B]; None without UNIT.
    """

    classes: npt.NDArray[np.uint8]
    sub_block: int
    offset: int
    pattern: Pattern | None
    has_exponent: bool
    units: npt.NDArray[np.uint8] | None = None


class KeyedResiduals:
    """The residuals of a block: all are read at once, and put into element order once all keys are known.

    Args:
        cursor: positioned at the coder's data; it is read to the end of the last part.
        kind: type of the elements.
        count: elements of the block.
        has_exponent, has_pattern, has_units: the block's flags.

    Raises:
        PatchCorrupt: a table or part is damaged, or has another length than expected.
        PatchLimitExceeded: a table is too long.
        PatchFeatureUnsupported: a part needs pcodec, which is not installed.
    """

    def __init__(
        self,
        cursor: Cursor,
        kind: ElementType,
        count: int,
        *,
        has_exponent: bool,
        has_pattern: bool,
        has_units: bool,
    ) -> None:
        offset, sub_block = cursor.read_signed_varint(), cursor.read_varint()
        if not 1 <= sub_block <= MAX_SUB_BLOCK_ELEMENTS or abs(offset) > MAX_OFFSET:
            raise PatchCorrupt(
                f"{cursor.where}: key offset {offset} and sub-blocks of {sub_block} elements, expected at most "
                f"{MAX_OFFSET} and 1 to {MAX_SUB_BLOCK_ELEMENTS}"
            )
        blocks = -(-count // sub_block)
        classes = _read_bytes(cursor, blocks, "classes")
        units = _read_bytes(cursor, blocks, "units") if has_units else None
        pattern = _read_pattern(cursor, count) if has_pattern else None
        self._keying = Keying(classes, sub_block, offset, pattern, has_exponent, units)
        self._kind, self._count = kind, count
        total = count_active(self._keying, count)
        self._packed = np.empty(total, kind.signed)
        done = parts = 0
        while done < total:
            done += fill_start(cursor, self._packed[done:])
            parts += 1
        self._keys = np.empty(count, np.uint8) if parts > 1 else None
        self._unit_zeros = np.empty(count, kind.signed) if has_units else None

    def record_keys(self, prediction: Prediction | None, start: int, end: int) -> None:
        """Compute and store the keys and units of a range of elements.

        Args:
            prediction: the prediction for these elements; None without a base.
            start: index of the first element in the block.
            end: index after the last one.
        """
        if self._unit_zeros is not None and prediction is not None:
            self._unit_zeros[start:end] = unit_zeros(prediction, self._kind, self._keying, start, end)
        if self._keys is not None:
            self._keys[start:end] = element_keys(prediction, self._kind, self._keying, start, end)

    def in_element_order(self) -> Signed:
        """Return the residual of each element, in element order; the keys of all elements must be recorded.

        Returns:
            Signed integers of the type's width [count]; the caller may overwrite them.
        """
        residual = self._unsort()
        if self._unit_zeros is not None:
            np.left_shift(residual, self._unit_zeros, out=residual)
        return residual

    def _unsort(self) -> Signed:
        if len(self._packed) == self._count and self._keys is None:
            return self._packed
        positions = active_elements(self._keying, self._count)
        if self._keys is not None:
            keys = self._keys if positions is None else self._keys[positions]
            # Keys are bytes: numpy sorts them in one radix pass. The speed for wider integers depends on the CPU.
            order = keys.argsort(kind="stable")
            positions = order if positions is None else positions[order]
        is_all = len(self._packed) == self._count
        residual: Signed = (
            np.empty(self._count, self._kind.signed) if is_all else np.zeros(self._count, self._kind.signed)
        )
        residual[positions] = self._packed
        return residual


def count_active(keying: Keying, count: int) -> int:
    """Return how many elements have a class above 0.

    Args:
        keying: the block's tables.
        count: elements of the block.
    """
    classes = keying.classes
    missing = len(classes) * keying.sub_block - count if classes[-1] else 0
    return int(np.count_nonzero(classes)) * keying.sub_block - missing


def active_elements(keying: Keying, count: int) -> Positions | None:
    """Return the indexes of the elements whose class is above 0, or None if that is all of them.

    Args:
        keying: the block's tables.
        count: elements of the block.
    """
    if keying.classes.all():
        return None
    return _expand_to_elements(keying.classes != 0, keying, 0, count).nonzero()[0]


def element_keys(prediction: Prediction | None, kind: ElementType, keying: Keying, start: int, end: int) -> Keys:
    """Return the keys of a range of elements; those of class 0 are undefined.

    Args:
        prediction: the prediction for these elements; None without a base.
        kind: type of the elements.
        keying: the block's tables.
        start: index of the first element in the block.
        end: index after the last one.

    Returns:
        uint8 [end - start].
    """
    classes = keying.classes[start // keying.sub_block : -(-end // keying.sub_block)]
    rounding_class = prediction.rounding_class if prediction is not None else None
    bits = prediction.bits if prediction is not None and keying.has_exponent else None
    first = int(classes[0])
    if keying.pattern is None and (classes == first).all() and kind.exponent_mask < 1 << MAX_TABLE_BITS:
        # One class: the key depends on the exponent alone.
        table = _key_table(kind, first - keying.offset, ROUNDING_CLASS_BITS if rounding_class is not None else 0)
        if bits is None:
            keys: Keys = np.full(end - start, table[0], np.uint8)
        else:
            keys = np.frombuffer(exponent_bytes(bits, kind).translate(table), np.uint8)
        return keys if rounding_class is None else keys | rounding_class
    if bits is not None:
        sums = exponent_fields(bits, kind)
        np.multiply(sums, -2, out=sums)
    else:
        sums = np.zeros(end - start, np.int16)
    terms = classes - np.int16(keying.offset)
    pattern = keying.pattern
    if pattern is not None:
        is_single = len(terms) == 1
        steps = pattern.steps + (terms[0] if is_single else np.int16(0))
        apply_periodic(np.add, sums, steps, pattern.inner, pattern.phase + start)
    if pattern is None or not is_single:
        sums += _expand_to_elements(terms, keying, start, end)
    keys = _clip_keys(sums)
    if rounding_class is not None:
        np.left_shift(keys, ROUNDING_CLASS_BITS, out=keys)
        keys |= rounding_class
    return keys


def unit_zeros(
    prediction: Prediction, kind: ElementType, keying: Keying, start: int, end: int
) -> npt.NDArray[np.int16]:
    """Return z, the number of zero bits that each residual ends in at least (UNIT).

    Args:
        prediction: the prediction for these elements.
        kind: type of the elements.
        keying: the block's tables, with units.
        start: index of the first element in the block.
        end: index after the last one.

    Returns:
        int16 [end - start].
    """
    assert keying.units is not None
    units = keying.units[start // keying.sub_block : -(-end // keying.sub_block)].astype(np.int16)
    zeros: npt.NDArray[np.int16] = _expand_to_elements(units, keying, start, end) - exponent_fields(
        prediction.bits, kind
    )
    return np.clip(zeros, 0, kind.mantissa_bits - 1, out=zeros)


@lru_cache(64)
def _key_table(kind: ElementType, term: int, shift: int) -> bytes:
    """Return the key for each value of `exponent_bytes`; the first one is the key of integers."""
    fields = np.arange(1 << MAX_TABLE_BITS, dtype=np.int16) & kind.exponent_mask
    keys = _clip_keys(np.int16(term) - 2 * np.maximum(fields, 1 if kind.is_float else 0))
    return (keys << shift).tobytes()


def _read_bytes(cursor: Cursor, count: int, what: str) -> npt.NDArray[np.uint8]:
    found = np.frombuffer(read_section(cursor, count, what), np.uint8)
    if len(found) != count:
        raise PatchCorrupt(f"{cursor.where}: found {len(found)} {what}, expected {count}")
    return found


def _read_pattern(cursor: Cursor, count: int) -> Pattern:
    inner, phase = cursor.read_varint(), cursor.read_varint()
    steps = np.frombuffer(read_section(cursor, count, "pattern"), np.int8)
    if not len(steps) or not inner:
        raise PatchCorrupt(
            f"{cursor.where}: pattern of {len(steps)} steps over {inner} elements, expected at least 1 of both"
        )
    return Pattern(steps, inner, phase)


def _expand_to_elements(values: npt.NDArray[Item], keying: Keying, start: int, end: int) -> npt.NDArray[Item]:
    """Repeat the values of sub-blocks, starting with that of `start`, for each of their elements."""
    skip = start % keying.sub_block
    if len(values) == 1:
        return np.broadcast_to(values, end - start)
    return values.repeat(keying.sub_block)[skip : skip + end - start]


def _clip_keys(keys: npt.NDArray[np.int16]) -> Keys:
    np.maximum(keys, 0, out=keys)
    np.minimum(keys, KEY_COUNT - 1, out=keys)
    return keys.astype(np.uint8)
