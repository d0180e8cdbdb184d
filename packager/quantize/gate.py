"""The gate: is a candidate near enough to the float model? Without labels, output by output.

What is measured: packager.quantize.agreement.

Rules:
1. Where no output varies over the samples the verdict is `inconclusive`, never `pass`; one that does not vary must only
   stay where it is.
2. Floors first, then relative rules. Floors alone cannot tell valid per-tensor int8 (relative RMS .169 on a text
   classifier) from one zeroed layer (.207); so where ordinary quantization was measured a candidate may have at most
   MAX_OVER_ORDINARY times its error, and for an update at most MAX_OF_STALE times the stale model's.
3. Both models run in lock step, a few samples side by side, tallied in their order.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnxruntime

from packager.errors import InterfaceMismatch
from packager.models.inputs import Sample, load_proto
from packager.models.ordered_map import ordered_map
from packager.models.samples import Samples
from packager.models.sessions import Runnable, open_session, run_session, settings_for
from packager.quantize.agreement import OutputAgreement, OutputFidelity, finite_or_none
from packager.quantize.user_metric import MetricFigures

Verdict = Literal["pass", "fail", "inconclusive"]

MIN_SAMPLES: Final = 2
MAX_DRIFT: Final = 0.1  # of an output that does not vary: in probability, or of its magnitude


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the gate asks; what is measured: packager.quantize.agreement; how it is held against them: rule 2."""

    max_relative_rms: float = 0.15
    min_top1_agreement: float = 0.95
    min_cosine_p1: float = 0.90
    max_over_baseline: float = 1.15
    max_over_unchanged_base: float = 0.5
    max_metric_loss: float = 0.01


DEFAULT_THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict with one sentence for it, and the figures of every output."""

    verdict: Verdict
    explanation: str
    outputs: tuple[OutputFidelity, ...]
    samples: int
    origin: str
    metric: MetricFigures | None = None

    @property
    def relative_rms(self) -> float | None:
        """The worst of the outputs that vary."""
        return max((o.relative_rms for o in self.outputs if o.varies and o.relative_rms is not None), default=None)

    @property
    def cosine_p1(self) -> float | None:
        """The worst of the outputs that vary."""
        return min((o.cosine_p1 for o in self.outputs if o.varies and o.cosine_p1 is not None), default=None)

    @property
    def top1_agreement(self) -> float | None:
        """The worst of the outputs that vary."""
        return min((o.top1_agreement for o in self.outputs if o.varies and o.top1_agreement is not None), default=None)

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json` and reports."""
        return {
            "verdict": self.verdict,
            "explanation": self.explanation,
            "samples": self.samples,
            "origin": self.origin,
            "relative_rms": finite_or_none(self.relative_rms),
            "cosine_p1": finite_or_none(self.cosine_p1),
            "top1_agreement": self.top1_agreement,
            "metric": self.metric.as_json() if self.metric else None,
            "outputs": [output.as_json() for output in self.outputs],
        }


def run_gate(
    float_model: Path,
    candidate: Path,
    samples: Samples,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    baseline_rms: float | None = None,
    unchanged_base_rms: float | None = None,
    shapes_vary: bool = False,
) -> GateReport:
    """Run both models over `samples` and judge.

    Raises:
        ModelDoesNotRun: one of them does not load, or not run.
        InterfaceMismatch: they do not take the same inputs, or do not give the same outputs.
    """
    settings = settings_for(load_proto(candidate, external_data=False))
    left, right = open_session(float_model), open_session(candidate, settings)
    _check_interfaces(left, right, candidate)
    return judge(
        left,
        right,
        samples,
        thresholds,
        baseline_rms=baseline_rms,
        unchanged_base_rms=unchanged_base_rms,
        shapes_vary=shapes_vary,
    )


def judge(
    reference: Runnable,
    candidate: Runnable,
    samples: Samples,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    baseline_rms: float | None = None,
    unchanged_base_rms: float | None = None,
    shapes_vary: bool = False,
) -> GateReport:
    """`gate` for models that are loaded already; with `shapes_vary`, outputs that come back in another shape prove
    nothing, instead of failing."""
    names = [output.name for output in reference.get_outputs()]
    tallies = [OutputAgreement(name) for name in names]

    def answers(sample: Sample) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return run_session(reference, sample, where="float model"), run_session(
            candidate, sample, names, where="candidate"
        )

    for left, right in ordered_map(answers, samples):
        for tally, a, b in zip(tallies, left, right, strict=True):
            tally.add(a, b)
    outputs = tuple(tally.as_fidelity() for tally in tallies)
    limits = _Limits(thresholds, baseline_rms, unchanged_base_rms, shapes_vary)
    verdict, why = _decide_verdict(outputs, limits)
    if verdict == "inconclusive" and len(samples) < MIN_SAMPLES:
        needed = f"at least {MIN_SAMPLES} are needed to see outputs vary (half are held back)"
        why = f"{len(samples)} sample to judge by, {needed}"
    return GateReport(verdict, why, outputs, len(samples), samples.origin)


