"""Figures for how well two models agree on one output, from sums over samples.

With a = the reference output and b = the candidate's, arrays of one shape, over all samples:

    relative RMS    sqrt(mean (b - a)^2) / spread; spread^2 = mean over elements of the variance of a over samples;
                    1 is the error of always predicting the mean
    cosine p1       first percentile over samples of <a, b> / (|a| |b|)
    top-1           share of rows with the same largest element; rows within NEAR_TIE_MARGIN of a tie are left out
    KL              mean over rows of sum a log(a / b), if the rows are distributions
    drift           largest |b - a| over the magnitude of a (over 1 for probabilities)

An output that does not vary over the samples proves nothing and must only stay where it is. It does not vary if its
spread is below CONSTANT_SPREAD_SHARE of its magnitude; if it is a distribution in which one class wins more than
MAX_ONE_CLASS_SHARE of the rows (random bytes do that to a file classifier); or if it lies in 0..1 and its spread is
below MIN_UNIT_SPREAD.

Samples are added one at a time, and only sums are kept.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

NEAR_TIE_MARGIN: Final = 0.1  # share of the output's spread; for distributions, of the probability
CONSTANT_SPREAD_SHARE: Final = 1e-3  # spread over magnitude; below it an output counts as constant
SUM_TOLERANCE: Final = 1e-3  # allowed distance of a distribution's sum from 1: float32 softmax, with room for float16
MAX_ONE_CLASS_SHARE: Final = 0.9  # share of the rows; above it a classifier does not react to the samples
EPSILON: Final = 1e-30
MIN_UNIT_SPREAD: Final = 0.01  # spread of values that all lie in 0..1; below it they count as constant
MIN_NORM_SHARE: Final = 0.1  # of the root mean square norm; the direction of a smaller output is noise


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """Figures of one output; None if a figure has no meaning for it.

    Attributes:
        name: name of the output.
        varies: False if the output proves nothing.
        relative_rms: error over spread; None for integers.
        cosine_p1: cosine at the first percentile of samples.
        top1_agreement: share of rows with the same class.
        top1_rows: number of rows behind it.
        kl_mean: mean KL divergence, in nats.
        worst_relative: relative RMS of the worst sample.
        max_abs_error: largest absolute error of an element.
        drift: `max_abs_error` over the output's magnitude.
        exact_share: share of equal values (integers), or of samples without error (floats).
        broken_samples: samples on which the candidate alone gives NaN or infinity.
        reshaped_samples: samples on which the shapes differ.
    """

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
        """Return the figures as one line of text."""
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
        """Return plain values; a figure that is not finite becomes None."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {name: finite_or_none(value) if isinstance(value, float) else value for name, value in plain.items()}


def finite_or_none(value: float | None) -> float | None:
    """Return `value`, or None if it is not finite: JSON has neither infinity nor NaN."""
    return value if value is not None and np.isfinite(value) else None


@dataclass(slots=True)
class _Moments:
    """Sums for the mean and the variance of each element, float64."""

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
class OutputAgreement:
    """Sums over samples for one output."""

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
    equal_values: int = 0
    values: int = 0
    first_bytes: bytes | None = None
    has_differed: bool = False
    broken_samples: int = 0
    reshaped_samples: int = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add the outputs of one sample.

        Args:
            a: output of the reference model, any shape and dtype.
            b: the candidate's output for the same sample.
        """
        if a.shape != b.shape:
            self.reshaped_samples += 1
            return
        data = a.tobytes()
        self.has_differed |= self.first_bytes is not None and data != self.first_bytes
        self.first_bytes = data if self.first_bytes is None else self.first_bytes
        self.equal_values += int(np.count_nonzero(a == b)) if a.dtype.kind != "f" else 0
        self.values += a.size
        if a.dtype.kind != "f":
            self.is_numeric = False
            return
        x, y = a.astype(np.float64), b.astype(np.float64)
        good = np.isfinite(x)
        if not np.isfinite(y[good]).all():
            self.broken_samples += 1
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
            self.by_channel = _Moments()  # the last axis varies in length too: use one spread for all values
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

    def as_fidelity(self) -> OutputFidelity:
        """Return the figures of all samples added so far."""
        if not self.is_numeric or not self.sizes:
            share = self.equal_values / self.values if self.values else 1.0
            return OutputFidelity(
                name=self.name,
                varies=self.has_differed and not self.is_numeric,
                relative_rms=None,
                cosine_p1=None,
                top1_agreement=None,
                top1_rows=0,
                kl_mean=None,
                worst_relative=None,
                max_abs_error=0.0,
                drift=0.0,
                exact_share=share,
                broken_samples=self.broken_samples,
                reshaped_samples=self.reshaped_samples,
            )
        spread = self.by_element.spread() if self.is_fixed else self.by_channel.spread()
        magnitude = float(np.sqrt(np.square(self.norms).sum() / sum(self.sizes)))
        largest_class = max(self.classes.values(), default=0)
        is_one_class = self.is_distribution and largest_class > MAX_ONE_CLASS_SHARE * self.classes.total()
        is_probability = self.low >= 0.0 and self.high <= 1.0
        is_constant = (
            spread <= (MIN_UNIT_SPREAD if is_probability else CONSTANT_SPREAD_SHARE * magnitude)
            and not self.is_distribution
        )
        is_flat = self.is_distribution and spread <= CONSTANT_SPREAD_SHARE * magnitude
        varies = len(self.sizes) > 1 and self.has_differed and not (is_constant or is_flat or is_one_class)
        scale = spread or 1.0
        per_sample = np.sqrt(np.array(self.errors) / np.array(self.sizes)) / scale
        agreement, rows = self._top1(scale)
        return OutputFidelity(
            name=self.name,
            varies=varies,
            relative_rms=float(np.sqrt(sum(self.errors) / sum(self.sizes)) / scale),
            cosine_p1=self._cosine_p1(),
            top1_agreement=agreement,
            top1_rows=rows,
            kl_mean=float(np.mean(self.kl)) if self.is_distribution and self.kl else None,
            worst_relative=float(per_sample.max()),
            max_abs_error=self.max_abs_error,
            drift=self.max_abs_error / (1.0 if is_probability else max(magnitude, EPSILON)),
            exact_share=float(np.mean(np.array(self.errors) == 0)),
            broken_samples=self.broken_samples,
            reshaped_samples=self.reshaped_samples,
        )

    def _cosine_p1(self) -> float | None:
        norms = np.array(self.norms)
        is_meaningful = (norms >= MIN_NORM_SHARE * np.sqrt(np.mean(norms**2))) & (np.array(self.sizes) > 1)
        return float(np.percentile(np.array(self.cosines)[is_meaningful], 1)) if is_meaningful.any() else None

    def _top1(self, spread: float) -> tuple[float | None, int]:
        # the last axis of an image or a sequence is a position or a feature, not classes, unless it sums to 1
        if not self.rows or not (self.is_distribution or len(self.shape or ()) == 2):
            return None, 0
        margin = np.concatenate([row[0] for row in self.rows])
        agree = np.concatenate([row[1] for row in self.rows])
        clear = margin > NEAR_TIE_MARGIN * (1.0 if self.is_distribution else spread)
        return (float(agree[clear].mean()) if clear.any() else None), int(clear.sum())
