"""The coder KEYED: residuals sorted by a key that tells how large they are likely to be, packed group by group.

Data: offset (signed varint), elements of a sub-block (varint), a section of classes; where UNIT is set a section of
units (bytes, by sub-block); where PATTERN is set inner and phase (varints) and a section of steps (signed bytes); then
parts, until all residuals are there.

Rules:
1. Sub-blocks, often rows, have a class each. Elements whose class is 0 equal the prediction and are left out.
2. key = clip(class + step - 2 * exponent(prediction) - offset, 0, 63), then 4 * key + nearness. The step of element i
   is steps[((phase + i) // inner) % their count]; it is 0 without PATTERN, the exponent is left out without EXPONENT,
   nearness without NEAR.
3. Where UNIT is set, the parts hold the residuals divided by 2^clip(unit - exponent(prediction), 0, mantissa bits - 1):
   they are whole multiples of it.
4. The sort is stable, and the parts are the sorted residuals, cut where the encoder likes. Where there is only one
   part, its elements stay in their order.

Why: the steps of an optimizer have about the same absolute size everywhere, so that in units of the last place they
fall as the exponent of what they are added to rises; and in a convolution some positions of the kernel hardly move.
What a quantizer leaves in float moves in steps that it chose, of one absolute size.
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
MAX_TABLE_BITS: Final = 8  # of an exponent that a table of bytes is looked up by

Keys = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]
Item = TypeVar("Item", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Rule 2: what an element's place in its tensor says.

    Attributes:
        steps: int8.
        inner: elements that share a step.
        phase: place of the block's first element, modulo the period or not.
    """

    steps: npt.NDArray[np.int8]
    inner: int
    phase: int


@dataclass(frozen=True, slots=True)
class Keying:
    """What keys are made of.

    Attributes:
        classes: uint8 by sub-block.
        sub_block: elements of one.
        offset: subtracted from all keys.
        pattern: or None.
        has_exponent: use the prediction's exponent.
        units: uint8 by sub-block (rule 3), or None.
    """

    classes: npt.NDArray[np.uint8]
    sub_block: int
    offset: int
    pattern: Pattern | None
    has_exponent: bool
    units: npt.NDArray[np.uint8] | None = None


