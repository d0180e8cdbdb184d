"""Judge without labels whether a candidate's outputs are near enough to the reference model's.

The figures of an output are those of packager.quantize.agreement. For each output that varies over the samples, with
r = relative RMS of the candidate, the first rule that fails gives the verdict `fail`:

    r <= max_relative_rms
    r <= max_over_baseline * r_baseline                     if plain quantization of the same model was measured
    r <= max(max_over_unchanged_base * r_unchanged_base,    if the candidate is an update of a quantized base
             max_over_baseline * r_baseline)
    top-1 agreement >= min_top1_agreement                   if the output has classes
    cosine at the first percentile >= min_cosine_p1

Absolute limits alone cannot separate valid per-tensor int8 (relative RMS 0.169 on a text classifier) from a model with
one layer zeroed (0.207); that is why the baseline counts if it was measured.

An output of integers must have at least `min_top1_agreement` equal values. An output that does not vary may drift by at
most MAX_DRIFT. NaN, infinity or another shape always fail (another shape is ignored if a user's metric judges it). If
no output varies, the verdict is `inconclusive`, never `pass`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from packager.errors import InterfaceMismatch
from packager.models.inputs import Sample, load_outline
from packager.models.ordered_map import ordered_map
from packager.models.provider_session import ON_CPU, Provider
from packager.models.samples import Samples
from packager.models.sessions import DEFAULT_SETTINGS, Runnable, RunSettings, open_session, run_session, settings_for
from packager.models.tflite_model import is_tflite
from packager.quantize.agreement import OutputAgreement, OutputFidelity, finite_or_none
from packager.quantize.user_metric import MetricFigures

Verdict = Literal["pass", "fail", "inconclusive"]

MIN_SAMPLES: Final = 2  # with one sample, no output can vary
MAX_DRIFT: Final = 0.1  # limit for an output that does not vary: in probability, or of its magnitude


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits of the gate, with the defaults of docs/quantization.md.

    Attributes:
        max_relative_rms: error over the spread of the reference output; 1 is the error of always predicting the mean.
        min_top1_agreement: share of rows with the same class, near-ties left out; of equal values for integers.
        min_cosine_p1: cosine of reference and candidate output at the first percentile of samples.
        max_over_baseline: relative RMS over the baseline's.
        max_over_unchanged_base: relative RMS over that of the base that an update replaces.
        max_metric_loss: share of the float model's metric that the candidate may lose.
        max_latency_ratio: processor time over the float model's (packager.quantize.latency).
    """

    max_relative_rms: float = 0.15
    min_top1_agreement: float = 0.95
    min_cosine_p1: float = 0.90
    max_over_baseline: float = 1.15
    max_over_unchanged_base: float = 0.5
    max_metric_loss: float = 0.01
    max_latency_ratio: float = 1.2


