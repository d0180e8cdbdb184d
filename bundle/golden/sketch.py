"""Summarize the outputs of one sample for golden vectors (docs/format.md section 8.4).

Whole outputs keep their elements. All sketched outputs of a sample share one count sketch of BUCKETS buckets: the
elements, normalized by `scales.normalize`, each with a sign, are summed into buckets. The sketch is linear, so the
difference of two sketches is the sketch of the difference, and the sum of its squares estimates the sum of squared
relative errors of all sketched outputs, with a standard deviation of sqrt(2 / BUCKETS). One damaged output among many
is thus not averaged away.

Rules:
- The elements are also divided by the output's RMS in the sample, so that an error of a quiet sample counts as much as
  one of a loud sample.
- Sign and bucket of an element come from SHAKE-128 of the format's label, the number of the sample, the output's name
  and shape, and the number of the element's block.
- Elements and buckets are kept as 16-bit integers with one step for the sample. A device rounds its own in the same
  way, so that equal outputs have no error.
- Beside it, per sketched output: mean and RMS of its normalized elements, which find a shift or a wrong scale exactly,
  and the position of its largest element with its lead over the second largest.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.golden.inputs import encode_place
from bundle.golden.scales import FLOAT_DTYPES, OutputScale, normalize

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

SKETCH_LABEL: Final = b"airweights golden sketch v1"
BUCKETS: Final = 64
BLOCK_ELEMENTS: Final = 1 << 20  # bounds the memory of a sketch
MAX_LEVEL: Final = 32_767
MIN_STEP: Final = 2.0**-20  # of outputs that are all zero
NO_POSITION: Final = 2**32 - 1
DIGEST_BYTES: Final = 32
FACTS: Final = struct.Struct("<ffIf")


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output of the model, as the file's header names it.

    Attributes:
        name: name of the output.
        dtype: numpy's name of its dtype, or "string".
        is_whole: whether a float output is kept whole.
        axis: its channel axis; None without one.
        scale: scale of a float output; None for an exact one.
    """

    name: str
    dtype: str
    is_whole: bool = False
    axis: int | None = None
    scale: OutputScale | None = None

    @property
    def is_sketched(self) -> bool:
        """True if the output is a float that is part of the sketch."""
        return self.dtype in FLOAT_DTYPES and not self.is_whole


@dataclass(frozen=True, slots=True)
class OutputFacts:
    """Facts about one sketched output that are kept beside the sketch.

    Attributes:
        mean: sum of its normalized elements, divided by the square root of their number.
        rms: square root of the sum of their squares.
        position: index of its largest element in C order; NO_POSITION if it is not kept.
        lead: largest minus second largest element, in units of the output's scale.
    """

    mean: float
    rms: float
    position: int
    lead: float

    def sample_scale(self, row: OutputRow) -> float:
        """Return the output's RMS in this sample relative to all samples, at least its scale's least.

        Args:
            row: the output.
        """
        assert row.scale is not None
        rms = float(np.float32(self.rms)) / float(np.sqrt(max(row.scale.channels, 1)))
        return max(rms, row.scale.least_sample_scale)

    def encode(self) -> bytes:
        """Return the facts as they are stored."""
        return FACTS.pack(self.mean, self.rms, self.position, self.lead)


@dataclass(frozen=True, slots=True)
class Summary:
    """The outputs of one sample, summarized.

    Attributes:
        digests: SHA-256 of each exact output, by name.
        facts: facts of each sketched output, by name.
        whole: float64 [elements], normalized elements of each whole output, by name.
        sketch: float64 [BUCKETS]; empty if no output is sketched.
    """

    digests: dict[str, bytes]
    facts: dict[str, OutputFacts]
    whole: dict[str, Floats]
    sketch: Floats

    def values(self) -> Floats:
        """Return the elements of all whole outputs and the sketch, in the order of the file."""
        return np.concatenate([*self.whole.values(), self.sketch])


