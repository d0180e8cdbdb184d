"""Step 1: every variant gets its model file: the release's own, one that was given, or a quantized one.

Rules:
1. Every model that was given runs once in a process of its own first: one that crashes costs only that.
2. A variant whose scheme does not fit the model is left out with its reason, unless it is required.
3. Where an earlier release has the variant, its numbers are chosen near the earlier ones
   (packager.quantize.update_aware); if
   that does not fit the model or does not pass, it is quantized afresh.
4. Where the gate is overridden the quantizer accepts anything here; step 2 measures what it made all the same.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from bundle.manifest import Manifest
from packager.errors import (
    AlreadyQuantized,
    BaseIncompatible,
    GateFailed,
    GateInconclusive,
    QuantizationRefused,
    ReleaseFileInvalid,
    WeightsNotFinite,
)
from packager.models.model_package import external_data
from packager.models.sessions import run_in_child
from packager.quantize.candidate_search import MetricReference
from packager.quantize.gate import DEFAULT_THRESHOLDS, Thresholds
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.schemes import DEFAULT_OPTIONS, SCHEMES, quantize_model
from packager.quantize.update_aware.quantize_update import quantize_update
from packager.quantize.update_aware.rate_search import MAX_POINTS
from packager.quantize.user_metric import Metric
from packager.release.draft import Draft, QuantizedUpdate, VariantDraft
from packager.release.release_file import UNQUANTIZED_SCHEME, ReleasePlan, VariantPlan
from packager.release.steps.diff import is_drill

UNLIMITED_THRESHOLDS: Final = Thresholds(
    max_relative_rms=float("inf"),
    min_top1_agreement=0.0,
    min_cosine_p1=-1.0,
    max_over_baseline=float("inf"),
    max_over_unchanged_base=float("inf"),
    max_metric_loss=float("inf"),
)


def run(draft: Draft) -> None:
    """Set `model` and `report` of every variant.

    Raises:
        ReleaseFileInvalid: an unknown scheme.
        GateFailed, GateInconclusive, QuantizationRefused: of a required variant.
        Errors of packager.quantize for a model that does not load or run at all.
    """
    check_schemes(draft.plan)
    for model in {variant.model for variant in draft.variants if variant.plan.scheme == UNQUANTIZED_SCHEME}:
        external_data(model)
        run_in_child(model, draft.samples)
    for variant in draft.variants:
        if variant.plan.scheme != UNQUANTIZED_SCHEME:
            _quantize(draft, variant)


def check_schemes(plan: ReleasePlan) -> None:
    """Raises ReleaseFileInvalid: an unknown scheme; MetricUnusable."""
    for variant in plan.variants:
        if variant.scheme not in (UNQUANTIZED_SCHEME, *SCHEMES):
            known = ", ".join((UNQUANTIZED_SCHEME, *SCHEMES))
            raise ReleaseFileInvalid(
                f"variants.{variant.name}: scheme: found {variant.scheme!r}, expected one of {known}"
            )
    metric_of(plan)


def thresholds_of(plan: VariantPlan) -> Thresholds:
    """The default thresholds, with what the release file says instead."""
    return replace(DEFAULT_THRESHOLDS, **dict(plan.gate))


def metric_of(plan: ReleasePlan) -> Metric | None:
    """The user's own measure. Raises MetricUnusable."""
    return None if plan.metric is None else Metric.parse(plan.metric)


def base_of(draft: Draft, variant: VariantDraft) -> tuple[Manifest, Path] | None:
    """The last release that has this variant, quantized the same way and still kept, and its model file."""
    for manifest in reversed(draft.repository.releases(draft.plan.family)):
        earlier = manifest.variant(variant.name)
        if earlier is None or not earlier.quantization.scheme.startswith(variant.plan.scheme):
            continue
        if is_drill(manifest):
            continue  # no device kept it
        directory = draft.workspace.open_bundle(manifest.family, earlier.digest)
        return None if directory is None else (manifest, directory.root / earlier.require_single_file("model").path)
    return None


def _try_update(draft: Draft, variant: VariantDraft, out: Path) -> bool:
    """Rule 3; False where the variant is to be quantized afresh."""
    base = base_of(draft, variant) if variant.plan.update_aware else None
    if base is None:
        return False
    manifest, model = base
    earlier = manifest.variant(variant.name)
    assert earlier is not None
    calibration, held_back = draft.samples.split_halves()
    bar, solved = draft.reporter.bar(f"{variant.name} near {manifest.version}"), count(1)
    try:
        report = quantize_update(
            draft.plan.model,
            model,
            out,
            calibration,
            held_back,
            thresholds=thresholds_of(variant.plan),
            on_solution=lambda _point: bar(next(solved), MAX_POINTS),
        )
    except (BaseIncompatible, QuantizationRefused, AlreadyQuantized, WeightsNotFinite) as error:
        draft.reporter.note(f"variant {variant.name} is no update of {manifest.version}: {error.message}")
        return False
    reason = report.reason if report.method != "joint" or report.gate.verdict != "pass" else None
    if (
        reason is None
        and (measure := MetricReference.from_float_model(metric_of(draft.plan), draft.plan.model, held_back))
        is not None
    ):
        measured = measure.add_to_report(report.gate, out, held_back, thresholds_of(variant.plan).max_metric_loss)
        reason = measured.explanation if measured.verdict != "pass" else None
    if reason is not None:
        draft.reporter.note(f"variant {variant.name} is no update of {manifest.version}: {reason}")
        out.unlink()
        return False
    variant.update = QuantizedUpdate(manifest.version, earlier.quantization, report)
    return True


def _quantize(draft: Draft, variant: VariantDraft) -> None:
    thresholds = UNLIMITED_THRESHOLDS if draft.plan.override_gate else thresholds_of(variant.plan)
    options = replace(
        DEFAULT_OPTIONS,
        thresholds=thresholds,
        signed_activations=variant.plan.target == "arm",
        metric=None if draft.plan.override_gate else metric_of(draft.plan),
    )
    out = variant.folder / "model.onnx"
    if _try_update(draft, variant, out):
        variant.model = out
        return
    try:
        report = quantize_model(draft.plan.model, out, variant.plan.scheme, draft.samples, options)
    except (AlreadyQuantized, WeightsNotFinite) as error:
        if variant.plan.required:
            raise
        draft.drop_variant(variant, error.message)
        return
    variant.report = report
    if report.outcome == "quantized":
        variant.model = out
        return
    if variant.plan.required:
        raise _failure(variant, report)
    draft.drop_variant(variant, report.reason)


def _failure(variant: VariantDraft, report: QuantizationReport) -> GateFailed | GateInconclusive | QuantizationRefused:
    message = f"required variant {variant.name!r}: {report.reason}"
    if report.outcome == "inconclusive":
        return GateInconclusive(message, hint="give real inputs of several kinds: inputs = FILE.npz")
    kind = GateFailed if report.gate is not None else QuantizationRefused
    return kind(message, hint="`packager quantize --report FILE` lists every trial; or leave `required` out")
