"""Search for a candidate that passes the gate: choose a method, and repair it if none passes.

1. If the target's integer arithmetic is not faster than float, int8 weights with float arithmetic come first.
   Else, and after them: static if its error is at most MAX_RATIO_TO_DYNAMIC times dynamic's, or GOOD_ERROR_SHARE of the
   limit (it is the faster one); else dynamic; then int8 weights.
2. If none passes, repair with the fewest nodes first: 16 bits for the activations with the largest node errors; then
   int8 weights alone (int4: 8 bits for the nodes with the largest errors); then float for those nodes.
3. Trials are judged on calibration samples. The verdict is on the held-out samples, and the user's metric's.
4. A candidate that passes is timed (packager.quantize.latency). If it is certainly slower than `max_latency_ratio`, its
   method is given up.
5. A metric decides only if the gate cannot: it turns `inconclusive` into `pass`, and judges outputs whose shape depends
   on values. It never overrules a failure.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import onnx
import onnxruntime

from packager.errors import ModelDoesNotRun, QuantizationRefused
from packager.models.model_files import save_model
from packager.models.provider_session import ON_CPU, Provider
from packager.models.samples import Samples
from packager.models.sessions import ONE_THREAD_SETTINGS, open_session, open_session_of, settings_for
from packager.quantize.candidates import CandidateBuilder, Method
from packager.quantize.gate import GateReport, Thresholds, judge
from packager.quantize.latency import Latency, measure_latency
from packager.quantize.quantization_report import QuantizationReport, Trial
from packager.quantize.search_progress import SearchProgress
from packager.quantize.sensitivity import NodeError, node_errors, repair_candidates
from packager.quantize.user_metric import Metric

MAX_RATIO_TO_DYNAMIC: Final = 1.5  # static's error over dynamic's; trades accuracy for speed
GOOD_ERROR_SHARE: Final = 1 / 3  # of the allowed relative RMS; below it static is taken whatever dynamic's error
MAX_REPAIRED_METHODS: Final = 2  # the two with the least error; repairs of others would not pass either
INAPPLICABLE_MESSAGES: Final[dict[Method, str]] = {
    "static": "static int8 needs a Conv, MatMul or Gemm with a constant weight, found none",
    "dynamic": "dynamic int8 needs a Conv, MatMul or Gemm with a constant weight, found none",
    "weights": "int8 needs a constant weight, found none",
    "int4": "4 bits need a MatMul or Gemm with a constant weight, found none; int8 fits this model",
    "fp16": "fp16 needs a constant weight, found none",
}
UNREPAIRABLE_METHODS: Final = ("fp16",)  # fp16 has no nodes of its own: weights that do not fit stay float32


@dataclass(frozen=True, slots=True)
class MetricReference:
    """The user's metric and its value for the float model."""

    metric: Metric
    float_value: float

    @classmethod
    def from_float_model(cls, metric: Metric | None, model: Path, samples: Samples) -> "MetricReference | None":
        """Measure the float model; return None without a metric.

        Args:
            metric: the user's metric, or None.
            model: the float model.
            samples: held-out samples.

        Raises:
            MetricUnusable: the metric cannot be measured.
        """
        return None if metric is None else cls(metric, metric.measure(model, samples))

    def add_to_report(
        self, report: GateReport, candidate: Path, samples: Samples, max_loss: float, provider: Provider = ON_CPU
    ) -> GateReport:
        """Return `report` with the metric measured, unless the gate failed already.

        Args:
            report: result of the gate.
            candidate: the quantized model.
            samples: held-out samples.
            max_loss: share of the float model's value that the candidate may lose.
            provider: execution provider and session options of the candidate.

        Raises:
            MetricUnusable: the metric cannot be measured.
        """
        if report.verdict == "fail":
            return report
        figures = self.metric.compare(self.float_value, candidate, samples, max_loss, provider)
        if not figures.is_passed:
            return replace(report, metric=figures, verdict="fail", explanation=figures.explanation)
        explanation = (
            figures.explanation if report.verdict == "inconclusive" else f"{report.explanation}; {figures.explanation}"
        )
        return replace(report, metric=figures, verdict="pass", explanation=explanation)


@dataclass(frozen=True, slots=True)
class QuantizedCandidate:
    """A candidate that was built and judged on calibration samples.

    Attributes:
        method: quantization method and its settings.
        model: the quantized model.
        float_nodes: nodes whose weights stay float.
        calibration_gate: verdict on the calibration samples.
        trial_index: position in `CandidateSearch.trials`.
    """

    method: Method
    model: onnx.ModelProto
    float_nodes: tuple[str, ...]
    calibration_gate: GateReport
    trial_index: int

    @property
    def error(self) -> float:
        """Relative RMS of the worst output; the share of changed values if outputs are integers."""
        if self.calibration_gate.relative_rms is not None:
            return self.calibration_gate.relative_rms
        return max((1 - o.exact_share for o in self.calibration_gate.outputs if o.varies), default=float("inf"))


