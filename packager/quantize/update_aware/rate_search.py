"""Search for the rate weight at which an update's error reaches the allowed one, in few solutions.

Theory of operation. All errors are relative RMS on the held-out samples; n is their number.

    lambda      rate weight of a solution, in relative error energy per bit
    e(lambda)   error of the solution
    e_b         error of the baseline (plain quantization of the new model)
    rho         allowed e / e_b (`error_ratio`)
    e_t         target of the search: e_t = rho * (1 - HELD_OUT_MARGIN / sqrt(n)) * e_b
    x(e)        excess energy: x = max((e / e_b)^2 - floor, MIN_EXCESS_ENERGY), floor = min(ENERGY_FLOOR,
                ENERGY_FLOOR * (e_t / e_b)^2): the part of the error that depends on lambda
    model       x(e(lambda)) ~ lambda^p; p is DEFAULT_EXPONENT, and from the second solution on fitted, within a factor
                of 2 of DEFAULT_EXPONENT

A passing solution has a gate that passes and e <= rho * e_b; if the baseline itself fails the gate, only the error
counts. e grows with lambda but for some noise: nothing below a passing lambda or above a failing one is tried.

Order:
    1. lambda = 0: round to nearest on the base's grid. Keep refitted ranges only if they gain MIN_REFIT_GAIN of the
       error on calibration samples: a smaller gain is chance, and other samples would be clipped. Take the widest step
       of float constants that costs at most FLOAT_ROUNDING_MAX_ERROR of the error.
    2. The first lambda is INITIAL_RATE_WEIGHT * e_b^2 / number of weights, scaled by the model from INITIAL_ERROR_RATIO
       * e_b to e_t.
    3. Solve. Stop if it passes with e >= (1 - UNUSED_ERROR_SHARE) * e_t; or if a lambda RATE_BACKOFF times as large
       changed nothing (smaller steps may be noise), or two solutions around the limit differ in nothing but the error;
       or after MAX_SOLUTIONS.
    4. Next lambda: by the model, from the two solutions nearest to e_t; lambda / RATE_BACKOFF if the error is within
       its limit and the gate fails all the same. Repeat 3.
    5. Of the passing solutions take the one with the fewest bits.

All calibration samples are fitted, so the error on them looks too small: that is why the held-out samples judge.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import numpy as np
import onnx

from packager.quantize.agreement import finite_or_none
from packager.quantize.gate import GateReport
from packager.quantize.update_aware.coordinate_descent import bits_of_changes
from packager.quantize.update_aware.fill_template import FLOAT_ROUNDING_STEPS, UpdateChoice
from packager.quantize.update_aware.solver import Solver

logger = logging.getLogger(__name__)

MAX_SOLUTIONS: Final = 5  # each takes about a minute on a model of 22 million weights (docs/benchmarks.md)
MAX_POINTS: Final = MAX_SOLUTIONS + 1  # with rounding to nearest
# in units of e_b^2 / number of weights: near the knee of a text classifier's curve, where e / e_b is the ratio below
INITIAL_RATE_WEIGHT: Final = 25.0
INITIAL_ERROR_RATIO: Final = 1.15
# of the baseline's error energy; about the part that remains at lambda = 0 (docs/benchmarks.md: 0.83 squared)
ENERGY_FLOOR: Final = 0.7
MIN_EXCESS_ENERGY: Final = 0.05  # keeps the logarithms of the model finite
DEFAULT_EXPONENT: Final = 0.7  # p of the model, before two solutions are known
MAX_RATE_STEP: Final = 16.0  # factor between the rate weights of two solutions
MIN_BASELINE_ERROR: Final = 1e-4  # relative RMS; keeps ratios finite if the baseline makes no error
# margin 0.2 / sqrt(n): 2 % with 100 held-out samples, on which an error is known to some 5 %
HELD_OUT_MARGIN: Final = 0.2
UNUSED_ERROR_SHARE: Final = 0.03  # of e_t; another solution would save few bytes
RATE_BACKOFF: Final = 4.0  # factor on the rate weight
# of the error; on a hundred samples a difference of 0.01 is chance, and a quarter of the step costs two bits per number
FLOAT_ROUNDING_MAX_ERROR: Final = 0.03
MIN_REFIT_GAIN: Final = 0.03  # share of the error
MIN_RATE_RATIO: Final = 1.2  # ratio of a failing to a passing rate weight; nothing between them is worth a solution
SAME_RELATIVE_TOLERANCE: Final = 0.02  # share of the bits, or of the error


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One solution of the search.

    Attributes:
        rate_weight: lambda, in relative error energy per bit; 0 for rounding to nearest.
        bits_per_weight: entropy of the changed levels, in bits per weight.
        gate: verdict on the held-out samples.
        model: the quantized model.
        is_extra_point: solved for a curve, not by the search.
    """

    rate_weight: float
    bits_per_weight: float
    gate: GateReport
    model: onnx.ModelProto
    is_extra_point: bool = False

    @property
    def relative_rms(self) -> float:
        """Relative RMS of the worst output; infinity if no output varies."""
        return self.gate.relative_rms if self.gate.relative_rms is not None else math.inf

    def as_json(self) -> dict[str, float | None]:
        """Return plain values; the error is None if no output varies."""
        error = finite_or_none(self.gate.relative_rms)
        return {"rate_weight": self.rate_weight, "bits_per_weight": self.bits_per_weight, "relative_rms": error}


