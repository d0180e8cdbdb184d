"""Quantize a float model to a smaller model that passes the gate, or say why there is none.

Steps of `quantize_model`, in order:
1. Run the float model once in its own process: a model that crashes is refused.
2. Split the samples: half calibrate, the other half is held out for the verdict.
3. Normalize the graph (`prepare`), and check the reference outputs (`reference_checks`).
4. Search for a candidate (`candidate_search`).
5. Write `out` in one step, only if the outcome is "quantized".

The same model, samples and options give the same bytes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from bundle.console import Progress
from packager.errors import QuantizationRefused, TooFewSamples
from packager.models.graphs import float_bytes
from packager.models.inputs import ModelInterface, check_sample, load_proto
from packager.models.model_files import model_bytes
from packager.models.model_files import save_model as save_model
from packager.models.oldest_runtime import oldest_runtime
from packager.models.samples import Samples
from packager.models.sessions import open_session
from packager.models.tflite_model import is_tflite
from packager.models.trial_run import run_trial
from packager.quantize.candidate_search import CandidateSearch, MetricReference
from packager.quantize.candidates import INT8_METHODS, CandidateBuilder, Method
from packager.quantize.gate import DEFAULT_THRESHOLDS, Thresholds
from packager.quantize.latency import Latency
from packager.quantize.prepare import prepare_model
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.reference_checks import check_reference_outputs
from packager.quantize.search_progress import SearchProgress
from packager.quantize.targets import ANY, Target
from packager.quantize.user_metric import Metric

METHODS_OF: Final[dict[str, tuple[Method, ...]]] = {
    "int8": INT8_METHODS,
    "int8-weights": ("weights",),
    "int8-static": ("static",),
    "int8-dynamic": ("dynamic",),
    "int4": ("int4",),
    "fp16": ("fp16",),
}
SCHEMES: Final = ("fp32", *METHODS_OF)
MAX_JUDGED_SAMPLES: Final = 64  # calibration samples that judge a trial; the final gate uses all held-out samples


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Options of `quantize_model`; the defaults give the same numbers on every CPU.

    Attributes:
        per_channel: use one scale per channel of a weight, instead of one per weight.
        signed_weights: 7-bit signed weights: faster on x86 CPUs without VNNI, and as exact.
        target: CPUs that run the model; signed levels are exact on these only.
        optimize: simplify the graph first, at the level that does not depend on the hardware.
        thresholds: limits of the gate.
        max_calibration_samples: maximum number of samples for calibration.
        methods: methods to choose from; None for all of the scheme.
        measure_latency: time candidates against the float model, if this machine is one of the target's.
        metric: the user's own metric, or None.
    """

    per_channel: bool = True
    signed_weights: bool = False
    target: Target = ANY
    optimize: bool = True
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    max_calibration_samples: int = 256
    methods: tuple[Method, ...] | None = None
    measure_latency: bool = True
    metric: Metric | None = None


DEFAULT_OPTIONS: Final = QuantizeOptions()


