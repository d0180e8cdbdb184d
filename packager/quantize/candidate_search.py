"""The search for a candidate that passes the gate: which method, and what must be given more bits.

Rules:
1. Static is taken where its error is at most MAX_OVER_DYNAMIC times dynamic's, or GOOD_SHARE of what is allowed (it is
   the faster one); else dynamic; else int8 weights with float arithmetic.
2. Where none passes: the activations that spoil most get 16 bits, then the weights alone become int8 (of int4: those
   that spoil most), then the nodes that spoil most go back to float; all in bounded trials, the cheapest repair first.
3. Trials are judged on the calibration half; the verdict is the held-back half's, and the user's metric's.
4. A metric speaks where the fidelity gate cannot: it turns `inconclusive` into `pass`, and outputs whose shape depends
   on values are left to it. It never mends a failure.
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
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, settings_for
from packager.quantize.candidates import CandidateBuilder, Method
from packager.quantize.gate import GateReport, Thresholds, judge
from packager.quantize.quantization_report import Trial
from packager.quantize.sensitivity import NodeError, node_errors, repair_candidates
from packager.quantize.user_metric import Metric

MAX_RATIO_TO_DYNAMIC: Final = 1.5
GOOD_ERROR_SHARE: Final = 1 / 3  # of the allowed relative RMS
MAX_REPAIRED_METHODS: Final = 2  # the two with the least error: others would not pass either
INAPPLICABLE_MESSAGES: Final[dict[Method, str]] = {
    "static": "no Conv, MatMul or Gemm with a constant weight for static int8",
    "dynamic": "no Conv, MatMul or Gemm with a constant weight for dynamic int8",
    "weights": "no weight for int8",
    "int4": "no MatMul or Gemm with a constant weight, which is what 4 bits need; int8 fits this model",
    "fp16": "no weight for fp16",
}
UNREPAIRABLE_METHODS: Final = ("fp16",)  # it has no nodes of its own: weights that do not fit stay float32


@dataclass(frozen=True, slots=True)
class MetricReference:
    """The user's metric and its value for the float model."""

    metric: Metric
    float_value: float

    @classmethod
    def from_float_model(cls, metric: Metric | None, model: Path, samples: Samples) -> "MetricReference | None":
        """Measure the float model; None without a metric. Raises MetricUnusable."""
        return None if metric is None else cls(metric, metric.measure(model, samples))

    def add_to_report(self, report: GateReport, candidate: Path, samples: Samples, max_loss: float) -> GateReport:
        """`found` with the metric's say (rule 4). Raises MetricUnusable."""
        if report.verdict == "fail":
            return report
        figures = self.metric.compare(self.float_value, candidate, samples, max_loss)
        if not figures.is_passed:
            return replace(report, metric=figures, verdict="fail", explanation=figures.explanation)
        why = (
            figures.explanation if report.verdict == "inconclusive" else f"{report.explanation}; {figures.explanation}"
        )
        return replace(report, metric=figures, verdict="pass", explanation=why)


@dataclass(frozen=True, slots=True)
class QuantizedCandidate:
    """A quantized model, what it keeps in float, its gate on the calibration half, and the number of its trial."""

    method: Method
    model: onnx.ModelProto
    float_nodes: tuple[str, ...]
    calibration_gate: GateReport
    trial_index: int

    @property
    def error(self) -> float:
        """Relative RMS of the worst output; share of changed values where outputs are whole numbers."""
        if self.calibration_gate.relative_rms is not None:
            return self.calibration_gate.relative_rms
        return max((1 - o.exact_share for o in self.calibration_gate.outputs if o.varies), default=float("inf"))


