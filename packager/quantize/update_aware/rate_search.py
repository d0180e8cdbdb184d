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

from packager.quantize.agreement import finite
from packager.quantize.gate import GateReport
from packager.quantize.update_aware.coordinate_descent import prices
from packager.quantize.update_aware.fill_template import LEFTOVER_STEPS, Choice
from packager.quantize.update_aware.solver import Solver

logger = logging.getLogger(__name__)

MAX_SOLUTIONS: Final = 5
MAX_POINTS: Final = MAX_SOLUTIONS + 1  # with rounding to nearest
FIRST_PRICE: Final = 25.0  # x ordinary error energy / weights: near the knee of the curve of a text classifier, where
FIRST_AIM: Final = 1.15  # of ordinary quantization's error is allowed
FLOOR: Final = 0.7  # of ordinary quantization's error energy: what no price gets rid of, about
LEAST_EXCESS: Final = 0.05
USUAL_POWER: Final = 0.7  # of the price, by which the energy above the floor grows
LARGEST_STEP: Final = 16.0  # between the prices of two solutions
TINY: Final = 1e-4
UNTOLD: Final = 0.2
WASTED: Final = 0.03
SAFER: Final = 4.0
LEFTOVERS_MAY_COST: Final = 0.03  # on a hundred samples 0.01 is a coin's toss, and a quarter of the step costs two bits
WORTH_FITTING: Final = 0.03
NARROW: Final = 1.2  # between two prices: there is nothing to find
SAME: Final = 0.02  # of the bits, or of the error


@dataclass(frozen=True, slots=True)
class Point:
    """One solution: price of a bit, entropy of the changes in bits a weight, and the gate on the samples held back.

    `is_around` where it was asked for beside the search.
    """

    price: float
    bits_per_weight: float
    gate: GateReport
    model: onnx.ModelProto
    is_around: bool = False

    @property
    def relative_rms(self) -> float:
        """The worst output's; infinity where none tells."""
        return self.gate.relative_rms if self.gate.relative_rms is not None else math.inf

    def as_json(self) -> dict[str, float | None]:
        """Plain values; `relative_rms` is None where no output tells."""
        error = finite(self.gate.relative_rms)
        return {"lambda": self.price, "bits_per_weight": self.bits_per_weight, "relative_rms": error}


def entropy_bits(change: np.ndarray) -> float:
    """Bits that `change` costs by its own histogram."""
    bits = prices(change)
    middle = len(bits) // 2
    spots = np.clip(change, -middle, middle).astype(np.int8).ravel() + np.int8(middle)
    return float(np.bincount(spots, minlength=len(bits)) @ bits)


