"""Entropy coding: residuals to the data of KEYED, to parts and to byte planes.

The format is docs/format.md sections 9.6 and 9.7; decoders: bundle/patch/keyed.py and coders.py.

Symbols, for a block of n elements in B = ceil(n / s) sub-blocks of s elements:

    d(i)      signed integers [n]   residuals; without a prediction the ordered target
    e(i)      int16 [n]             exponent field of the prediction, for floats
    size(i)   float32 [n]           |d(i)| * 2^(e(i) - median of e): the residual's size, independent of the exponent
    class     uint8 [B]             2 * log2(mean size of the sub-block), shifted to 1 … 255; 0 if all d are 0
    steps     int8 [P]              with a period: 2 * log2(mean size at the position), relative to the largest
    offset    integer               chosen so that nearly all keys lie below the largest key
    key(i)    uint8 [n]             clip(class + steps - 2 * e(i) - offset, 0, 63), see keyed.py

Theory of operation. Residuals of a model update are nearly symmetric noise whose scale varies by orders of magnitude,
from row to row and with the exponent of the weight; their order is random. So the best code sends the scale
(classes, steps) and then each residual by a distribution of its scale (parts). The factor 2 in classes, steps and keys
is half octaves: finer classes cost more than they save. Without a prediction the size is a logarithm already: the
exponent of a float, log2(|d|) of an integer, and classes and steps count quarters of it.

Rules:
1. pcodec codes the parts if the options allow it; otherwise byte planes do.
2. If fewer than SPARSE_SHARE of the residuals of integers are not 0, the size is not weighted by the pattern: rare
   changes at rare positions would count as much as many changes.
3. Numbers that are nearly all multiples of a power of two, as those of floats that were widened, are coded as multiples
   (docs/benchmarks.md, row "multiples of a power of two": 16 % of such a fine-tune).
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
    """Options of the encoder.

    Attributes:
        has_pcodec: code parts by pcodec; False for devices without it.
        has_fitting: try predictor parameters.
        zstd_level: zstd compression level of sections.
    """

    has_pcodec: bool = True
    has_fitting: bool = True
    zstd_level: int = ZSTD_LEVEL


def write_part(numbers: Signed, options: EncoderOptions) -> bytes:
    """Encode `numbers` as one part.

    Args:
        numbers: signed integers, at least one.
        options: encoder settings, such as the zstd level.
    """
    if options.has_pcodec:
        body, coder = _pack_pcodec(numbers), PCODEC
    else:
        body, coder = write_planes(zigzag(numbers), options), PLANES
    return bytes([coder]) + encode_varint(len(body)) + body


def write_numbers(numbers: npt.NDArray[np.int32], options: EncoderOptions, length: int = PART_NUMBERS) -> bytes:
    """Encode 32-bit integers in parts of at least `length` numbers, each with its own distribution.

    Args:
        numbers: int32.
        options: encoder settings, such as the zstd level.
        length: numbers in a part; the last part may have up to twice as many.
    """
    out = []
    starts = list(range(0, max(len(numbers) - length + 1, 1), length))
    for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        out += [encode_varint(end - start), write_part(numbers[start:end], options)]
    return b"".join(out)


def write_planes(numbers: npt.NDArray[Any], options: EncoderOptions) -> bytes:
    """Encode the byte planes of unsigned integers, lowest first.

    Args:
        numbers: unsigned integers.
        options: encoder settings, such as the zstd level.
    """
    planes = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), -1).T
    return b"".join(write_section(plane.tobytes(), options.zstd_level) for plane in planes)


def compute_residual(target: Signed, prediction: Prediction | None, kind: ElementType) -> Signed:
    """Compute ordered(target) - ordered(prediction), negated if the prediction was rounded up.

    Args:
        target: ordered elements [n].
        prediction: None returns the target itself.
        kind: type of the elements.
    """
    if prediction is None:
        return target
    residual: Signed = target - to_ordered(prediction.bits, kind)
    if prediction.rounded_up is not None:
        flip_signs(residual, prediction.rounded_up)
    return residual


@dataclass(frozen=True, slots=True)
class Period:
    """Positions that repeat along a tensor: those of a kernel, columns, input channels.

    Attributes:
        inner: consecutive elements that share a position.
        count: positions.
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
    """Encode the data of the coder KEYED.

    Args:
        residual: d, signed integers [n].
        prediction: prediction for the same elements; None without a base.
        kind: type of the elements.
        sub_block: s, elements of a sub-block.
        options: encoder settings, such as the zstd level.
        period: adds a pattern to the key.
        phase: index of the first element in its tensor.
        has_units: divide residuals by units (flag UNIT).

    Returns:
        The tables, and the parts.
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
        position_steps = np.zeros(count, np.int8)
        apply_periodic(np.add, position_steps, pattern.steps, pattern.inner, pattern.phase)
        if prediction is None:
            magnitude -= position_steps / np.float32(4)
        elif fields is not None or not is_sparse(residual):
            magnitude *= _half_octave_factors(position_steps)
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
    active = active_elements(keying, count)
    keys = element_keys(prediction, kind, keying, 0, count)
    active_residual = residual
    if active is not None:
        keys, active_residual = keys[active], residual[active]
    cuts = find_best_cuts(keys, active_residual)
    if len(cuts) > 2:
        active_residual = active_residual[keys.argsort(kind="stable")]
    return tables, b"".join(write_part(active_residual[a:b], options) for a, b in pairwise(cuts))


def is_sparse(changes: npt.NDArray[Any]) -> bool:
    """Return whether fewer than SPARSE_SHARE of the entries are not 0."""
    return int(np.count_nonzero(changes)) < SPARSE_SHARE * len(changes)


def is_in_units(residual: Signed, kind: ElementType) -> bool:
    """Return whether most residuals other than 0 end in more zero bits than chance gives.

    Args:
        residual: signed integers [n].
        kind: type of the elements; False for integers and f64.
    """
    if not kind.is_float or kind.exponent_mask > 255:
        return False
    zeros = _trailing_zeros(residual[residual != 0])
    return bool(len(zeros)) and float((zeros >= 3).mean()) > 0.5


def keyed_flags(
    prediction: Prediction | None, kind: ElementType, period: Period | None, *, has_units: bool = False
) -> Flag:
    """Return the flags that a frame with the data of `write_keyed` needs.

    Args:
        prediction: see `write_keyed`.
        kind: see `write_keyed`.
        period: see `write_keyed`.
        has_units: see `write_keyed`.
    """
    flags = Flag(0) if period is None else Flag.PATTERN
    if has_units:
        flags |= Flag.UNIT
    elif prediction is not None and kind.is_float:
        flags |= Flag.EXPONENT
    if prediction is not None and prediction.rounding_class is not None:
        flags |= Flag.ROUNDING_CLASS
    return flags


def _find_units(residual: Signed, prediction: Prediction, kind: ElementType, sub_block: int) -> npt.NDArray[np.uint8]:
    """Return the largest unit of each sub-block's residuals; without one, that of the previous one."""
    count = len(residual)
    size = min(sub_block, count)
    max_zeros = np.int16(kind.mantissa_bits - 1)
    zeros = np.where(residual == 0, max_zeros, _trailing_zeros(residual))
    largest = np.full(-(-count // size) * size, 255, np.int16)
    largest[:count] = np.where(zeros >= max_zeros, 255, zeros + exponent_fields(prediction.bits, kind))
    units = np.minimum(largest.reshape(-1, size).min(axis=1), 255).astype(np.uint8)
    latest = np.maximum.accumulate(np.where(units < 255, np.arange(len(units)), 0))
    found: npt.NDArray[np.uint8] = units[latest]
    return found


def _trailing_zeros(numbers: Signed) -> npt.NDArray[np.int16]:
    """Return the zero bits at the end of each number; undefined for 0."""
    lowest = (numbers & -numbers).astype(np.float64)
    zeros: npt.NDArray[np.int16] = (np.frexp(np.abs(lowest))[1] - 1).astype(np.int16)
    return zeros


def _residual_magnitude(
    residual: Signed, fields: npt.NDArray[np.int16] | None, kind: ElementType, *, has_prediction: bool
) -> npt.NDArray[np.float32]:
    """Return size(i); without a prediction its logarithm."""
    if not has_prediction:
        return _exponent_level(residual, kind)
    magnitude = np.abs(residual.astype(np.float32))
    if fields is not None:
        middle = int(np.median(fields[:: max(1, len(fields) // 1024)]))
        magnitude *= _powers_of_two(fields - np.int16(middle))
    return magnitude


def _fit_pattern(magnitude: npt.NDArray[np.float32], period: Period, phase: int, *, is_log: bool) -> Pattern:
    """Return the steps that make the mean sizes at all positions of the period alike."""
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
        # If the levels span more than a byte, the small ones share a class, since they cost the least.
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
    # Without a prediction, classes are computed from the exponents of floats and from the size of integers.
    if kind.is_float:
        top = np.iinfo(kind.signed).max
        bits = np.where(values < 0, values ^ top, values)
        return (((bits >> kind.mantissa_bits) & kind.exponent_mask) + 1).astype(np.float32)
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
    """Return the power of two that nearly all numbers are multiples of (rule 3)."""
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
