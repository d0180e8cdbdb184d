"""Chooses how a tensor is coded: tries predictors and coders on a sample, and keeps what is cheapest on it.

Rules:
1. What parameters cost is counted in full: a fit has to pay for itself.
2. A later proposal must beat the best so far by a margin where it is likely to flatter itself on a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bundle.patch.coders import zigzag
from bundle.patch.elements import Bits, Doubles, ElementType, Signed, ordered
from bundle.patch.parameters import Parameters
from bundle.patch.prediction import Prediction, parameter_prediction
from bundle.patch.typed import Coder, Predictor
from packager.diff.encode.entropy import (
    ONE_CLASS,
    Effort,
    Period,
    in_units,
    residual_of,
    write_keyed,
    write_part,
    write_planes,
)
from packager.diff.encode.predictors import (
    MIN_ELEMENTS,
    Fit,
    exact_low_rank,
    gains,
    is_usable,
    low_rank,
    matrix_rows,
    robust,
    rounding_variance,
    spectrum,
    values_of,
)
from packager.diff.encode.tensor_job import Tensor, block_elements

USUAL: Final = 256  # elements of a sub-block
SUB_BLOCKS: Final = (64, USUAL, 2048)
SIMPLER: Final = 1.005  # a lower rank may cost this much more: it is applied faster
PRODUCT_SHARE: Final = 0.98  # a product has to save this much of integers, which take twice the device's time with one
NEAR_SHARE: Final = (
    0.995  # how a prediction was rounded has to save this much: a seventh of the device's time is for it
)
ONE_CLASS_SHARE: Final = 1.003  # a single class may cost this much more, likewise
NEAR_BELOW_BITS: Final = 6.0  # where residuals are longer, how a prediction was rounded says nothing about them
FITTED: Final = ("f32", "f16", "bf16", "f64", "i8", "u8", "i16", "u16")


@dataclass(frozen=True, slots=True)
class Plan:
    predictor: Predictor
    fit: Fit | None
    coder: Coder
    sub_block: int
    is_near: bool
    name: str
    period: Period | None = None
    has_units: bool = False


@np.errstate(over="ignore", invalid="ignore")  # of doubles near the end of their range: what is not finite is no fit
def choose(tensor: Tensor) -> Plan:
    effort, kind, count = tensor.job.effort, tensor.kind, tensor.count
    pieces = tensor.sample()
    sampled = sum(piece.stop - piece.start for piece in pieces)
    goal = np.concatenate([ordered(tensor.target[piece], kind) for piece in pieces])
    packer = _Sampler(tensor, pieces, goal, effort)

    best = Plan(Predictor.NONE, None, Coder.KEYED, USUAL, False, "none")
    cost = float("inf")
    if tensor.base is not None:
        best = replace(best, predictor=Predictor.BASE, name="transposed base" if tensor.job.is_transposed else "base")
        cost = packer.keyed(None, USUAL, is_near=False)
        if tensor.job.can_fit and effort.with_fits and kind.name in FITTED and count >= 256:
            for fit in _fits(tensor, packer, cost):
                trial = packer.keyed(fit, USUAL, is_near=False) + fit.cost_bits * sampled / count
                is_near = False
                if trial < NEAR_BELOW_BITS * sampled and kind.name != "f64":
                    near = packer.keyed(fit, USUAL, is_near=True) + fit.cost_bits * sampled / count
                    is_near = near < NEAR_SHARE * trial
                    trial = near if is_near else trial
                if trial < cost * _share(best.fit, fit, kind):
                    best = replace(best, predictor=Predictor.PARAM, fit=fit, is_near=is_near, name=fit.name)
                    cost = trial
        fit_bits = best.fit.cost_bits * sampled / count if best.fit is not None else 0.0
        trials = {
            sub_block: packer.keyed(best.fit, sub_block, is_near=best.is_near) + fit_bits
            for sub_block in (*SUB_BLOCKS, ONE_CLASS)
        }
        sub_block = min(trials, key=lambda size: trials[size])
        if trials[ONE_CLASS] < ONE_CLASS_SHARE * trials[sub_block]:
            sub_block = ONE_CLASS
        best, cost = replace(best, sub_block=sub_block), trials[sub_block]
        rows = [tensor.row] if tensor.row else []
        for period in (None, *tensor.periods()):
            known = [best.sub_block, ONE_CLASS] if period is not None else []
            for sub_block in sorted({*known, *rows}):
                trial = packer.keyed(best.fit, sub_block, is_near=best.is_near, period=period) + fit_bits
                if trial < cost * 0.99:
                    best, cost = replace(best, sub_block=sub_block, period=period), trial
        if best.fit is None and in_units(packer.residual, kind):
            for sub_block in SUB_BLOCKS:
                trial = packer.keyed(None, sub_block, is_near=False, has_units=True)
                if trial < cost * 0.99:
                    best, cost = replace(best, sub_block=sub_block, period=None, has_units=True), trial
        trial = packer.planes(best.fit, is_near=best.is_near) + fit_bits
        if trial < cost * 0.98:
            best, cost = replace(best, coder=Coder.PLANES), trial
    if tensor.base is None or cost > 0.5 * 8 * kind.size * sampled:
        for coder, sub_block in ((Coder.KEYED, 64), (Coder.KEYED, USUAL), (Coder.PLAIN, 0), (Coder.PLANES, 0)):
            trial = packer.without_base(coder, sub_block)
            if trial < cost:
                best, cost = Plan(Predictor.NONE, None, coder, sub_block, False, "none"), trial
    return best


def _share(best: Fit | None, fit: Fit, kind: ElementType) -> float:
    """Of what the best one costs, how much a proposal may."""
    held = 0 if best is None else best.rank
    if fit.rank and not held and not kind.is_float:
        return PRODUCT_SHARE
    # Proposals of one kind come with falling rank: of two that cost the same, the device prefers the later.
    return SIMPLER if fit.rank < held else 0.995


class _Sampler:
    """What plans cost on the sample, in bits."""

    def __init__(self, tensor: Tensor, pieces: list[slice], goal: Signed, effort: Effort) -> None:
        self.tensor, self.pieces, self.goal, self.effort = tensor, pieces, goal, effort
        self._fit: Fit | None = None
        self._made: dict[bool, Prediction] = {}

    def prediction(self, fit: Fit | None, *, is_near: bool) -> Prediction:
        """Of all pieces; those of the last fit are kept, since it is tried in several ways."""
        if fit is not self._fit:
            self._fit, self._made = fit, {}
        if is_near not in self._made:
            self._made[is_near] = self._predicted(in_force(fit), is_near=is_near)
        return self._made[is_near]

    def _predicted(self, parameters: Parameters | None, *, is_near: bool) -> Prediction:
        tensor = self.tensor
        assert tensor.base is not None
        parts = [
            predict_block(tensor.base[piece], tensor.kind, parameters, piece.start, is_near=is_near)
            for piece in self.pieces
        ]
        bits = np.concatenate([part.bits for part in parts])
        if not is_near:
            return Prediction(bits, None, None)
        nearness = np.concatenate([part.nearness for part in parts if part.nearness is not None])
        above = np.concatenate([part.is_above for part in parts if part.is_above is not None])
        return Prediction(bits, nearness, above)

    @property
    def residual(self) -> Signed:
        """From the base as it is."""
        return residual_of(self.goal, self.prediction(None, is_near=False), self.tensor.kind)

    def keyed(
        self,
        fit: Fit | None,
        sub_block: int,
        *,
        is_near: bool,
        period: Period | None = None,
        has_units: bool = False,
    ) -> float:
        prediction = self.prediction(fit, is_near=is_near)
        residual = residual_of(self.goal, prediction, self.tensor.kind)
        tables, parts = write_keyed(
            residual, prediction, self.tensor.kind, sub_block, self.effort, period, has_units=has_units
        )
        # A period's table does not grow with the block, unlike the classes of sub-blocks.
        block = min(block_elements(self.tensor.kind.name), self.tensor.count)
        share = len(self.goal) / block if period is not None and sub_block == ONE_CLASS else 1.0
        return 8.0 * (len(tables) * share + len(parts))

    def planes(self, fit: Fit | None, *, is_near: bool) -> float:
        residual = residual_of(self.goal, self.prediction(fit, is_near=is_near), self.tensor.kind)
        return 8.0 * len(write_planes(zigzag(residual), self.effort))

    def without_base(self, coder: Coder, sub_block: int) -> float:
        kind = self.tensor.kind
        if coder is Coder.KEYED:
            return 8.0 * sum(map(len, write_keyed(self.goal, None, kind, sub_block, self.effort)))
        if coder is Coder.PLAIN:
            return 8.0 * len(write_part(self.goal, self.effort))
        bits = np.concatenate([self.tensor.target[piece] for piece in self.pieces])
        return 8.0 * len(write_planes(bits, self.effort))


def predict_block(
    base: Bits, kind: ElementType, parameters: Parameters | None, first: int, *, is_near: bool
) -> Prediction:
    """The base's elements, or what parameters make of those from the tensor's element `first` on."""
    if parameters is None:
        return Prediction(base, None, None)
    return parameter_prediction(base, kind, parameters, first, is_near=is_near)


def in_force(fit: Fit | None) -> Parameters | None:
    """A fit as the decoder holds it."""
    if fit is None:
        return None
    parameters = Parameters(1 << 40)
    parameters.gain, parameters.left, parameters.right = fit.gain, fit.left, fit.right
    return parameters


def _fits(tensor: Tensor, packer: _Sampler, cost: float) -> Iterator[Fit]:
    """Proposals, the later ones built on the best of the earlier ones."""
    assert tensor.base is not None
    base, target = values_of(tensor.base, tensor.kind), values_of(tensor.target, tensor.kind)
    if base is None or target is None or (len(tensor.job.segments) > 1 and not tensor.job.shape):
        return
    sampled, count = len(packer.goal), tensor.count
    best_gain: Fit | None = None
    for fit in gains(base, target, tensor.job.shape):
        trial = packer.keyed(fit, USUAL, is_near=False) + fit.cost_bits * sampled / count
        if trial < cost * 0.99:
            best_gain, cost = fit, trial
    if best_gain is not None:
        refit = robust(best_gain, base, target)
        if refit is not None:
            trial = packer.keyed(refit, USUAL, is_near=False) + refit.cost_bits * sampled / count
            best_gain = refit if trial < cost else best_gain
        yield best_gain
    rows = matrix_rows(tensor.job.shape, count)
    if not rows or count < MIN_ELEMENTS:
        return
    difference = target - (base if best_gain is None else _gained(base, best_gain))
    variance = rounding_variance(tensor.target, tensor.kind)
    if tensor.kind.size < 4 or not tensor.kind.is_float:
        variance = variance + rounding_variance(tensor.base, tensor.kind)
    floor = float(variance.mean())
    found = spectrum(difference, rows)
    if found is None:
        return
    proposals = list(low_rank(found, floor))
    if tensor.kind.is_float:
        proposals += exact_low_rank(found, variance)
    for fit in proposals:
        if is_usable(fit):
            yield _with_gain(fit, best_gain)


def _gained(base: Doubles, fit: Fit) -> Doubles:
    assert fit.gain is not None
    factors = fit.gain.factors
    out: Doubles = (base.reshape(-1, len(factors), fit.gain.inner) * factors[None, :, None]).reshape(-1)
    return out


def _with_gain(fit: Fit, gain: Fit | None) -> Fit:
    if gain is None:
        return fit
    return replace(fit, gain=gain.gain, name=f"{gain.name}, {fit.name}", cost_bits=fit.cost_bits + gain.cost_bits)
