"""The coder KEYED: residuals sorted by a key that tells how large they are likely to be, packed group by group.

Data: offset (signed varint), log (byte), a section of classes; where PATTERN is set inner and phase (varints) and a
section of steps (signed bytes); then a part for each group.

Rules:
1. Sub-blocks of 2^log elements have a class each. Elements whose class is 0 equal the prediction and are left out.
2. key = clip(class + step - 2 * exponent(prediction) - offset, 0, 63), then 4 * key + nearness. The step of element i
   is steps[((phase + i) // inner) % their count]; it is 0 without PATTERN, the exponent is left out without EXPONENT,
   nearness without NEAR.
3. The sort is stable. Groups are cut between keys as soon as a group holds `GROUP` elements and as many are left; where
   that makes only one group, its elements stay in their order.

Why: the steps of an optimizer have about the same absolute size everywhere, so that in units of the last place they
fall as the exponent of what they are added to rises; and in a convolution some positions of the kernel hardly move.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorruptRefused
from bundle.patch.coders import read_part
from bundle.patch.elements import ElementType, Signed, exponents
from bundle.patch.numbers import Cursor
from bundle.patch.predict import Prediction, periodic
from bundle.patch.sections import read_section

GROUP: Final = 4096
KEYS: Final = 64
NEARNESS: Final = 4
MAX_SUB_LOG: Final = 30
MAX_OFFSET: Final = 1 << 14


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


class Groups:
    """How the residuals of a block are arranged.

    Attributes:
        order: the elements that are not left out, in the order in which they are packed; None: all, as they come.
        ends: where each part ends.
        count: how many are not left out.
    """

    __slots__ = ("count", "ends", "order")

    def __init__(self, order: npt.NDArray[np.intp] | None, ends: list[int], count: int) -> None:
        self.order = order
        self.ends = ends
        self.count = count


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
    groups = group_elements(prediction, kind, Keying(classes, sub_log, offset, pattern, has_exponent), count)
    packed = np.empty(groups.count, kind.signed)
    begin = 0
    for end in groups.ends:
        read_part(cursor, packed[begin:end])
        begin = end
    if groups.order is None:
        return packed
    residual = np.zeros(count, kind.signed)
    residual[groups.order] = packed
    return residual


def group_elements(prediction: Prediction | None, kind: ElementType, keying: Keying, count: int) -> Groups:
    """Rules 2 and 3."""
    has_nearness = prediction is not None and prediction.nearness is not None
    if not (keying.has_exponent or has_nearness or keying.pattern is not None):
        return _group_blocks(keying, count)
    keys, active = _element_keys(prediction, kind, keying, count)
    found = len(keys)
    if not found:
        return Groups(np.empty(0, np.intp), [], 0)
    order, histogram = _stable_order(keys)
    ends = _group_ends(histogram)
    if len(ends) == 1:
        return Groups(active, ends, found)
    return Groups(order if active is None else active[order], ends, found)


def _read_pattern(cursor: Cursor, count: int) -> Pattern:
    inner, phase = cursor.varint(), cursor.varint()
    steps = np.frombuffer(read_section(cursor, count, "pattern"), np.int8)
    if not len(steps) or not inner:
        raise PatchCorruptRefused(f"{cursor.where}: pattern of {len(steps)} steps over {inner} elements")
    return Pattern(steps, inner, phase)


def _group_blocks(keying: Keying, count: int) -> Groups:
    # All elements of a sub-block have the same key: sub-blocks are sorted rather than elements.
    classes = keying.classes
    size = min(1 << keying.sub_log, count)
    blocks = np.flatnonzero(classes)
    keys = np.clip(classes[blocks].astype(np.int16) - np.int16(keying.offset), 0, KEYS - 1)
    lengths = np.full(len(classes), size)
    lengths[-1] = count - (len(classes) - 1) * size
    histogram = np.bincount(keys, weights=lengths[blocks], minlength=KEYS).astype(np.intp)
    found = int(histogram.sum())
    if not found:
        return Groups(np.empty(0, np.intp), [], 0)
    ends = _group_ends(histogram)
    if len(ends) > 1:
        blocks = blocks[np.argsort(keys, kind="stable")]
    elif found == count:
        return Groups(None, ends, found)
    order = (blocks[:, None] * size + np.arange(size)).reshape(-1)
    return Groups(order[order < count] if len(order) > found else order, ends, found)


def _element_keys(
    prediction: Prediction | None, kind: ElementType, keying: Keying, count: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp] | None]:
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
        keys += classes[0]
    else:
        keys += np.repeat(classes, size)[:count]
    if keying.pattern is not None:
        keys += periodic(keying.pattern.steps, keying.pattern.inner, keying.pattern.phase, count)
    keys -= np.int16(keying.offset)
    np.clip(keys, 0, KEYS - 1, out=keys)
    small = keys.astype(np.uint8)
    if prediction is not None and prediction.nearness is not None:
        np.left_shift(small, 2, out=small)
        small |= prediction.nearness
    return (small, None) if active is None else (small[active], active)


def _group_ends(histogram: npt.NDArray[np.intp]) -> list[int]:
    """Rule 3: where groups end."""
    ends = []
    total = int(histogram.sum())
    size = done = 0
    for count in histogram.tolist():
        size += count
        done += count
        if size >= GROUP and total - done >= GROUP:
            ends.append(done)
            size = 0
    return [*ends, total]


def _stable_order(keys: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Rule 3: the order, and how many elements each key has.

    Key and index share a 32-bit integer: numpy sorts these three times as fast as it argsorts bytes.
    """
    if len(keys) > 1 << 24:
        return np.argsort(keys, kind="stable"), np.bincount(keys, minlength=KEYS * NEARNESS)
    packed = np.left_shift(keys, 24, dtype=np.uint32)
    packed |= np.arange(len(keys), dtype=np.uint32)
    packed.sort()
    edges = np.searchsorted(packed, np.arange(1, KEYS * NEARNESS, dtype=np.uint32) << 24)
    packed &= np.uint32((1 << 24) - 1)
    return packed.astype(np.intp), np.diff(edges, prepend=0, append=len(keys))
