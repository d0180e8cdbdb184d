"""Quantize a new float model near its quantized base: the whole method on one page.

Theory of operation.

Given are the base, the new float model with the same graph, calibration samples and held-out samples. Chosen are the
integer levels Q of every weight. All arrays of one weight have one layout; s and z broadcast to it:

    W   float32   the new float weight
    s   float64   scales of the base; a channel whose weights leave its range gets a new one
    z   float64   zero points of the base
    Q0  int16     levels of the base
    Q   int16     levels of the update; the weight is then s * (Q - z)

Each Q minimizes D(Q) + lambda * R(Q - Q0) (rate-distortion):

    R       bits of the changes: sum of -log2 p(Q - Q0); p is the histogram of the tensor's own changes
    D       error of the layer's output, relative to its energy, times the sensitivity of the model's outputs to it
    lambda  rate weight: relative error energy of the outputs that saving one bit is worth

Order of work:
    1. Match the base's weights with the new model's (`template`). A weight whose changes are many levels is
       requantized. If that is more than REQUANTIZED_SHARE_LIMIT of all weights, the base saves nothing: return the
       baseline.
    2. Quantize the baseline; its relative RMS e_b on the held-out samples is the unit of every limit on the error.
    3. Refit the ranges of activations if the outputs gain from it (`activation_refit`).
    4. Choose rows and weigh them by gradients, once for all solutions (`row_selection`, `gradients`).
    5. For a given lambda, choose the levels layer by layer in execution order, each behind the levels chosen before it;
       then biases take up mean errors (`solver`, `layer_statistics`, `coordinate_descent`, `fill_template`).
    6. Search for the largest lambda whose error is within `error_ratio` * e_b (`rate_search`).

Calibration samples determine everything but lambda. The held-out samples only judge, and so choose lambda.

The result is deterministic: nothing is random, and linear algebra uses one thread, so that sums have one order. That is
hardly slower, and many times faster on a busy machine.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import onnx

from bundle.errors import AirweightsError
from bundle.patch.single_thread import use_single_thread
from packager.errors import AlreadyQuantized, ModelCrashes, ModelDoesNotRun, ModelUnreadable, WeightsNotFinite
from packager.models.inputs import load_proto
from packager.models.samples import Samples
from packager.models.sessions import CachedSession, one_line_message, open_session, open_session_of, settings_for
from packager.quantize.gate import DEFAULT_THRESHOLDS, GateReport, Thresholds, judge
from packager.quantize.prepare import prepare_model
from packager.quantize.reference_checks import check_reference_outputs
from packager.quantize.schemes import save_model
from packager.quantize.update_aware.activation_refit import refit_ranges
from packager.quantize.update_aware.matching_baseline import quantize_like_template
from packager.quantize.update_aware.rate_search import RatePoint, RateSearch
from packager.quantize.update_aware.solver import Solver, grid_of
from packager.quantize.update_aware.template import read_template

# errors of the model or the samples themselves, whatever the method
MODEL_ERRORS: Final = (AlreadyQuantized, WeightsNotFinite, ModelUnreadable, ModelDoesNotRun, ModelCrashes)
UpdateMethod = Literal["joint", "baseline"]

# share of all weights; a model trained from scratch is far above it, a fine-tune far below
# share of all weights; a model that was trained from scratch is above it (docs/quantization.md)
REQUANTIZED_SHARE_LIMIT: Final = 0.5
# of the baseline's error; below the gate's 1.15, so that errors do not add up over a chain of updates
DEFAULT_ERROR_RATIO: Final = 1.08
# calibration samples; more give better updates, and cost time and disk (docs/quantization.md)
MAX_SAMPLES: Final = 1024
TRIAL_SAMPLES: Final = 100  # calibration samples that judge ranges and the rounding of float constants
MAX_LISTED_WEIGHTS: Final = 5  # weights that `as_lines` names


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """The result of an update; all gates were measured on the held-out samples.

    Attributes:
        method: "joint" (near the base), or "baseline" (quantized without the base).
        reason: one sentence for the choice of the method.
        gate: verdict on the model that was written.
        baseline: gate of plain quantization of the new model.
        unchanged_base: gate of the base against the new float model.
        rate_weight: the chosen lambda, in relative error energy per bit; 0 for rounding to nearest, None for the
            baseline.
        bits_per_weight: entropy of the changed levels, in bits per weight.
        curve: every solution of the search.
        weights: number of quantized weight elements.
        requantized: names of the weights that were quantized from scratch.
        refitted_scales: names of the weights of which some channels got new scales.
        jointly_optimized: names of the weights whose levels were chosen by coordinate descent.
    """

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

    @property
    def failure(self) -> str | None:
        """The reason if the written model is not near the base, or does not pass; else None."""
        return None if self.method == "joint" and self.gate.verdict == "pass" else self.reason

    def as_json(self) -> dict[str, object]:
        """Return plain values for `--json` and the release's record."""
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

    def as_lines(self) -> list[str]:
        """Return a few lines for a terminal: method, error, and weights that did not fit the base's scales."""
        bits = "" if self.bits_per_weight is None else f", {self.bits_per_weight:.4f} bits per weight"
        error, baseline = self.gate.relative_rms or 0.0, self.baseline.relative_rms or 0.0
        lines = [
            f"{self.method}: {self.reason}{bits}",
            f"relative RMS {error:.4f}, baseline {baseline:.4f}",
        ]
        for names, what in (
            (self.requantized, "requantized"),
            (self.refitted_scales, "new scales for some channels"),
        ):
            if names:
                more = f" and {len(names) - MAX_LISTED_WEIGHTS} more" if len(names) > MAX_LISTED_WEIGHTS else ""
                lines.append(f"{what}: {', '.join(names[:MAX_LISTED_WEIGHTS])}{more}")
        return lines


