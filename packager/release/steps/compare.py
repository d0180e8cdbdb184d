"""Step compare: compare every variant with the float model on held-out samples (the gate).

Rules:
- If the gate fails or is inconclusive, the variant is left out with the reason; for a required one, the release fails.
- A variant that was not timed while it was quantized is timed here, if its target is this machine.
- A variant for an execution provider is compared on this provider with the float model on the CPU; its time is not.
- With `override_gate`, the variant is released nevertheless. The verdict in the signed manifest is then "overridden",
  and the provenance contains the reason for the override.
"""

from dataclasses import replace
from typing import Final, Literal

from bundle.contract import PPM
from bundle.providers import CPU
from bundle.variant import Quantization
from packager.errors import GateFailed, GateInconclusive
from packager.models.provider_session import ON_CPU
from packager.models.sessions import ONE_THREAD_SETTINGS, open_session
from packager.quantize.candidate_search import MetricReference
from packager.quantize.gate import GateReport, run_gate
from packager.quantize.latency import Latency, measure_latency
from packager.quantize.targets import TARGETS
from packager.release.draft import Draft, QuantizedVariant
from packager.release.release_plan import UNQUANTIZED_SCHEME
from packager.release.steps.quantize import metric_of, thresholds_of

SUPPLIED_METHOD: Final = "supplied"  # scheme of a variant with its own model file
# numerics of the integer kernels -> whether every CPU computes the same integers
STABILITY_TEXT: Final = {
    "u8u8": "exact",
    "u8s7": "exact",
    "s8s8": "exact on ARM; saturates on x86 without VNNI",
    "u8s8": "exact on ARM; saturates on x86 without VNNI",
    "float": "float",
}


def run(draft: Draft) -> None:
    """Set `gate` and `quantization` of the variants, or drop them.

    Raises:
        GateFailed: a required variant differs too much from the float model.
        GateInconclusive: the samples cannot judge a required variant.
    """
    for variant in list(draft.quantized.values()):
        if variant.plan.scheme == UNQUANTIZED_SCHEME and variant.plan.model is None and variant.plan.provider == ON_CPU:
            continue
        found = _measure_gate(draft, variant)
        latency = _measure_speed(draft, variant)
        if latency is not None and found is not None and found.verdict == "pass":
            found = _judge_speed(draft, variant, found, latency)
        if found is None or found.verdict == "pass":
            verdict: Literal["pass", "none", "overridden"] = "pass" if found else "none"
        elif draft.plan.override_gate:
            draft.note(f"variant {variant.name} failed its gate, which is overridden: {found.explanation}")
            verdict = "overridden"
        elif variant.plan.required:
            kind = GateFailed if found.verdict == "fail" else GateInconclusive
            raise kind(
                f"required variant {variant.name!r}: {found.explanation}", hint="fix the model, or supply more samples"
            )
        else:
            draft.drop_variant(variant.name, f"gate: {found.verdict}: {found.explanation}")
            continue
        quantization = _quantization_record(variant, found, verdict, draft.samples.digest)
        draft.quantized[variant.name] = replace(variant, gate=found, quantization=quantization, latency=latency)


def _measure_gate(draft: Draft, variant: QuantizedVariant) -> GateReport | None:
    provider = variant.plan.provider
    if variant.update is not None and provider == ON_CPU:
        return variant.update.report.gate
    measured = variant.report.gate if variant.report is not None else None
    if variant.report is not None and not draft.plan.override_gate and provider == ON_CPU:
        return measured
    _, held_out = draft.samples.split_halves()
    limits = thresholds_of(variant.plan)
    reference, model = draft.plan.require_model(), variant.require_model()
    found = run_gate(reference, model, held_out, limits, provider=provider)
    metric = MetricReference.from_float_model(metric_of(draft.plan), reference, held_out)
    return found if metric is None else metric.add_to_report(found, model, held_out, limits.max_metric_loss, provider)


def _measure_speed(draft: Draft, variant: QuantizedVariant) -> Latency | None:
    """Return the latency relative to the float model; None if the target is another machine."""
    if variant.plan.provider != ON_CPU:
        return None  # a provider computes in threads of its own, whose time is not measured
    if variant.report is not None and variant.report.latency is not None:
        return variant.report.latency
    if variant.plan.is_bound_to_target and not TARGETS[variant.plan.target].is_this_machine:
        return None
    if draft.plan.model is None or variant.model is None:
        return None  # nothing to run, or nothing to compare with
    left, right = (open_session(model, ONE_THREAD_SETTINGS) for model in (draft.plan.model, variant.model))
    _, held_out = draft.samples.split_halves()
    return measure_latency(left, right, held_out, thresholds_of(variant.plan).max_latency_ratio)


def _judge_speed(draft: Draft, variant: QuantizedVariant, found: GateReport, latency: Latency) -> GateReport:
    """Return `found`, or a failure if the variant is certainly too slow."""
    limit = thresholds_of(variant.plan).max_latency_ratio
    verdict = latency.verdict(limit)
    if verdict == "above":
        return replace(found, verdict="fail", explanation=f"it takes {latency.describe()}, at most {limit:.2f} allowed")
    if verdict == "undecided":
        draft.note(
            f"variant {variant.name}: the machine was too busy to decide whether {latency.describe()} exceeds the "
            f"limit of {limit:.2f}"
        )
    return found


def _quantization_record(
    variant: QuantizedVariant, gate: GateReport | None, verdict: Literal["pass", "none", "overridden"], calibration: str
) -> Quantization:
    report = variant.report
    if variant.update is not None:
        scheme, stability = variant.update.quantization.scheme, variant.update.quantization.stability
    elif report is None:
        scheme, stability = SUPPLIED_METHOD, "as supplied"
        if variant.plan.model is None:  # the float model, on another provider or with other session options
            scheme, stability = UNQUANTIZED_SCHEME, STABILITY_TEXT["float"]
    else:
        scheme = report.scheme
        if report.method not in ("float", "none") and not scheme.endswith(report.method):
            scheme = f"{report.scheme}-{report.method}"
        stability = STABILITY_TEXT[report.numerics]
    if variant.plan.provider.name != CPU:
        stability = f"as on {variant.plan.provider.name}"
    return Quantization(
        scheme=scheme,
        stability=stability,
        calibration=calibration if variant.update is not None or (report and report.calibration_samples) else None,
        verdict=verdict,
        relative_rms_ppm=_ppm(gate.relative_rms if gate else None),
        top1_agreement_ppm=_ppm(gate.top1_agreement if gate else None),
    )


def _ppm(value: float | None) -> int | None:
    """Return a share in parts per million, or None if it is not a finite number."""
    if value is None or value != value or value == float("inf"):
        return None
    return round(min(value, 1_000_000.0) * PPM)
