"""The preference among the variants that fit a device: expected latency, size or memory (adr/0023).

Theory of operation. Packager and device measure a variant relative to one fixed reference graph, with one thread.
The manifest has the build machine's ratio. On this device the ratio can differ, because its processor lacks a feature
or has another cache. So the device keeps a factor for each variant name: its own ratio over the manifest's. A new
release has other bundles, but the same kinds of variants, so the factor carries over:

    expected ratio of a variant here = ratio in its manifest * factor of its name (1 until it was measured here)

Rules:
- Measurements belong to one runtime version, one processor and one preference; they are forgotten when one changes.
- Latencies that differ by less than MIN_GAIN are equal: of those near the best one, the smallest variant is taken.
- The active variant stays, unless another one is better by MIN_GAIN, and the choice did not change since then.
- If a variant that fits has no ratio to the reference graph, the ratios to the float model decide; if one has none of
  these either, the smallest is taken, and the active one kept.

This module does no I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bundle.contract import PPM
from bundle.strict_json import JSON, NAME_PATTERN, StrictObject
from bundle.variant import Variant

MIN_GAIN: Final = 0.15  # of a change of choice; smaller differences are not worth a download
MAX_FACTOR_PPM: Final = 1_000_000 * PPM  # the figures come from a process that runs the model
WARNED_FACTOR_PPM: Final = 2 * PPM  # a variant this much slower here than on the build machine is reported
CHEAP_SHARE_PERCENT: Final = 20  # of the update's bytes, for a variant that is fetched only to be measured


@dataclass(frozen=True, slots=True)
class VariantMeasurements:
    """Measurements of the family's variants on this device.

    Attributes:
        runtime: version of the runtime.
        cpu: name of the processor.
        prefer: the preference: "latency", "size" or "memory".
        factors: variant name → its ratio here over that in its manifest, in parts per million.
        has_changed: the choice changed because of these measurements.
    """

    runtime: str = ""
    cpu: str = ""
    prefer: str = "latency"
    factors: Mapping[str, int] | None = None
    has_changed: bool = False

    def factor(self, name: str) -> int | None:
        """Return the factor of a variant name, or None if it was not measured."""
        return None if self.factors is None else self.factors.get(name)

    def with_factor(self, name: str, factor_ppm: int) -> "VariantMeasurements":
        """Return the measurements with one more factor.

        Args:
            name: name of the variant.
            factor_ppm: its ratio here over that in its manifest, in parts per million; from 1 to MAX_FACTOR_PPM.
        """
        bounded = min(max(factor_ppm, 1), MAX_FACTOR_PPM)
        return replace(self, factors={**(self.factors or {}), name: bounded})

    def with_change(self) -> "VariantMeasurements":
        """Return the measurements after a change of choice."""
        return replace(self, has_changed=True)

    def of_device(self, runtime: str, cpu: str, prefer: str) -> "VariantMeasurements":
        """Return these measurements if they belong to the device as it is now, else none.

        Args:
            runtime: version of the runtime.
            cpu: name of the processor.
            prefer: the preference.
        """
        if (self.runtime, self.cpu, self.prefer) == (runtime, cpu, prefer):
            return self
        return VariantMeasurements(runtime, cpu, prefer)

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "runtime": self.runtime,
            "cpu": self.cpu,
            "prefer": self.prefer,
            "factors": dict(self.factors or {}),
            "has_changed": self.has_changed,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "VariantMeasurements":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        rows = fields.object("factors")
        names = [name for name in rows.remaining_names() if NAME_PATTERN.fullmatch(name)]
        out = cls(
            runtime=fields.text("runtime"),
            cpu=fields.text("cpu"),
            prefer=fields.text("prefer"),
            factors={name: rows.integer(name, 1) for name in names},
            has_changed=fields.flag("has_changed"),
        )
        rows.reject_unknown()
        fields.reject_unknown()
        return out


NO_MEASUREMENTS: Final = VariantMeasurements()


def prefer_variant(
    fitting: Sequence[tuple[str, Variant]], current: str | None, measured: VariantMeasurements
) -> tuple[str, Variant]:
    """Return the preferred one of the variants that fit.

    Args:
        fitting: names and variants, at least one.
        current: name of the active variant, or None.
        measured: measurements and preference of this device.
    """
    scores, is_comparable = _scores(fitting, measured)
    limit = min(scores.values())
    if measured.prefer == "latency" and is_comparable:
        limit /= 1 - MIN_GAIN
    near = [pair for pair in fitting if scores[pair[0]] <= limit]
    best = min(near, key=lambda pair: (pair[1].plain_size, scores[pair[0]], pair[0]))
    active = next((pair for pair in fitting if pair[0] == current), None)
    if active is None or active == best:
        return best
    is_gain = scores[best[0]] <= (1 - MIN_GAIN) * scores[active[0]]
    return best if is_comparable and is_gain and not measured.has_changed else active


def explain_variant(name: str, variant: Variant, measured: VariantMeasurements) -> str:
    """Return what is known about a variant's speed here, as a phrase, or "".

    Args:
        name: name of the variant.
        variant: the variant.
        measured: measurements and preference of this device.
    """
    ratio = variant.measured.reference_ratio_ppm
    if ratio is None:
        return "speed unknown"
    factor = measured.factor(name)
    if factor is None:
        return f"{ratio / PPM:.3f} of the reference graph's time on {variant.measured.cpu or 'the build machine'}"
    here = ratio / PPM * factor / PPM
    return f"{here:.3f} of the reference graph's time, measured here ({ratio / PPM:.3f} on the build machine)"


def _expected_ratios(fitting: Sequence[tuple[str, Variant]], measured: VariantMeasurements) -> dict[str, float] | None:
    """Return the expected time of each variant in one unit, or None if no unit is known for all."""
    for unit in ("reference_ratio_ppm", "float_ratio_ppm"):
        ratios = {name: getattr(variant.measured, unit) for name, variant in fitting}
        if None not in ratios.values():
            return {name: ratio / PPM * (measured.factor(name) or PPM) / PPM for name, ratio in ratios.items()}
    return None


def _scores(fitting: Sequence[tuple[str, Variant]], measured: VariantMeasurements) -> tuple[dict[str, float], bool]:
    """Return a number for each variant (the least is preferred), and whether it follows the preference."""
    if measured.prefer == "memory":
        return {name: float(variant.requires.memory_bytes) for name, variant in fitting}, True
    ratios = _expected_ratios(fitting, measured) if measured.prefer == "latency" else None
    if ratios is not None:
        return ratios, True
    return {name: float(variant.plain_size) for name, variant in fitting}, measured.prefer == "size"