def _check_interfaces(left: onnxruntime.InferenceSession, right: onnxruntime.InferenceSession, candidate: Path) -> None:
    for what, ours, theirs in (
        ("takes inputs", right.get_inputs(), left.get_inputs()),
        ("gives outputs", right.get_outputs(), left.get_outputs()),
    ):
        found, expected = [value.name for value in ours], [value.name for value in theirs]
        if set(found) != set(expected):
            raise InterfaceMismatch(
                f"{candidate}: {what} {found}, the model that it is compared with {expected}",
                hint="compare models that take the same inputs and give the same outputs, by name",
            )


@dataclass(frozen=True, slots=True)
class _Limits:
    thresholds: Thresholds
    baseline_rms: float | None
    unchanged_base_rms: float | None
    shapes_vary: bool


def _decide_verdict(outputs: tuple[OutputFidelity, ...], limits: _Limits) -> tuple[Verdict, str]:
    broken = next((o for o in outputs if o.broken_samples), None)
    if broken is not None:
        return "fail", f"output {broken.name!r} holds NaN or infinity on {broken.broken_samples} samples"
    reshaped = next((o for o in outputs if o.reshaped_samples), None)
    if reshaped is not None and not limits.shapes_vary:
        return "fail", (
            f"output {reshaped.name!r} has another shape on {reshaped.reshaped_samples} samples; where its shape "
            "depends on values, give a metric"
        )
    outputs = tuple(o for o in outputs if not o.reshaped_samples)
    drifted = next((o for o in outputs if not o.varies and o.drift > MAX_DRIFT), None)
    if drifted is not None:
        return "fail", f"output {drifted.name!r} does not vary, but is off by {drifted.drift:.3f} of its magnitude"
    telling = [o for o in outputs if o.varies]
    if not telling:
        return "inconclusive", "no output varies over the samples, so they cannot tell a good model from a bad one"
    for o in telling:
        trouble = _describe_failure(o, limits.thresholds, limits.baseline_rms, limits.unchanged_base_rms)
        if trouble:
            return "fail", f"output {o.name!r}: {trouble}"
    return "pass", f"{len(telling)} of {len(outputs)} outputs vary, all within the thresholds"


def _describe_failure(
    o: OutputFidelity, limits: Thresholds, baseline: float | None, unchanged_base: float | None
) -> str | None:
    if o.relative_rms is None:
        too_few = o.exact_share < limits.min_top1_agreement
        return (
            f"{o.exact_share:.3f} of values equal, at least {limits.min_top1_agreement:.3f} asked" if too_few else None
        )
    if not o.relative_rms <= limits.max_relative_rms:
        return f"relative RMS {o.relative_rms:.4g}, at most {limits.max_relative_rms:.4g} allowed"
    if baseline is not None and o.relative_rms > limits.max_over_baseline * baseline:
        return (
            f"relative RMS {o.relative_rms:.4g}, at most {limits.max_over_baseline} x ordinary {baseline:.4g} allowed"
        )
    # a base that is as near as ordinary quantization has lost nothing: there is no update to miss
    as_ordinary = limits.max_over_baseline * (baseline or 0.0)
    if unchanged_base is not None and o.relative_rms > max(
        limits.max_over_unchanged_base * unchanged_base, as_ordinary
    ):
        return (
            f"relative RMS {o.relative_rms:.4g}, at most {limits.max_over_unchanged_base} x the stale "
            f"model's {unchanged_base:.4g} allowed"
        )
    if o.top1_agreement is not None and o.top1_agreement < limits.min_top1_agreement:
        return f"top-1 agreement {o.top1_agreement:.4f}, at least {limits.min_top1_agreement:.4f} asked"
    if o.cosine_p1 is not None and o.cosine_p1 < limits.min_cosine_p1:
        return f"cosine {o.cosine_p1:.4f} at the first percentile, at least {limits.min_cosine_p1:.4f} asked"
    return None
