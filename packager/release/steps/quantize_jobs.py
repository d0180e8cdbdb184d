"""Quantize the variants of a release in an executor, and confirm here what workers found.

Rules:
1. A variant is a job if the model has at least MIN_MODEL_BYTES (a smaller one takes less time than the start of a
   worker), if model and base are single files of at most MAX_BUNDLE_BYTES, if there is no user's metric (its code stays
   here), and if there are two or more such variants.
2. What a worker chose is built or judged again in this process; the manifest has figures of this process. A candidate
   from scratch is built here, so its bytes are those of one process, whatever the worker's processor is.
3. A worker with a processor of this kind must be right: another model, or an update that does not pass here, ends the
   release. With another processor, the variant is quantized in this process, and a note says so.
4. Speed is measured here, after the jobs. A candidate that is too slow is given up, and the search runs here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bundle.cpu_features import read_cpu_name
from bundle.errors import AirweightsError
from bundle.variant import Quantization
from packager.diff.run_jobs import run_separate_jobs
from packager.diff.sources import Source
from packager.diff.write.patch_job import MAX_BUNDLE_BYTES
from packager.errors import QuantizationNotConfirmed
from packager.models.model_package import external_data
from packager.models.packed_samples import pack_samples
from packager.models.tflite_model import is_tflite
from packager.quantize.gate import Thresholds
from packager.quantize.jobs.quantize_job import NOTHING, QuantizeJob, quantize_on_worker
from packager.quantize.jobs.worker_results import WorkerQuantization, decode_quantization
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.update_aware.judge_update import judge_update
from packager.quantize.update_aware.quantize_update import UpdateReport
from packager.release.draft import Draft
from packager.release.release_plan import VariantPlan

MIN_MODEL_BYTES: Final = 1 << 20
SAMPLES_FILE: Final = "samples.npz"


@dataclass(frozen=True, slots=True)
class EarlierModel:
    """The quantized model of an earlier release.

    Attributes:
        version: version of that release.
        model: the model file.
        quantization: the manifest's record.
    """

    version: str
    model: Path
    quantization: Quantization


@dataclass(frozen=True, slots=True)
class QuantizeOrder:
    """A variant that a worker may quantize.

    Attributes:
        plan: the variant.
        base: the model of an earlier release to stay near, or None.
        options: settings of the quantization in this process.
        thresholds: limits of the gate of an update.
    """

    plan: VariantPlan
    base: EarlierModel | None
    options: QuantizeOptions
    thresholds: Thresholds


def quantize_in_executor(draft: Draft, orders: list[QuantizeOrder]) -> dict[str, WorkerQuantization]:
    """Return what workers found, by the name of the variant; others are quantized in this process.

    Args:
        draft: the release in progress.
        orders: the variants with a scheme, in the order of the release file.

    Raises:
        QuantizationNotConfirmed: a worker returned something that is no result.
        AirweightsError: the executor failed.
    """
    model = draft.plan.model
    jobs = [order for order in orders if order.base is None or _is_one_file(order.base.model)]
    is_local = draft.executor is None or draft.plan.metric is not None
    if model is None or is_local or len(jobs) < 2 or model.stat().st_size < MIN_MODEL_BYTES or not _is_one_file(model):
        return {}
    assert draft.executor is not None
    path = draft.folder / SAMPLES_FILE
    names = pack_samples(draft.samples, path)
    sources: dict[Path, Source] = {}

    def work(order: QuantizeOrder) -> tuple[QuantizeJob, Mapping[Source, Path], int]:
        base = None if order.base is None else order.base.model
        found = {one: sources.setdefault(one, _source_of(one)) for one in (model, base, path) if one is not None}
        job = QuantizeJob(
            found[model], None if base is None else found[base], found[path], names, len(draft.samples),
            draft.samples.origin, draft.samples.digest, order.plan.scheme,
            replace(order.options, measure_latency=False), order.thresholds,
        )  # fmt: skip
        return job, {source: one for one, source in found.items()}, found[model].size

    results: dict[str, WorkerQuantization] = {}
    for order, data in zip(jobs, run_separate_jobs(quantize_on_worker, map(work, jobs), draft.executor), strict=True):
        draft.reporter.bar(f"{order.plan.name} ({order.plan.scheme}), on a worker")(1, 1)
        if data != NOTHING:
            try:
                results[order.plan.name] = decode_quantization(data)
            except ValueError as error:
                raise QuantizationNotConfirmed(f"variant {order.plan.name}: {error}") from error
    path.unlink()
    return results


def confirm_update(draft: Draft, order: QuantizeOrder, found: WorkerQuantization, out: Path) -> UpdateReport | None:
    """Write a worker's update and judge it; None if a worker with another processor was not confirmed.

    Args:
        draft: the release in progress.
        order: the variant.
        found: what the worker returned, with an update.
        out: the file to write.

    Raises:
        QuantizationNotConfirmed: a worker with this processor was not confirmed.
    """
    assert found.update is not None
    assert order.base is not None
    calibration, held_out = draft.samples.split_halves()
    out.write_bytes(found.model)
    try:
        gate, baseline, unchanged = judge_update(
            draft.plan.require_model(), order.base.model, out, calibration, held_out, order.thresholds
        )
        claimed = found.update.gate, found.update.baseline, found.update.unchanged_base
        if found.cpu == read_cpu_name() and claimed != (gate, baseline, unchanged):
            reason = f"found {gate.explanation}, the worker {found.update.gate.explanation}"
        else:
            reason = "" if gate.verdict == "pass" else gate.explanation
    except AirweightsError as error:
        reason = error.message
    if not reason:
        return replace(found.update, gate=gate, baseline=baseline, unchanged_base=unchanged)
    _refuse(draft, order.plan, found, f"the update of a worker is not confirmed: {reason}")
    out.unlink()
    return None


def confirm_candidate(
    draft: Draft, order: QuantizeOrder, found: WorkerQuantization, out: Path
) -> QuantizationReport | None:
    """Build the candidate that a worker chose, judge and time it; None if this process must search itself.

    Args:
        draft: the release in progress.
        order: the variant.
        found: what the worker returned, without an update.
        out: the file to write.

    Raises:
        QuantizationNotConfirmed: a worker with this processor was not confirmed.
    """
    chosen = found.report
    if chosen is None or (order.base is not None and not found.failure):
        _refuse(draft, order.plan, found, "a worker returned neither an update nor why there is none")
        return None
    model, bar = draft.plan.require_model(), draft.reporter.bar(f"{order.plan.name} ({order.plan.scheme})")
    report = quantize_model(
        model, out, order.plan.scheme, draft.samples, order.options, bar, chosen=chosen, is_tried=True
    )
    limit = order.options.thresholds.max_latency_ratio
    if report.outcome != "quantized":
        if report.latency is None or report.latency.verdict(limit) != "above":
            _refuse(draft, order.plan, found, f"the candidate of a worker is not confirmed: {report.reason}")
        return None
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    if digest != found.sha256:
        _refuse(draft, order.plan, found, f"made {digest[:16]}…, the worker {found.sha256[:16]}…")
        out.unlink()
        return None
    return replace(report, trials=chosen.trials, sensitivity=chosen.sensitivity)


def _refuse(draft: Draft, plan: VariantPlan, found: WorkerQuantization, reason: str) -> None:
    own = read_cpu_name()
    if found.cpu == own:
        raise QuantizationNotConfirmed(f"variant {plan.name}: {reason}")
    draft.note(f"variant {plan.name}: {reason}; quantized on this machine (worker: {found.cpu}, here: {own})")


def _is_one_file(model: Path) -> bool:
    return model.stat().st_size <= MAX_BUNDLE_BYTES and not is_tflite(model) and not external_data(model)


def _source_of(path: Path) -> Source:
    with path.open("rb") as stream:
        return Source(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)
