"""Step quantize: choose or create the model file of every variant.

Rules:
- Each given model runs once in its own process first, so that a crash does not end the packager.
- A variant whose scheme does not fit the model is left out with the reason; if it is required, the release fails.
- If an earlier release has the variant, its weights are chosen near the earlier ones (packager.quantize.update_aware).
  If that is impossible or fails the gate, the model is quantized from scratch.
- With an executor, workers search for the models, and this process confirms what they found
  (packager.release.steps.quantize_jobs).
- With `override_gate`, the quantizer accepts any result here; the step compare still measures it.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from packager.errors import (
    AlreadyQuantized,
    GateFailed,
    GateInconclusive,
    QuantizationRefused,
    ReleaseFileInvalid,
    WeightsNotFinite,
)
from packager.models.model_package import external_data
from packager.quantize.candidate_search import MetricReference
from packager.quantize.gate import DEFAULT_THRESHOLDS, Thresholds
from packager.quantize.jobs.worker_results import WorkerQuantization
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.schemes import DEFAULT_OPTIONS, SCHEMES, quantize_model
from packager.quantize.targets import TARGETS
from packager.quantize.update_aware.quantize_update import explain_failure, quantize_update
from packager.quantize.update_aware.rate_search import MAX_POINTS
from packager.quantize.user_metric import Metric
from packager.release.draft import Draft, QuantizedUpdate, QuantizedVariant
from packager.release.release_plan import AUTO_SCHEME, UNQUANTIZED_SCHEME, ReleasePlan, VariantPlan
from packager.release.steps.diff import is_drill
from packager.release.steps.quantize_jobs import (
    EarlierModel,
    QuantizeOrder,
    confirm_candidate,
    confirm_update,
    quantize_in_executor,
)

UNLIMITED_THRESHOLDS: Final = Thresholds(
    max_relative_rms=float("inf"),
    min_top1_agreement=0.0,
    min_cosine_p1=-1.0,
    max_over_baseline=float("inf"),
    max_over_unchanged_base=float("inf"),
    max_metric_loss=float("inf"),
    max_latency_ratio=float("inf"),
)


def run(draft: Draft) -> None:
    """Set `quantized`, or drop variants.

    Raises:
        ReleaseFileInvalid: a scheme is unknown.
        GateFailed: a required variant differs too much from the float model.
        GateInconclusive: the samples cannot judge a required variant.
        QuantizationRefused: a required variant cannot be quantized.
        ModelUnreadable: a model is not an ONNX model.
        ModelDoesNotRun: a model does not run on a sample.
        ModelCrashes: a model crashes its process.
        QuantizationNotConfirmed: a worker returned another model than this process makes.
    """
    check_schemes(draft.plan)
    plans = draft.plan.variants
    if not draft.plan.is_run_by_agent:
        draft.quantized.update((plan.name, QuantizedVariant(plan, None)) for plan in plans)
        return
    reference = draft.plan.require_model()
    if draft.samples.is_random and any(plan.scheme not in (UNQUANTIZED_SCHEME, "fp32") for plan in plans):
        draft.note("the samples are random: errors on real inputs can differ; name real ones with inputs = 'FILE.npz'")
    for model in dict.fromkeys(v.model or reference for v in plans if v.scheme == UNQUANTIZED_SCHEME):
        external_data(model)
        draft.memory_of(model)
    for each in draft.plan.further:
        external_data(each.model)
        draft.memory_of(each.model, each.name)
    orders = {plan.name: _order(draft, plan) for plan in plans if plan.scheme != UNQUANTIZED_SCHEME}
    if orders:
        draft.memory_of(reference)
    found = quantize_in_executor(draft, [order for order in orders.values() if order.plan.scheme != "fp32"])
    for plan in plans:
        if plan.scheme == UNQUANTIZED_SCHEME:
            draft.quantized[plan.name] = QuantizedVariant(plan, plan.model or reference)
        elif (variant := _quantize(draft, orders[plan.name], found.get(plan.name))) is not None:
            draft.quantized[plan.name] = variant


def check_schemes(plan: ReleasePlan) -> None:
    """Check the schemes and the metric of a release file.

    Raises:
        ReleaseFileInvalid: a scheme is unknown.
        MetricUnusable: the metric cannot be called.
    """
    for variant in plan.variants:
        if variant.scheme not in (UNQUANTIZED_SCHEME, *SCHEMES):
            known = ", ".join((UNQUANTIZED_SCHEME, AUTO_SCHEME, *SCHEMES))
            raise ReleaseFileInvalid(
                f"variants.{variant.name}: scheme: found {variant.scheme!r}, expected one of {known}"
            )
    metric_of(plan)


def thresholds_of(plan: VariantPlan) -> Thresholds:
    """Return the default thresholds with the values of the release file."""
    return replace(DEFAULT_THRESHOLDS, **dict(plan.gate))


def metric_of(plan: ReleasePlan) -> Metric | None:
    """Return the user's metric, or None. Raises MetricUnusable: it cannot be called."""
    return None if plan.metric is None else Metric.parse(plan.metric)


