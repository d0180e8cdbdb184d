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
from packager.models.model_files import save
from packager.models.samples import Samples
from packager.models.sessions import session_of, settings_for
from packager.quantize.candidates import Method, Workshop
from packager.quantize.gate import GateReport, Thresholds, judge
from packager.quantize.quantization_report import Trial
from packager.quantize.sensitivity import Blame, blame, repairs
from packager.quantize.user_metric import Metric

MAX_OVER_DYNAMIC: Final = 1.5
GOOD_SHARE: Final = 1 / 3  # of the allowed relative RMS
REPAIRED_METHODS: Final = 2  # the two with the least error: others would not pass either
NOTHING_FOR: Final[dict[Method, str]] = {
    "static": "no Conv, MatMul or Gemm with a constant weight for static int8",
    "dynamic": "no Conv, MatMul or Gemm with a constant weight for dynamic int8",
    "weights": "no weight for int8",
    "int4": "no MatMul or Gemm with a constant weight, which is what 4 bits need; int8 fits this model",
    "fp16": "no weight for fp16",
}
NO_REPAIR: Final = ("fp16",)  # it has no nodes of its own: weights that do not fit stay float32


@dataclass(frozen=True, slots=True)
class Measure:
    """The user's metric and its value for the float model."""

    metric: Metric
    float_value: float

    @classmethod
    def of(cls, metric: Metric | None, model: Path, samples: Samples) -> "Measure | None":
        """Measure the float model; None without a metric. Raises MetricUnusable."""
        return None if metric is None else cls(metric, metric.value_of(model, samples))

    def added_to(self, found: GateReport, candidate: Path, samples: Samples, max_loss: float) -> GateReport:
        """`found` with the metric's say (rule 4). Raises MetricUnusable."""
        if found.verdict == "fail":
            return found
        figures = self.metric.figures(self.float_value, candidate, samples, max_loss)
        if not figures.passes:
            return replace(found, metric=figures, verdict="fail", why=figures.why)
        why = figures.why if found.verdict == "inconclusive" else f"{found.why}; {figures.why}"
        return replace(found, metric=figures, verdict="pass", why=why)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A quantized model, what it keeps in float, its gate on the calibration half, and the number of its trial."""

    method: Method
    model: onnx.ModelProto
    kept: tuple[str, ...]
    calibration: GateReport
    trial: int

    @property
    def error(self) -> float:
        """Relative RMS of the worst output; share of changed values where outputs are whole numbers."""
        if self.calibration.relative_rms is not None:
            return self.calibration.relative_rms
        return max((1 - o.exact_share for o in self.calibration.outputs if o.varies), default=float("inf"))


@dataclass(slots=True)
class Search:
    """One search; `trials` and `blames` tell afterwards what was tried and found."""

    workshop: Workshop
    reference: onnxruntime.InferenceSession
    judged: Samples
    held_back: Samples
    thresholds: Thresholds
    measure: Measure | None = None
    trials: list[Trial] = field(default_factory=list)
    blames: dict[Method, list[Blame]] = field(default_factory=dict)

    def run(self, methods: tuple[Method, ...]) -> tuple[Candidate, GateReport]:
        """The chosen candidate and its held-back verdict, failing only where all fail. Raises QuantizationRefused."""
        possible = tuple(m for m in self.workshop.methods() if m in methods)
        last: tuple[Candidate, GateReport] | None = None
        for candidate in self._candidates(possible):
            verdict = self._final(candidate)
            told = f"{verdict.verdict}: {verdict.why}"
            self.trials[candidate.trial] = replace(self.trials[candidate.trial], held_back=told)
            if verdict.verdict != "fail":
                return candidate, verdict
            if last is None or candidate.error < last[0].error:
                last = candidate, verdict
        if last is None:
            why = "; ".join(trial.why for trial in self.trials) or "; ".join(NOTHING_FOR[method] for method in methods)
            raise QuantizationRefused(f"no quantized form of this model is possible: {why}")
        return last

    def _candidates(self, possible: tuple[Method, ...]) -> Iterator[Candidate]:
        """Rules 1 and 2; what failed on the calibration half comes last, since the held-back half decides."""
        first = [c for m in possible if m != "weights" and (c := self._try(m)) is not None]
        yield from self._ranked([c for c in first if c.calibration.verdict != "fail"])
        if "static" in possible:
            yield from self._widened()
        found = list(first)
        if "weights" in possible and (weights := self._try("weights")) is not None:
            found.append(weights)
            if weights.calibration.verdict != "fail":
                yield weights
        found.sort(key=lambda c: c.error)
        yield from self._repaired(found)
        yield from (c for c in found if c.calibration.verdict == "fail")

    def _ranked(self, found: list[Candidate]) -> list[Candidate]:
        by_method = {candidate.method: candidate for candidate in found}
        static, dynamic = by_method.get("static"), by_method.get("dynamic")
        if static and dynamic:
            good_enough = max(GOOD_SHARE * self.thresholds.max_relative_rms, MAX_OVER_DYNAMIC * dynamic.error)
            if static.error > good_enough:
                return [dynamic, static]
        return found

    def _widened(self) -> Iterator[Candidate]:
        nodes = self.workshop.wide_nodes("static")
        everywhere = self._try("static", wide=tuple(nodes))
        if everywhere is None or everywhere.calibration.verdict == "fail":
            return
        for spoilers in repairs(self._blames("static"), self.thresholds.max_relative_rms):
            wide = tuple(name for name in spoilers if name in nodes)
            if not wide or len(wide) == len(nodes):
                continue
            candidate = self._try("static", wide=wide)
            if candidate is not None and candidate.calibration.verdict != "fail":
                yield candidate
        yield everywhere

    def _repaired(self, found: list[Candidate]) -> Iterator[Candidate]:
        for whole in [c for c in found if c.method not in NO_REPAIR][:REPAIRED_METHODS]:
            for kept, wide in self._repairs(whole.method):
                repaired = self._try(whole.method, kept, wide)
                if repaired is not None and repaired.calibration.verdict == "pass":
                    yield repaired

    def _repairs(self, method: Method) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """What to keep in float and what to give more bits: of int4 first 8 bits instead of float."""
        sets = repairs(self._blames(method), self.thresholds.max_relative_rms)
        nodes = frozenset(self.workshop.wide_nodes(method)) if method == "int4" else frozenset()
        eight = dict.fromkeys(tuple(name for name in spoilers if name in nodes) for spoilers in sets)
        return [((), wide) for wide in eight if 0 < len(wide) < len(nodes)] + [(kept, ()) for kept in sets]

    def _blames(self, method: Method) -> list[Blame]:
        if method not in self.blames:
            self.blames[method] = blame(
                lambda kept: self.workshop.build(method, kept, is_partial=True),
                self.workshop.families(method),
                self.reference,
                self.judged,
            )
        return self.blames[method]

    def _try(self, method: Method, kept: tuple[str, ...] = (), wide: tuple[str, ...] = ()) -> Candidate | None:
        try:
            model = self.workshop.build(method, frozenset(kept), frozenset(wide))
            verdict = self._judged(model, self.judged)
        except (QuantizationRefused, ModelDoesNotRun) as error:
            self.trials.append(Trial(method, kept, wide, None, None, "refused", error.message))
            return None
        kept = self.workshop.beyond_half if method == "fp16" else kept
        size, error_ = model.ByteSize(), verdict.relative_rms
        self.trials.append(Trial(method, kept, wide, size, error_, verdict.verdict, verdict.why))
        return Candidate(method, model, kept, verdict, len(self.trials) - 1)

    def _judged(self, model: onnx.ModelProto, samples: Samples) -> GateReport:
        running = session_of(model, settings_for(model))
        return judge(self.reference, running, samples, self.thresholds, shapes_vary=self.measure is not None)

    def _final(self, candidate: Candidate) -> GateReport:
        """Rules 3 and 4. Raises MetricUnusable."""
        found = self._judged(candidate.model, self.held_back)
        if self.measure is None or found.verdict == "fail":
            return found
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save(candidate.model, path)
            return self.measure.added_to(found, path, self.held_back, self.thresholds.max_metric_loss)
