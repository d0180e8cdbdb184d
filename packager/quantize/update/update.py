"""`update`: the smallest patch from a base's quantized model to a new float model that passes the gate.

Rules:
1. Ordinary quantization of the new model, made the way the base was, is the measure: the update's error may be at most
   `max_over_ordinary` times its error, and the stale base's error says what an update must beat.
2. A part of the calibration samples is spared while the price of a bit is searched: on what was fitted, the error looks
   smaller than it is. The spared part judges, in at most MAX_SOLUTIONS solutions; at the price where the error would
   reach what is allowed it is solved once more, with all samples. Rounding to nearest on the base's scales (price 0) is
   taken where it passes and costs fewer bits, or where no price passes.
3. Where the chosen solution misses the gate on the samples held back, or where these are more than the spared ones and
   find it better than asked for by more than WASTED, and so dearer than need be, it is solved again at the price that
   they tell, at most SECOND_CHANCES times. Of all of these the cheapest that passes is taken.
4. Ranges of activations are fitted again only where that serves rounding to nearest, on the samples that judge.
5. What is "retrained" (FRESH_SHARE of the weights are quantized afresh) is not an update: the ordinary model is
   returned, and the report says so.
6. Nothing is random, and linear algebra keeps to one thread, so that sums have one order: same inputs, same bytes.
   That is hardly slower, and many times faster beside other work.
"""

import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from bundle.patch.single_thread import single_threaded
from packager.inputs import load_proto
from packager.quantize.candidates import Method, Workshop
from packager.quantize.fidelity import DEFAULT_THRESHOLDS, GateReport, Thresholds, judge
from packager.quantize.graphs import all_nodes, float_bytes, quantization_of, weight_uses
from packager.quantize.int4 import int4_nodes
from packager.quantize.prepare import prepare
from packager.quantize.runs import Remembered, session, session_of, settings_for
from packager.quantize.schemes import save
from packager.quantize.update.activations import refitted_ranges
from packager.quantize.update.candidate import Choice
from packager.quantize.update.descent import prices
from packager.quantize.update.solve import Solver, grid_of
from packager.quantize.update.template import read_template
from packager.samples import Samples

logger = logging.getLogger(__name__)

Means = Literal["joint", "ordinary"]

MAX_SOLUTIONS: Final = 3
FRESH_SHARE: Final = 0.5
FIRST_PRICE: Final = 25.0  # x ordinary error energy / weights: near the knee of the curve of a text classifier
FLOOR: Final = 0.7  # of ordinary quantization's error energy: what no price gets rid of, about
LEAST_EXCESS: Final = 0.05
USUAL_POWER: Final = 0.7  # of the price, by which the energy above the floor grows
LARGEST_STEP: Final = 16.0  # between the prices of two solutions
NEAR: Final = 0.06  # of the allowed error: from there on the samples that judge tell little more than the usual power
AIM: Final = 1.08  # x ordinary's error, of the search: the gate's own limit is asked of other samples
TINY: Final = 1e-4
MARGIN: Final = 0.98  # of the allowed error: the samples that judge the search are few
SECOND_CHANCES: Final = 2
SECOND_MARGIN: Final = 0.98  # of the allowed error, where a price is told by the samples held back
WASTED: Final = 0.03  # of the error that is aimed at
MAX_SAMPLES: Final = 1024
JUDGED_EVERY: Final = 5  # every fifth calibration sample judges the search
FEW_SAMPLES: Final = 20  # below it none can be spared, and the margin is that of fitted samples
FITTED_MARGIN: Final = 0.75
NAMED: Final = 5  # weights that a text lists by name


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


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What an update came to; all gates are on the samples that were held back."""

    means: Means
    reason: str
    gate: GateReport
    ordinary: GateReport
    stale: GateReport
    price: float | None
    bits_per_weight: float | None
    curve: tuple[Point, ...]
    weights: int
    fresh: tuple[str, ...]
    refitted: tuple[str, ...]
    joint: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "means": self.means,
            "reason": self.reason,
            "gate": self.gate.as_json(),
            "ordinary": self.ordinary.as_json(),
            "stale": self.stale.as_json(),
            "lambda": self.price,
            "bits_per_weight": self.bits_per_weight,
            "curve": [point.as_json() for point in self.curve],
            "weights": self.weights,
            "fresh": list(self.fresh),
            "refitted": list(self.refitted),
            "joint": list(self.joint),
        }

    def as_text(self) -> str:
        """For a person: what it came to, and which weights did not fit the base's scales."""
        bits = "" if self.bits_per_weight is None else f", {self.bits_per_weight:.4f} bits a weight"
        error, ordinary = self.gate.relative_rms or 0.0, self.ordinary.relative_rms or 0.0
        lines = [
            f"{self.means}: {self.reason}{bits}",
            f"relative RMS {error:.4f}, ordinary quantization {ordinary:.4f}",
        ]
        for names, what in ((self.fresh, "quantized afresh"), (self.refitted, "scales of some channels fitted again")):
            if names:
                more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
                lines.append(f"{what}: {', '.join(names[:NAMED])}{more}")
        return "\n".join(lines)


