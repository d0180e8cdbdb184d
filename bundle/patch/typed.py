"""The TYPED op: elements predicted from the base, and what the prediction missed.

Payload: type, predictor, coder, flags (bytes); a section of segments: their count (varint), then of each: gap from the
end of the one before in the target, elements (varints) and, unless the predictor is NONE, the signed distance of its
base range from the end of the one before. Then, where the predictor is PARAM or the base is transposed: index of the
first element among those that the parameters are for (varint), and where transposed, rows and columns of the target
tensor (varints); the base is read at (column * rows + row) and there is one segment. AFFINE: two doubles, factor and
offset. Then the coder's data.

Predictors: NONE; BASE, the base's element; AFFINE, base * factor + offset; PARAM, base * gain + low-rank product.
Coders: PLANES, one plane a byte of the residual (of the bits themselves where the predictor is NONE); PLAIN, one part;
KEYED, elements sorted by a key that tells how large a residual to expect, a part for each group of keys.

Rules:
1. residual = ordered(target) - ordered(prediction), wrapping; its sign is turned where NEAR is set and the prediction
   was rounded up. A predictor NONE counts as a prediction of zero bits.
2. key = 4 * clip(class - 2 * exponent(prediction) - offset, 0, 63) + nearness: class is the sub-block's byte; exponent
   is left out unless EXPONENT is set; nearness is how far the prediction was rounded, in eighths of a unit in the last
   place and at most 3 (rule 4), 0 unless NEAR is set. Elements whose class is 0 equal the prediction and are left out.
3. The sort is stable. Groups are cut between keys as soon as a group holds `GROUP` elements and as many are left; where
   that makes only one group, its elements stay in their order.
4. Nearness of a float is e or, where e > 3, 7 - e, for the number e of the three bits of the double that follow those
   that the element's mantissa keeps; it was rounded up where e > 3 and the double is positive, or neither. Of an
   integer it is floor(8 * |double - rounded|), at most 3; it was rounded up where double < rounded. f64 has none.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorruptRefused, PatchLimitRefused
from bundle.patch.coders import read_part, read_planes, unzigzag
from bundle.patch.container import Frame
from bundle.patch.elements import (
    TYPES,
    Bits,
    Doubles,
    ElementType,
    Signed,
    exponents,
    from_doubles,
    ordered,
    to_doubles,
    unordered,
)
from bundle.patch.layout import BaseLine, Range
from bundle.patch.limits import Announced
from bundle.patch.numbers import Cursor
from bundle.patch.parameters import Parameters
from bundle.patch.ranges import read_count
from bundle.patch.sections import read_section

GROUP: Final = 4096
KEYS: Final = 64
NEARNESS: Final = 4
MAX_SUB_LOG: Final = 30
_AFFINE: Final = struct.Struct("<dd")


class Predictor(IntEnum):
    """How the base is used."""

    NONE = 0
    BASE = 1
    AFFINE = 2
    PARAM = 3


class Coder(IntEnum):
    """How the residual is packed."""

    PLANES = 0
    PLAIN = 1
    KEYED = 2


class Flag(IntFlag):
    """What else holds for a block."""

    TRANSPOSED = 1
    NEAR = 2
    EXPONENT = 4


class Prediction:
    """Predicted elements, and how they were rounded where that is asked for.

    Attributes:
        bits: the predicted elements.
        nearness: uint8 0 to 3 by element, or None.
        is_above: was the prediction rounded up, by element, or None.
    """

    __slots__ = ("bits", "is_above", "nearness")

    def __init__(
        self, bits: Bits, nearness: npt.NDArray[np.uint8] | None, is_above: npt.NDArray[np.bool_] | None
    ) -> None:
        self.bits = bits
        self.nearness = nearness
        self.is_above = is_above


def decode_typed(
    frame: Frame, base: BaseLine, parameters: Parameters, announced: Announced, items: int
) -> tuple[list[Range], memoryview]:
    """Target ranges and their bytes, joined.

    Raises:
        PatchCorruptRefused, PatchRangeRefused, PatchLimitRefused, PatchFeatureRefused.
    """
    cursor = Cursor(frame.payload, frame.where)
    codes = [cursor.byte() for _ in range(4)]
    if codes[0] >= len(TYPES) or codes[1] > max(Predictor) or codes[2] > max(Coder) or codes[3] > 7:
        raise PatchCorruptRefused(f"{frame.where}: unknown type, predictor, coder or flags {codes}")
    kind, predictor, coder, flags = TYPES[codes[0]], Predictor(codes[1]), Coder(codes[2]), Flag(codes[3])
    if announced.block_elements * kind.size < frame.plain_bytes or frame.plain_bytes % kind.size:
        raise PatchLimitRefused(
            f"{frame.where}: {frame.plain_bytes} bytes of {kind.name}, announced {announced.block_elements} elements"
        )
    count = frame.plain_bytes // kind.size
    table = Cursor(read_section(cursor, announced.payload_bytes, "segments"), frame.where)
    targets, sources = _read_segments(table, kind, predictor, count, items)
    table.end()
    prediction = _predict(cursor, kind, predictor, flags, sources, count, base, parameters)
    bits = _decode(cursor, coder, flags, kind, prediction, count)
    cursor.end()
    return targets, bits.data.cast("B")


def _read_segments(
    cursor: Cursor, kind: ElementType, predictor: Predictor, count: int, items: int
) -> tuple[list[Range], list[Range]]:
    targets: list[Range] = []
    sources: list[Range] = []
    end = base_end = total = 0
    for _ in range(read_count(cursor, items)):
        start = end + cursor.varint()
        length = cursor.varint()
        if length == 0 or length > count - total:
            raise PatchCorruptRefused(f"{cursor.where}: segment of {length} elements, {count - total} are left")
        total += length
        end = start + length * kind.size
        targets.append((start, length * kind.size))
        if predictor is not Predictor.NONE:
            begin = base_end + cursor.signed_varint()
            base_end = begin + length * kind.size
            sources.append((begin, length * kind.size))
    if total != count or count == 0:
        raise PatchCorruptRefused(f"{cursor.where}: segments of {total} elements, expected {count}")
    return targets, sources


def _predict(
    cursor: Cursor,
    kind: ElementType,
    predictor: Predictor,
    flags: Flag,
    sources: list[Range],
    count: int,
    base: BaseLine,
    parameters: Parameters,
) -> Prediction | None:
    if predictor is Predictor.NONE:
        if flags & (Flag.TRANSPOSED | Flag.NEAR | Flag.EXPONENT):
            raise PatchCorruptRefused(f"{cursor.where}: flags {flags:d} without a prediction")
        return None
    first = 0
    if predictor is Predictor.PARAM or flags & Flag.TRANSPOSED:
        first = cursor.varint()
    if flags & Flag.TRANSPOSED:
        if len(sources) != 1:
            raise PatchCorruptRefused(f"{cursor.where}: {len(sources)} segments, expected one")
        bits = _read_transposed(cursor, kind, sources[0][0], first, count, base)
    else:
        for start, length in sources:
            base.check(start, length, cursor.where)
        bits = np.frombuffer(base.gather(sources), kind.bits)
    if flags & Flag.NEAR and kind.mantissa_bits > 49:
        raise PatchCorruptRefused(f"{cursor.where}: NEAR of {kind.name}")
    if predictor is Predictor.BASE:
        if flags & Flag.NEAR:
            raise PatchCorruptRefused(f"{cursor.where}: NEAR without a computed prediction")
        return Prediction(bits, None, None)
    if predictor is Predictor.AFFINE:
        factor, offset = _AFFINE.unpack(cursor.take(_AFFINE.size))
        return affine_prediction(bits, kind, factor, offset, is_near=bool(flags & Flag.NEAR))
    return parameter_prediction(bits, kind, parameters, first, is_near=bool(flags & Flag.NEAR), where=cursor.where)


def affine_prediction(bits: Bits, kind: ElementType, factor: float, offset: float, *, is_near: bool) -> Prediction:
    """base * factor + offset; one multiplication, one addition, one rounding."""
    with np.errstate(all="ignore"):
        values = to_doubles(bits, kind)
        values *= factor
        values += offset
    return _rounded(values, kind, is_near=is_near)


def parameter_prediction(
    bits: Bits, kind: ElementType, parameters: Parameters, first: int, *, is_near: bool, where: str = ""
) -> Prediction:
    """base * gain + low-rank product, for the elements of a tensor from `first` on."""
    count = len(bits)
    with np.errstate(all="ignore"):
        values = to_doubles(bits, kind)
        gain = parameters.gain
        if gain is not None:
            _multiply_gain(values, gain.factors, gain.inner, first)
        product = parameters.product(first, count, where)
        if product is not None:
            values += product
    return _rounded(values, kind, is_near=is_near)


def _multiply_gain(values: Doubles, factors: Doubles, inner: int, first: int) -> None:
    if len(factors) == 1:
        values *= factors[0]
        return
    count = len(values)
    begin = first // inner
    spans = -(-(first + count) // inner) - begin
    which = np.arange(begin, begin + spans) % len(factors)
    if inner == 1:
        values *= factors[which]
        return
    lengths = np.full(spans, inner)
    lengths[0] -= first - begin * inner
    lengths[-1] -= (begin + spans) * inner - (first + count)
    values *= np.repeat(factors[which], lengths)


def _rounded(values: Doubles, kind: ElementType, *, is_near: bool) -> Prediction:
    bits = from_doubles(values, kind)
    if not is_near:
        return Prediction(bits, None, None)
    if kind.is_float:
        # The three bits of the double under the last one that the element keeps; the sign turns with the number's.
        raw = values.view(np.int64)
        eighths = np.right_shift(raw, 52 - kind.mantissa_bits - 3).astype(np.int8)
        eighths &= 7
        is_above = eighths > 3
        nearness = np.minimum(eighths, 7 - eighths).view(np.uint8)
        is_above ^= raw < 0
        return Prediction(bits, nearness, is_above)
    values -= bits.view(kind.native)
    is_above = values < 0
    np.abs(values, out=values)
    nearness = np.minimum(np.multiply(values, 8.0, out=values), 3.0, out=values).astype(np.uint8)
    return Prediction(bits, nearness, is_above)


def _read_transposed(cursor: Cursor, kind: ElementType, start: int, first: int, count: int, base: BaseLine) -> Bits:
    rows, columns = cursor.varint(), cursor.varint()
    if rows == 0 or columns == 0 or rows * columns > 1 << 48 or first + count > rows * columns:
        raise PatchCorruptRefused(f"{cursor.where}: elements to {first + count} of a {rows} by {columns} tensor")
    base.check(start, rows * columns * kind.size, cursor.where)
    row = first // columns
    many = -(-(first + count) // columns) - row
    if many * columns > count + 2 * columns or many * columns > 4 * count + (1 << 18):
        raise PatchLimitRefused(f"{cursor.where}: transposed block of {many} rows of {columns}")
    out = np.empty((many, columns), kind.bits)
    for column in range(columns):
        piece = base.read(start + (column * rows + row) * kind.size, many * kind.size)
        out[:, column] = np.frombuffer(piece, kind.bits)
    skip = first - row * columns
    return out.reshape(-1)[skip : skip + count]


def _decode(
    cursor: Cursor, coder: Coder, flags: Flag, kind: ElementType, prediction: Prediction | None, count: int
) -> Bits:
    if coder is Coder.PLANES:
        planes = read_planes(cursor, count, kind.size)
        if prediction is None:
            return planes
        residual = unzigzag(planes, kind.signed)
    elif coder is Coder.PLAIN:
        residual = np.empty(count, kind.signed)
        read_part(cursor, residual)
    else:
        residual = _read_keyed(cursor, flags, kind, prediction, count)
    if prediction is None:
        return unordered(residual, kind)
    if prediction.is_above is not None:
        turn_signs(residual, prediction.is_above)
    residual += ordered(prediction.bits, kind)
    return unordered(residual, kind)


def turn_signs(residual: Signed, is_turned: npt.NDArray[np.bool_]) -> None:
    """Negate in place where asked: two's complement by hand, since numpy's masked negation is ten times as slow."""
    masks = np.negative(is_turned.view(np.int8)).astype(residual.dtype, copy=False)
    residual ^= masks
    residual -= masks


def _read_keyed(cursor: Cursor, flags: Flag, kind: ElementType, prediction: Prediction | None, count: int) -> Signed:
    offset, sub_log = cursor.signed_varint(), cursor.byte()
    if sub_log > MAX_SUB_LOG or abs(offset) > 1 << 14:
        raise PatchCorruptRefused(f"{cursor.where}: key offset {offset} or sub-blocks of 2^{sub_log}")
    blocks = -(-count >> sub_log)
    classes = np.frombuffer(read_section(cursor, blocks, "classes"), np.uint8)
    if len(classes) != blocks:
        raise PatchCorruptRefused(f"{cursor.where}: {len(classes)} classes, expected {blocks}")
    groups = group_elements(
        prediction, kind, classes, sub_log, offset, count, is_float_keyed=bool(flags & Flag.EXPONENT)
    )
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


class Groups:
    """How the residuals of a KEYED block are arranged.

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