def quantize_model(
    model: Path,
    out: Path,
    scheme: str,
    samples: Samples,
    options: QuantizeOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
    *,
    chosen: QuantizationReport | None = None,
    is_tried: bool = False,
) -> QuantizationReport:
    """Quantize a float model, judge it, and write it if it passes.

    Args:
        model: a float ONNX file, with its external data beside it.
        out: the file to write; written only if the report's outcome is "quantized".
        scheme: one of SCHEMES.
        samples: inputs; half of them are held out from calibration.
        options: settings of the quantization.
        progress: receives the numbers of finished and of planned candidates, or None.
        chosen: report of the same quantization elsewhere: build the candidate that it chose, and search no other.
        is_tried: whether the model ran in a process of its own already (packager.models.trial_run).

    Returns:
        A report; a model that cannot be quantized, or does not pass, is a report with outcome "refused".

    Raises:
        QuantizationRefused: the scheme is unknown.
        TooFewSamples: there is no sample.
        SampleNameMismatch, SampleShapeMismatch, SampleDtypeMismatch: a sample does not fit the model.
        AlreadyQuantized, WeightsNotFinite, ModelUnreadable, ModelDoesNotRun, ModelCrashes: the model cannot be used.
        MetricUnusable: the user's metric cannot be measured.
    """
    if scheme not in SCHEMES:
        raise QuantizationRefused(f"scheme {scheme!r} is unknown, expected one of {', '.join(SCHEMES)}")
    if not len(samples):
        raise TooFewSamples("found 0 samples, expected at least 1")
    if is_tflite(model):
        raise QuantizationRefused(
            f"{model}: a TFLite model is left unchanged",
            hint="quantize it with the converter that made it, and release its file with runtime = 'litert'",
        )
    interface = ModelInterface.from_file(model)
    for sample in samples.take(1):
        check_sample(sample, interface, samples.origin)
    if not is_tried:
        run_trial(model, samples)
    if scheme == "fp32":
        return _copy_float_model(model, out, samples)
    calibration, held_out = samples.split_halves()
    calibration = calibration.take(options.max_calibration_samples)
    prepared = prepare_model(model, next(iter(samples.take(1))), optimize=options.optimize)
    reference = open_session(model)
    metric_reference = MetricReference.from_float_model(options.metric, model, held_out)
    builder = CandidateBuilder(
        prepared.model, calibration, model_bytes(model), options.per_channel,
        options.signed_weights or options.target.signed_weights, options.target.signed_activations,
        prepared.integer_model,
    )  # fmt: skip
    search = CandidateSearch(
        builder, reference, calibration.take(MAX_JUDGED_SAMPLES), held_out, options.thresholds, metric_reference,
        timed_model=model if options.measure_latency and options.target.is_this_machine else None,
        weights_first=not options.target.is_integer_faster,
        progress=SearchProgress() if progress is None else SearchProgress(progress),
    )  # fmt: skip
    report = QuantizationReport(
        scheme=scheme, float_bytes=model_bytes(model), notes=prepared.notes, calibration_samples=len(calibration),
        origin=samples.origin,
    )  # fmt: skip
    try:
        check_reference_outputs(reference, samples, model)
        if chosen is None:
            found, verdict = search.find_candidate(options.methods or METHODS_OF[scheme])
        else:
            found, verdict = search.build_candidate(chosen, METHODS_OF[scheme])
    except QuantizationRefused as refusal:
        return replace(report, reason=refusal.message, trials=tuple(search.trials))
    finally:
        search.progress.finish()
    report = replace(
        report,
        method=found.method,
        numerics=builder.numerics_of(found.method),
        bytes=found.model.ByteSize(),
        oldest_runtime=str(oldest_runtime(found.model)),
        gate=verdict,
        calibration_gate=found.calibration_gate,
        float_nodes=found.float_nodes,
        promoted_activations=search.trials[found.trial_index].promoted_activations,
        promoted_weights=search.trials[found.trial_index].promoted_weights,
        trials=tuple(search.trials),
        sensitivity=tuple(search.node_errors.get(found.method, ())),
    )
    if verdict.verdict == "inconclusive":
        return replace(report, outcome="inconclusive", reason=verdict.explanation)
    if verdict.verdict == "fail":
        return replace(report, outcome="refused", reason=f"gate failed: {verdict.explanation}")
    save_model(found.model, out)
    notes = (
        *report.notes, *_larger_than_fp16_notes(report, prepared.model), *_speed_notes(search.latency, options),
    )  # fmt: skip
    return replace(report, outcome="quantized", reason=verdict.explanation, latency=search.latency, notes=notes)


def _larger_than_fp16_notes(report: QuantizationReport, prepared: onnx.ModelProto) -> tuple[str, ...]:
    halved = prepared.ByteSize() - float_bytes(prepared) // 2
    if report.scheme == "fp16" or report.bytes is None or report.bytes <= halved:
        return ()
    return (f"--scheme fp16 would be smaller: about {halved:,} bytes",)


def _speed_notes(latency: Latency | None, options: QuantizeOptions) -> tuple[str, ...]:
    limit = options.thresholds.max_latency_ratio
    if latency is None:
        target = options.target
        is_foreign = options.measure_latency and not target.is_this_machine
        return (f"speed was not measured: this machine is not {target.name}",) if is_foreign else ()
    if latency.verdict(limit) == "undecided":
        return (f"the machine was too busy to decide whether {latency.describe()} exceeds the limit of {limit:.2f}",)
    if latency.low <= 1.0:
        return ()
    return (f"it takes {latency.describe()}; it saves bytes, not time",)


def _copy_float_model(model: Path, out: Path, samples: Samples) -> QuantizationReport:
    size = model_bytes(model)
    if size == model.stat().st_size:
        part = out.with_name(out.name + ".part")
        part.write_bytes(model.read_bytes())
        part.replace(out)
    else:
        save_model(load_proto(model), out)
    return QuantizationReport(
        scheme="fp32", outcome="quantized", reason="copied unchanged", method="float", float_bytes=size,
        bytes=size, origin=samples.origin,
    )  # fmt: skip