@single_threaded()
def update(
    new: Path,
    base: Path,
    out: Path,
    calibration: Samples,
    held_back: Samples,
    *,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    max_over_ordinary: float | None = None,
    on_solution: Callable[[Point], None] | None = None,
    around: tuple[float, ...] = (),
) -> UpdateReport:
    """Quantize the float model `new` near the quantized model `base` into `out`.

    Args:
        new: float model of the new release.
        base: quantized model that devices hold.
        out: the file to write.
        calibration: inputs for moments, ranges and the search.
        held_back: inputs that only the gates see; they correct the price (rule 3).
        thresholds: of the final gate.
        max_over_ordinary: error allowed over ordinary quantization's, which the search aims at; where not given the
            gate allows what the thresholds say, and the search aims at AIM.
        on_solution: told of each solution as it is found.
        around: further prices to solve at, with all samples, in units of the chosen one; for a curve.

    Raises:
        UpdateDoesNotFit: the graphs differ.
        Invalid kinds for unusable models and samples; QuantizationRefused where ordinary quantization is impossible.
    """
    calibration = calibration.take(MAX_SAMPLES)
    template = load_proto(base)
    prepared = prepare(new, next(iter(calibration.take(1)))).model
    grids = [grid_of(weight) for weight in read_template(template, prepared)]
    total = sum(grid.values.size for grid in grids)
    reference = Remembered(session(new))
    ordinary = ordinary_of(template, prepared, calibration)
    spared = spared_of(len(calibration))
    judged = (
        replace(calibration, indices=tuple(calibration.indices[i] for i in sorted(spared))) if spared else calibration
    )

    def error_of(model: onnx.ModelProto, samples: Samples = judged) -> GateReport:
        return judge(reference, session_of(model, settings_for(model)), samples, thresholds)

    ratio = max_over_ordinary if max_over_ordinary is not None else thresholds.max_over_ordinary
    ordinary_rms = error_of(ordinary).relative_rms or 0.0
    fresh = tuple(grid.weight.name for grid in grids if grid.is_fresh)
    share = sum(grid.values.size for grid in grids if grid.is_fresh) / max(total, 1)
    gates = {"ordinary": error_of(ordinary, held_back), "stale": error_of(template, held_back)}

    def verdict_of(model: onnx.ModelProto) -> GateReport:
        return judge(
            reference,
            session_of(model, settings_for(model)),
            held_back,
            replace(thresholds, max_over_ordinary=ratio),
            ordinary_rms=gates["ordinary"].relative_rms,
            stale_rms=gates["stale"].relative_rms,
        )

    curve: list[Point] = []
    chosen: Point | None = None
    verdict: GateReport | None = None
    if share <= FRESH_SHARE:
        ranges = refitted_ranges(template, prepared, ordinary, calibration)
        with tempfile.TemporaryDirectory(prefix="airweights-update-") as folder:
            solver = Solver(template, prepared, grids, calibration, ranges, Path(folder))
            margin = MARGIN if spared else FITTED_MARGIN
            first = FIRST_PRICE * max(ordinary_rms, TINY) ** 2 / total
            aim = ratio if max_over_ordinary is not None else min(ratio, AIM)
            search = _Search(
                solver, error_of, spared, ordinary_rms, aim * ordinary_rms * margin, total, first, on_solution
            )
            chosen = search.run()
            if chosen is not None:
                held = gates["ordinary"].relative_rms or 0.0
                chosen, verdict = search.mended(
                    chosen, verdict_of, aim * held, held, may_cheapen=0 < len(spared) <= len(held_back)
                )
            for factor in around:
                price = ((chosen.price if chosen else 0.0) or first) * factor
                search.solve(price, is_whole=True, is_around=True)
        curve = search.points
    verdict = verdict or verdict_of(ordinary)
    reason = verdict.why
    if chosen is None:
        reason = (
            f"{share:.0%} of the weights are quantized afresh" if share > FRESH_SHARE else "no price passes the gate"
        )
    save(chosen.model if chosen else ordinary, out)
    return UpdateReport(
        means="joint" if chosen else "ordinary",
        reason=reason,
        gate=verdict,
        ordinary=gates["ordinary"],
        stale=gates["stale"],
        price=chosen.price if chosen else None,
        bits_per_weight=chosen.bits_per_weight if chosen else None,
        curve=tuple(curve),
        weights=total,
        fresh=fresh,
        refitted=tuple(grid.weight.name for grid in grids if grid.refitted is not None and not grid.is_fresh),
        joint=tuple(grid.weight.name for grid in grids if grid.is_joint),
    )


