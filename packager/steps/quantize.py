"""Step 1: every variant gets its model file: the release's own, one that was given, or a quantized one.

Rules:
1. Every model that was given runs once in a process of its own first: one that crashes costs only that.
2. A variant whose scheme does not fit the model is left out with its reason, unless it is required.
3. Where the gate is overridden the quantizer accepts anything here; step 2 measures what it made all the same.
"""

from dataclasses import replace
from typing import Final

from packager.draft import Draft, VariantDraft
from packager.errors import (
    AlreadyQuantized,
    GateFailed,
    GateInconclusive,
    QuantizationRefused,
    ReleaseFileInvalid,
    WeightsNotFinite,
)
from packager.model_package import external_data
from packager.quantize.fidelity import DEFAULT_THRESHOLDS, Thresholds
from packager.quantize.report import QuantizationReport
from packager.quantize.runs import run_in_child
from packager.quantize.schemes import DEFAULT_OPTIONS, SCHEMES, quantize
from packager.release_file import AS_IS, ReleasePlan, VariantPlan

ANYTHING: Final = Thresholds(
    max_relative_rms=float("inf"),
    min_top1_agreement=0.0,
    min_cosine_p1=-1.0,
    max_over_ordinary=float("inf"),
    max_of_stale=float("inf"),
)


def run(draft: Draft) -> None:
    """Set `model` and `report` of every variant.

    Raises:
        ReleaseFileInvalid: an unknown scheme.
        GateFailed, GateInconclusive, QuantizationRefused: of a required variant.
        Errors of packager.quantize for a model that does not load or run at all.
    """
    check_schemes(draft.plan)
    for model in {variant.model for variant in draft.variants if variant.plan.scheme == AS_IS}:
        external_data(model)
        run_in_child(model, draft.samples)
    for variant in draft.variants:
        if variant.plan.scheme != AS_IS:
            _quantize(draft, variant)


def check_schemes(plan: ReleasePlan) -> None:
    """Raises ReleaseFileInvalid: an unknown scheme."""
    for variant in plan.variants:
        if variant.scheme not in (AS_IS, *SCHEMES):
            known = ", ".join((AS_IS, *SCHEMES))
            raise ReleaseFileInvalid(
                f"variants.{variant.name}: scheme: found {variant.scheme!r}, expected one of {known}"
            )


def thresholds_of(plan: VariantPlan) -> Thresholds:
    """The default thresholds, with what the release file says instead."""
    return replace(DEFAULT_THRESHOLDS, **dict(plan.gate))


def _quantize(draft: Draft, variant: VariantDraft) -> None:
    thresholds = ANYTHING if draft.plan.override_gate else thresholds_of(variant.plan)
    options = replace(DEFAULT_OPTIONS, thresholds=thresholds)
    out = variant.folder / "model.onnx"
    try:
        report = quantize(draft.plan.model, out, variant.plan.scheme, draft.samples, options)
    except (AlreadyQuantized, WeightsNotFinite) as error:
        if variant.plan.required:
            raise
        draft.drop(variant, error.message)
        return
    variant.report = report
    if report.outcome == "quantized":
        variant.model = out
        return
    if variant.plan.required:
        raise _failure(variant, report)
    draft.drop(variant, report.reason)


def _failure(variant: VariantDraft, report: QuantizationReport) -> GateFailed | GateInconclusive | QuantizationRefused:
    message = f"required variant {variant.name!r}: {report.reason}"
    if report.outcome == "inconclusive":
        return GateInconclusive(message, remedy="give real inputs of several kinds: inputs = FILE.npz")
    kind = GateFailed if report.gate is not None else QuantizationRefused
    return kind(message, remedy="`packager quantize --report FILE` lists every trial; or leave `required` out")