def group_elements(
    prediction: Prediction | None,
    kind: ElementType,
    classes: npt.NDArray[np.uint8],
    sub_log: int,
    offset: int,
    count: int,
    *,
    is_float_keyed: bool,
) -> Groups:
    """Rules 2 and 3."""
    if not is_float_keyed and (prediction is None or prediction.nearness is None):
        return _group_blocks(classes, sub_log, offset, count)
    keys, active = _element_keys(prediction, kind, classes, sub_log, offset, count, is_float_keyed=is_float_keyed)
    found = len(keys)
    if not found:
        return Groups(np.empty(0, np.intp), [], 0)
    order, histogram = _stable_order(keys)
    ends = _group_ends(histogram)
    if len(ends) == 1:
        return Groups(active, ends, found)
    return Groups(order if active is None else active[order], ends, found)


def _group_blocks(classes: npt.NDArray[np.uint8], sub_log: int, offset: int, count: int) -> Groups:
    # All elements of a sub-block have the same key: sub-blocks are sorted rather than elements.
    size = min(1 << sub_log, count)
    blocks = np.flatnonzero(classes)
    keys = np.clip(classes[blocks].astype(np.int16) - np.int16(offset), 0, KEYS - 1)
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
    prediction: Prediction | None,
    kind: ElementType,
    classes: npt.NDArray[np.uint8],
    sub_log: int,
    offset: int,
    count: int,
    *,
    is_float_keyed: bool,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp] | None]:
    """Rule 2: the keys of the elements that are not left out, and which these are (None: all)."""
    wide = classes.astype(np.int16)
    by_element = np.repeat(wide, 1 << sub_log)[:count] if len(wide) > 1 else np.full(count, wide[0], np.int16)
    active = None if classes.all() else np.flatnonzero(by_element)
    if active is not None:
        by_element = by_element[active]
    if is_float_keyed and prediction is not None and kind.is_float:
        fields = exponents(prediction.bits if active is None else prediction.bits[active], kind)
        np.left_shift(fields, 1, out=fields)
        by_element = np.subtract(by_element, fields, out=fields)
    elif active is None:
        by_element = by_element.copy()
    by_element -= np.int16(offset)
    np.clip(by_element, 0, KEYS - 1, out=by_element)
    keys = by_element.astype(np.uint8)
    if prediction is not None and prediction.nearness is not None:
        np.left_shift(keys, 2, out=keys)
        keys |= prediction.nearness if active is None else prediction.nearness[active]
    return keys, active


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