def explain_failure(error: Exception) -> str | None:
    """Return why an update failed; None if plain quantization would fail for the same reason.

    Args:
        error: what `quantize_update` raised.
    """
    if isinstance(error, (*MODEL_ERRORS, MemoryError)):
        return None
    if isinstance(error, AirweightsError):
        return error.message
    return f"the update solver does not support this model ({type(error).__name__}: {one_line_message(error)})"


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
    """Quantize the float model `new` near the quantized model `base` and write it to `out`.

    Args:
        new: the new release's float model.
        base: the quantized model on the devices.
        out: the file to write; the baseline if no update near the base passes the gate.
        calibration: inputs for moments, gradients and ranges; at most MAX_SAMPLES are used.
        held_out: inputs that only the gates see; they choose the rate weight.
        thresholds: limits of the final gate.
        max_over_baseline: allowed relative RMS over the baseline's, at which the search aims. If None, the gate allows
            `thresholds.max_over_baseline` and the search aims at DEFAULT_ERROR_RATIO.
        on_solution: called with each solution of the search.
        extra_rate_factors: further solutions for a curve, at these multiples of the chosen rate weight.

    Raises:
        BaseIncompatible: the graphs of base and new model differ.
        QuantizationRefused: the new model cannot be quantized by the base's method, or its outputs are unusable.
        ModelUnreadable, ModelDoesNotRun: a model cannot be used.
    """
    calibration = calibration.take(MAX_SAMPLES)
    template = load_proto(base)
    prepared = prepare_model(new, next(iter(calibration.take(1)))).like(template)
    grids = [grid_of(weight) for weight in read_template(template, prepared)]
    total = sum(grid.values.size for grid in grids)
    session = open_session(new)
    check_reference_outputs(session, calibration, new)
    reference = CachedSession(session)
    baseline = quantize_like_template(template, prepared, calibration)
    ratio = max_over_baseline if max_over_baseline is not None else thresholds.max_over_baseline
    requantized = tuple(grid.weight.name for grid in grids if grid.is_requantized)
    share = sum(grid.values.size for grid in grids if grid.is_requantized) / max(total, 1)
    trial_samples = calibration.take(TRIAL_SAMPLES)

    def judge_alone(model: onnx.ModelProto, samples: Samples = held_out) -> GateReport:
        return judge(reference, open_session_of(model, settings_for(model)), samples, thresholds)

    def error_of(model: onnx.ModelProto) -> float:
        return judge_alone(model, trial_samples).relative_rms or 0.0

    baseline_gate, unchanged_base_gate = judge_alone(baseline), judge_alone(template)

    def gate_of(model: onnx.ModelProto) -> GateReport:
        return judge(
            reference,
            open_session_of(model, settings_for(model)),
            held_out,
            replace(thresholds, max_over_baseline=ratio),
            baseline_rms=baseline_gate.relative_rms,
            unchanged_base_rms=unchanged_base_gate.relative_rms,
        )

    curve: list[RatePoint] = []
    chosen: RatePoint | None = None
    if share <= REQUANTIZED_SHARE_LIMIT:
        ranges = refit_ranges(template, prepared, baseline, calibration)
        with tempfile.TemporaryDirectory(prefix="airweights-update-") as folder:
            solver = Solver(template, prepared, grids, calibration, ranges, Path(folder))
            error_ratio = ratio if max_over_baseline is not None else min(ratio, DEFAULT_ERROR_RATIO)
            search = RateSearch(solver, gate_of, error_of, baseline_gate, error_ratio, on_solution)
            chosen = search.find_best_point()
            for factor in extra_rate_factors:
                search.solve(
                    ((chosen.rate_weight if chosen else 0.0) or search.initial_rate_weight) * factor,
                    is_extra_point=True,
                )
        curve = search.points
    gate = chosen.gate if chosen else gate_of(baseline)
    reason = gate.explanation
    if chosen is None:
        reason = (
            f"{share:.0%} of the weights would be requantized, at most {REQUANTIZED_SHARE_LIMIT:.0%} fit an update"
            if share > REQUANTIZED_SHARE_LIMIT
            else "no update-aware encoding passed the accuracy gate; the model was quantized without the base"
        )
    save_model(chosen.model if chosen else baseline, out)
    return UpdateReport(
        method="joint" if chosen else "baseline",
        reason=reason,
        gate=gate,
        baseline=baseline_gate,
        unchanged_base=unchanged_base_gate,
        rate_weight=chosen.rate_weight if chosen else None,
        bits_per_weight=chosen.bits_per_weight if chosen else None,
        curve=tuple(curve),
        weights=total,
        requantized=requantized,
        refitted_scales=tuple(
            grid.weight.name for grid in grids if grid.refitted_scales is not None and not grid.is_requantized
        ),
        jointly_optimized=tuple(grid.weight.name for grid in grids if grid.is_jointly_optimized),
    )