@dataclass(slots=True)
class CandidateSearch:
    """One search; `trials` and `node_errors` have what was tried and measured afterwards.

    Attributes:
        builder: builds the candidates.
        reference: session of the float model.
        judged_samples: calibration samples on which trials are judged.
        held_out: samples of the verdict.
        thresholds: limits of the gate.
        metric_reference: the user's metric, or None.
        timed_model: the float model to time candidates against; None to time nothing.
        weights_first: try int8 weights with float arithmetic before integer arithmetic.
        progress: counts what is done and what is planned.
        latency: latency of the candidate that was found, if it was measured.
        trials: every candidate tried, in order.
        node_errors: node errors of each repaired method, worst first.
    """

    builder: CandidateBuilder
    reference: onnxruntime.InferenceSession
    judged_samples: Samples
    held_out: Samples
    thresholds: Thresholds
    metric_reference: MetricReference | None = None
    timed_model: Path | None = None
    weights_first: bool = False
    progress: SearchProgress = field(default_factory=SearchProgress)
    latency: Latency | None = None
    trials: list[Trial] = field(default_factory=list)
    node_errors: dict[Method, list[NodeError]] = field(default_factory=dict)
    _slow_methods: set[Method] = field(default_factory=set)

    def find_candidate(self, methods: tuple[Method, ...]) -> tuple[QuantizedCandidate, GateReport]:
        """Return the first candidate that does not fail on the held-out samples, and its verdict.
        If all fail, return the one with the least error on the calibration samples.

        Raises:
            QuantizationRefused: no candidate could be built.
            MetricUnusable: the user's metric cannot be measured.
        """
        possible = tuple(m for m in self.builder.applicable_methods() if m in methods)
        last: tuple[QuantizedCandidate, GateReport] | None = None
        self.progress.plan(len(possible) + (1 if self.timed_model is None else 2))  # the last ones: verdict and speed
        for candidate in self._candidates(possible):
            if candidate.method in self._slow_methods:
                continue
            verdict = self._judge_speed(candidate, self._judge_held_out(candidate))
            held_out = f"{verdict.verdict}: {verdict.explanation}"
            self.trials[candidate.trial_index] = replace(self.trials[candidate.trial_index], held_out=held_out)
            self.progress.step()
            if verdict.verdict != "fail":
                return candidate, verdict
            if last is None or candidate.error < last[0].error:
                last = candidate, verdict
        if last is None:
            reasons = "; ".join(trial.explanation for trial in self.trials) or "; ".join(
                self.builder.other_type_message(method) or INAPPLICABLE_MESSAGES[method] for method in methods
            )
            raise QuantizationRefused(f"no quantized form of this model is possible: {reasons}")
        return last

    def build_candidate(
        self, chosen: QuantizationReport, methods: tuple[Method, ...]
    ) -> tuple[QuantizedCandidate, GateReport]:
        """Build the candidate that another search chose, and return it with its verdict.

        Args:
            chosen: the report of that search.
            methods: the methods that it may have chosen.

        Raises:
            QuantizationRefused: the candidate cannot be built.
            MetricUnusable: the user's metric cannot be measured.
        """
        self.progress.plan(2)
        method = next((one for one in methods if one == chosen.method), None)
        if method is None:
            raise QuantizationRefused(f"the chosen method {chosen.method!r} is none of the scheme's")
        float_nodes = () if method in UNREPAIRABLE_METHODS else chosen.float_nodes
        candidate = self._try_candidate(method, float_nodes, chosen.promoted_activations + chosen.promoted_weights)
        if candidate is None:
            raise QuantizationRefused(f"the chosen candidate cannot be built: {self.trials[-1].explanation}")
        return candidate, self._judge_speed(candidate, self._judge_held_out(candidate))

    def _candidates(self, possible: tuple[Method, ...]) -> Iterator[QuantizedCandidate]:
        """Yield candidates in the order of rules 1 and 2; those that failed on calibration samples come last."""
        found: list[QuantizedCandidate] = []
        groups = [tuple(m for m in possible if m != "weights"), tuple(m for m in possible if m == "weights")]
        for methods in reversed(groups) if self.weights_first else groups:
            tried = [c for m in methods if (c := self._try_candidate(m)) is not None]
            yield from self._rank([c for c in tried if c.calibration_gate.verdict != "fail"])
            if "static" in methods and "static" not in self._slow_methods:
                yield from self._promoted_candidates()
            found.extend(tried)
        found.sort(key=lambda c: c.error)
        yield from self._repaired_candidates(found)
        yield from (c for c in found if c.calibration_gate.verdict == "fail")

    def _rank(self, found: list[QuantizedCandidate]) -> list[QuantizedCandidate]:
        by_method = {candidate.method: candidate for candidate in found}
        static, dynamic = by_method.get("static"), by_method.get("dynamic")
        if static and dynamic:
            good_enough = max(GOOD_ERROR_SHARE * self.thresholds.max_relative_rms, MAX_RATIO_TO_DYNAMIC * dynamic.error)
            if static.error > good_enough:
                return [dynamic, static]
        return found

    def _promoted_candidates(self) -> Iterator[QuantizedCandidate]:
        nodes = self.builder.promotable_nodes("static")
        everywhere = self._try_candidate("static", promoted=tuple(nodes))
        if everywhere is None or everywhere.calibration_gate.verdict == "fail":
            return
        for worst_nodes in repair_candidates(self._measure_node_errors("static"), self.thresholds.max_relative_rms):
            promoted = tuple(name for name in worst_nodes if name in nodes)
            if not promoted or len(promoted) == len(nodes):
                continue
            candidate = self._try_candidate("static", promoted=promoted)
            if candidate is not None and candidate.calibration_gate.verdict != "fail":
                yield candidate
        yield everywhere

    def _repaired_candidates(self, found: list[QuantizedCandidate]) -> Iterator[QuantizedCandidate]:
        hopeless = {*UNREPAIRABLE_METHODS, *self._slow_methods}
        for unrepaired in [c for c in found if c.method not in hopeless][:MAX_REPAIRED_METHODS]:
            repairs = self._plan_repairs(unrepaired.method)
            self.progress.plan(len(repairs))
            for float_nodes, promoted in repairs:
                repaired = self._try_candidate(unrepaired.method, float_nodes, promoted)
                if repaired is not None and repaired.calibration_gate.verdict == "pass":
                    yield repaired

    def _plan_repairs(self, method: Method) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Return (nodes to keep in float, nodes to promote) for each repair; int4 tries 8 bits before float."""
        sets = repair_candidates(self._measure_node_errors(method), self.thresholds.max_relative_rms)
        nodes = frozenset(self.builder.promotable_nodes(method)) if method == "int4" else frozenset()
        promotions = dict.fromkeys(tuple(name for name in worst_nodes if name in nodes) for worst_nodes in sets)
        return [((), promoted) for promoted in promotions if 0 < len(promoted) < len(nodes)] + [
            (float_nodes, ()) for float_nodes in sets
        ]

    def _measure_node_errors(self, method: Method) -> list[NodeError]:
        if method not in self.node_errors:
            self.node_errors[method] = node_errors(
                lambda kept: self.builder.build(method, kept, is_partial=True),
                self.builder.node_groups(method),
                self.reference,
                self.judged_samples,
                self.progress,
            )
        return self.node_errors[method]

    def _try_candidate(
        self, method: Method, float_nodes: tuple[str, ...] = (), promoted: tuple[str, ...] = ()
    ) -> QuantizedCandidate | None:
        try:
            model = self.builder.build(method, frozenset(float_nodes), frozenset(promoted))
            verdict = self._judge(model, self.judged_samples)
        except (QuantizationRefused, ModelDoesNotRun) as error:
            self.trials.append(Trial(method, float_nodes, promoted, None, None, "refused", error.message))
            self.progress.step()
            return None
        self.progress.step()
        float_nodes = self.builder.weights_beyond_fp16 if method == "fp16" else float_nodes
        size, relative_rms = model.ByteSize(), verdict.relative_rms
        self.trials.append(
            Trial(method, float_nodes, promoted, size, relative_rms, verdict.verdict, verdict.explanation)
        )
        return QuantizedCandidate(method, model, float_nodes, verdict, len(self.trials) - 1)

    def _judge(self, model: onnx.ModelProto, samples: Samples) -> GateReport:
        running = open_session_of(model, settings_for(model))
        return judge(self.reference, running, samples, self.thresholds, shapes_vary=self.metric_reference is not None)

    def _judge_speed(self, candidate: QuantizedCandidate, report: GateReport) -> GateReport:
        """Return `report`, or a failure if the candidate passes and is certainly too slow; sets `latency`."""
        if self.timed_model is None or report.verdict != "pass":
            return report
        limit = self.thresholds.max_latency_ratio
        left = open_session(self.timed_model, ONE_THREAD_SETTINGS)
        right = open_session_of(candidate.model, ONE_THREAD_SETTINGS)
        self.latency = measure_latency(left, right, self.held_out, limit)
        if self.latency.verdict(limit) != "above":
            return report
        self._slow_methods.add(candidate.method)
        return replace(
            report, verdict="fail", explanation=f"it takes {self.latency.describe()}, at most {limit:.2f} allowed"
        )

    def _judge_held_out(self, candidate: QuantizedCandidate) -> GateReport:
        """Return the verdict on the held-out samples, with the user's metric."""
        report = self._judge(candidate.model, self.held_out)
        if self.metric_reference is None or report.verdict == "fail":
            return report
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save_model(candidate.model, path)
            return self.metric_reference.add_to_report(report, path, self.held_out, self.thresholds.max_metric_loss)
