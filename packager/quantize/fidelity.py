"""How far a candidate's answers are from the float model's, without labels, output by output.

Rules:
1. Relative RMS = RMS of the error over the spread of the float output across samples: 1 is answering the mean.
2. An output that does not vary over the samples proves nothing: no spread, or a distribution that names one class for
   more than MAX_ONE_CLASS of its rows (random bytes do that to a file classifier), or probabilities that move by less
   than STILL. Such an output must only stay where it is.
   Where no output varies the verdict is `inconclusive`, never `pass`.
3. Top-1 agreement leaves near-ties out: rows whose float margin is within NEAR_TIE of a tie.
4. Floors first, then relative rules. Floors alone cannot tell valid per-tensor int8 (relative RMS .169 on a text
   classifier) from one zeroed layer (.207); so where ordinary quantization was measured a candidate may have at most
   MAX_OVER_ORDINARY times its error, and for an update at most MAX_OF_STALE times the stale model's.
5. Both models run in lock step, one sample at a time; only sums are kept.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnxruntime

from packager.errors import InterfaceMismatch
from packager.inputs import Samples
from packager.quantize.metric import MetricFigures
from packager.quantize.runs import run, session

Verdict = Literal["pass", "fail", "inconclusive"]

NEAR_TIE: Final = 0.1  # of the output's spread; for distributions, of probability
FLAT: Final = 1e-3  # spread over magnitude below which an output counts as constant
SUM_TOLERANCE: Final = 1e-3  # of a softmax in float32, with room for float16
MAX_ONE_CLASS: Final = 0.9
TINY: Final = 1e-30
STILL: Final = 0.01  # spread of values that all lie in 0..1
MAX_DRIFT: Final = 0.1  # of an output that does not vary: in probability, or of its magnitude
MIN_SAMPLES: Final = 2
FAINT: Final = 0.1  # samples whose output is below this share of the usual norm have no meaningful direction


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the gate asks; docs of each: rules 1, 3 and 4 above."""

    max_relative_rms: float = 0.15
    min_top1_agreement: float = 0.95
    min_cosine_p1: float = 0.90
    max_over_ordinary: float = 1.15
    max_of_stale: float = 0.5
    max_metric_loss: float = 0.01