class KeyedResiduals:
    """The residuals of a block: all are read at once, and put in order when all keys are known.

    Args:
        cursor: at the coder's data, which is read to its end.
        count: elements of the block.

    Raises:
        PatchCorruptRefused, PatchLimitRefused, PatchFeatureRefused.
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
            raise PatchCorrupt(f"{cursor.where}: key offset {offset} or sub-blocks of {sub_block}")
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
        """Take note of the keys and units of elements `start` to `end`, whose prediction this is."""
        if self._unit_zeros is not None and prediction is not None:
            self._unit_zeros[start:end] = unit_zeros(prediction, self._kind, self._keying, start, end)
        if self._keys is not None:
            self._keys[start:end] = element_keys(prediction, self._kind, self._keying, start, end)

    def in_element_order(self) -> Signed:
        """The residual of each element, for the caller to change; the keys of all have been learnt."""
        residual = self._unsort()
        if self._unit_zeros is not None:
            np.left_shift(residual, self._unit_zeros, out=residual)
        return residual

    def _unsort(self) -> Signed:
        if len(self._packed) == self._count and self._keys is None:
            return self._packed
        places = active_elements(self._keying, self._count)
        if self._keys is not None:
            keys = self._keys if places is None else self._keys[places]
            # One pass of numpy's radix sort; how fast wider integers are sorted depends on a CPU's vector units.
            order = keys.argsort(kind="stable")
            places = order if places is None else places[order]
        is_all = len(self._packed) == self._count
        residual: Signed = (
            np.empty(self._count, self._kind.signed) if is_all else np.zeros(self._count, self._kind.signed)
        )
        residual[places] = self._packed
        return residual


def count_active(keying: Keying, count: int) -> int:
    """How many elements are not left out (rule 1)."""
    classes = keying.classes
    missing = len(classes) * keying.sub_block - count if classes[-1] else 0
    return int(np.count_nonzero(classes)) * keying.sub_block - missing


def active_elements(keying: Keying, count: int) -> Positions | None:
    """Those that are not left out; None: all."""
    if keying.classes.all():
        return None
    return _expand_to_elements(keying.classes != 0, keying, 0, count).nonzero()[0]


def element_keys(prediction: Prediction | None, kind: ElementType, keying: Keying, start: int, end: int) -> Keys:
    """Rule 2: the keys of the elements `start` to `end`; of those that are left out they are undefined.

    Args:
        prediction: of these elements.
    """
    classes = keying.classes[start // keying.sub_block : -(-end // keying.sub_block)]
    nearness = prediction.rounding_class if prediction is not None else None
    bits = prediction.bits if prediction is not None and keying.has_exponent else None
    first = int(classes[0])
    if keying.pattern is None and (classes == first).all() and kind.exponent_mask < 1 << MAX_TABLE_BITS:
        # One class: the key depends on the exponent alone.
        table = _key_table(kind, first - keying.offset, ROUNDING_CLASS_BITS if nearness is not None else 0)
        if bits is None:
            keys: Keys = np.full(end - start, table[0], np.uint8)
        else:
            keys = np.frombuffer(exponent_bytes(bits, kind).translate(table), np.uint8)
        return keys if nearness is None else keys | nearness
    if bits is not None:
        sums = exponent_fields(bits, kind)
        np.multiply(sums, -2, out=sums)
    else:
        sums = np.zeros(end - start, np.int16)
    terms = classes - np.int16(keying.offset)
    pattern = keying.pattern
    if pattern is not None:
        is_one = len(terms) == 1
        steps = pattern.steps + (terms[0] if is_one else np.int16(0))
        apply_periodic(np.add, sums, steps, pattern.inner, pattern.phase + start)
    if pattern is None or not is_one:
        sums += _expand_to_elements(terms, keying, start, end)
    keys = _clip_keys(sums)
    if nearness is not None:
        np.left_shift(keys, ROUNDING_CLASS_BITS, out=keys)
        keys |= nearness
    return keys


def unit_zeros(
    prediction: Prediction, kind: ElementType, keying: Keying, start: int, end: int
) -> npt.NDArray[np.int16]:
    """Rule 3: how many zeros each of the residuals of elements `start` to `end` ends in at least."""
    assert keying.units is not None
    units = keying.units[start // keying.sub_block : -(-end // keying.sub_block)].astype(np.int16)
    zeros: npt.NDArray[np.int16] = _expand_to_elements(units, keying, start, end) - exponent_fields(
        prediction.bits, kind
    )
    return np.clip(zeros, 0, kind.mantissa_bits - 1, out=zeros)


@lru_cache(64)
def _key_table(kind: ElementType, term: int, shift: int) -> bytes:
    """The key for each byte of `exponent_bytes`; the first one is that of integers."""
    fields = np.arange(1 << MAX_TABLE_BITS, dtype=np.int16) & kind.exponent_mask
    keys = _clip_keys(np.int16(term) - 2 * np.maximum(fields, 1 if kind.is_float else 0))
    return (keys << shift).tobytes()


def _read_bytes(cursor: Cursor, count: int, what: str) -> npt.NDArray[np.uint8]:
    found = np.frombuffer(read_section(cursor, count, what), np.uint8)
    if len(found) != count:
        raise PatchCorrupt(f"{cursor.where}: {len(found)} {what}, expected {count}")
    return found


def _read_pattern(cursor: Cursor, count: int) -> Pattern:
    inner, phase = cursor.read_varint(), cursor.read_varint()
    steps = np.frombuffer(read_section(cursor, count, "pattern"), np.int8)
    if not len(steps) or not inner:
        raise PatchCorrupt(f"{cursor.where}: pattern of {len(steps)} steps over {inner} elements")
    return Pattern(steps, inner, phase)


def _expand_to_elements(values: npt.NDArray[Item], keying: Keying, start: int, end: int) -> npt.NDArray[Item]:
    """Values of the sub-blocks from that of `start` on, for each element."""
    skip = start % keying.sub_block
    if len(values) == 1:
        return np.broadcast_to(values, end - start)
    return values.repeat(keying.sub_block)[skip : skip + end - start]


def _clip_keys(keys: npt.NDArray[np.int16]) -> Keys:
    np.maximum(keys, 0, out=keys)
    np.minimum(keys, KEY_COUNT - 1, out=keys)
    return keys.astype(np.uint8)
