"""The checks of golden outputs on a device (docs/format.md section 8.5).

Rules, for the outputs of each sample:
1. Every output has the golden dtype and shape, and no float is NaN or infinite.
2. Integers, Booleans and strings have the golden SHA-256.
3. The relative RMS error of a whole output is at most the tolerance.
4. The relative RMS error that the sketch estimates is at most SKETCH_SHARE of the tolerance. The estimate is too low by
   chance; the share makes sure that a damage of 1.25 times the tolerance is found (of 100,000 such damages one is
   missed, by one sample).
5. Mean and RMS of a sketched output differ by at most the tolerance.
6. The largest element of a sketched output is at the golden position, if its lead exceeds LEAD_SHARE tolerances.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import GoldenMismatch
from bundle.golden.scales import FLOAT_DTYPES
from bundle.golden.sketch import NO_POSITION, OutputFacts, OutputRow, Summary, summarize, to_levels

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

SKETCH_SHARE: Final = 0.8
LEAD_SHARE: Final = 8.0  # the largest and the second largest element may each be off by several RMS errors
MAX_ERROR: Final = 1e9  # reported for outputs that differ by more


@dataclass(frozen=True, slots=True)
class GoldenVector:
    """One golden sample as a device reads it.

    Attributes:
        number: number of the sample.
        inputs: input arrays by name.
        rows: the outputs.
        shapes: shape of each output, in the order of `rows`.
        digests: SHA-256 of each exact output, by name.
        facts: facts of each sketched output, by name.
        step: step of `levels`.
        levels: int16 [elements and buckets], whole outputs and sketch.
    """

    number: int
    inputs: dict[str, Array]
    rows: tuple[OutputRow, ...]
    shapes: tuple[tuple[int, ...], ...]
    digests: dict[str, bytes]
    facts: dict[str, OutputFacts]
    step: float
    levels: npt.NDArray[np.int16]


def check_outputs(outputs: Mapping[str, Array], sample: GoldenVector, *, tolerance_ppm: int, where: str) -> float:
    """Compare a model's outputs with one golden sample.

    Args:
        outputs: outputs of the model by name.
        sample: the golden sample.
        tolerance_ppm: maximum relative RMS error, in parts per million.
        where: name of the sample in error messages.

    Returns:
        The largest relative RMS error of the float outputs; of sketched ones, the estimate.

    Raises:
        GoldenMismatch: an output is missing, has another dtype or shape, is not finite, or exceeds the tolerance.
    """
    for row, shape in zip(sample.rows, sample.shapes, strict=True):
        _check_form(outputs, row, shape, where)
    found = summarize(outputs, sample.rows, sample.number, sample.facts)
    for name, digest in sample.digests.items():
        if found.digests[name] != digest:
            raise GoldenMismatch(f"{where}: output {name!r} differs from the golden output, expected equality")
    tolerance = tolerance_ppm / 1e6
    worst = 0.0
    for names, error, share in measure_errors(found, sample):
        if not error <= share * tolerance:
            text = ", ".join(repr(name) for name in names)
            outputs_have = f"output {text} has" if len(names) == 1 else f"outputs {text} have"
            raise GoldenMismatch(
                f"{where}: {outputs_have} relative RMS error {min(error, MAX_ERROR):.6f},"
                f" expected at most {share * tolerance:.6f}"
            )
        worst = max(worst, error)
    for name, scale in sample_scales(sample).items():
        golden, position = sample.facts[name], found.facts[name].position
        is_clear = golden.position != NO_POSITION and golden.lead > LEAD_SHARE * tolerance * scale
        if is_clear and position != golden.position:
            raise GoldenMismatch(
                f"{where}: the largest element of output {name!r} is at {position}, expected {golden.position}"
            )
    return worst


def measure_errors(found: Summary, sample: GoldenVector) -> list[tuple[tuple[str, ...], float, float]]:
    """Return (names of outputs, relative RMS error, allowed share of the tolerance) per comparison.

    Args:
        found: summary of the outputs.
        sample: the golden sample.
    """
    with np.errstate(all="ignore"):
        difference = (to_levels(found.values(), sample.step) - sample.levels) * np.float64(sample.step)
        errors: list[tuple[tuple[str, ...], float, float]] = []
        start = 0
        least = {row.name: row.scale.least_sample_scale for row in sample.rows if row.scale is not None}
        for name, elements in found.whole.items():
            part = slice(start, start + elements.size)
            norm = max(_norm(sample.levels[part] * np.float64(sample.step)), least[name])
            errors.append(((name,), _norm(difference[part]) / norm, 1.0))
            start += elements.size
        for name, scale in sample_scales(sample).items():
            facts, golden = found.facts[name], sample.facts[name]
            errors.append(((name,), abs(float(np.float32(facts.mean)) - golden.mean) / scale, 1.0))
            errors.append(((name,), abs(float(np.float32(facts.rms)) - golden.rms) / scale, 1.0))
        if sample.facts:
            errors.append((tuple(sample.facts), _norm(difference[start:]), SKETCH_SHARE))
    return errors


def sample_scales(sample: GoldenVector) -> dict[str, float]:
    """Return the sample's scale of each sketched output, by name."""
    return {row.name: sample.facts[row.name].sample_scale(row) for row in sample.rows if row.name in sample.facts}


def _check_form(outputs: Mapping[str, Array], row: OutputRow, shape: tuple[int, ...], where: str) -> None:
    output = outputs.get(row.name)
    if output is None:
        raise GoldenMismatch(f"{where}: output {row.name!r} is missing, found {', '.join(sorted(outputs)) or 'none'}")
    dtype = "string" if output.dtype.kind in "OUS" else output.dtype.name
    if dtype != row.dtype or output.shape != shape:
        raise GoldenMismatch(
            f"{where}: output {row.name!r} is {dtype}{list(output.shape)}, expected {row.dtype}{list(shape)}"
        )
    if dtype in FLOAT_DTYPES and not np.isfinite(output).all():
        raise GoldenMismatch(f"{where}: output {row.name!r} has NaN or infinity, expected finite numbers")


def _norm(values: Floats) -> float:
    return float(np.sqrt(np.square(values).sum()))
