"""Scales: the units in which the elements of a float output are compared (docs/format.md section 8.3).

Rules:
- An output is first divided by 2^exponent, which is at least its largest magnitude, so that no square overflows.
- `unit` is the RMS of the output over all samples: of a whole output about zero, of a sketched one about its mean. It
  is at least 1/32 of the mean's magnitude, and at least MIN_UNIT: a smaller output is the noise of float32 rounding.
- A sketched output with an axis of 2 to MAX_CHANNELS elements, of the same size in all samples, has a scale for each
  channel: the channel's RMS about the channel's mean. A strong channel thus cannot hide a damaged weak one.
- A channel's scale is raised where honest runs of the model differ more than the tolerance allows, at most to `unit`.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import Malformed
from bundle.tensor_types import FLOAT_TYPES, SERVED_TYPES

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

MAX_CHANNELS: Final = 128
MIN_UNIT: Final = 1e-6
MIN_EXPONENT: Final = -20  # 2^-20 is about MIN_UNIT
MAX_EXPONENT: Final = 1024  # of float64
MEAN_SHARE: Final = 1 / 32  # of the mean's magnitude: an output that hardly varies is compared with its mean
QUIET_SHARE: Final = 1 / 32  # of all samples' RMS: a sample with a smaller output is compared with this
MIN_RATIO: Final = 2.0**-14  # smallest normal float16
OFFSET_SHARE: Final = 1 / 512  # float16 keeps 11 bits of a channel's offset, so its rest is at most 1/8 of the scale
FLOAT_DTYPES: Final = FLOAT_TYPES
EXACT_DTYPES: Final = tuple(row.name for row in SERVED_TYPES if row.name not in FLOAT_TYPES)
_HEAD: Final = struct.Struct("<hff")


@dataclass(frozen=True, slots=True)
class OutputScale:
    """The units of one float output.

    Attributes:
        exponent: the output is divided by 2^exponent; all other values are in these units.
        unit: the output's RMS.
        center: its mean; 0 for a whole output.
        ratios: float16 [channels], scale of each channel divided by `unit`; () without channels.
        offsets: float16 [channels], mean of each channel minus `center`, divided by `unit`.
    """

    exponent: int
    unit: float
    center: float
    ratios: npt.NDArray[np.float16]
    offsets: npt.NDArray[np.float16]

    @property
    def channels(self) -> int:
        """Number of channels with a scale of their own; 0 for none."""
        return len(self.ratios)

    @property
    def least_sample_scale(self) -> float:
        """Smallest RMS of a sample, in units of the scale, that errors are compared with."""
        least = float(np.ldexp(MIN_UNIT, -self.exponent))
        return max(QUIET_SHARE, MEAN_SHARE * abs(self.center) / self.unit, least / self.unit)

    def encode(self) -> bytes:
        """Return the scale as it is stored."""
        head = _HEAD.pack(self.exponent, self.unit, self.center)
        return head + self.ratios.astype("<f2").tobytes() + self.offsets.astype("<f2").tobytes()


def scale_size(channels: int) -> int:
    """Return the bytes that the scale of one output takes."""
    return _HEAD.size + 4 * channels


def decode_scale(data: bytes, channels: int, where: str) -> OutputScale:
    """Read the scale of one output.

    Args:
        data: `scale_size(channels)` bytes.
        channels: number of channels.
        where: name of the output, for messages.

    Raises:
        Malformed: a value is not finite or out of range.
    """
    exponent, unit, center = _HEAD.unpack_from(data)
    halves = np.frombuffer(data, "<f2", offset=_HEAD.size).astype(np.float16)
    ratios, offsets = halves[:channels], halves[channels:]
    is_finite = np.isfinite(unit) and np.isfinite(center) and bool(np.isfinite(halves).all())
    if not is_finite or unit <= 0 or not MIN_EXPONENT <= exponent <= MAX_EXPONENT or not (ratios > 0).all():
        raise Malformed(f"{where}: found a scale that is not a positive finite number")
    return OutputScale(exponent, unit, center, ratios, offsets)


def normalize(output: Array, scale: OutputScale, axis: int | None) -> Floats:
    """Return the elements in their scales, divided by the square root of their number: float64 [elements].

    The sum of squares of the result is the squared relative RMS, summed over the channels.

    Args:
        output: a float output.
        scale: its scale.
        axis: the channel axis, or None.
    """
    with np.errstate(all="ignore"):
        scaled = np.ldexp(output.astype(np.float64), -scale.exponent)
        if axis is None or not scale.channels:
            plain: Floats = (scaled - scale.center) / (scale.unit * np.sqrt(max(output.size, 1)))
            return plain.reshape(-1)
        shape = [1] * output.ndim
        shape[axis] = scale.channels
        centers = scale.center + scale.unit * scale.offsets.astype(np.float64).reshape(shape)
        units = scale.unit * scale.ratios.astype(np.float64).reshape(shape)
        scaled -= centers
        scaled /= units * np.sqrt(max(output.size // scale.channels, 1))
        return scaled.reshape(-1)


def choose_exponent(magnitude: float) -> int:
    """Return the exponent of an output whose largest magnitude is given."""
    return max(MIN_EXPONENT, int(np.frexp(magnitude)[1])) if magnitude > 0 else MIN_EXPONENT


def channel_axis(shapes: list[tuple[int, ...]]) -> int | None:
    """Return the channel axis of an output: the smallest suitable one; None if there is none.

    Args:
        shapes: the output's shape in each sample.
    """
    first = shapes[0]
    if any(len(shape) != len(first) for shape in shapes) or len(first) < 2:
        return None
    sizes = {
        axis: size
        for axis, size in enumerate(first)
        if 2 <= size <= MAX_CHANNELS and all(shape[axis] == size for shape in shapes)
    }
    # with few elements each, a channel's RMS says nothing
    fit = [axis for axis, size in sizes.items() if all(_elements(shape) // size >= 8 for shape in shapes)]
    return min(fit, key=lambda axis: (sizes[axis], axis)) if fit else None


def measure_scale(
    outputs: list[Array], axis: int | None, noise: Floats | None, *, is_whole: bool, noise_limit: float
) -> OutputScale:
    """Return the scale of an output from its golden values.

    Args:
        outputs: the output in each sample; finite.
        axis: the channel axis, or None.
        noise: float64 [channels], the RMS by which honest runs differ in each channel, or None if unknown.
        is_whole: whether the output is kept whole.
        noise_limit: relative RMS of all channels' noise that the scales leave.
    """
    exponent = choose_exponent(max((float(np.abs(o).max(initial=0)) for o in outputs), default=0.0))
    scaled = [np.ldexp(output.astype(np.float64), -exponent) for output in outputs]
    count = max(sum(part.size for part in scaled), 1)
    mean = sum(float(part.sum()) for part in scaled) / count
    center = 0.0 if is_whole else float(np.float32(mean))
    rms = float(np.sqrt(sum(float(np.square(part - center).sum()) for part in scaled) / count))
    least = float(np.ldexp(MIN_UNIT, -exponent))
    unit = float(np.float32(max(rms, 0.0 if is_whole else MEAN_SHARE * abs(mean), least)))
    none = np.zeros(0, np.float16)
    if axis is None or is_whole:
        return OutputScale(exponent, unit, center, none, none)
    channels = outputs[0].shape[axis]
    by_channel = np.concatenate([np.moveaxis(part, axis, 0).reshape(channels, -1) for part in scaled], axis=1)
    means = by_channel.mean(axis=1)
    offsets = np.clip((means - center) / unit, -60_000, 60_000).astype(np.float16)
    ratios = np.sqrt(np.square(by_channel - means[:, None]).mean(axis=1)) / unit
    if noise is not None:
        limits = np.ldexp(noise, -exponent) * np.sqrt(channels) / (noise_limit * unit)
        ratios = np.maximum(ratios, np.minimum(limits, 1.0))
    ratios = np.maximum(ratios, np.maximum(np.abs(offsets.astype(np.float64)) * OFFSET_SHARE, MIN_RATIO))
    return OutputScale(exponent, unit, center, np.minimum(ratios, 60_000).astype(np.float16), offsets)


def keep_channels(scale: OutputScale, earlier: OutputScale | None) -> OutputScale:
    """Return the scale with the channels of an earlier release if they fit, so that a patch copies them.

    Args:
        scale: the scale from golden values.
        earlier: the same output's scale in the earlier release, or None.
    """
    if earlier is None or not scale.channels or earlier.channels != scale.channels:
        return scale
    ratios = earlier.ratios.astype(np.float64) / scale.ratios.astype(np.float64)
    moved = np.abs(earlier.offsets.astype(np.float64) - scale.offsets.astype(np.float64))
    if ratios.min() < 0.8 or ratios.max() > 1.25 or (moved > 0.25 * scale.ratios).any():
        return scale
    return OutputScale(scale.exponent, scale.unit, scale.center, earlier.ratios, earlier.offsets)


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
