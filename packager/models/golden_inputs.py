"""Choose the inputs of golden vectors, and how they are stored, within a number of bytes.

Order of choice:
    1. the inputs of an earlier release or of another variant, if they fit the model: a patch copies them
    2. samples as they are: images as bytes and sound as 16-bit integers, where the numbers have such levels
    3. float samples rounded to 16 bits, if at least MIN_ROUNDED_SAMPLES fit
    4. noise between the smallest and the largest element of each large input, if it shows damaged weights as well as
       the samples do (packager.models.damage_probe)
    5. as many samples rounded to 16 or else 8 bits as fit, at least one

If not all samples fit in 2, those that show damaged weights best come first (packager.models.damage_probe).

Golden outputs are those of the stored inputs, so rounding does not make the check less exact.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from bundle.golden.inputs import StoredInput, decode_input, encode_integers, encode_noise, encode_raw
from packager.errors import SampleShapeMismatch
from packager.models.inputs import ModelInterface, Sample, check_shape
from packager.models.samples import Samples

MAX_CONSIDERED_SAMPLES: Final = 256  # samples whose sizes are compared
MIN_EXACT_SAMPLES: Final = 3
MIN_ROUNDED_SAMPLES: Final = 2
MIN_PACKED_ELEMENTS: Final = 64  # smaller arrays are stored as they are
MIN_NOISE_BYTES: Final = 4_096  # smaller inputs are never replaced by noise
LEVEL_ERROR: Final = 0.02  # of a step, by which numbers with levels may be off

StoredSample: TypeAlias = dict[str, StoredInput]
Encoder: TypeAlias = Callable[[np.ndarray], StoredInput]


def choose_inputs(
    samples: Samples,
    count: int,
    limit_bytes: int,
    shows_damage: Callable[[list[Sample], list[Sample]], bool],
    rank: Callable[[list[Sample]], list[float]],
) -> list[StoredSample]:
    """Return at most `count` stored samples, the smallest first if all fit (order of choice, 2 to 5).

    Args:
        samples: samples that the model accepts.
        count: maximum number of samples.
        limit_bytes: compressed bytes that the inputs may take; only a single sample may exceed it.
        shows_damage: returns whether the second list of samples shows damaged weights as well as the first.
        rank: returns how well each sample shows damaged weights; it is asked if not all samples fit.
    """
    candidates = _order_candidates(samples, count)
    exact = _fill([_encode(sample, encode_exact) for sample in candidates], limit_bytes)
    if len(exact) < len(candidates):
        candidates = _order_by_score(candidates, rank(candidates))
        exact = _fill([_encode(sample, encode_exact) for sample in candidates], limit_bytes)
    if len(exact) >= min(MIN_EXACT_SAMPLES, len(candidates)):
        return exact
    rounded = _fill([_encode(sample, encode_rounded) for sample in candidates], limit_bytes)
    if len(rounded) >= min(MIN_ROUNDED_SAMPLES, len(candidates)):
        return rounded
    noise = _fill([_encode(sample, encode_noise_if_large) for sample in candidates], limit_bytes)
    if noise and any(stored.code == "noise" for stored in noise[0].values()):
        drawn = decode_samples(noise[:1])
        if shows_damage(candidates[:1], drawn):
            return noise
    coarse = [_encode(sample, encode_coarse) for sample in candidates]
    return rounded or exact or _fill(coarse, limit_bytes) or coarse[:1]


def choose_sequence(samples: Samples, count: int) -> list[StoredSample]:
    """Return the first samples in their order, for a model whose runs depend on the runs before.

    Args:
        samples: samples that the model accepts.
        count: maximum number of samples.
    """
    return [_encode(sample, encode_exact) for sample, _ in zip(samples, range(count), strict=False)]


def fits_model(stored: Sequence[StoredSample], interface: ModelInterface) -> bool:
    """Return whether a model has the inputs of stored samples.

    Args:
        stored: samples of an earlier release.
        interface: inputs and outputs of the model.
    """
    known = {info.name: info for info in interface.inputs}
    for sample in stored:
        if sample.keys() != known.keys():
            return False
        for name, item in sample.items():
            try:
                check_shape(item.shape, known[name], "golden")
            except SampleShapeMismatch:
                return False
            if np.dtype(known[name].dtype) != np.dtype(item.dtype):
                return False
    return True


def decode_samples(stored: Sequence[StoredSample]) -> list[Sample]:
    """Return the arrays of stored samples, numbered from 0."""
    out: list[Sample] = []
    for number, sample in enumerate(stored):
        before = out[-1] if out else {}
        out.append({name: decode_input(item, number, name, before.get(name)) for name, item in sample.items()})
    return out


def mark_repeats(stored: Sequence[StoredSample]) -> list[StoredSample]:
    """Replace every input that equals the one of the sample before by the code "same"."""
    out: list[StoredSample] = []
    for number, sample in enumerate(stored):
        row = {}
        for name, item in sample.items():
            is_repeated = number > 0 and stored[number - 1].get(name) == item and item.code not in ("noise", "constant")
            row[name] = StoredInput(item.dtype, item.shape, "same", b"") if is_repeated else item
        out.append(row)
    return out


def expand_repeats(stored: Sequence[StoredSample]) -> list[StoredSample]:
    """Replace the code "same" by the input of the sample before."""
    out: list[StoredSample] = []
    for sample in stored:
        out.append({name: out[-1][name] if item.code == "same" else item for name, item in sample.items()})
    return out


def compressed_size(sample: StoredSample) -> int:
    """Return about how many bytes of a download a stored sample takes."""
    return sum(len(zlib.compress(item.data)) if item.data else 0 for item in sample.values())


def encode_exact(array: np.ndarray) -> StoredInput:
    """Store an array without loss, as small integers if all its numbers are on such levels."""
    stored = encode_raw(array)
    if stored.code == "constant" or array.size < MIN_PACKED_ELEMENTS or array.dtype.kind == "b":
        return stored
    if array.dtype.kind in "iu":
        return _encode_narrow(array) or stored
    found = _find_levels(array)
    return stored if found is None else _encode_affine(array, *found)


def encode_rounded(array: np.ndarray) -> StoredInput:
    """Store an array as `encode_exact`, a float one rounded to 16 bits."""
    stored = encode_exact(array)
    is_exact = stored.code != "raw" or array.itemsize <= 2
    return stored if is_exact or not _can_round(array) else _round_to_levels(array, 65_535)


def encode_coarse(array: np.ndarray) -> StoredInput:
    """Store an array as `encode_exact`, a float one rounded to 8 bits."""
    stored = encode_exact(array)
    return stored if stored.code in ("constant", "u8") or not _can_round(array) else _round_to_levels(array, 255)


def encode_noise_if_large(array: np.ndarray) -> StoredInput:
    """Replace a large array of floats or bytes by noise; store any other one as it is."""
    stored = encode_exact(array)
    is_large = stored.code != "constant" and len(stored.data) >= MIN_NOISE_BYTES
    is_signal = array.dtype.kind == "f" or (array.dtype == np.uint8 and array.ndim >= 3)
    return encode_noise(array) if is_large and is_signal and np.isfinite(array).all() else stored


def _can_round(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.size >= MIN_PACKED_ELEMENTS and bool(np.isfinite(array).all())


def _round_to_levels(array: np.ndarray, top: int) -> StoredInput:
    low, high = float(array.min()), float(array.max())
    return _encode_affine(array, low, (high - low) / top)


def _encode(sample: Sample, encoder: Encoder) -> StoredSample:
    return {name: encoder(np.asarray(array)) for name, array in sample.items()}


def _order_candidates(samples: Samples, count: int) -> list[Sample]:
    """Return the smallest sample, the largest one, and others evenly spread, in this order."""
    considered = samples.take(MAX_CONSIDERED_SAMPLES)
    sizes = [sum(array.size for array in sample.values()) for sample in considered]
    even = [round(i * (len(sizes) - 1) / max(1, count - 1)) for i in range(count)]
    order = list(dict.fromkeys((int(np.argmin(sizes)), int(np.argmax(sizes)), *even)))[:count]
    wanted = set(order)
    found = {i: sample for i, sample in enumerate(considered) if i in wanted}
    return [found[i] for i in order]


def _order_by_score(candidates: list[Sample], scores: list[float]) -> list[Sample]:
    """Return the candidates, best first; the smallest one stays first if sizes differ."""
    sizes = {sum(array.size for array in sample.values()) for sample in candidates}
    fixed = 1 if len(sizes) > 1 else 0
    order = sorted(range(fixed, len(candidates)), key=lambda number: -scores[number])  # stable
    return [*candidates[:fixed], *(candidates[number] for number in order)]


def _fill(candidates: list[StoredSample], limit_bytes: int) -> list[StoredSample]:
    taken = []
    left = limit_bytes
    for sample in candidates:
        size = compressed_size(sample)
        if size <= left:
            taken.append(sample)
            left -= size
    return taken


def _encode_narrow(array: np.ndarray) -> StoredInput | None:
    low, high = int(array.min()), int(array.max())
    for code, dtype in (("u8", np.uint8), ("i8", np.int8), ("u16", np.uint16), ("i16", np.int16), ("i32", np.int32)):
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max and np.dtype(dtype).itemsize < array.itemsize:
            return encode_integers(array, array, code, None)
    return None


def _find_levels(array: np.ndarray) -> tuple[float, float] | None:
    """Return (offset, step) if all numbers are offset + step * integer up to 65,535, else None."""
    if not np.isfinite(array).all():
        return None
    values = np.unique(array.astype(np.float64))
    if len(values) < 2 or len(values) > 65_536:
        return None
    rough = float(np.diff(values).min())
    top = round((values[-1] - values[0]) / rough)
    if not 1 <= top <= 65_535 or (array.itemsize <= 2 and top > 255):
        return None
    step = float(values[-1] - values[0]) / top
    levels = (values - values[0]) / step
    return (float(values[0]), step) if np.abs(levels - np.rint(levels)).max() <= LEVEL_ERROR else None


def _encode_affine(array: np.ndarray, offset: float, step: float) -> StoredInput:
    integers = np.rint((array.astype(np.float64) - offset) / step) if step else np.zeros(array.shape)
    return encode_integers(array, integers, "u8" if integers.max(initial=0) <= 255 else "u16", (offset, step))
