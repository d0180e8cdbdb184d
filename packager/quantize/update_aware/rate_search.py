"""Finds the price of a bit at which an update's error is what is allowed, in few solutions.

Rules:
1. All calibration samples are fitted, and those held back judge: on what was fitted the error looks smaller than it
   is. They choose one number, the price. The fewer they are, the more the error aimed at lies below the one allowed:
   UNTOLD over the root of their number.
2. The search ends at a solution that passes the gate and wastes no more than WASTED of the error aimed at, where SAFER
   times the price changes nothing (less than that may be noise) or nothing but the error of what passes between two
   prices, or after MAX_SOLUTIONS. Of those that pass the cheapest is taken, rounding to nearest on the base's scales
   (price 0) among them.
3. Where a solution keeps to the error and fails the gate all the same, the next price is a SAFER-th of its. Where
   ordinary quantization fails the gate itself, the error alone is asked for.
4. The error is taken to grow with the price, as it does but for some noise: below a price that passed and above one
   that did not nothing is tried.
5. Ranges of activations are fitted again only where rounding to nearest is better by WORTH_FITTING of its error then,
   on calibration samples: where it was a coin's toss, others were clipped. There, too, the widest step of float
   leftovers is found that costs no more than LEFTOVERS_MAY_COST of the error.
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

MAX_SOLUTIONS: Final = 5
MAX_POINTS: Final = MAX_SOLUTIONS + 1  # with rounding to nearest
INITIAL_RATE_WEIGHT: Final = (
    25.0  # x ordinary error energy / weights: near the knee of the curve of a text classifier, where
)
INITIAL_ERROR_RATIO: Final = 1.15  # of ordinary quantization's error is allowed
ENERGY_FLOOR: Final = 0.7  # of ordinary quantization's error energy: what no price gets rid of, about
MIN_EXCESS_ENERGY: Final = 0.05
DEFAULT_EXPONENT: Final = 0.7  # of the price, by which the energy above the floor grows
MAX_RATE_STEP: Final = 16.0  # between the prices of two solutions
MIN_BASELINE_ERROR: Final = 1e-4
HELD_OUT_MARGIN: Final = 0.2
UNUSED_ERROR_SHARE: Final = 0.03
RATE_BACKOFF: Final = 4.0
FLOAT_ROUNDING_MAX_ERROR: Final = (
    0.03  # on a hundred samples 0.01 is a coin's toss, and a quarter of the step costs two bits
)
MIN_REFIT_GAIN: Final = 0.03
MIN_RATE_RATIO: Final = 1.2  # between two prices: there is nothing to find
SAME_RELATIVE_TOLERANCE: Final = 0.02  # of the bits, or of the error


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One solution: price of a bit, entropy of the changes in bits a weight, and the gate on the samples held back.

    `is_around` where it was asked for beside the search.
    """

    rate_weight: float
    bits_per_weight: float
    gate: GateReport
    model: onnx.ModelProto
    is_extra_point: bool = False

    @property
    def relative_rms(self) -> float:
        """The worst output's; infinity where none tells."""
        return self.gate.relative_rms if self.gate.relative_rms is not None else math.inf

    def as_json(self) -> dict[str, float | None]:
        """Plain values; `relative_rms` is None where no output tells."""
        error = finite_or_none(self.gate.relative_rms)
        return {"rate_weight": self.rate_weight, "bits_per_weight": self.bits_per_weight, "relative_rms": error}


def entropy_bits(change: np.ndarray) -> float:
    """Bits that `change` costs by its own histogram."""
    bits = bits_of_changes(change)
    middle = len(bits) // 2
    spots = np.clip(change, -middle, middle).astype(np.int8).ravel() + np.int8(middle)
    return float(np.bincount(spots, minlength=len(bits)) @ bits)