DEFAULT_THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """One output's figures; None where a figure has no meaning for it."""

    name: str
    varies: bool
    relative_rms: float | None
    cosine_p1: float | None
    top1_agreement: float | None
    top1_rows: int
    kl_mean: float | None
    worst_relative: float | None
    max_abs_error: float
    drift: float
    exact_share: float
    broken_samples: int
    reshaped_samples: int

    def as_line(self) -> str:
        """The figures for a person."""
        figures = {
            "relative RMS": self.relative_rms,
            "cosine p1": self.cosine_p1,
            "top-1": self.top1_agreement,
            "KL": self.kl_mean,
            "worst sample": self.worst_relative,
            "equal": self.exact_share if self.relative_rms is None else None,
        }
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        return f"{self.name}: {shown}{'' if self.varies else ' (does not vary)'}"

    def as_json(self) -> dict[str, object]:
        """Plain values; what is no number is None."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {name: finite(value) if isinstance(value, float) else value for name, value in plain.items()}


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict with one sentence for it, and the figures of every output."""

    verdict: Verdict
    why: str
    outputs: tuple[OutputFidelity, ...]
    samples: int
    origin: str
    metric: MetricFigures | None = None

    @property
    def relative_rms(self) -> float | None:
        """The worst of the outputs that vary."""
        return max((o.relative_rms for o in self.outputs if o.varies and o.relative_rms is not None), default=None)

    @property
    def cosine_p1(self) -> float | None:
        """The worst of the outputs that vary."""
        return min((o.cosine_p1 for o in self.outputs if o.varies and o.cosine_p1 is not None), default=None)

    @property
    def top1_agreement(self) -> float | None:
        """The worst of the outputs that vary."""
        return min((o.top1_agreement for o in self.outputs if o.varies and o.top1_agreement is not None), default=None)

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json` and reports."""
        return {
            "verdict": self.verdict,
            "why": self.why,
            "samples": self.samples,
            "origin": self.origin,
            "relative_rms": finite(self.relative_rms),
            "cosine_p1": finite(self.cosine_p1),
            "top1_agreement": self.top1_agreement,
            "metric": self.metric.as_json() if self.metric else None,
            "outputs": [output.as_json() for output in self.outputs],
        }


def finite(value: float | None) -> float | None:
    """`value`, or None where it is no number: JSON has neither infinity nor NaN."""
    return value if value is not None and np.isfinite(value) else None


def gate(
    float_model: Path,
    candidate: Path,
    samples: Samples,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    ordinary_rms: float | None = None,
    stale_rms: float | None = None,
    shapes_vary: bool = False,
) -> GateReport:
    """Run both models over `samples` and judge.

    Raises:
        ModelDoesNotRun: one of them does not load, or not run.
        InterfaceMismatch: they do not take the same inputs, or do not give the same outputs.
    """
    left, right = session(float_model), session(candidate)
    _check_interfaces(left, right, candidate)
    return judge(
        left, right, samples, thresholds, ordinary_rms=ordinary_rms, stale_rms=stale_rms, shapes_vary=shapes_vary
    )


def judge(
    reference: onnxruntime.InferenceSession,
    candidate: onnxruntime.InferenceSession,
    samples: Samples,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    ordinary_rms: float | None = None,
    stale_rms: float | None = None,
    shapes_vary: bool = False,
) -> GateReport:
    """`gate` for models that are loaded already; with `shapes_vary`, outputs that come back in another shape prove
    nothing, instead of failing."""
    names = [output.name for output in reference.get_outputs()]
    tallies = [_Tally(name) for name in names]
    for sample in samples:
        left = run(reference, sample, where="float model")
        right = run(candidate, sample, names, where="candidate")
        for tally, a, b in zip(tallies, left, right, strict=True):
            tally.add(a, b)
    outputs = tuple(tally.result() for tally in tallies)
    limits = _Limits(thresholds, ordinary_rms, stale_rms, shapes_vary)
    verdict, why = _verdict(outputs, limits)
    if verdict == "inconclusive" and len(samples) < MIN_SAMPLES:
        needed = f"at least {MIN_SAMPLES} are needed to see outputs vary (half are held back)"
        why = f"{len(samples)} sample to judge by, {needed}"
    return GateReport(verdict, why, outputs, len(samples), samples.origin)


def _check_interfaces(left: onnxruntime.InferenceSession, right: onnxruntime.InferenceSession, candidate: Path) -> None:
    for what, ours, theirs in (
        ("takes inputs", right.get_inputs(), left.get_inputs()),
        ("gives outputs", right.get_outputs(), left.get_outputs()),
    ):
        found, expected = [value.name for value in ours], [value.name for value in theirs]
        if set(found) != set(expected):
            raise InterfaceMismatch(
                f"{candidate}: {what} {found}, the model that it is compared with {expected}",
                remedy="compare models that take the same inputs and give the same outputs, by name",
            )


@dataclass(frozen=True, slots=True)
class _Limits:
    thresholds: Thresholds
    ordinary: float | None
    stale: float | None
    shapes_vary: bool


def _verdict(outputs: tuple[OutputFidelity, ...], limits: _Limits) -> tuple[Verdict, str]:
    broken = next((o for o in outputs if o.broken_samples), None)
    if broken is not None:
        return "fail", f"output {broken.name!r} holds NaN or infinity on {broken.broken_samples} samples"
    reshaped = next((o for o in outputs if o.reshaped_samples), None)
    if reshaped is not None and not limits.shapes_vary:
        return "fail", (
            f"output {reshaped.name!r} has another shape on {reshaped.reshaped_samples} samples; where its shape "
            "depends on values, give a metric"
        )
    outputs = tuple(o for o in outputs if not o.reshaped_samples)
    drifted = next((o for o in outputs if not o.varies and o.drift > MAX_DRIFT), None)
    if drifted is not None:
        return "fail", f"output {drifted.name!r} does not vary, but is off by {drifted.drift:.3f} of its magnitude"
    telling = [o for o in outputs if o.varies]
    if not telling:
        return "inconclusive", "no output varies over the samples, so they cannot tell a good model from a bad one"
    for o in telling:
        trouble = _trouble(o, limits.thresholds, limits.ordinary, limits.stale)
        if trouble:
            return "fail", f"output {o.name!r}: {trouble}"
    return "pass", f"{len(telling)} of {len(outputs)} outputs vary, all within the thresholds"


def _trouble(o: OutputFidelity, limits: Thresholds, ordinary: float | None, stale: float | None) -> str | None:
    if o.relative_rms is None:
        too_few = o.exact_share < limits.min_top1_agreement
        return (
            f"{o.exact_share:.3f} of values equal, at least {limits.min_top1_agreement:.3f} asked" if too_few else None
        )
    if not o.relative_rms <= limits.max_relative_rms:
        return f"relative RMS {o.relative_rms:.4g}, at most {limits.max_relative_rms:.4g} allowed"
    if ordinary is not None and o.relative_rms > limits.max_over_ordinary * ordinary:
        return (
            f"relative RMS {o.relative_rms:.4g}, at most {limits.max_over_ordinary} x ordinary {ordinary:.4g} allowed"
        )
    # a base that is as near as ordinary quantization has lost nothing: there is no update to miss
    as_ordinary = limits.max_over_ordinary * (ordinary or 0.0)
    if stale is not None and o.relative_rms > max(limits.max_of_stale * stale, as_ordinary):
        return (
            f"relative RMS {o.relative_rms:.4g}, at most {limits.max_of_stale} x the stale model's {stale:.4g} allowed"
        )
    if o.top1_agreement is not None and o.top1_agreement < limits.min_top1_agreement:
        return f"top-1 agreement {o.top1_agreement:.4f}, at least {limits.min_top1_agreement:.4f} asked"
    if o.cosine_p1 is not None and o.cosine_p1 < limits.min_cosine_p1:
        return f"cosine {o.cosine_p1:.4f} at the first percentile, at least {limits.min_cosine_p1:.4f} asked"
    return None


@dataclass(slots=True)
class _Moments:
    """Sums for a mean and a variance of each element."""

    count: int = 0
    total: np.ndarray | None = None
    squares: np.ndarray | None = None

    def add(self, values: np.ndarray, count: int = 1) -> None:
        if self.total is None or self.squares is None:
            self.total, self.squares = np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
        self.count += count
        self.total += values.sum(axis=0)
        self.squares += (values * values).sum(axis=0)

    def spread(self) -> float:
        if self.total is None or self.squares is None or self.count < 2 or not self.total.size:
            return 0.0
        variance = self.squares / self.count - (self.total / self.count) ** 2
        return float(np.sqrt(max(0.0, float(variance.mean()))))


@dataclass(slots=True)
class _Tally:
    """Sums over samples for one output (rule 5)."""

    name: str
    shape: tuple[int, ...] | None = None
    is_fixed: bool = True
    by_element: _Moments = field(default_factory=_Moments)
    by_channel: _Moments = field(default_factory=_Moments)
    errors: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    rows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)
    kl: list[float] = field(default_factory=list)
    is_distribution: bool = True
    is_numeric: bool = True
    max_abs_error: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    equal: int = 0
    values: int = 0
    first: bytes | None = None
    differs: bool = False
    broken: int = 0
    reshaped: int = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        if a.shape != b.shape:
            self.reshaped += 1
            return
        data = a.tobytes()
        self.differs |= self.first is not None and data != self.first
        self.first = data if self.first is None else self.first
        self.equal += int(np.count_nonzero(a == b)) if a.dtype.kind != "f" else 0
        self.values += a.size
        if a.dtype.kind != "f":
            self.is_numeric = False
            return
        x, y = a.astype(np.float64), b.astype(np.float64)
        good = np.isfinite(x)
        if not np.isfinite(y[good]).all():
            self.broken += 1
            return
        x, y = np.where(good, x, 0.0), np.where(good, y, 0.0)
        self._add_floats(x, y)

    def _add_floats(self, x: np.ndarray, y: np.ndarray) -> None:
        if not x.size:
            return
        self.is_fixed &= self.shape is None or self.shape == x.shape
        self.shape = self.shape or x.shape
        if self.is_fixed:
            self.by_element.add(x[None])
        rows = x.reshape(-1, x.shape[-1] if x.ndim else 1)
        if self.by_channel.total is not None and self.by_channel.total.shape != rows.shape[1:]:
            self.by_channel = _Moments()  # the last axis is a size as well: one spread for all values
            rows = x.reshape(-1, 1)
        self.by_channel.add(rows, len(rows))
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        error = y - x
        self.errors.append(float(np.square(error).sum()))
        self.sizes.append(x.size)
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max()))
        norm = float(np.linalg.norm(x))
        self.norms.append(norm)
        self.cosines.append(float((x * y).sum() / max(norm * float(np.linalg.norm(y)), 1e-30)))
        if x.ndim >= 2 and x.shape[-1] >= 2:
            self._add_rows(x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]))
        else:
            self.is_distribution = False

    def _add_rows(self, x: np.ndarray, y: np.ndarray) -> None:
        top = x.argmax(axis=1)
        self.classes.update(top.tolist())
        two = np.partition(x, -2, axis=1)[:, -2:]
        self.rows.append((two[:, 1] - two[:, 0], top == y.argmax(axis=1)))
        if self.is_distribution:
            self.is_distribution = bool((x >= 0).all() and np.allclose(x.sum(axis=1), 1.0, atol=SUM_TOLERANCE))
        if self.is_distribution:
            p, q = np.clip(x, 1e-12, None), np.clip(y, 1e-12, None)
            self.kl.append(float((p * np.log(p / q)).sum(axis=1).mean()))

    def result(self) -> OutputFidelity:
        if not self.is_numeric or not self.sizes:
            share = self.equal / self.values if self.values else 1.0
            return OutputFidelity(
                name=self.name,
                varies=self.differs and not self.is_numeric,
                relative_rms=None,
                cosine_p1=None,
                top1_agreement=None,
                top1_rows=0,
                kl_mean=None,
                worst_relative=None,
                max_abs_error=0.0,
                drift=0.0,
                exact_share=share,
                broken_samples=self.broken,
                reshaped_samples=self.reshaped,
            )
        spread = self.by_element.spread() if self.is_fixed else self.by_channel.spread()
        magnitude = float(np.sqrt(np.square(self.norms).sum() / sum(self.sizes)))
        most = max(self.classes.values(), default=0)
        is_one_class = self.is_distribution and most > MAX_ONE_CLASS * self.classes.total()
        is_probability = self.low >= 0.0 and self.high <= 1.0
        is_still = spread <= (STILL if is_probability else FLAT * magnitude) and not self.is_distribution
        is_flat = self.is_distribution and spread <= FLAT * magnitude
        varies = len(self.sizes) > 1 and self.differs and not (is_still or is_flat or is_one_class)
        scale = spread or 1.0
        each = np.sqrt(np.array(self.errors) / np.array(self.sizes)) / scale
        agreement, rows = self._top1(scale)
        return OutputFidelity(
            name=self.name,
            varies=varies,
            relative_rms=float(np.sqrt(sum(self.errors) / sum(self.sizes)) / scale),
            cosine_p1=self._cosine_p1(),
            top1_agreement=agreement,
            top1_rows=rows,
            kl_mean=float(np.mean(self.kl)) if self.is_distribution and self.kl else None,
            worst_relative=float(each.max()),
            max_abs_error=self.max_abs_error,
            drift=self.max_abs_error / (1.0 if is_probability else max(magnitude, TINY)),
            exact_share=float(np.mean(np.array(self.errors) == 0)),
            broken_samples=self.broken,
            reshaped_samples=self.reshaped,
        )

    def _cosine_p1(self) -> float | None:
        norms = np.array(self.norms)
        telling = (norms >= FAINT * np.sqrt(np.mean(norms**2))) & (np.array(self.sizes) > 1)
        return float(np.percentile(np.array(self.cosines)[telling], 1)) if telling.any() else None

    def _top1(self, spread: float) -> tuple[float | None, int]:
        # of an image or a sequence the last axis is a place or a feature, unless it sums to 1
        if not self.rows or not (self.is_distribution or len(self.shape or ()) == 2):
            return None, 0
        margin = np.concatenate([row[0] for row in self.rows])
        agree = np.concatenate([row[1] for row in self.rows])
        clear = margin > NEAR_TIE * (1.0 if self.is_distribution else spread)
        return (float(agree[clear].mean()) if clear.any() else None), int(clear.sum())