DEFAULT_THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict with its explanation, and the figures of every output.

    Attributes:
        verdict: pass, fail or inconclusive.
        explanation: the verdict's reason, in one sentence.
        outputs: figures of each output.
        samples: number of samples judged.
        origin: origin of the samples (`Samples.origin`).
        metric: the user's metric, if there is one.
    """

    verdict: Verdict
    explanation: str
    outputs: tuple[OutputFidelity, ...]
    samples: int
    origin: str
    metric: MetricFigures | None = None

    @property
    def relative_rms(self) -> float | None:
        """Relative RMS of the worst output that varies; None if no float output varies."""
        return max((o.relative_rms for o in self.outputs if o.varies and o.relative_rms is not None), default=None)

    @property
    def cosine_p1(self) -> float | None:
        """Smallest cosine at the first percentile among the outputs that vary; None without one."""
        return min((o.cosine_p1 for o in self.outputs if o.varies and o.cosine_p1 is not None), default=None)

    @property
    def top1_agreement(self) -> float | None:
        """Smallest top-1 agreement among the outputs that vary; None without one."""
        return min((o.top1_agreement for o in self.outputs if o.varies and o.top1_agreement is not None), default=None)

    def as_json(self) -> dict[str, object]:
        """Return plain values for `--json` and reports."""
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
    provider: Provider = ON_CPU,
) -> GateReport:
    """Run both models over the samples and judge the candidate.

    Args:
        float_model: the reference model.
        candidate: the model to judge.
        samples: inputs to run the model on.
        thresholds: limits of the gate.
        baseline_rms: relative RMS of the baseline, if it was measured.
        unchanged_base_rms: relative RMS of the unchanged base, if the candidate is an update.
        shapes_vary: ignore outputs that come back in another shape, instead of failing.
        provider: execution provider and session options of the candidate; the reference runs on the CPU.

    Raises:
        ModelDoesNotRun: a model does not load, or does not run on a sample.
        InterfaceMismatch: the names of inputs or outputs differ.
    """
    settings = DEFAULT_SETTINGS
    if provider != ON_CPU:
        settings = RunSettings(provider=provider)  # as it will run: there are no exact kernels to compare with
    elif not is_tflite(candidate):
        settings = settings_for(load_outline(candidate))
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
    """Judge a candidate as `run_gate` does, for models that are loaded.

    Args:
        reference: the reference model.
        candidate: the model to judge.
        samples: inputs; a few run side by side, and figures are summed in the order of the samples.
        thresholds: limits of the gate.
        baseline_rms: relative RMS of the baseline, if it was measured.
        unchanged_base_rms: relative RMS of the unchanged base, if the candidate is an update.
        shapes_vary: ignore outputs that come back in another shape, instead of failing.

    Raises:
        ModelDoesNotRun: a model does not run on a sample.
    """
    names = [output.name for output in reference.get_outputs()]
    tallies = [OutputAgreement(name) for name in names]

    def run_both(sample: Sample) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return run_session(reference, sample, where="float model"), run_session(
            candidate, sample, names, where="candidate"
        )

    for left, right in ordered_map(run_both, samples):
        for tally, a, b in zip(tallies, left, right, strict=True):
            tally.add(a, b)
    outputs = tuple(tally.as_fidelity() for tally in tallies)
    limits = _Limits(thresholds, baseline_rms, unchanged_base_rms, shapes_vary)
    verdict, explanation = _decide_verdict(outputs, limits)
    if verdict == "inconclusive" and len(samples) < MIN_SAMPLES:
        needed = f"at least {MIN_SAMPLES} are needed to see outputs vary (half of all samples are held out)"
        explanation = f"{len(samples)} held-out sample, {needed}"
    return GateReport(verdict, explanation, outputs, len(samples), samples.origin)


def _check_interfaces(left: Any, right: Any, candidate: Path) -> None:
    for what, ours, theirs in (
        ("has inputs", right.get_inputs(), left.get_inputs()),
        ("has outputs", right.get_outputs(), left.get_outputs()),
    ):
        found, expected = [value.name for value in ours], [value.name for value in theirs]
        if set(found) != set(expected):
            raise InterfaceMismatch(
                f"{candidate}: {what} {found}, the reference model {expected}",
                hint="compare models whose inputs and outputs have the same names",
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
        return "fail", f"output {broken.name!r} has NaN or infinity on {broken.broken_samples} samples"
    reshaped = next((o for o in outputs if o.reshaped_samples), None)
    if reshaped is not None and not limits.shapes_vary:
        return "fail", (
            f"output {reshaped.name!r} has another shape on {reshaped.reshaped_samples} samples; if its shape depends "
            "on values, give a metric"
        )
    outputs = tuple(o for o in outputs if not o.reshaped_samples)
    drifted = next((o for o in outputs if not o.varies and o.drift > MAX_DRIFT), None)
    if drifted is not None:
        return "fail", (
            f"output {drifted.name!r} does not vary, but is off by {drifted.drift:.3f} of its magnitude, at most "
            f"{MAX_DRIFT} allowed"
        )
    varying = [o for o in outputs if o.varies]
    if not varying:
        return (
            "inconclusive",
            "no output varies over the samples, so a good model cannot be distinguished from a bad one",
        )
    for o in varying:
        failure = _describe_failure(o, limits.thresholds, limits.baseline_rms, limits.unchanged_base_rms)
        if failure:
            return "fail", f"output {o.name!r}: {failure}"
    return "pass", f"{len(varying)} of {len(outputs)} outputs vary, all within the thresholds"


def _describe_failure(
    o: OutputFidelity, limits: Thresholds, baseline: float | None, unchanged_base: float | None
) -> str | None:
    if o.relative_rms is None:
        too_few = o.exact_share < limits.min_top1_agreement
        return (
            f"{o.exact_share:.3f} of values equal, at least {limits.min_top1_agreement:.3f} required"
            if too_few
            else None
        )
    if not o.relative_rms <= limits.max_relative_rms:
        return f"relative RMS {o.relative_rms:.4g}, at most {limits.max_relative_rms:.4g} allowed"
    if baseline is not None and o.relative_rms > limits.max_over_baseline * baseline:
        return (
            f"relative RMS {o.relative_rms:.4g}, at most {limits.max_over_baseline} x the baseline's {baseline:.4g} "
            "allowed"
        )
    # if the unchanged base is as good as the baseline, the update has nothing to improve
    as_baseline = limits.max_over_baseline * (baseline or 0.0)
    if unchanged_base is not None and o.relative_rms > max(
        limits.max_over_unchanged_base * unchanged_base, as_baseline
    ):
        return (
            f"relative RMS {o.relative_rms:.4g}, at most {limits.max_over_unchanged_base} x the unchanged "
            f"base's {unchanged_base:.4g} allowed"
        )
    if o.top1_agreement is not None and o.top1_agreement < limits.min_top1_agreement:
        return f"top-1 agreement {o.top1_agreement:.4f}, at least {limits.min_top1_agreement:.4f} required"
    if o.cosine_p1 is not None and o.cosine_p1 < limits.min_cosine_p1:
        return f"cosine {o.cosine_p1:.4f} at the first percentile, at least {limits.min_cosine_p1:.4f} required"
    return None
