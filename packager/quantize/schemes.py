"""`quantize`: from a float model and samples to a smaller model that passes the gate, or a reason why there is none.

Rules:
1. The float model is run once in a child process first: what crashes there is refused here.
2. Half of the samples calibrate, the other half is held back; the verdict is the held-back half's.
3. Static is taken where its error is at most MAX_OVER_DYNAMIC times dynamic's, or GOOD_SHARE of what is allowed (it is
   the faster one); else dynamic; else int8 weights with float arithmetic.
4. Where none passes, the nodes that spoil most go back to float, in bounded trials.
5. `out` is written only when the outcome is "quantized", in one step: nothing half-written is left behind.
6. Same model, samples and options: same bytes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.errors import ModelDoesNotRun, QuantizationRefused, TooFewSamples
from packager.inputs import ModelInterface, Samples, check_sample, load_proto
from packager.quantize.candidates import INT8_METHODS, Method, Workshop
from packager.quantize.fidelity import DEFAULT_THRESHOLDS, GateReport, Thresholds, judge
from packager.quantize.prepare import prepare
from packager.quantize.report import Latency, QuantizationReport, Trial
from packager.quantize.runs import THREADS, run, run_in_child, session, session_of
from packager.quantize.sensitivity import blame, repairs

METHODS_OF: Final[dict[str, tuple[Method, ...]]] = {"int8": INT8_METHODS, "int4": ("int4",), "fp16": ("fp16",)}
SCHEMES: Final = ("fp32", *METHODS_OF)
MAX_OVER_DYNAMIC: Final = 1.5
GOOD_SHARE: Final = 1 / 3  # of the allowed relative RMS
JUDGED_SAMPLES: Final = 64  # of the calibration half, for each trial; the final gate takes all that are held back
TIMED_RUNS: Final = 15
TIMED_SAMPLES: Final = 5
SINGLE_FILE_BYTES: Final = 1_900_000_000  # protobuf ends at 2 GiB


@dataclass(frozen=True, slots=True)
class Options:
    """How to quantize; the defaults give the same numbers on every CPU."""

    per_channel: bool = True
    signed_weights: bool = False
    optimise: bool = True
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    max_calibration_samples: int = 256
    methods: tuple[Method, ...] | None = None
    measure_latency: bool = True


DEFAULT_OPTIONS: Final = Options()


@dataclass(frozen=True, slots=True)
class _Candidate:
    method: Method
    model: onnx.ModelProto
    kept: tuple[str, ...]
    calibration: GateReport

    @property
    def rms(self) -> float:
        return self.calibration.relative_rms if self.calibration.relative_rms is not None else float("inf")


def quantize(
    model: Path, out: Path, scheme: str, samples: Samples, options: Options = DEFAULT_OPTIONS
) -> QuantizationReport:
    """Quantize `model` into `out` and judge it.

    Args:
        model: a float ONNX file, with its external data beside it.
        out: the file to write; written only where the report's outcome is "quantized".
        scheme: one of SCHEMES.
        samples: inputs; half are held back from calibration.
        options: see Options.

    Raises:
        Invalid kinds for what the caller gave (AlreadyQuantized, WeightsNotFinite, Sample…Mismatch, ModelDoesNotRun,
        ModelUnreadable), ModelCrashes. A model that cannot be quantized is a report with outcome "refused".
    """
    if scheme not in SCHEMES:
        raise QuantizationRefused(f"scheme {scheme!r} is unknown, expected one of {', '.join(SCHEMES)}")
    if not len(samples):
        raise TooFewSamples("found 0 samples, expected at least 1")
    interface = ModelInterface.from_file(model)
    for sample in samples.take(1):
        check_sample(sample, interface, samples.origin)
    if scheme == "fp32":
        return _pass_through(model, out, samples)
    run_in_child(model, samples)
    calibration, held_back = samples.halves()
    calibration = calibration.take(options.max_calibration_samples)
    prepared = prepare(model, next(iter(samples.take(1))), optimise=options.optimise)
    reference = session(model)
    search = _Search(
        Workshop(prepared.model, calibration, _size(model), options.per_channel, options.signed_weights),
        reference,
        calibration.take(JUDGED_SAMPLES),
        held_back,
        options.thresholds,
        [],
    )
    report = QuantizationReport(
        scheme, "refused", "", "none", search.workshop.numerics, _size(model), None, None, None, (), (),
        prepared.notes, None, len(calibration), samples.origin,
    )  # fmt: skip
    try:
        chosen, verdict = search.run(options.methods or METHODS_OF[scheme])
    except QuantizationRefused as refusal:
        return replace(report, reason=refusal.message, trials=tuple(search.trials))
    report = replace(
        report,
        method=chosen.method,
        numerics=search.workshop.numerics_of(chosen.method),
        bytes=chosen.model.ByteSize(),
        gate=verdict,
        calibration_gate=chosen.calibration,
        kept_float=chosen.kept,
        trials=tuple(search.trials),
    )
    if verdict.verdict == "inconclusive":
        return replace(report, outcome="inconclusive", reason=verdict.why)
    if verdict.verdict == "fail":
        return replace(report, outcome="refused", reason=f"gate failed: {verdict.why}")
    save(chosen.model, out)
    latency = time_both(reference, session(out), held_back) if options.measure_latency else None
    return replace(report, outcome="quantized", reason=verdict.why, latency=latency)


def save(model: onnx.ModelProto, out: Path) -> None:
    """Write a model in one step (rule 5); above SINGLE_FILE_BYTES its tensors go to `<out>.data` beside it."""
    part = out.with_name(out.name + ".part")
    try:
        if model.ByteSize() < SINGLE_FILE_BYTES:
            part.write_bytes(model.SerializeToString(deterministic=True))
        else:
            data = out.with_name(out.name + ".data")
            data.unlink(missing_ok=True)
            onnx.save(model, str(part), save_as_external_data=True, location=data.name)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def time_both(left: onnxruntime.InferenceSession, right: onnxruntime.InferenceSession, samples: Samples) -> Latency:
    """Median latency of both models, runs interleaved so that other load meets both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    chosen = list(samples.take(TIMED_SAMPLES))
    for turn in range(TIMED_RUNS + 2):
        for running, spent in zip((left, right), times, strict=True):
            start = time.perf_counter()
            run(running, chosen[turn % len(chosen)])
            if turn >= 2:  # the first runs pay for memory and packing
                spent.append(1000 * (time.perf_counter() - start))
    return Latency(float(np.median(times[0])), float(np.median(times[1])), THREADS)