@dataclass(slots=True)
class RateSearch:
    """One search; `points` tells afterwards what was solved.

    Args:
        solver: of the update.
        gate_of: the gate on the samples held back.
        error_of: relative RMS on calibration samples (rule 5).
        ordinary: ordinary quantization's gate on the samples held back.
        aim: the error allowed, in units of ordinary quantization's.
        on_solution: told of each solution as it is found.
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
        share = self.error_ratio * (1.0 - HELD_OUT_MARGIN / math.sqrt(max(1, self.baseline.samples)))
        self._target_error = share * self._baseline_error
        price = INITIAL_RATE_WEIGHT * _rate_factor(
            self._excess_energy(INITIAL_ERROR_RATIO * self._baseline_error), self._excess_energy(self._target_error)
        )
        self.initial_rate_weight = price * self._baseline_error**2 / self._weight_count

    def find_best_point(self) -> RatePoint | None:
        """The cheapest solution that passes, or None."""
        self._record(self._round_to_nearest())
        if self.baseline.relative_rms is not None:
            price = self.initial_rate_weight
            for _ in range(MAX_SOLUTIONS):
                point = self.solve(price)
                if self._is_passed(point) and point.relative_rms >= self._target_error * (1 - UNUSED_ERROR_SHARE):
                    break
                following = self._next_rate_weight(point)
                if following is None:
                    break
                price = following
        return min(filter(self._is_passed, self.points), key=attrgetter("bits_per_weight"), default=None)

    def solve(self, rate_weight: float, *, is_extra_point: bool = False) -> RatePoint:
        """One solution, started from the last one."""
        self._last_choice = self.solver.solve(rate_weight, self._last_choice)
        model = self.solver.model(self._last_choice)
        return self._record(
            RatePoint(rate_weight, self._bits_per_weight(self._last_choice), self.gate_of(model), model, is_extra_point)
        )

    def _round_to_nearest(self) -> RatePoint:
        """Rounding to nearest, with the ranges and the step of leftovers that rule 5 tells: the solver keeps both."""
        solver, choice = self.solver, self.solver.nearest()
        *wider, solver.float_rounding_step = FLOAT_ROUNDING_STEPS
        least = self.error_of(solver.model(choice))
        if fitted := solver.ranges:
            solver.ranges = {}
            pinned = self.error_of(solver.model(choice))
            if least > (1 - MIN_REFIT_GAIN) * pinned:
                least = pinned
            else:
                solver.ranges = fitted
        finest = solver.float_rounding_step
        for solver.float_rounding_step in wider:
            if self.error_of(solver.model(choice)) <= (1 + FLOAT_ROUNDING_MAX_ERROR) * least:
                break
        else:
            solver.float_rounding_step = finest
        model = solver.model(choice)
        return RatePoint(0.0, self._bits_per_weight(choice), self.gate_of(model), model)

    def _bits_per_weight(self, choice: UpdateChoice) -> float:
        return sum(entropy_bits(choice.levels[grid.key] - grid.base) for grid in self.solver.grids) / self._weight_count

    def _record(self, point: RatePoint) -> RatePoint:
        self.points.append(point)
        logger.info(
            "price %.3g: %.4f bits a weight, relative RMS %.4f",
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
        """The price to try behind `point`, or None where there is none to try: between the highest good one and the
        lowest bad one above it (rules 3 and 4)."""
        solved = [each for each in self.points if each.rate_weight]
        low = max((each.rate_weight for each in solved if self._is_passed(each)), default=0.0)
        high = min((each.rate_weight for each in solved if each.rate_weight > low), default=math.inf)
        if high < low * MIN_RATE_RATIO:
            return None
        least = MIN_RATE_RATIO ** (1 << max(0, len(solved) - 2))
        if len(solved) > 1 and self._is_unchanged(*solved[-2:]):
            lower, upper = sorted(each.rate_weight for each in solved[-2:])
            if (low and high < math.inf) or upper >= RATE_BACKOFF * lower:
                return None
            least = RATE_BACKOFF
        is_safer_asked = self._is_within_error(point) and not self._is_passed(point)
        price = point.rate_weight / RATE_BACKOFF if is_safer_asked else self._interpolate_rate_weight(solved)
        if not low:
            return min(price, high / least)
        if high == math.inf:
            return max(price, low * least)
        return price if low < price < high else math.sqrt(low * high)

    def _is_unchanged(self, previous: RatePoint, now: RatePoint) -> bool:
        """Did another price change nothing, or only the error of what passes?"""
        costs_same = math.isclose(previous.bits_per_weight, now.bits_per_weight, rel_tol=SAME_RELATIVE_TOLERANCE)
        errs_same = math.isclose(previous.relative_rms, now.relative_rms, rel_tol=SAME_RELATIVE_TOLERANCE)
        return costs_same and (errs_same or self._is_passed(now))

    def _interpolate_rate_weight(self, solved_points: list[RatePoint]) -> float:
        """Where the error would reach what is wanted, by the two solutions that came nearest."""
        excesses = {each.rate_weight: self._excess_energy(each.relative_rms) for each in solved_points}
        wanted = self._excess_energy(self._target_error)
        price, *others = sorted(excesses, key=lambda each: abs(math.log(excesses[each] / wanted)))
        power = DEFAULT_EXPONENT
        if others:
            power = math.log(excesses[others[0]] / excesses[price]) / math.log(others[0] / price)
            power = min(max(power, DEFAULT_EXPONENT / 2), DEFAULT_EXPONENT * 2)
        return price * _rate_factor(excesses[price], wanted, power)

    def _excess_energy(self, error: float) -> float:
        """What of an error's energy, in units of ordinary quantization's, hangs on the price: it grows as a power of
        it."""
        allowed = self._target_error / self._baseline_error
        # where less is allowed than the floor, the floor is taken for lower
        floor = min(ENERGY_FLOOR, ENERGY_FLOOR * allowed * allowed)
        share = min(error / self._baseline_error, 1 / MIN_BASELINE_ERROR)
        return max(share * share - floor, MIN_EXCESS_ENERGY)


def _rate_factor(excess: float, target: float, exponent: float = DEFAULT_EXPONENT) -> float:
    """By what to multiply a price to come from one excess to another."""
    return float(min(max((target / excess) ** (1 / exponent), 1 / MAX_RATE_STEP), MAX_RATE_STEP))
