"""The op TYPED: elements predicted from the base, and residuals (docs/format.md section 9.7).

Payload: type, predictor, coder, flags (bytes); a section of segments; if the predictor is PARAM or the base is
transposed, the index of the first element in its tensor (varint); if transposed, rows and columns of the transposed
base (varints); if the predictor is AFFINE, factor and offset (doubles); then the coder's data.

A segment is a gap from the end of the previous target range, elements (varints) and, unless the predictor is NONE, the
signed distance from the end of the previous base range; in a block with a transposed base, of the first segment only.
The elements of all segments are joined to one block.

Symbols, for a block of n elements: t, p: bits [n] of target and prediction; d, signed integers of the same width [n]:
the residual.

Predictors: NONE; BASE, the base's element; AFFINE, base * factor + offset; PARAM, base * gain + low-rank product.
Coders: PLANES, byte planes of the zigzag residuals (of the element bits if the predictor is NONE); SINGLE_PART, one
part with the residuals in element order; KEYED, residuals sorted by a key that predicts their size, in parts.

Rules:
1. d = ordered(t) - ordered(p), wrapping; it is negated if ROUNDING_CLASS is set and the prediction was rounded up. With
   the predictor NONE, ordered(p) is 0.
2. ROUNDING_CLASS needs a computed prediction (AFFINE, PARAM), EXPONENT and UNIT need a prediction of floats. They and
   PATTERN change the key of the coder KEYED (bundle/patch/keyed.py); with other coders only ROUNDING_CLASS has an
   effect, that of rule 1.
3. A transposed base is one range, read at (column * rows + row) in the order of the joined elements.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np

from bundle.errors import PatchCorrupt, PatchLimitExceeded
from bundle.patch.address_space import BaseBytes, Range
from bundle.patch.coders import read_part, read_planes, unzigzag
from bundle.patch.container import Frame
from bundle.patch.elements import (
    ELEMENT_TYPES,
    Bits,
    ElementType,
    Signed,
    from_ordered,
    to_ordered,
)
from bundle.patch.keyed import KeyedResiduals
from bundle.patch.limits import DeclaredLimits
from bundle.patch.numbers import Cursor
from bundle.patch.parameters import Parameters
from bundle.patch.prediction import (
    Computation,
    Prediction,
    affine_computation,
    chunk_bounds,
    compute_chunk,
    flip_signs,
    parameter_computation,
)
from bundle.patch.ranges import read_count
from bundle.patch.sections import read_section

_AFFINE: Final = struct.Struct("<dd")


class Predictor(IntEnum):
    """The formula that predicts elements from the base."""

    NONE = 0
    BASE = 1
    AFFINE = 2
    PARAM = 3


class Coder(IntEnum):
    """The compression of the residuals."""

    PLANES = 0
    SINGLE_PART = 1
    KEYED = 2


class Flag(IntFlag):
    """Options of a block (rules 1 to 3)."""

    TRANSPOSED = 1
    ROUNDING_CLASS = 2
    EXPONENT = 4
    PATTERN = 8
    UNIT = 16


def decode_typed(
    frame: Frame, base: BaseBytes, parameters: Parameters, declared_limits: DeclaredLimits, max_items: int
) -> tuple[list[Range], memoryview]:
    """Decode a TYPED frame; return its target ranges and their joined bytes.

    Args:
        frame: a TYPED frame.
        base: the base's address space.
        parameters: parameters in force at this frame.
        declared_limits: limits from the header of the patch.
        max_items: maximum number of segments.

    Raises:
        PatchCorrupt: the payload is damaged or breaks a rule.
        PatchRangeInvalid: a segment is outside the base.
        PatchLimitExceeded: too many elements or segments.
        PatchFeatureUnsupported: a part needs pcodec, which is not installed.
    """
    cursor = Cursor(frame.payload, frame.where)
    codes = [cursor.read_byte() for _ in range(4)]
    if (
        codes[0] >= len(ELEMENT_TYPES)
        or codes[1] > max(Predictor)
        or codes[2] > max(Coder)
        or codes[3] >= 2 * Flag.UNIT
    ):
        raise PatchCorrupt(f"{frame.where}: unknown type, predictor, coder or flags {codes}")
    kind, predictor, coder, flags = ELEMENT_TYPES[codes[0]], Predictor(codes[1]), Coder(codes[2]), Flag(codes[3])
    if declared_limits.block_elements * kind.size < frame.decoded_bytes or frame.decoded_bytes % kind.size:
        raise PatchLimitExceeded(
            f"{frame.where}: {frame.decoded_bytes} bytes of {kind.name}, the header announced at most "
            f"{declared_limits.block_elements} elements"
        )
    count = frame.decoded_bytes // kind.size
    table = Cursor(read_section(cursor, declared_limits.payload_bytes, "segments"), frame.where)
    is_transposed = Flag.TRANSPOSED in flags
    targets, sources = _read_segments(table, kind, predictor, count, max_items, is_transposed=is_transposed)
    table.check_end()
    if predictor is Predictor.NONE:
        _check_flags_without_base(flags, cursor.where)
        base_block = None
    else:
        base_block = _read_base_block(cursor, kind, predictor, flags, sources, count, base, parameters)
    bits = _decode_block(cursor, coder, flags, kind, base_block, count)
    cursor.check_end()
    return targets, bits.data.cast("B")


def _read_segments(
    cursor: Cursor, kind: ElementType, predictor: Predictor, count: int, max_items: int, *, is_transposed: bool
) -> tuple[list[Range], list[Range]]:
    targets: list[Range] = []
    sources: list[Range] = []
    end = base_end = total = 0
    for _ in range(read_count(cursor, max_items)):
        start = end + cursor.read_varint()
        length = cursor.read_varint()
        if length == 0 or length > count - total:
            raise PatchCorrupt(f"{cursor.where}: segment of {length} elements, {count - total} are left")
        total += length
        end = start + length * kind.size
        targets.append((start, length * kind.size))
        if predictor is not Predictor.NONE and not (is_transposed and sources):
            begin = base_end + cursor.read_signed_varint()
            base_end = begin + length * kind.size
            sources.append((begin, length * kind.size))
    if total != count or count == 0:
        raise PatchCorrupt(f"{cursor.where}: segments of {total} elements, expected {count}")
    return targets, sources


@dataclass(frozen=True, slots=True)
class _BaseBlock:
    """The base's elements of a block, and the formula that predicts from them.

    Attributes:
        bits: the base's elements [n].
        compute: the formula; None if the elements are the predictions themselves.
        first: index of the first element in its tensor.
        columns: columns of the low-rank product, or 0 without one.
    """

    bits: Bits
    compute: Computation | None
    first: int
    columns: int

    def predict(self, kind: ElementType, start: int, end: int, *, has_rounding_class: bool) -> Prediction:
        bits = self.bits[start:end]
        if self.compute is None:
            return Prediction(bits, None, None)
        return compute_chunk(bits, kind, self.compute, self.first + start, has_rounding_class=has_rounding_class)


def _check_flags_without_base(flags: Flag, where: str) -> None:
    if flags & ~Flag.PATTERN:
        raise PatchCorrupt(f"{where}: flags {flags:d} without a prediction")


def _read_base_block(
    cursor: Cursor,
    kind: ElementType,
    predictor: Predictor,
    flags: Flag,
    sources: list[Range],
    count: int,
    base: BaseBytes,
    parameters: Parameters,
) -> _BaseBlock:
    first = 0
    if predictor is Predictor.PARAM or flags & Flag.TRANSPOSED:
        first = cursor.read_varint()
    if flags & Flag.TRANSPOSED:
        bits = _read_transposed(cursor, kind, sources[0][0], first, count, base)
    else:
        for start, length in sources:
            base.check_range(start, length, cursor.where)
        bits = np.frombuffer(base.read_ranges(sources), kind.bits)
    for flag, fits in (
        (Flag.EXPONENT, kind.is_float),
        (Flag.UNIT, kind.is_float and kind.exponent_mask < 256),
        (Flag.ROUNDING_CLASS, kind.mantissa_bits <= 49),
    ):
        if flags & flag and not fits:
            raise PatchCorrupt(f"{cursor.where}: flag {flag.name} does not apply to elements of {kind.name}")
    if predictor is Predictor.BASE:
        if flags & Flag.ROUNDING_CLASS:
            raise PatchCorrupt(f"{cursor.where}: ROUNDING_CLASS without a computed prediction")
        return _BaseBlock(bits, None, first, 0)
    if predictor is Predictor.AFFINE:
        return _BaseBlock(bits, affine_computation(*_AFFINE.unpack(cursor.take(_AFFINE.size))), first, 0)
    columns = parameters.product_columns(first, count, cursor.where)
    return _BaseBlock(bits, parameter_computation(parameters, bool(columns)), first, columns)


def _read_transposed(cursor: Cursor, kind: ElementType, start: int, first: int, count: int, base: BaseBytes) -> Bits:
    rows, columns = cursor.read_varint(), cursor.read_varint()
    if rows == 0 or columns == 0 or rows * columns > 1 << 48 or first + count > rows * columns:
        raise PatchCorrupt(f"{cursor.where}: elements to {first + count} of a {rows} by {columns} tensor")
    base.check_range(start, rows * columns * kind.size, cursor.where)
    row = first // columns
    row_count = -(-(first + count) // columns) - row
    if row_count * columns > count + 2 * columns or row_count * columns > 4 * count + (1 << 18):
        raise PatchLimitExceeded(f"{cursor.where}: transposed block of {row_count} rows of {columns}")
    out = np.empty((row_count, columns), kind.bits)
    for column in range(columns):
        piece = base.read(start + (column * rows + row) * kind.size, row_count * kind.size)
        out[:, column] = np.frombuffer(piece, kind.bits)
    skip = first - row * columns
    return out.reshape(-1)[skip : skip + count]


def _decode_block(
    cursor: Cursor, coder: Coder, flags: Flag, kind: ElementType, base_block: _BaseBlock | None, count: int
) -> Bits:
    keyed: KeyedResiduals | None = None
    residual: Signed | None = None
    if coder is Coder.PLANES:
        planes = read_planes(cursor, count, kind.size)
        if base_block is None:
            return planes
        residual = unzigzag(planes, kind.signed)
    elif coder is Coder.SINGLE_PART:
        residual = np.empty(count, kind.signed)
        read_part(cursor, residual)
    else:
        keyed = KeyedResiduals(
            cursor,
            kind,
            count,
            has_exponent=Flag.EXPONENT in flags,
            has_pattern=Flag.PATTERN in flags,
            has_units=Flag.UNIT in flags,
        )
    out = np.empty(count, kind.bits)
    with np.errstate(all="ignore"):
        return _compute_block(base_block, kind, keyed, residual, out, has_rounding_class=Flag.ROUNDING_CLASS in flags)


def _compute_block(
    base_block: _BaseBlock | None,
    kind: ElementType,
    keyed: KeyedResiduals | None,
    residual: Signed | None,
    out: Bits,
    *,
    has_rounding_class: bool,
) -> Bits:
    """Fill `out` twice: with predictions, which determine the keys, then with the elements."""
    count = len(out)
    rounded_up = np.empty(count, np.bool_) if has_rounding_class else None
    spans = chunk_bounds(base_block.first, count, base_block.columns) if base_block is not None else [(0, count)]
    for start, end in spans:
        prediction = (
            base_block.predict(kind, start, end, has_rounding_class=has_rounding_class)
            if base_block is not None
            else None
        )
        if prediction is not None:
            out[start:end] = prediction.bits
            if rounded_up is not None:
                rounded_up[start:end] = prediction.rounded_up
        if keyed is not None:
            keyed.record_keys(prediction, start, end)
    if keyed is not None:
        residual = keyed.in_element_order()
    assert residual is not None
    if base_block is None:
        return from_ordered(residual, kind)
    for start, end in spans:
        part, bits = residual[start:end], out[start:end]
        if rounded_up is not None:
            flip_signs(part, rounded_up[start:end])
        part += to_ordered(bits, kind)
        from_ordered(part, kind, bits)
    return out