def base_of(draft: Draft, plan: VariantPlan) -> EarlierModel | None:
    """Find the last release with this variant in this scheme; its model file is in the workspace.

    Args:
        draft: the release in progress.
        plan: the variant.
    """
    for manifest in reversed(draft.repository.releases(draft.plan.family)):
        earlier = manifest.variant(plan.name)
        if earlier is None or len(earlier.models) != 1 or not earlier.quantization.scheme.startswith(plan.scheme):
            continue
        if is_drill(manifest):
            continue  # devices do not keep fire drills
        directory = draft.workspace.open_bundle(manifest.family, earlier.digest)
        if directory is None:
            return None
        return EarlierModel(manifest.version, directory.root / earlier.require_model().file, earlier.quantization)
    return None


def _order(draft: Draft, plan: VariantPlan) -> QuantizeOrder:
    base = base_of(draft, plan) if plan.update_aware else None
    options = replace(
        DEFAULT_OPTIONS,
        thresholds=UNLIMITED_THRESHOLDS if draft.plan.override_gate else thresholds_of(plan),
        target=TARGETS[plan.target],
        optimize=plan.optimize,
        metric=None if draft.plan.override_gate else metric_of(draft.plan),
    )
    return QuantizeOrder(plan, base, options, thresholds_of(plan))


def _quantize_near_earlier(draft: Draft, order: QuantizeOrder, out: Path) -> QuantizedUpdate | None:
    """Quantize near the last release of this variant; None if there is none, or it fails."""
    if order.base is None:
        return None
    plan, reference = order.plan, draft.plan.require_model()
    calibration, held_out = draft.samples.split_halves()
    bar, solved = draft.reporter.bar(f"{plan.name} near {order.base.version}"), count(1)
    try:
        report = quantize_update(
            reference,
            order.base.model,
            out,
            calibration,
            held_out,
            thresholds=order.thresholds,
            on_solution=lambda _point: bar(next(solved), MAX_POINTS),
        )
    except Exception as error:  # noqa: BLE001  # an update is an optimization: no failure of it ends a release
        reason = explain_failure(error)
        if reason is None:
            reason = str(error)  # the step below meets the same error, and refuses or drops the variant
        _note_no_update(draft, order, reason)
        out.unlink(missing_ok=True)
        return None
    reason = report.failure
    if (
        reason is None
        and (metric := MetricReference.from_float_model(metric_of(draft.plan), reference, held_out)) is not None
    ):
        measured = metric.add_to_report(report.gate, out, held_out, order.thresholds.max_metric_loss)
        reason = measured.explanation if measured.verdict != "pass" else None
    if reason is not None:
        _note_no_update(draft, order, reason)
        out.unlink()
        return None
    return QuantizedUpdate(order.base.version, order.base.quantization, report)


def _note_no_update(draft: Draft, order: QuantizeOrder, reason: str) -> None:
    assert order.base is not None
    draft.note(f"variant {order.plan.name} is quantized afresh, not near {order.base.version}: {reason}")


def _quantize(draft: Draft, order: QuantizeOrder, found: WorkerQuantization | None) -> QuantizedVariant | None:
    """Return the quantized variant, or drop it and return None."""
    plan, out = order.plan, draft.variant_folder(order.plan.name) / "model.onnx"
    report = None
    if found is not None and found.update is not None:
        confirmed = confirm_update(draft, order, found, out)
        if confirmed is not None and order.base is not None:
            update = QuantizedUpdate(order.base.version, order.base.quantization, confirmed)
            return QuantizedVariant(plan, out, update=update)
        found = None
    elif found is not None:
        report = confirm_candidate(draft, order, found, out)
        if report is not None and found.failure:
            _note_no_update(draft, order, found.failure)
    if report is None and (near := _quantize_near_earlier(draft, order, out)) is not None:
        return QuantizedVariant(plan, out, update=near)
    if report is None:
        try:
            bar = draft.reporter.bar(f"{plan.name} ({plan.scheme})")
            report = quantize_model(
                draft.plan.require_model(), out, plan.scheme, draft.samples, order.options, bar, is_tried=True
            )
        except (AlreadyQuantized, WeightsNotFinite) as error:
            if plan.required:
                raise
            draft.drop_variant(plan.name, error.message)
            return None
    if report.outcome == "quantized":
        for text in report.notes:
            draft.note(f"variant {plan.name}: {text}")
        return QuantizedVariant(plan, out, report=report)
    if plan.required:
        raise _failure(plan, report)
    draft.drop_variant(plan.name, report.reason)
    return None


def _failure(plan: VariantPlan, report: QuantizationReport) -> GateFailed | GateInconclusive | QuantizationRefused:
    message = f"required variant {plan.name!r}: {report.reason}"
    if report.outcome == "inconclusive":
        return GateInconclusive(message, hint="supply real samples of several kinds: inputs = 'FILE.npz'")
    kind = GateFailed if report.gate is not None else QuantizationRefused
    return kind(message, hint="run `packager quantize --report FILE` to list every candidate, or set required = false")
