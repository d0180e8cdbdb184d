"""`update`: the smallest patch from a base's quantized model to a new float model that passes the gate.

Rules:
1. Ordinary quantization of the new model, made the way the base was, is the measure: the update's error may be at most
   `max_over_ordinary` times its error, and the stale base's error says what an update must beat.
2. The price of a bit is searched (`search`) against the samples held back, which were not fitted, up to that error.
3. What is "retrained" (FRESH_SHARE of the weights are quantized afresh) is not an update: the ordinary model is
   returned, and the report says so.
4. Nothing is random, and linear algebra keeps to one thread, so that sums have one order: same inputs, same bytes.
   That is hardly slower, and many times faster beside other work.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import onnx

from bundle.patch.single_thread import use_single_thread
from packager.models.inputs import load_proto
from packager.models.samples import Samples
from packager.models.sessions import CachedSession, open_session, open_session_of, settings_for
from packager.quantize.gate import DEFAULT_THRESHOLDS, GateReport, Thresholds, judge
from packager.quantize.prepare import prepare_model
from packager.quantize.reference_checks import check_reference_outputs
from packager.quantize.schemes import save_model
from packager.quantize.update_aware.activation_refit import refit_ranges
from packager.quantize.update_aware.matching_baseline import quantize_like_template
from packager.quantize.update_aware.rate_search import RatePoint, RateSearch
from packager.quantize.update_aware.solver import Solver, grid_of
from packager.quantize.update_aware.template import read_template

UpdateMethod = Literal["joint", "baseline"]

REQUANTIZED_SHARE_LIMIT: Final = 0.5
DEFAULT_ERROR_RATIO: Final = 1.08  # x ordinary's error, where nothing else is asked for: the gate's own limit is above
MAX_SAMPLES: Final = 1024
TRIAL_SAMPLES: Final = 100  # of those for calibration, on which ranges are tried
MAX_LISTED_WEIGHTS: Final = 5  # weights that a text lists by name


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What an update came to; all gates are on the samples that were held back."""

    method: UpdateMethod
    reason: str
    gate: GateReport
    baseline: GateReport
    unchanged_base: GateReport
    rate_weight: float | None
    bits_per_weight: float | None
    curve: tuple[RatePoint, ...]
    weights: int
    requantized: tuple[str, ...]
    refitted_scales: tuple[str, ...]
    jointly_optimized: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "method": self.method,
            "reason": self.reason,
            "gate": self.gate.as_json(),
            "baseline": self.baseline.as_json(),
            "unchanged_base": self.unchanged_base.as_json(),
            "rate_weight": self.rate_weight,
            "bits_per_weight": self.bits_per_weight,
            "curve": [point.as_json() for point in self.curve],
            "weights": self.weights,
            "requantized": list(self.requantized),
            "refitted_scales": list(self.refitted_scales),
            "jointly_optimized": list(self.jointly_optimized),
        }

    def as_text(self) -> str:
        """For a person: what it came to, and which weights did not fit the base's scales."""
        bits = "" if self.bits_per_weight is None else f", {self.bits_per_weight:.4f} bits a weight"
        error, ordinary = self.gate.relative_rms or 0.0, self.baseline.relative_rms or 0.0
        lines = [
            f"{self.method}: {self.reason}{bits}",
            f"relative RMS {error:.4f}, ordinary quantization {ordinary:.4f}",
        ]
        for names, what in (
            (self.requantized, "quantized afresh"),
            (self.refitted_scales, "scales of some channels fitted again"),
        ):
            if names:
                more = f" and {len(names) - MAX_LISTED_WEIGHTS} more" if len(names) > MAX_LISTED_WEIGHTS else ""
                lines.append(f"{what}: {', '.join(names[:MAX_LISTED_WEIGHTS])}{more}")
        return "\n".join(lines)