def entropy_bits(change: np.ndarray) -> float:
    """Return the bits that integer changes of any shape cost by their own histogram."""
    bits = bits_of_changes(change)
    middle = len(bits) // 2
    spots = np.clip(change, -middle, middle).astype(np.int8).ravel() + np.int8(middle)
    return float(np.bincount(spots, minlength=len(bits)) @ bits)


@dataclass(slots=True)
class RateSearch:
    """One search; `points` has every solution afterwards.

    Args:
        solver: solves the update at a rate weight.
        gate_of: the gate on the held-out samples.
        error_of: relative RMS on calibration samples.
        baseline: the baseline's gate on the held-out samples.
        error_ratio: rho, the allowed error over the baseline's.
        on_solution: called with each solution.
    """

    solver: Solver
    gate_of: Callable[[onnx.ModelProto], GateReport]
    error_of: Callable[[onnx.ModelProto], float]
    baseline: GateReport
    error_ratio: float
    on_solution: Callable[[RatePoint], None] | None
    points: list[RatePoint] = field(default_factory=list)
    initial_rate_weight: float = field(init=False)
    _baseline_error: float = field(init=False)
    _target_error: float = field(init=False)
    _weight_count: int = field(init=False)
    _last_choice: UpdateChoice | None = None

    def __post_init__(self) -> None:
        self._weight_count = max(1, sum(grid.values.size for grid in self.solver.grids))
        self._baseline_error = max(self.baseline.relative_rms or 0.0, MIN_BASELINE_ERROR)
        target_ratio = self.error_ratio * (1.0 - HELD_OUT_MARGIN / math.sqrt(max(1, self.baseline.samples)))
        self._target_error = target_ratio * self._baseline_error
        rate_weight = INITIAL_RATE_WEIGHT * _rate_factor(
            self._excess_energy(INITIAL_ERROR_RATIO * self._baseline_error), self._excess_energy(self._target_error)
        )
        self.initial_rate_weight = rate_weight * self._baseline_error**2 / self._weight_count

    def find_best_point(self) -> RatePoint | None:
        """Search, and return the passing solution with the fewest bits; None if no solution passes."""
        self._record(self._round_to_nearest())
        if self.baseline.relative_rms is not None:
            rate_weight = self.initial_rate_weight
            for _ in range(MAX_SOLUTIONS):
                point = self.solve(rate_weight)
                if self._is_passed(point) and point.relative_rms >= self._target_error * (1 - UNUSED_ERROR_SHARE):
                    break
                next_rate_weight = self._next_rate_weight(point)
                if next_rate_weight is None:
                    break
                rate_weight = next_rate_weight
        return min(filter(self._is_passed, self.points), key=attrgetter("bits_per_weight"), default=None)

    def solve(self, rate_weight: float, *, is_extra_point: bool = False) -> RatePoint:
        """Solve at one rate weight, starting from the levels of the solution before.

        Args:
            rate_weight: lambda, in relative error energy per bit.
            is_extra_point: marks the point as one for a curve.
        """
        self._last_choice = self.solver.solve(rate_weight, self._last_choice)
        model = self.solver.model(self._last_choice)
        return self._record(
            RatePoint(rate_weight, self._bits_per_weight(self._last_choice), self.gate_of(model), model, is_extra_point)
        )

    def _round_to_nearest(self) -> RatePoint:
        """Return the solution at lambda = 0, and set the solver's ranges and rounding step.
        This is step 1 of the module docstring.
        """
        solver, choice = self.solver, self.solver.nearest()
        *wider, solver.float_rounding_step = FLOAT_ROUNDING_STEPS
        least_error = self.error_of(solver.model(choice))
        if refitted := solver.ranges:
            solver.ranges = {}
            pinned_error = self.error_of(solver.model(choice))
            if least_error > (1 - MIN_REFIT_GAIN) * pinned_error:
                least_error = pinned_error
            else:
                solver.ranges = refitted
        finest_step = solver.float_rounding_step
        for solver.float_rounding_step in wider:
            if self.error_of(solver.model(choice)) <= (1 + FLOAT_ROUNDING_MAX_ERROR) * least_error:
                break
        else:
            solver.float_rounding_step = finest_step
        model = solver.model(choice)
        return RatePoint(0.0, self._bits_per_weight(choice), self.gate_of(model), model)

    def _bits_per_weight(self, choice: UpdateChoice) -> float:
        return sum(entropy_bits(choice.levels[grid.key] - grid.base) for grid in self.solver.grids) / self._weight_count

    def _record(self, point: RatePoint) -> RatePoint:
        self.points.append(point)
        logger.info(
            "rate weight %.3g: %.4f bits per weight, relative RMS %.4f",
            point.rate_weight,
            point.bits_per_weight,
            point.relative_rms,
        )
        if self.on_solution is not None:
            self.on_solution(point)
        return point

    def _is_within_error(self, point: RatePoint) -> bool:
        return point.gate.relative_rms is None or point.relative_rms <= self.error_ratio * self._baseline_error

    def _is_passed(self, point: RatePoint) -> bool:
        is_passed = point.gate.verdict == "pass" or self.baseline.verdict == "fail"
        return is_passed and self._is_within_error(point)

    def _next_rate_weight(self, point: RatePoint) -> float | None:
        """Return the next rate weight, between the largest passing and the smallest failing one; None to stop."""
        solved = [each for each in self.points if each.rate_weight]
        low = max((each.rate_weight for each in solved if self._is_passed(each)), default=0.0)
        high = min((each.rate_weight for each in solved if each.rate_weight > low), default=math.inf)
        if high < low * MIN_RATE_RATIO:
            return None
        least_ratio = MIN_RATE_RATIO ** (1 << max(0, len(solved) - 2))
        if len(solved) > 1 and self._is_unchanged(*solved[-2:]):
            lower, upper = sorted(each.rate_weight for each in solved[-2:])
            if (low and high < math.inf) or upper >= RATE_BACKOFF * lower:
                return None
            least_ratio = RATE_BACKOFF
        must_back_off = self._is_within_error(point) and not self._is_passed(point)
        rate_weight = point.rate_weight / RATE_BACKOFF if must_back_off else self._interpolate_rate_weight(solved)
        if not low:
            return min(rate_weight, high / least_ratio)
        if high == math.inf:
            return max(rate_weight, low * least_ratio)
        return rate_weight if low < rate_weight < high else math.sqrt(low * high)

    def _is_unchanged(self, previous: RatePoint, now: RatePoint) -> bool:
        """Return whether another rate weight changed nothing, or only the error of a passing solution."""
        costs_same = math.isclose(previous.bits_per_weight, now.bits_per_weight, rel_tol=SAME_RELATIVE_TOLERANCE)
        errs_same = math.isclose(previous.relative_rms, now.relative_rms, rel_tol=SAME_RELATIVE_TOLERANCE)
        return costs_same and (errs_same or self._is_passed(now))

    def _interpolate_rate_weight(self, solved_points: list[RatePoint]) -> float:
        """Return the rate weight at which the model reaches e_t, from the two solutions nearest to it."""
        excesses = {each.rate_weight: self._excess_energy(each.relative_rms) for each in solved_points}
        target = self._excess_energy(self._target_error)
        rate_weight, *others = sorted(excesses, key=lambda each: abs(math.log(excesses[each] / target)))
        exponent = DEFAULT_EXPONENT
        if others:
            exponent = math.log(excesses[others[0]] / excesses[rate_weight]) / math.log(others[0] / rate_weight)
            exponent = min(max(exponent, DEFAULT_EXPONENT / 2), DEFAULT_EXPONENT * 2)
        return rate_weight * _rate_factor(excesses[rate_weight], target, exponent)

    def _excess_energy(self, error: float) -> float:
        """Return x(error), the error energy that depends on lambda, in units of the baseline's."""
        target_ratio = self._target_error / self._baseline_error
        # if the target is below the floor, assume a lower floor
        floor = min(ENERGY_FLOOR, ENERGY_FLOOR * target_ratio * target_ratio)
        ratio = min(error / self._baseline_error, 1 / MIN_BASELINE_ERROR)
        return max(ratio * ratio - floor, MIN_EXCESS_ENERGY)


def _rate_factor(excess: float, target: float, exponent: float = DEFAULT_EXPONENT) -> float:
    """Return the factor on lambda that takes the excess energy from `excess` to `target`.
    It is between 1 / MAX_RATE_STEP and MAX_RATE_STEP.
    """
    return float(min(max((target / excess) ** (1 / exponent), 1 / MAX_RATE_STEP), MAX_RATE_STEP))
