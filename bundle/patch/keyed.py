"""The coder KEYED: residuals sorted by a key that tells how large they are likely to be, packed group by group.

Data: offset (signed varint), log (byte), a section of classes; where PATTERN is set inner and phase (varints) and a
section of steps (signed bytes); then parts, until all residuals are there.

Rules:
1. Sub-blocks of 2^log elements have a class each. Elements whose class is 0 equal the prediction and are left out.
2. key = clip(class + step - 2 * exponent(prediction) - offset, 0, 63), then 4 * key + nearness. The step of element i
   is steps[((phase + i) // inner) % their count]; it is 0 without PATTERN, the exponent is left out without EXPONENT,
   nearness without NEAR.
3. The sort is stable, and the parts are the sorted residuals, cut where the encoder likes. Where there is only one
   part, its elements stay in their order.

Why: the steps of an optimizer have about the same absolute size everywhere, so that in units of the last place they
fall as the exponent of what they are added to rises; and in a convolution some positions of the kernel hardly move.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorruptRefused
from bundle.patch.coders import read_some
from bundle.patch.elements import ElementType, Signed, exponents
from bundle.patch.numbers import Cursor
from bundle.patch.predict import Prediction, apply_periodic
from bundle.patch.sections import read_section

KEYS: Final = 64
NEARNESS: Final = 4
MAX_SUB_LOG: Final = 30
MAX_OFFSET: Final = 1 << 14

Order = npt.NDArray[np.intp]


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
        sub_log: base-two logarithm of a sub-block's elements.
        offset: subtracted from all keys.
        pattern: or None.
        has_exponent: use the prediction's exponent.
    """

    classes: npt.NDArray[np.uint8]
    sub_log: int
    offset: int
    pattern: Pattern | None
    has_exponent: bool


def read_keyed(
    cursor: Cursor,
    kind: ElementType,
    prediction: Prediction | None,
    count: int,
    *,
    has_exponent: bool,
    has_pattern: bool,
) -> Signed:
    """`count` residuals from the coder's data at the cursor. Raises PatchCorruptRefused, PatchLimitRefused."""
    offset, sub_log = cursor.signed_varint(), cursor.byte()
    if sub_log > MAX_SUB_LOG or abs(offset) > MAX_OFFSET:
        raise PatchCorruptRefused(f"{cursor.where}: key offset {offset} or sub-blocks of 2^{sub_log}")
    blocks = -(-count >> sub_log)
    classes = np.frombuffer(read_section(cursor, blocks, "classes"), np.uint8)
    if len(classes) != blocks:
        raise PatchCorruptRefused(f"{cursor.where}: {len(classes)} classes, expected {blocks}")
    pattern = _read_pattern(cursor, count) if has_pattern else None
    keying = Keying(classes, sub_log, offset, pattern, has_exponent)
    total = active_count(keying, count)
    packed = np.empty(total, kind.signed)
    done = parts = 0
    while done < total:
        done += read_some(cursor, packed[done:])
        parts += 1
    if parts == 1 and total == count:
        return packed
    order = active_elements(keying, count) if parts < 2 else sorted_elements(prediction, kind, keying, count)
    residual = np.empty(count, kind.signed) if total == count else np.zeros(count, kind.signed)
    residual[order] = packed
    return residual


def active_count(keying: Keying, count: int) -> int:
    """How many elements are not left out (rule 1)."""
    classes = keying.classes
    missing = (len(classes) << keying.sub_log) - count if classes[-1] else 0
    return (int(np.count_nonzero(classes)) << keying.sub_log) - missing


def active_elements(keying: Keying, count: int) -> Order:
    """Those that are not left out, as they come."""
    blocks = np.flatnonzero(keying.classes)
    return _elements_of(blocks, keying, count)


def sorted_elements(prediction: Prediction | None, kind: ElementType, keying: Keying, count: int) -> Order:
    """Rules 2 and 3: the elements that are not left out, in the order of their residuals in the parts."""
    has_nearness = prediction is not None and prediction.nearness is not None
    if not (keying.has_exponent or has_nearness or keying.pattern is not None):
        # All elements of a sub-block have the same key: sub-blocks are sorted rather than elements.
        blocks = np.flatnonzero(keying.classes)
        keys = _clipped(keying.classes[blocks].astype(np.int16) - np.int16(keying.offset))
        return _elements_of(blocks[np.argsort(keys, kind="stable")], keying, count)
    keys, active = element_keys(prediction, kind, keying, count)
    # One pass of numpy's radix sort; a sort of wider integers depends on a CPU's vector units and is slow on some.
    order = np.argsort(keys, kind="stable")
    return order if active is None else active[order]


def _read_pattern(cursor: Cursor, count: int) -> Pattern:
    inner, phase = cursor.varint(), cursor.varint()
    steps = np.frombuffer(read_section(cursor, count, "pattern"), np.int8)
    if not len(steps) or not inner:
        raise PatchCorruptRefused(f"{cursor.where}: pattern of {len(steps)} steps over {inner} elements")
    return Pattern(steps, inner, phase)


def _elements_of(blocks: npt.NDArray[np.intp], keying: Keying, count: int) -> Order:
    size = min(1 << keying.sub_log, count)
    order = (blocks[:, None] * size + np.arange(size)).reshape(-1)
    has_rest = count % size and keying.classes[-1]
    return order[order < count] if has_rest else order


def element_keys(
    prediction: Prediction | None, kind: ElementType, keying: Keying, count: int
) -> tuple[npt.NDArray[np.uint8], Order | None]:
    """Rule 2: the keys of the elements that are not left out, and which these are (None: all)."""
    classes = keying.classes.astype(np.int16)
    size = min(1 << keying.sub_log, count)
    active = None if keying.classes.all() else np.flatnonzero(np.repeat(classes, size)[:count])
    if keying.has_exponent and prediction is not None:
        keys = exponents(prediction.bits, kind)
        np.multiply(keys, -2, out=keys)
    else:
        keys = np.zeros(count, np.int16)
    if len(classes) == 1:
        keys += classes[0] - np.int16(keying.offset)
    else:
        keys += np.repeat(classes - np.int16(keying.offset), size)[:count]
    if keying.pattern is not None:
        apply_periodic(np.add, keys, keying.pattern.steps, keying.pattern.inner, keying.pattern.phase)
    small = _clipped(keys)
    if prediction is not None and prediction.nearness is not None:
        np.left_shift(small, 2, out=small)
        small |= prediction.nearness
    return (small, None) if active is None else (small[active], active)


def _clipped(keys: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    np.maximum(keys, 0, out=keys)
    np.minimum(keys, KEYS - 1, out=keys)
    return keys.astype(np.uint8)