@use_single_thread()
def quantize_update(
    new: Path,
    base: Path,
    out: Path,
    calibration: Samples,
    held_out: Samples,
    *,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    max_over_baseline: float | None = None,
    on_solution: Callable[[RatePoint], None] | None = None,
    extra_rate_factors: tuple[float, ...] = (),
) -> UpdateReport:
    """Quantize the float model `new` near the quantized model `base` into `out`.

    Args:
        new: float model of the new release.
        base: quantized model that devices hold.
        out: the file to write.
        calibration: inputs for moments, ranges and the search.
        held_back: inputs that only the gates see; they choose the price (`search`, rule 1).
        thresholds: of the final gate.
        max_over_ordinary: error allowed over ordinary quantization's, which the search aims at; where not given the
            gate allows what the thresholds say, and the search aims at AIM.
        on_solution: told of each solution as it is found.
        around: further prices to solve at, in units of the chosen one; for a curve.

    Raises:
        UpdateDoesNotFit: the graphs differ.
        Invalid kinds for unusable models and samples; QuantizationRefused where ordinary quantization is impossible, or
        the float model's answers are of no use.
    """
    calibration = calibration.take(MAX_SAMPLES)
    template = load_proto(base)
    prepared = prepare_model(new, next(iter(calibration.take(1)))).model
    grids = [grid_of(weight) for weight in read_template(template, prepared)]
    total = sum(grid.values.size for grid in grids)
    running = open_session(new)
    check_reference_outputs(running, calibration, new)
    reference = CachedSession(running)
    ordinary = quantize_like_template(template, prepared, calibration)
    ratio = max_over_baseline if max_over_baseline is not None else thresholds.max_over_baseline
    fresh = tuple(grid.weight.name for grid in grids if grid.is_requantized)
    share = sum(grid.values.size for grid in grids if grid.is_requantized) / max(total, 1)
    tried = calibration.take(TRIAL_SAMPLES)

    def judged(model: onnx.ModelProto, samples: Samples = held_out) -> GateReport:
        return judge(reference, open_session_of(model, settings_for(model)), samples, thresholds)

    def error_of(model: onnx.ModelProto) -> float:
        return judged(model, tried).relative_rms or 0.0

    gates = {"ordinary": judged(ordinary), "stale": judged(template)}

    def gate_of(model: onnx.ModelProto) -> GateReport:
        return judge(
            reference,
            open_session_of(model, settings_for(model)),
            held_out,
            replace(thresholds, max_over_baseline=ratio),
            baseline_rms=gates["ordinary"].relative_rms,
            unchanged_base_rms=gates["stale"].relative_rms,
        )

    curve: list[RatePoint] = []
    chosen: RatePoint | None = None
    if share <= REQUANTIZED_SHARE_LIMIT:
        ranges = refit_ranges(template, prepared, ordinary, calibration)
        with tempfile.TemporaryDirectory(prefix="airweights-update-") as folder:
            solver = Solver(template, prepared, grids, calibration, ranges, Path(folder))
            aim = ratio if max_over_baseline is not None else min(ratio, DEFAULT_ERROR_RATIO)
            search = RateSearch(solver, gate_of, error_of, gates["ordinary"], aim, on_solution)
            chosen = search.find_best_point()
            for factor in extra_rate_factors:
                search.solve(
                    ((chosen.rate_weight if chosen else 0.0) or search.initial_rate_weight) * factor,
                    is_extra_point=True,
                )
        curve = search.points
    verdict = chosen.gate if chosen else gate_of(ordinary)
    reason = verdict.explanation
    if chosen is None:
        reason = (
            f"{share:.0%} of the weights are quantized afresh"
            if share > REQUANTIZED_SHARE_LIMIT
            else "no price passes the gate"
        )
    save_model(chosen.model if chosen else ordinary, out)
    return UpdateReport(
        method="joint" if chosen else "baseline",
        reason=reason,
        gate=verdict,
        baseline=gates["ordinary"],
        unchanged_base=gates["stale"],
        rate_weight=chosen.rate_weight if chosen else None,
        bits_per_weight=chosen.bits_per_weight if chosen else None,
        curve=tuple(curve),
        weights=total,
        requantized=fresh,
        refitted_scales=tuple(
            grid.weight.name for grid in grids if grid.refitted_scales is not None and not grid.is_requantized
        ),
        jointly_optimized=tuple(grid.weight.name for grid in grids if grid.is_jointly_optimized),
    )