@dataclass(slots=True)
class Search:
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
    ordinary: GateReport
    aim: float
    on_solution: Callable[[Point], None] | None
    points: list[Point] = field(default_factory=list)
    first_price: float = field(init=False)
    _unit: float = field(init=False)
    _wanted: float = field(init=False)
    _total: int = field(init=False)
    _last: Choice | None = None

    def __post_init__(self) -> None:
        self._total = max(1, sum(grid.values.size for grid in self.solver.grids))
        self._unit = max(self.ordinary.relative_rms or 0.0, TINY)
        share = self.aim * (1.0 - UNTOLD / math.sqrt(max(1, self.ordinary.samples)))
        self._wanted = share * self._unit
        price = FIRST_PRICE * _step(self._excess(FIRST_AIM * self._unit), self._excess(self._wanted))
        self.first_price = price * self._unit**2 / self._total

    def run(self) -> Point | None:
        """The cheapest solution that passes, or None."""
        self._note(self._nearest())
        if self.ordinary.relative_rms is not None:
            price = self.first_price
            for _ in range(MAX_SOLUTIONS):
                point = self.solve(price)
                if self._is_good(point) and point.relative_rms >= self._wanted * (1 - WASTED):
                    break
                following = self._next(point)
                if following is None:
                    break
                price = following
        return min(filter(self._is_good, self.points), key=attrgetter("bits_per_weight"), default=None)

    def solve(self, price: float, *, is_around: bool = False) -> Point:
        """One solution, started from the last one."""
        self._last = self.solver.solve(price, self._last)
        model = self.solver.model(self._last)
        return self._note(Point(price, self._bits(self._last), self.gate_of(model), model, is_around))

    def _nearest(self) -> Point:
        """Rounding to nearest, with the ranges and the step of leftovers that rule 5 tells: the solver keeps both."""
        solver, choice = self.solver, self.solver.nearest()
        *wider, solver.leftover_step = LEFTOVER_STEPS
        least = self.error_of(solver.model(choice))
        if fitted := solver.ranges:
            solver.ranges = {}
            pinned = self.error_of(solver.model(choice))
            if least > (1 - WORTH_FITTING) * pinned:
                least = pinned
            else:
                solver.ranges = fitted
        finest = solver.leftover_step
        for solver.leftover_step in wider:
            if self.error_of(solver.model(choice)) <= (1 + LEFTOVERS_MAY_COST) * least:
                break
        else:
            solver.leftover_step = finest
        model = solver.model(choice)
        return Point(0.0, self._bits(choice), self.gate_of(model), model)

    def _bits(self, choice: Choice) -> float:
        return sum(entropy_bits(choice.levels[grid.key] - grid.base) for grid in self.solver.grids) / self._total

    def _note(self, point: Point) -> Point:
        self.points.append(point)
        logger.info(
            "price %.3g: %.4f bits a weight, relative RMS %.4f", point.price, point.bits_per_weight, point.relative_rms
        )
        if self.on_solution is not None:
            self.on_solution(point)
        return point

    def _keeps_to_error(self, point: Point) -> bool:
        return point.gate.relative_rms is None or point.relative_rms <= self.aim * self._unit

    def _is_good(self, point: Point) -> bool:
        is_passed = point.gate.verdict == "pass" or self.ordinary.verdict == "fail"
        return is_passed and self._keeps_to_error(point)

    def _next(self, point: Point) -> float | None:
        """The price to try behind `point`, or None where there is none to try: between the highest good one and the
        lowest bad one above it (rules 3 and 4)."""
        solved = [each for each in self.points if each.price]
        low = max((each.price for each in solved if self._is_good(each)), default=0.0)
        high = min((each.price for each in solved if each.price > low), default=math.inf)
        if high < low * NARROW:
            return None
        least = NARROW ** (1 << max(0, len(solved) - 2))
        if len(solved) > 1 and self._is_idle(*solved[-2:]):
            lower, upper = sorted(each.price for each in solved[-2:])
            if (low and high < math.inf) or upper >= SAFER * lower:
                return None
            least = SAFER
        is_safer_asked = self._keeps_to_error(point) and not self._is_good(point)
        price = point.price / SAFER if is_safer_asked else self._aimed(solved)
        if not low:
            return min(price, high / least)
        if high == math.inf:
            return max(price, low * least)
        return price if low < price < high else math.sqrt(low * high)

    def _is_idle(self, before: Point, now: Point) -> bool:
        """Did another price change nothing, or only the error of what passes?"""
        costs_same = math.isclose(before.bits_per_weight, now.bits_per_weight, rel_tol=SAME)
        errs_same = math.isclose(before.relative_rms, now.relative_rms, rel_tol=SAME)
        return costs_same and (errs_same or self._is_good(now))

    def _aimed(self, solved: list[Point]) -> float:
        """Where the error would reach what is wanted, by the two solutions that came nearest."""
        excesses = {each.price: self._excess(each.relative_rms) for each in solved}
        wanted = self._excess(self._wanted)
        price, *others = sorted(excesses, key=lambda each: abs(math.log(excesses[each] / wanted)))
        power = USUAL_POWER
        if others:
            power = math.log(excesses[others[0]] / excesses[price]) / math.log(others[0] / price)
            power = min(max(power, USUAL_POWER / 2), USUAL_POWER * 2)
        return price * _step(excesses[price], wanted, power)

    def _excess(self, error: float) -> float:
        """What of an error's energy, in units of ordinary quantization's, hangs on the price: it grows as a power of
        it."""
        allowed = self._wanted / self._unit
        # where less is allowed than the floor, the floor is taken for lower
        floor = min(FLOOR, FLOOR * allowed * allowed)
        share = min(error / self._unit, 1 / TINY)
        return max(share * share - floor, LEAST_EXCESS)


def _step(excess: float, wanted: float, power: float = USUAL_POWER) -> float:
    """By what to multiply a price to come from one excess to another."""
    return float(min(max((wanted / excess) ** (1 / power), 1 / LARGEST_STEP), LARGEST_STEP))