@dataclass(slots=True)
class _Search:
    """Rules 3 and 4."""

    workshop: Workshop
    reference: onnxruntime.InferenceSession
    judged: Samples
    held_back: Samples
    thresholds: Thresholds
    trials: list[Trial]

    def run(self, methods: tuple[Method, ...]) -> tuple[_Candidate, GateReport]:
        """The chosen candidate and its held-back verdict, failing only where all fail. Raises QuantizationRefused."""
        possible = tuple(m for m in self.workshop.methods() if m in methods)
        found = self._first_round(possible)
        if not found:
            why = "; ".join(trial.why for trial in self.trials) or f"none of {methods} applies"
            raise QuantizationRefused(f"no quantized form of this model is possible: {why}")
        last: tuple[_Candidate, GateReport] | None = None
        for candidate in self._ranked(found):
            verdict = judge(self.reference, session_of(candidate.model), self.held_back, self.thresholds)
            if verdict.verdict != "fail":
                return candidate, verdict
            last = last or (candidate, verdict)
        for candidate in self._repaired(found):
            verdict = judge(self.reference, session_of(candidate.model), self.held_back, self.thresholds)
            if verdict.verdict != "fail":
                return candidate, verdict
        assert last is not None
        return last

    def _first_round(self, possible: tuple[Method, ...]) -> list[_Candidate]:
        found = [c for m in possible if m != "weights" and (c := self._try(m, ())) is not None]
        if "weights" in possible and not any(c.calibration.verdict == "pass" for c in found):
            weights = self._try("weights", ())
            found += [weights] if weights is not None else []
        return found

    def _ranked(self, found: list[_Candidate]) -> list[_Candidate]:
        by_method = {candidate.method: candidate for candidate in found}
        static, dynamic = by_method.get("static"), by_method.get("dynamic")
        good_enough = max(
            GOOD_SHARE * self.thresholds.max_relative_rms, MAX_OVER_DYNAMIC * (dynamic.rms if dynamic else 0)
        )
        if static and dynamic and static.rms > good_enough:
            order: list[Method] = ["dynamic", "static", "weights", "int4", "fp16"]
        else:
            order = ["static", "dynamic", "weights", "int4", "fp16"]
        ranked = [by_method[method] for method in order if method in by_method]
        return sorted(ranked, key=lambda c: c.calibration.verdict == "fail")

    def _repaired(self, found: list[_Candidate]) -> Iterator[_Candidate]:
        for whole in sorted(found, key=lambda c: c.rms):
            method = whole.method
            blames = blame(
                lambda kept, method=method: self.workshop.build(method, kept, is_partial=True),  # type: ignore[misc]  # mypy: default of a lambda
                self.workshop.nodes(method),
                self.reference,
                self.judged,
            )
            for kept in repairs(blames, self.thresholds.max_relative_rms):
                repaired = self._try(method, kept)
                if repaired is not None and repaired.calibration.verdict == "pass":
                    yield repaired

    def _try(self, method: Method, kept: tuple[str, ...]) -> _Candidate | None:
        try:
            model = self.workshop.build(method, frozenset(kept))
            verdict = judge(self.reference, session_of(model), self.judged, self.thresholds)
        except (QuantizationRefused, ModelDoesNotRun) as error:
            self.trials.append(Trial(method, kept, None, None, "refused", error.message))
            return None
        self.trials.append(Trial(method, kept, model.ByteSize(), verdict.relative_rms, verdict.verdict, verdict.why))
        return _Candidate(method, model, kept, verdict)


def _pass_through(model: Path, out: Path, samples: Samples) -> QuantizationReport:
    run_in_child(model, samples)
    proto = load_proto(model)
    if _size(model) == model.stat().st_size:
        part = out.with_name(out.name + ".part")
        part.write_bytes(model.read_bytes())
        part.replace(out)
    else:
        save(proto, out)
    size = _size(model)
    return QuantizationReport(
        "fp32", "quantized", "passed through unchanged", "float", "float", size, size, None, None, (), (), (), None, 0,
        samples.origin,
    )  # fmt: skip


def _size(model: Path) -> int:
    """Bytes of the model with its external data."""
    total = model.stat().st_size
    seen: set[str] = set()
    for tensor in load_proto(model, external_data=False).graph.initializer:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is not None and location not in seen and (model.parent / location).is_file():
            seen.add(location)
            total += (model.parent / location).stat().st_size
    return total