@dataclass(slots=True)
class CandidateSearch:
    """One search; `trials` and `blames` tell afterwards what was tried and found."""

    builder: CandidateBuilder
    reference: onnxruntime.InferenceSession
    judged_samples: Samples
    held_out: Samples
    thresholds: Thresholds
    metric_reference: MetricReference | None = None
    trials: list[Trial] = field(default_factory=list)
    node_errors: dict[Method, list[NodeError]] = field(default_factory=dict)

    def find_candidate(self, methods: tuple[Method, ...]) -> tuple[QuantizedCandidate, GateReport]:
        """The chosen candidate and its held-back verdict, failing only where all fail. Raises QuantizationRefused."""
        possible = tuple(m for m in self.builder.applicable_methods() if m in methods)
        last: tuple[QuantizedCandidate, GateReport] | None = None
        for candidate in self._candidates(possible):
            verdict = self._judge_held_out(candidate)
            told = f"{verdict.verdict}: {verdict.explanation}"
            self.trials[candidate.trial_index] = replace(self.trials[candidate.trial_index], held_out=told)
            if verdict.verdict != "fail":
                return candidate, verdict
            if last is None or candidate.error < last[0].error:
                last = candidate, verdict
        if last is None:
            why = "; ".join(trial.explanation for trial in self.trials) or "; ".join(
                INAPPLICABLE_MESSAGES[method] for method in methods
            )
            raise QuantizationRefused(f"no quantized form of this model is possible: {why}")
        return last

    def _candidates(self, possible: tuple[Method, ...]) -> Iterator[QuantizedCandidate]:
        """Rules 1 and 2; what failed on the calibration half comes last, since the held-back half decides."""
        first = [c for m in possible if m != "weights" and (c := self._try_candidate(m)) is not None]
        yield from self._rank([c for c in first if c.calibration_gate.verdict != "fail"])
        if "static" in possible:
            yield from self._promoted_candidates()
        found = list(first)
        if "weights" in possible and (weights := self._try_candidate("weights")) is not None:
            found.append(weights)
            if weights.calibration_gate.verdict != "fail":
                yield weights
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
        for spoilers in repair_candidates(self._measure_node_errors("static"), self.thresholds.max_relative_rms):
            wide = tuple(name for name in spoilers if name in nodes)
            if not wide or len(wide) == len(nodes):
                continue
            candidate = self._try_candidate("static", promoted=wide)
            if candidate is not None and candidate.calibration_gate.verdict != "fail":
                yield candidate
        yield everywhere

    def _repaired_candidates(self, found: list[QuantizedCandidate]) -> Iterator[QuantizedCandidate]:
        for whole in [c for c in found if c.method not in UNREPAIRABLE_METHODS][:MAX_REPAIRED_METHODS]:
            for kept, wide in self._plan_repairs(whole.method):
                repaired = self._try_candidate(whole.method, kept, wide)
                if repaired is not None and repaired.calibration_gate.verdict == "pass":
                    yield repaired

    def _plan_repairs(self, method: Method) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """What to keep in float and what to give more bits: of int4 first 8 bits instead of float."""
        sets = repair_candidates(self._measure_node_errors(method), self.thresholds.max_relative_rms)
        nodes = frozenset(self.builder.promotable_nodes(method)) if method == "int4" else frozenset()
        eight = dict.fromkeys(tuple(name for name in spoilers if name in nodes) for spoilers in sets)
        return [((), wide) for wide in eight if 0 < len(wide) < len(nodes)] + [(kept, ()) for kept in sets]

    def _measure_node_errors(self, method: Method) -> list[NodeError]:
        if method not in self.node_errors:
            self.node_errors[method] = node_errors(
                lambda kept: self.builder.build(method, kept, is_partial=True),
                self.builder.node_groups(method),
                self.reference,
                self.judged_samples,
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
            return None
        float_nodes = self.builder.weights_beyond_fp16 if method == "fp16" else float_nodes
        size, error_ = model.ByteSize(), verdict.relative_rms
        self.trials.append(Trial(method, float_nodes, promoted, size, error_, verdict.verdict, verdict.explanation))
        return QuantizedCandidate(method, model, float_nodes, verdict, len(self.trials) - 1)

    def _judge(self, model: onnx.ModelProto, samples: Samples) -> GateReport:
        running = open_session_of(model, settings_for(model))
        return judge(self.reference, running, samples, self.thresholds, shapes_vary=self.metric_reference is not None)

    def _judge_held_out(self, candidate: QuantizedCandidate) -> GateReport:
        """Rules 3 and 4. Raises MetricUnusable."""
        found = self._judge(candidate.model, self.held_out)
        if self.metric_reference is None or found.verdict == "fail":
            return found
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save_model(candidate.model, path)
            return self.metric_reference.add_to_report(found, path, self.held_out, self.thresholds.max_metric_loss)