def ordinary_of(template: onnx.ModelProto, prepared: onnx.ModelProto, calibration: Samples) -> onnx.ModelProto:
    """The new model quantized the way the template was: same method, same nodes in float."""
    told = quantization_of(template)
    operators = {node.op_type for node in all_nodes(template)}
    method: Method = "int4" if "MatMulNBits" in operators else "weights"
    if "static" in told or (not told and "QuantizeLinear" in operators):
        method = "static"
    elif "dynamic" in told or (not told and "DynamicQuantizeLinear" in operators):
        method = "dynamic"
    floats = {tensor.name for tensor in template.graph.initializer}
    kept = frozenset(use.node.name for use in weight_uses(prepared) if use.tensor.name in floats)
    wide = _wide_of(template, method, [use.node.name for use in int4_nodes(prepared)]) - kept
    workshop = Workshop(
        prepared,
        calibration,
        float_bytes(prepared),
        signed_weights=told.endswith("u8s7"),
        signed_activations=told.endswith(("s8s8", "u8s8")),
    )
    return workshop.build(method, kept, wide, is_partial=True)


def _wide_of(template: onnx.ModelProto, method: Method, four_bits: list[str]) -> frozenset[str]:
    """Names of the nodes that have more bits in the template: 16 for what they read, or 8 for weights that could have
    4."""
    if method == "int4":
        return frozenset(four_bits) - {node.name for node in all_nodes(template) if node.op_type == "MatMulNBits"}
    if method != "static":
        return frozenset()
    types = {tensor.name: tensor.data_type for tensor in template.graph.initializer}
    sixteen = {
        node.output[0]
        for node in all_nodes(template)
        if node.op_type == "DequantizeLinear"
        and len(node.input) > 2
        and types.get(node.input[2]) == onnx.TensorProto.UINT16
    }
    return frozenset(node.name for node in all_nodes(template) if sixteen & set(node.input))


def spared_of(count: int) -> frozenset[int]:
    """Numbers of the samples that judge the search (rule 2); none where there are few."""
    return frozenset(range(JUDGED_EVERY - 1, count, JUDGED_EVERY)) if count >= FEW_SAMPLES else frozenset()


def entropy_bits(change: np.ndarray) -> float:
    """Bits that `change` costs by its own histogram."""
    bits = prices(change)
    middle = len(bits) // 2
    spots = np.clip(change, -middle, middle).astype(np.int8).ravel() + np.int8(middle)
    return float(np.bincount(spots, minlength=len(bits)) @ bits)


@dataclass(slots=True)
class _Search:
    """Rule 2."""

    solver: Solver
    error_of: Callable[[onnx.ModelProto], GateReport]
    spared: frozenset[int]
    ordinary: float
    allowed: float
    total: int
    first_price: float
    on_solution: Callable[[Point], None] | None
    points: list[Point] = field(default_factory=list)
    _last: Choice | None = None

    def run(self) -> Point | None:
        """The solution where the error is what is allowed, or rounding to nearest where that is smaller, or None."""
        nearest = self._nearest()
        price = self._searched()
        good = self.solve(price, is_whole=True) if price is not None else None
        if good is not None and not self.spared and good.relative_rms > self.allowed:
            good = max(
                (point for point in self.points if point.relative_rms <= self.allowed),
                key=attrgetter("price"),
                default=None,
            )
        self._note(nearest)
        if nearest.relative_rms <= self.allowed and (good is None or nearest.bits_per_weight < good.bits_per_weight):
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
        limit: float,
        ordinary: float,
        *,
        may_cheapen: bool,
    ) -> tuple[Point, GateReport]:
        """Rule 3: the solution to take, and its verdict on the samples held back.

        Args:
            limit: the error that is aimed at on them.
            ordinary: ordinary quantization's.
            may_cheapen: a better one may be given up for a cheaper one.
        """
        judged = [(chosen, verdict_of(chosen.model))]
        for _ in range(SECOND_CHANCES):
            point, verdict = judged[-1]
            found, wanted = verdict.relative_rms or 0.0, limit * SECOND_MARGIN
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
        """Rounding to nearest, on the ranges that serve it better (rule 4): the solver keeps these."""
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
        return Point(price, bits / max(self.total, 1), rms if rms is not None else float("inf"), model, is_whole)

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
            if abs(point.relative_rms / self.allowed - 1.0) < NEAR:
                return price
        good = [point.price for point in self.points if point.relative_rms <= self.allowed]
        bad = [point.price for point in self.points if point.relative_rms > self.allowed]
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
        return self._excess(self.allowed)

    def _excess(self, error: float) -> float:
        # where less is allowed than the floor, the floor is taken for lower
        share = self.allowed / max(self.ordinary, TINY)
        return _excess(error, self.ordinary, min(FLOOR, FLOOR * share * share))


def _excess(error: float, ordinary: float, floor: float = FLOOR) -> float:
    """What of an error's energy, in units of ordinary quantization's, hangs on the price: it grows as a power of it."""
    share = min(error / max(ordinary, TINY), 1 / TINY)
    return max(share * share - floor, LEAST_EXCESS)


def _step(excess: float, wanted: float, power: float = USUAL_POWER) -> float:
    """By what to multiply a price to come from one excess to another."""
    return float(min(max((wanted / excess) ** (1 / power), 1 / LARGEST_STEP), LARGEST_STEP))
