"""Packs numbers for the coders of bundle/patch/coders.py and bundle/patch/typed.py.

Rules:
1. pcodec where it is at hand; a patch without the feature is made of planes only.
2. A class byte says how large the residuals of a sub-block are: half octaves of their mean, in units that do not depend
   on the exponent. 0 stands for a sub-block whose prediction is exact.
3. Where fewer than SPARSE of integers' residuals are not 0, what is seen of a sub-block is how many these are: their
   places are not weighed by how often there is anything, or a rare one would count as many.
4. Numbers that are nearly all multiples of a power of two, as those of floats that were widened, are packed as
   multiples.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.patch.coders import PCODEC, PLANES, zigzag
from bundle.patch.elements import ElementType, Signed, exponent_fields, to_ordered
from bundle.patch.keyed import (
    KEY_COUNT,
    Keying,
    Pattern,
    active_elements,
    count_active,
    element_keys,
    unit_zeros,
)
from bundle.patch.numbers import encode_signed_varint, encode_varint
from bundle.patch.prediction import Prediction, apply_periodic, flip_signs
from bundle.patch.sections import write_section
from bundle.patch.typed import Flag
from packager.diff.encode.residual_partitions import find_best_cuts

PCODEC_LEVEL: Final = 9
ZSTD_LEVEL: Final = 12
SINGLE_CLASS_SUB_BLOCK: Final = 1 << 30
PART_NUMBERS: Final = 8192
SPARSE_SHARE: Final = 0.3
FACTOR_SAMPLE: Final = 4096
FACTOR_EXCEPTION_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """How hard to pack.

    Attributes:
        with_pcodec: rule 1.
        with_fits: try predictor parameters.
        zstd_level: for planes.
    """

    has_pcodec: bool = True
    has_fitting: bool = True
    zstd_level: int = ZSTD_LEVEL


def write_part(numbers: Signed, options: EncoderOptions) -> bytes:
    """One part with `numbers`."""
    if options.has_pcodec:
        body, coder = _pack_pcodec(numbers), PCODEC
    else:
        body, coder = write_planes(zigzag(numbers), options), PLANES
    return bytes([coder]) + encode_varint(len(body)) + body


def write_numbers(numbers: npt.NDArray[np.int32], options: EncoderOptions, length: int = PART_NUMBERS) -> bytes:
    """32-bit integers in parts of at least `length` numbers, so that each part has its own distribution."""
    out = []
    starts = list(range(0, max(len(numbers) - length + 1, 1), length))
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        out += [encode_varint(end - start), write_part(numbers[start:end], options)]
    return b"".join(out)


def write_planes(numbers: npt.NDArray[Any], options: EncoderOptions) -> bytes:
    """Byte planes of unsigned integers, lowest first."""
    planes = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), -1).T
    return b"".join(write_section(plane.tobytes(), options.zstd_level) for plane in planes)


def compute_residual(target: Signed, prediction: Prediction | None, kind: ElementType) -> Signed:
    """What the prediction missed (rule 1 of bundle/patch/typed.py).

    Args:
        target: ordered elements.
    """
    if prediction is None:
        return target
    residual: Signed = target - to_ordered(prediction.bits, kind)
    if prediction.rounded_up is not None:
        flip_signs(residual, prediction.rounded_up)
    return residual


@dataclass(frozen=True, slots=True)
class Period:
    """That elements at the same place of a period behave alike: positions of a kernel, columns, input channels.

    Attributes:
        inner: elements next to each other that share a place.
        count: places.
    """

    inner: int
    count: int


def write_keyed(
    residual: Signed,
    prediction: Prediction | None,
    kind: ElementType,
    sub_block: int,
    options: EncoderOptions,
    period: Period | None = None,
    phase: int = 0,
    *,
    has_units: bool = False,
) -> tuple[bytes, bytes]:
    """The data of the coder KEYED: its tables, and its parts.

    Args:
        sub_block: elements of one.
        phase: index of the first element in its tensor.
        has_units: with the flag UNIT.
    """
    count = len(residual)
    units = None
    if has_units and prediction is not None:
        units = _find_units(residual, prediction, kind, sub_block)
        keying = Keying(units, sub_block, 0, None, has_exponent=False, units=units)
        residual = residual >> unit_zeros(prediction, kind, keying, 0, count).astype(kind.signed)
    is_floating = prediction is not None and kind.is_float and units is None
    fields = exponent_fields(prediction.bits, kind) if prediction is not None and is_floating else None
    magnitude = _residual_magnitude(residual, fields, kind, has_prediction=prediction is not None)
    pattern = None
    head = b""
    if period is not None:
        pattern = _fit_pattern(magnitude, period, phase % (period.inner * period.count), is_log=prediction is None)
        place = np.zeros(count, np.int8)
        apply_periodic(np.add, place, pattern.steps, pattern.inner, pattern.phase)
        if prediction is None:
            magnitude -= place / np.float32(4)
        elif fields is not None or not is_sparse(residual):
            magnitude *= _half_octave_factors(place)
        head = (
            encode_varint(pattern.inner)
            + encode_varint(pattern.phase)
            + write_section(pattern.steps.tobytes(), options.zstd_level)
        )
    classes = _classify_sub_blocks(magnitude, sub_block, has_prediction=prediction is not None)
    offset = _key_offset(classes, fields, sub_block, count)
    keying = Keying(classes, sub_block, offset, pattern, fields is not None, units)
    by_block = [classes] if units is None else [classes, units]
    tables = encode_signed_varint(offset) + encode_varint(sub_block)
    tables += b"".join(write_section(table.tobytes(), options.zstd_level) for table in by_block) + head
    if not count_active(keying, count):
        return tables, b""
    places = active_elements(keying, count)
    keys = element_keys(prediction, kind, keying, 0, count)
    used = residual
    if places is not None:
        keys, used = keys[places], residual[places]
    cuts = find_best_cuts(keys, used)
    if len(cuts) > 2:
        used = used[keys.argsort(kind="stable")]
    return tables, b"".join(write_part(used[a:b], options) for a, b in pairwise(cuts))


def is_sparse(changes: npt.NDArray[Any]) -> bool:
    """Rule 3: residuals, or whether there are any."""
    return int(np.count_nonzero(changes)) < SPARSE_SHARE * len(changes)


def is_in_units(residual: Signed, kind: ElementType) -> bool:
    """Does most of what is not 0 end in more zeros than chance gives?"""
    if not kind.is_float or kind.exponent_mask > 255:
        return False
    zeros = _trailing_zeros(residual[residual != 0])
    return bool(len(zeros)) and float((zeros >= 3).mean()) > 0.5


def keyed_flags(
    prediction: Prediction | None, kind: ElementType, period: Period | None, *, has_units: bool = False
) -> Flag:
    """The flags that go with `write_keyed`."""
    flags = Flag(0) if period is None else Flag.PATTERN
    if has_units:
        flags |= Flag.UNIT
    elif prediction is not None and kind.is_float:
        flags |= Flag.EXPONENT
    if prediction is not None and prediction.rounding_class is not None:
        flags |= Flag.ROUNDING_CLASS
    return flags


def _find_units(residual: Signed, prediction: Prediction, kind: ElementType, sub_block: int) -> npt.NDArray[np.uint8]:
    """The largest unit that each sub-block's residuals are multiples of; where it has none, that of the one before."""
    count = len(residual)
    size = min(sub_block, count)
    most = np.int16(kind.mantissa_bits - 1)
    zeros = np.where(residual == 0, most, _trailing_zeros(residual))
    largest = np.full(-(-count // size) * size, 255, np.int16)
    largest[:count] = np.where(zeros >= most, 255, zeros + exponent_fields(prediction.bits, kind))
    units = np.minimum(largest.reshape(-1, size).min(axis=1), 255).astype(np.uint8)
    known = np.maximum.accumulate(np.where(units < 255, np.arange(len(units)), 0))
    found: npt.NDArray[np.uint8] = units[known]
    return found


def _trailing_zeros(numbers: Signed) -> npt.NDArray[np.int16]:
    """Zeros at the end of each number's bits; undefined for 0."""
    lowest = (numbers & -numbers).astype(np.float64)
    zeros: npt.NDArray[np.int16] = (np.frexp(np.abs(lowest))[1] - 1).astype(np.int16)
    return zeros


def _residual_magnitude(
    residual: Signed, fields: npt.NDArray[np.int16] | None, kind: ElementType, *, has_prediction: bool
) -> npt.NDArray[np.float32]:
    """How large each residual is, in units that do not depend on the exponent; without a prediction its logarithm."""
    if not has_prediction:
        return _exponent_level(residual, kind)
    magnitude = np.abs(residual.astype(np.float32))
    if fields is not None:
        middle = int(np.median(fields[:: max(1, len(fields) // 1024)]))
        magnitude *= _powers_of_two(fields - np.int16(middle))
    return magnitude


def _fit_pattern(magnitude: npt.NDArray[np.float32], period: Period, phase: int, *, is_log: bool) -> Pattern:
    """Steps that make elements at all places of the period alike, on the average."""
    index = np.zeros(len(magnitude), np.intp)
    apply_periodic(np.add, index, np.arange(period.count), period.inner, phase)
    sums = np.bincount(index, weights=magnitude, minlength=period.count)
    means = sums / np.maximum(np.bincount(index, minlength=period.count), 1)
    if is_log:
        steps = np.rint(4 * (means - magnitude.mean()))
    else:
        overall = max(float(means.max()), 1e-30)
        steps = np.rint(2 * np.log2(np.maximum(means, overall * 2.0**-50) / overall))
    return Pattern(np.clip(steps, -100, 100).astype(np.int8), period.inner, phase)


def _half_octave_factors(steps: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    table = np.exp2(-np.arange(-128, 128) / 2).astype(np.float32)
    out: npt.NDArray[np.float32] = table[steps.astype(np.int16) + 128]
    return out


def _classify_sub_blocks(
    magnitude: npt.NDArray[np.float32], sub_block: int, *, has_prediction: bool
) -> npt.NDArray[np.uint8]:
    count = len(magnitude)
    size = min(sub_block, count)
    blocks = -(-count // size)
    padded = np.zeros(blocks * size, np.float32)
    padded[:count] = magnitude
    sums = padded.reshape(blocks, size).sum(axis=1, dtype=np.float64)
    counts = np.full(blocks, size)
    counts[-1] = count - (blocks - 1) * size
    means = sums / counts
    out = np.zeros(blocks, np.uint8)
    moved = means > 0
    if moved.any():
        levels = np.rint(2 * np.log2(means[moved]) if has_prediction else 4 * means[moved]).astype(np.int64)
        # Where the levels span more than a byte, the small ones share a class: they cost the least.
        lowest = max(int(levels.min()), int(levels.max()) - 254)
        out[moved] = np.clip(levels - lowest + 1, 1, 255)
    if has_prediction:
        return out
    return np.maximum(out, 1)


def _powers_of_two(steps: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    table = np.ldexp(np.float32(1), np.arange(-64, 65)).astype(np.float32)
    out: npt.NDArray[np.float32] = table[np.clip(steps, -64, 64) + 64]
    return out


def _exponent_level(values: Signed, kind: ElementType) -> npt.NDArray[np.float32]:
    # Elements without a prediction: a sub-block's class follows the exponents of its floats, the size of its integers.
    if kind.is_float:
        top = np.iinfo(kind.signed).max
        plain = np.where(values < 0, values ^ top, values)
        return (((plain >> kind.mantissa_bits) & kind.exponent_mask) + 1).astype(np.float32)
    levels: npt.NDArray[np.float32] = np.log2(np.abs(values.astype(np.float32)) + 1) + 1
    return levels


def _key_offset(
    classes: npt.NDArray[np.uint8], fields: npt.NDArray[np.int16] | None, sub_block: int, count: int
) -> int:
    step = max(1, count // 8192)
    keys = classes.astype(np.int64)[np.arange(0, count, step) // sub_block]
    is_active = keys > 0
    if fields is not None:
        keys = keys - 2 * fields[::step].astype(np.int64)
    keys = keys[is_active]
    if not len(keys):
        return 0
    return int(np.percentile(keys, 99.9)) - (KEY_COUNT - 2)


def _common_factor(numbers: Signed) -> int:
    """The power of two that nearly all are multiples of (rule 4); those that are not cost a remainder."""
    some = numbers[numbers != 0]
    some = some[:: max(1, len(some) // FACTOR_SAMPLE)]
    zeros = int(np.sort(_trailing_zeros(some))[int(FACTOR_EXCEPTION_SHARE * (len(some) - 1))]) if len(some) else 0
    return 1 << min(zeros, 8 * numbers.dtype.itemsize - 2)


def _pack_pcodec(numbers: Signed) -> bytes:
    from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

    factor = _common_factor(numbers)
    config = ChunkConfig(
        compression_level=PCODEC_LEVEL,
        mode_spec=ModeSpec.try_int_mult(factor) if factor > 1 else ModeSpec.classic(),
        delta_spec=DeltaSpec.no_op(),
        **({"enable_8_bit": True} if numbers.dtype.itemsize == 1 else {}),
    )
    packed: bytes = standalone.simple_compress(np.ascontiguousarray(numbers), config)
    return packed
