"""Finds the price of a bit at which an update's error is what is allowed, in few solutions.

Rules:
1. A part of the calibration samples is spared while the price is searched: on what was fitted, the error looks smaller
   than it is. The spared part judges, in at most MAX_SOLUTIONS solutions; at the price where the error would reach what
   is allowed it is solved once more, with all samples. Rounding to nearest on the base's scales (price 0) is taken
   where it passes and costs fewer bits, or where no price passes.
2. Where the chosen solution misses the gate on the samples held back, or where these are more than the spared ones and
   find it better than asked for by more than WASTED, and so dearer than need be, it is solved again at the price that
   they tell, at most SECOND_CHANCES times. Of all of these the cheapest that passes is taken.
3. Ranges of activations are fitted again only where that serves rounding to nearest, on the samples that judge.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final

import numpy as np
import onnx

from packager.quantize.fidelity import GateReport
from packager.quantize.update.candidate import Choice
from packager.quantize.update.descent import prices
from packager.quantize.update.solve import Solver

logger = logging.getLogger(__name__)

MAX_SOLUTIONS: Final = 3
FIRST_PRICE: Final = 25.0  # x ordinary error energy / weights: near the knee of the curve of a text classifier
FLOOR: Final = 0.7  # of ordinary quantization's error energy: what no price gets rid of, about
LEAST_EXCESS: Final = 0.05
USUAL_POWER: Final = 0.7  # of the price, by which the energy above the floor grows
LARGEST_STEP: Final = 16.0  # between the prices of two solutions
NEAR: Final = 0.06  # of the allowed error: from there on the samples that judge tell little more than the usual power
TINY: Final = 1e-4
MARGIN: Final = 0.98  # of the allowed error: the samples that judge are few
FITTED_MARGIN: Final = 0.75  # where no sample could be spared
SECOND_CHANCES: Final = 2
MAX_POINTS: Final = MAX_SOLUTIONS + 2 + SECOND_CHANCES  # with all samples, and rounding to nearest
SECOND_MARGIN: Final = 0.98  # of the allowed error, where a price is told by the samples held back
WASTED: Final = 0.03  # of the error that is aimed at
JUDGED_EVERY: Final = 5  # every fifth calibration sample judges the search
FEW_SAMPLES: Final = 20  # below it none can be spared


@dataclass(frozen=True, slots=True)
class Point:
    """One solution: price of a bit, entropy of the changes in bits a weight, error on the samples that judge.

    `is_whole` where all samples were fitted: its error is then that of fitted samples. `is_around` where it was asked
    for beside the search.
    """

    price: float
    bits_per_weight: float
    relative_rms: float
    model: onnx.ModelProto
    is_whole: bool = False
    is_around: bool = False

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {"lambda": self.price, "bits_per_weight": self.bits_per_weight, "relative_rms": self.relative_rms}


def spared_of(count: int) -> frozenset[int]:
    """Numbers of the samples that judge the search (rule 1); none where there are few."""
    return frozenset(range(JUDGED_EVERY - 1, count, JUDGED_EVERY)) if count >= FEW_SAMPLES else frozenset()


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
        error_of: the gate on the samples that judge.
        spared: numbers of the samples that judge; empty where all are fitted.
        ordinary: ordinary quantization's error on them.
        aim: the error to come to, in units of ordinary quantization's.
        on_solution: told of each solution as it is found.
    """

    solver: Solver
    error_of: Callable[[onnx.ModelProto], GateReport]
    spared: frozenset[int]
    ordinary: float
    aim: float
    on_solution: Callable[[Point], None] | None
    points: list[Point] = field(default_factory=list)
    first_price: float = field(init=False)
    _total: int = field(init=False)
    _allowed: float = field(init=False)
    _last: Choice | None = None

    def __post_init__(self) -> None:
        self._total = max(1, sum(grid.values.size for grid in self.solver.grids))
        self._allowed = self.aim * self.ordinary * (MARGIN if self.spared else FITTED_MARGIN)
        self.first_price = FIRST_PRICE * max(self.ordinary, TINY) ** 2 / self._total

    def run(self) -> Point | None:
        """The solution where the error is what is allowed, or rounding to nearest where that is smaller, or None."""
        nearest = self._nearest()
        price = self._searched()
        good = self.solve(price, is_whole=True) if price is not None else None
        if good is not None and not self.spared and good.relative_rms > self._allowed:
            good = max(
                (point for point in self.points if point.relative_rms <= self._allowed),
                key=attrgetter("price"),
                default=None,
            )
        self._note(nearest)
        if nearest.relative_rms <= self._allowed and (good is None or nearest.bits_per_weight < good.bits_per_weight):
            return nearest
        return good

    def solve(self, price: float, *, is_whole: bool, is_around: bool = False) -> Point:
        """One solution, started from the last one; with all samples, or without the spared ones."""
        choice = self.solver.solve(price, self._last, frozenset() if is_whole else self.spared)
        self._last = choice
        point = replace(self._point(price, choice, is_whole=is_whole), is_around=is_around)
        self._note(point)
        return point

    def mended(
        self,
        chosen: Point,
        verdict_of: Callable[[onnx.ModelProto], GateReport],
        ordinary: float,
        *,
        may_cheapen: bool,
    ) -> tuple[Point, GateReport]:
        """Rule 2: the solution to take, and its verdict on the samples held back.

        Args:
            ordinary: ordinary quantization's error on them.
            may_cheapen: a better one may be given up for a cheaper one.
        """
        judged = [(chosen, verdict_of(chosen.model))]
        limit = self.aim * ordinary
        wanted = limit * SECOND_MARGIN
        for _ in range(SECOND_CHANCES):
            point, verdict = judged[-1]
            found = verdict.relative_rms or 0.0
            is_missed = verdict.verdict == "fail" and found > limit
            is_wasted = may_cheapen and verdict.verdict != "fail" and found < wanted * (1 - WASTED)
            if not (is_missed or is_wasted) or not point.price or not 0.0 < found < float("inf") or limit <= 0.0:
                break
            step = _step(_excess(found, ordinary), _excess(wanted, ordinary))
            point = self.solve(point.price * step, is_whole=True)
            judged.append((point, verdict_of(point.model)))
        passing = [pair for pair in judged if pair[1].verdict != "fail"]
        return min(passing, key=lambda pair: pair[0].bits_per_weight) if passing else judged[-1]

    def _nearest(self) -> Point:
        """Rounding to nearest, on the ranges that serve it better (rule 3): the solver keeps these."""
        choice, fitted = self.solver.nearest(), self.solver.ranges
        found = self._point(0.0, choice, is_whole=True)
        if fitted:
            self.solver.ranges = {}
            pinned = self._point(0.0, choice, is_whole=True)
            if found.relative_rms > pinned.relative_rms:
                return pinned
            self.solver.ranges = fitted
        return found

    def _point(self, price: float, choice: Choice, *, is_whole: bool) -> Point:
        model = self.solver.model(choice)
        bits = sum(entropy_bits(choice.levels[grid.key] - grid.base) for grid in self.solver.grids)
        rms = self.error_of(model).relative_rms
        return Point(price, bits / self._total, rms if rms is not None else float("inf"), model, is_whole)

    def _note(self, point: Point) -> None:
        self.points.append(point)
        logger.info(
            "price %.3g: %.4f bits a weight, relative RMS %.4f", point.price, point.bits_per_weight, point.relative_rms
        )
        if self.on_solution is not None:
            self.on_solution(point)

    def _searched(self) -> float | None:
        """The price where the error on the samples that judge is what is allowed, as far as a few solutions tell; None
        where it was more at all of them and not near."""
        price = self.first_price
        for _ in range(MAX_SOLUTIONS):
            point = self.solve(price, is_whole=not self.spared)
            price = self._aimed()
            if abs(point.relative_rms / self._allowed - 1.0) < NEAR:
                return price
        good = [point.price for point in self.points if point.relative_rms <= self._allowed]
        bad = [point.price for point in self.points if point.relative_rms > self._allowed]
        return min(price, min(bad, default=max(good))) if good else None

    def _aimed(self) -> float:
        """Where the error would reach what is allowed, by the two solutions that came nearest."""
        distances = {
            point.price: abs(math.log(self._excess(point.relative_rms) / self._wanted)) for point in self.points
        }
        excesses = {point.price: self._excess(point.relative_rms) for point in self.points}
        price, *others = sorted(distances, key=lambda each: distances[each])
        power = USUAL_POWER
        if others:
            power = math.log(excesses[others[0]] / excesses[price]) / math.log(others[0] / price)
            power = min(max(power, USUAL_POWER / 2), USUAL_POWER * 2)
        return price * _step(excesses[price], self._wanted, power)

    @property
    def _wanted(self) -> float:
        return self._excess(self._allowed)

    def _excess(self, error: float) -> float:
        # where less is allowed than the floor, the floor is taken for lower
        share = self._allowed / max(self.ordinary, TINY)
        return _excess(error, self.ordinary, min(FLOOR, FLOOR * share * share))


def _excess(error: float, ordinary: float, floor: float = FLOOR) -> float:
    """What of an error's energy, in units of ordinary quantization's, hangs on the price: it grows as a power of it."""
    share = min(error / max(ordinary, TINY), 1 / TINY)
    return max(share * share - floor, LEAST_EXCESS)


def _step(excess: float, wanted: float, power: float = USUAL_POWER) -> float:
    """By what to multiply a price to come from one excess to another."""
    return float(min(max((wanted / excess) ** (1 / power), 1 / LARGEST_STEP), LARGEST_STEP))