def summarize(
    outputs: Mapping[str, Array],
    rows: Sequence[OutputRow],
    sample: int,
    golden: Mapping[str, OutputFacts] | None = None,
) -> Summary:
    """Summarize the outputs of one sample.

    Args:
        outputs: the outputs by name, of the rows' dtypes; floats are finite.
        rows: the outputs to summarize.
        sample: number of the sample.
        golden: golden facts, which set the sample's scale of each sketched output; None for golden outputs themselves.
    """
    found = Summary({}, {}, {}, np.zeros(BUCKETS if any(row.is_sketched for row in rows) else 0))
    for row in rows:
        output = np.asarray(outputs[row.name])
        if row.scale is None:
            found.digests[row.name] = digest_values(output)
            continue
        elements = normalize(output, row.scale, row.axis)
        if row.is_whole:
            found.whole[row.name] = elements
        else:
            facts = found.facts[row.name] = _measure_facts(output, elements, row.scale)
            scale = (golden or found.facts).get(row.name, facts).sample_scale(row)
            add_to_sketch(found.sketch, elements / scale, sample, row.name, output.shape)
    return found


def add_to_sketch(sketch: Floats, elements: Floats, sample: int, name: str, shape: tuple[int, ...]) -> None:
    """Add normalized elements to a sketch, in place.

    Args:
        sketch: float64 [BUCKETS].
        elements: float64 [elements].
        sample: number of the sample.
        name: name of the output.
        shape: its shape.
    """
    place = SKETCH_LABEL + encode_place(sample, name, shape)
    for number, start in enumerate(range(0, elements.size, BLOCK_ELEMENTS)):
        block = elements[start : start + BLOCK_ELEMENTS]
        drawn = np.frombuffer(hashlib.shake_128(place + struct.pack("<I", number)).digest(block.size), np.uint8)
        signed = np.where(drawn & 0x80, -block, block)
        sketch += np.bincount(drawn & (BUCKETS - 1), signed, BUCKETS)


def digest_values(output: Array) -> bytes:
    """Return the SHA-256 of the values of an integer, Boolean or string output, in C order, little-endian."""
    if output.dtype.kind in "OUS":
        digest = hashlib.sha256()
        for value in output.reshape(-1).tolist():
            text = value if isinstance(value, bytes) else str(value).encode()
            digest.update(struct.pack("<I", len(text)) + text)
        return digest.digest()
    return hashlib.sha256(np.ascontiguousarray(output, output.dtype.newbyteorder("<")).tobytes()).digest()


def choose_step(values: Floats) -> float:
    """Return the step of the 16-bit integers that hold `values`, rounded to float32."""
    return float(np.float32(max(float(np.abs(values).max(initial=0.0)) / MAX_LEVEL, MIN_STEP)))


def to_levels(values: Floats, step: float) -> Floats:
    """Return values in steps, rounded to integers, halves to even.

    Args:
        values: elements or buckets.
        step: the sample's step.
    """
    with np.errstate(all="ignore"):
        return np.rint(values / step)


def _measure_facts(output: Array, elements: Floats, scale: OutputScale) -> OutputFacts:
    with np.errstate(all="ignore"):
        mean = float(elements.sum() / np.sqrt(max(elements.size, 1)))
        rms = float(np.sqrt(np.square(elements).sum()))
    if not 2 <= elements.size < NO_POSITION:
        return OutputFacts(mean, rms, NO_POSITION, 0.0)
    flat = output.reshape(-1)
    position = int(flat.argmax())
    first = float(flat[position])
    second = max(float(flat[:position].max(initial=-np.inf)), float(flat[position + 1 :].max(initial=-np.inf)))
    with np.errstate(all="ignore"):
        lead = (np.ldexp(first, -scale.exponent) - np.ldexp(second, -scale.exponent)) / scale.unit
    return OutputFacts(mean, rms, position, float(lead))
