"""Step 2: every variant that is not the float model itself is held against it, on inputs that calibrated nothing.

Rules:
1. Failed or inconclusive: the variant is left out with its reason; a required one ends the release.
2. `override_gate` lets it through; the verdict in the signed manifest is then "overridden", beside the reason.
"""

from typing import Final, Literal

from bundle.contract import PPM
from bundle.manifest import Quantization
from packager.errors import GateFailed, GateInconclusive
from packager.quantize.candidate_search import Measure
from packager.quantize.gate import GateReport, gate
from packager.release.draft import Draft, VariantDraft
from packager.release.release_file import AS_IS
from packager.release.steps.quantize import metric_of, thresholds_of

SUPPLIED: Final = "supplied"  # the scheme of a variant with a model file of its own
# by what the integer kernels multiply: does every CPU give the same integers?
STABILITY: Final = {
    "u8u8": "exact",
    "u8s7": "exact",
    "s8s8": "exact on ARM; saturates on x86 without VNNI",
    "u8s8": "exact on ARM; saturates on x86 without VNNI",
    "float": "float",
}


def run(draft: Draft) -> None:
    """Set `gate` and `quantization`. Raises GateFailed, GateInconclusive for a required variant."""
    for variant in draft.kept:
        if variant.plan.scheme == AS_IS and variant.plan.model is None:
            continue
        found = _measured(draft, variant)
        variant.gate = found
        if found is None or found.verdict == "pass":
            variant.quantization = _record(variant, found, "pass" if found else "none", draft.samples.digest)
        elif draft.plan.override_gate:
            draft.reporter.note(f"variant {variant.name} passes by override only: {found.why}")
            variant.quantization = _record(variant, found, "overridden", draft.samples.digest)
        elif variant.plan.required:
            kind = GateFailed if found.verdict == "fail" else GateInconclusive
            raise kind(f"required variant {variant.name!r}: {found.why}", remedy="mend the model, or give other inputs")
        else:
            draft.drop(variant, f"gate: {found.verdict}: {found.why}")


def _measured(draft: Draft, variant: VariantDraft) -> GateReport | None:
    if variant.update is not None:
        return variant.update.report.gate
    known = variant.report.gate if variant.report is not None else None
    if variant.report is not None and not draft.plan.override_gate:
        return known
    _, held_back = draft.samples.halves()
    limits = thresholds_of(variant.plan)
    found = gate(draft.plan.model, variant.model, held_back, limits)
    measure = Measure.of(metric_of(draft.plan), draft.plan.model, held_back)
    return found if measure is None else measure.added_to(found, variant.model, held_back, limits.max_metric_loss)


def _record(
    variant: VariantDraft, found: GateReport | None, verdict: Literal["pass", "none", "overridden"], calibration: str
) -> Quantization:
    report = variant.report
    if variant.update is not None:
        scheme, stability = variant.update.quantization.scheme, variant.update.quantization.stability
    elif report is None:
        scheme, stability = SUPPLIED, "as supplied"
    else:
        scheme = report.scheme if report.method in ("float", "none") else f"{report.scheme}-{report.method}"
        stability = STABILITY[report.numerics]
    return Quantization(
        scheme=scheme,
        stability=stability,
        calibration=calibration if variant.update is not None or (report and report.calibration_samples) else None,
        verdict=verdict,
        relative_rms_ppm=_ppm(found.relative_rms if found else None),
        top1_agreement_ppm=_ppm(found.top1_agreement if found else None),
    )


def _ppm(value: float | None) -> int | None:
    if value is None or value != value or value == float("inf"):
        return None
    return round(min(value, 1_000_000.0) * PPM)
