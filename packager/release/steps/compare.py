"""Step 2: every variant that is not the float model itself is held against it, on inputs that calibrated nothing.

Rules:
1. Failed or inconclusive: the variant is left out with its reason; a required one ends the release.
2. `override_gate` lets it through; the verdict in the signed manifest is then "overridden", beside the reason.
"""

from typing import Final, Literal

from bundle.contract import PPM
from bundle.manifest import Quantization
from packager.errors import GateFailed, GateInconclusive
from packager.quantize.candidate_search import MetricReference
from packager.quantize.gate import GateReport, run_gate
from packager.release.draft import Draft, VariantDraft
from packager.release.release_file import UNQUANTIZED_SCHEME
from packager.release.steps.quantize import metric_of, thresholds_of

SUPPLIED_METHOD: Final = "supplied"  # the scheme of a variant with a model file of its own
# by what the integer kernels multiply: does every CPU give the same integers?
STABILITY_TEXT: Final = {
    "u8u8": "exact",
    "u8s7": "exact",
    "s8s8": "exact on ARM; saturates on x86 without VNNI",
    "u8s8": "exact on ARM; saturates on x86 without VNNI",
    "float": "float",
}


def run(draft: Draft) -> None:
    """Set `gate` and `quantization`. Raises GateFailed, GateInconclusive for a required variant."""
    for variant in draft.included_variants:
        if variant.plan.scheme == UNQUANTIZED_SCHEME and variant.plan.model is None:
            continue
        found = _measure_gate(draft, variant)
        variant.gate = found
        if found is None or found.verdict == "pass":
            variant.quantization = _quantization_record(
                variant, found, "pass" if found else "none", draft.samples.digest
            )
        elif draft.plan.override_gate:
            draft.reporter.note(f"variant {variant.name} passes by override only: {found.explanation}")
            variant.quantization = _quantization_record(variant, found, "overridden", draft.samples.digest)
        elif variant.plan.required:
            kind = GateFailed if found.verdict == "fail" else GateInconclusive
            raise kind(
                f"required variant {variant.name!r}: {found.explanation}", hint="mend the model, or give other inputs"
            )
        else:
            draft.drop_variant(variant, f"gate: {found.verdict}: {found.explanation}")


def _measure_gate(draft: Draft, variant: VariantDraft) -> GateReport | None:
    if variant.update is not None:
        return variant.update.report.gate
    known = variant.report.gate if variant.report is not None else None
    if variant.report is not None and not draft.plan.override_gate:
        return known
    _, held_back = draft.samples.split_halves()
    limits = thresholds_of(variant.plan)
    found = run_gate(draft.plan.model, variant.model, held_back, limits)
    measure = MetricReference.from_float_model(metric_of(draft.plan), draft.plan.model, held_back)
    return found if measure is None else measure.add_to_report(found, variant.model, held_back, limits.max_metric_loss)


def _quantization_record(
    variant: VariantDraft, gate: GateReport | None, verdict: Literal["pass", "none", "overridden"], calibration: str
) -> Quantization:
    report = variant.report
    if variant.update is not None:
        scheme, stability = variant.update.quantization.scheme, variant.update.quantization.stability
    elif report is None:
        scheme, stability = SUPPLIED_METHOD, "as supplied"
    else:
        scheme = report.scheme if report.method in ("float", "none") else f"{report.scheme}-{report.method}"
        stability = STABILITY_TEXT[report.numerics]
    return Quantization(
        scheme=scheme,
        stability=stability,
        calibration=calibration if variant.update is not None or (report and report.calibration_samples) else None,
        verdict=verdict,
        relative_rms_ppm=_ppm(gate.relative_rms if gate else None),
        top1_agreement_ppm=_ppm(gate.top1_agreement if gate else None),
    )


def _ppm(value: float | None) -> int | None:
    if value is None or value != value or value == float("inf"):
        return None
    return round(min(value, 1_000_000.0) * PPM)
