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
from bundle.patch.elements import Bits, Doubles, ElementType, Signed, to_ordered
from bundle.patch.parameters import Parameters
from bundle.patch.prediction import Prediction, predict_with_parameters
from bundle.patch.typed import Coder, Predictor
from packager.diff.encode.entropy import (
    SINGLE_CLASS_SUB_BLOCK,
    EncoderOptions,
    Period,
    compute_residual,
    is_in_units,
    write_keyed,
    write_part,
    write_planes,
)
from packager.diff.encode.predictors import (
    MIN_ELEMENTS,
    Fit,
    compute_spectrum,
    finite_values,
    is_usable,
    matrix_row_count,
    propose_exact_low_rank,
    propose_gains,
    propose_low_rank,
    refit_robustly,
    rounding_variance,
)
from packager.diff.encode.tensor_job import Tensor, block_elements

DEFAULT_SUB_BLOCK: Final = 256  # elements of a sub-block
SUB_BLOCK_SIZES: Final = (64, DEFAULT_SUB_BLOCK, 2048)
LOWER_RANK_MARGIN: Final = 1.005  # a lower rank may cost this much more: it is applied faster
PRODUCT_MARGIN: Final = 0.98  # a product has to save this much of integers, which take twice the device's time with one
ROUNDING_CLASS_MARGIN: Final = (
    0.995  # how a prediction was rounded has to save this much: a seventh of the device's time is for it
)
SINGLE_CLASS_MARGIN: Final = 1.003  # a single class may cost this much more, likewise
ROUNDING_CLASS_MAX_BITS: Final = 6.0  # where residuals are longer, how a prediction was rounded says nothing about them
FITTABLE_TYPES: Final = ("f32", "f16", "bf16", "f64", "i8", "u8", "i16", "u16")


@dataclass(frozen=True, slots=True)
class CodingPlan:
    predictor: Predictor
    fit: Fit | None
    coder: Coder
    sub_block: int
    has_rounding_class: bool
    name: str
    period: Period | None = None
    has_units: bool = False


@np.errstate(over="ignore", invalid="ignore")  # of doubles near the end of their range: what is not finite is no fit
def choose_coding(tensor: Tensor) -> CodingPlan:
    effort, kind, count = tensor.job.options, tensor.kind, tensor.count
    pieces = tensor.sample_slices()
    sampled = sum(piece.stop - piece.start for piece in pieces)
    goal = np.concatenate([to_ordered(tensor.target[piece], kind) for piece in pieces])
    packer = _Sampler(tensor, pieces, goal, effort)

    best = CodingPlan(Predictor.NONE, None, Coder.KEYED, DEFAULT_SUB_BLOCK, False, "none")
    cost = float("inf")
    if tensor.base is not None:
        best = replace(best, predictor=Predictor.BASE, name="transposed base" if tensor.job.is_transposed else "base")
        cost = packer.keyed_bits(None, DEFAULT_SUB_BLOCK, has_rounding_class=False)
        if tensor.job.can_fit and effort.has_fitting and kind.name in FITTABLE_TYPES and count >= 256:
            for fit in _propose_fits(tensor, packer, cost):
                trial = (
                    packer.keyed_bits(fit, DEFAULT_SUB_BLOCK, has_rounding_class=False)
                    + fit.cost_bits * sampled / count
                )
                is_near = False
                if trial < ROUNDING_CLASS_MAX_BITS * sampled and kind.name != "f64":
                    near = (
                        packer.keyed_bits(fit, DEFAULT_SUB_BLOCK, has_rounding_class=True)
                        + fit.cost_bits * sampled / count
                    )
                    is_near = near < ROUNDING_CLASS_MARGIN * trial
                    trial = near if is_near else trial
                if trial < cost * _fit_margin(best.fit, fit, kind):
                    best = replace(best, predictor=Predictor.PARAM, fit=fit, has_rounding_class=is_near, name=fit.name)
                    cost = trial
        fit_bits = best.fit.cost_bits * sampled / count if best.fit is not None else 0.0
        trials = {
            sub_block: packer.keyed_bits(best.fit, sub_block, has_rounding_class=best.has_rounding_class) + fit_bits
            for sub_block in (*SUB_BLOCK_SIZES, SINGLE_CLASS_SUB_BLOCK)
        }
        sub_block = min(trials, key=lambda size: trials[size])
        if trials[SINGLE_CLASS_SUB_BLOCK] < SINGLE_CLASS_MARGIN * trials[sub_block]:
            sub_block = SINGLE_CLASS_SUB_BLOCK
        best, cost = replace(best, sub_block=sub_block), trials[sub_block]
        rows = [tensor.row_elements] if tensor.row_elements else []
        for period in (None, *tensor.propose_periods()):
            known = [best.sub_block, SINGLE_CLASS_SUB_BLOCK] if period is not None else []
            for sub_block in sorted({*known, *rows}):
                trial = (
                    packer.keyed_bits(best.fit, sub_block, has_rounding_class=best.has_rounding_class, period=period)
                    + fit_bits
                )
                if trial < cost * 0.99:
                    best, cost = replace(best, sub_block=sub_block, period=period), trial
        if best.fit is None and is_in_units(packer.residual, kind):
            for sub_block in SUB_BLOCK_SIZES:
                trial = packer.keyed_bits(None, sub_block, has_rounding_class=False, has_units=True)
                if trial < cost * 0.99:
                    best, cost = replace(best, sub_block=sub_block, period=None, has_units=True), trial
        trial = packer.planes_bits(best.fit, has_rounding_class=best.has_rounding_class) + fit_bits
        if trial < cost * 0.98:
            best, cost = replace(best, coder=Coder.PLANES), trial
    if tensor.base is None or cost > 0.5 * 8 * kind.size * sampled:
        for coder, sub_block in (
            (Coder.KEYED, 64),
            (Coder.KEYED, DEFAULT_SUB_BLOCK),
            (Coder.SINGLE_PART, 0),
            (Coder.PLANES, 0),
        ):
            trial = packer.bits_without_base(coder, sub_block)
            if trial < cost:
                best, cost = CodingPlan(Predictor.NONE, None, coder, sub_block, False, "none"), trial
    return best


def _fit_margin(best: Fit | None, fit: Fit, kind: ElementType) -> float:
    """Of what the best one costs, how much a proposal may."""
    held = 0 if best is None else best.rank
    if fit.rank and not held and not kind.is_float:
        return PRODUCT_MARGIN
    # Proposals of one kind come with falling rank: of two that cost the same, the device prefers the later.
    return LOWER_RANK_MARGIN if fit.rank < held else 0.995


class _Sampler:
    """What plans cost on the sample, in bits."""

    def __init__(self, tensor: Tensor, slices: list[slice], ordered_target: Signed, options: EncoderOptions) -> None:
        self.tensor, self.slices, self.ordered_target, self.options = tensor, slices, ordered_target, options
        self._fit: Fit | None = None
        self._predictions: dict[bool, Prediction] = {}

    def prediction(self, fit: Fit | None, *, has_rounding_class: bool) -> Prediction:
        """Of all pieces; those of the last fit are kept, since it is tried in several ways."""
        if fit is not self._fit:
            self._fit, self._predictions = fit, {}
        if has_rounding_class not in self._predictions:
            self._predictions[has_rounding_class] = self._predict(
                as_decoded(fit), has_rounding_class=has_rounding_class
            )
        return self._predictions[has_rounding_class]

    def _predict(self, parameters: Parameters | None, *, has_rounding_class: bool) -> Prediction:
        tensor = self.tensor
        assert tensor.base is not None
        parts = [
            predict_block(
                tensor.base[piece], tensor.kind, parameters, piece.start, has_rounding_class=has_rounding_class
            )
            for piece in self.slices
        ]
        bits = np.concatenate([part.bits for part in parts])
        if not has_rounding_class:
            return Prediction(bits, None, None)
        nearness = np.concatenate([part.rounding_class for part in parts if part.rounding_class is not None])
        above = np.concatenate([part.rounded_up for part in parts if part.rounded_up is not None])
        return Prediction(bits, nearness, above)

    @property
    def residual(self) -> Signed:
        """From the base as it is."""
        return compute_residual(self.ordered_target, self.prediction(None, has_rounding_class=False), self.tensor.kind)

    def keyed_bits(
        self,
        fit: Fit | None,
        sub_block: int,
        *,
        has_rounding_class: bool,
        period: Period | None = None,
        has_units: bool = False,
    ) -> float:
        prediction = self.prediction(fit, has_rounding_class=has_rounding_class)
        residual = compute_residual(self.ordered_target, prediction, self.tensor.kind)
        tables, parts = write_keyed(
            residual, prediction, self.tensor.kind, sub_block, self.options, period, has_units=has_units
        )
        # A period's table does not grow with the block, unlike the classes of sub-blocks.
        block = min(block_elements(self.tensor.kind.name), self.tensor.count)
        share = len(self.ordered_target) / block if period is not None and sub_block == SINGLE_CLASS_SUB_BLOCK else 1.0
        return 8.0 * (len(tables) * share + len(parts))

    def planes_bits(self, fit: Fit | None, *, has_rounding_class: bool) -> float:
        residual = compute_residual(
            self.ordered_target, self.prediction(fit, has_rounding_class=has_rounding_class), self.tensor.kind
        )
        return 8.0 * len(write_planes(zigzag(residual), self.options))

    def bits_without_base(self, coder: Coder, sub_block: int) -> float:
        kind = self.tensor.kind
        if coder is Coder.KEYED:
            return 8.0 * sum(map(len, write_keyed(self.ordered_target, None, kind, sub_block, self.options)))
        if coder is Coder.SINGLE_PART:
            return 8.0 * len(write_part(self.ordered_target, self.options))
        bits = np.concatenate([self.tensor.target[piece] for piece in self.slices])
        return 8.0 * len(write_planes(bits, self.options))


def predict_block(
    base: Bits, kind: ElementType, parameters: Parameters | None, first: int, *, has_rounding_class: bool
) -> Prediction:
    """The base's elements, or what parameters make of those from the tensor's element `first` on."""
    if parameters is None:
        return Prediction(base, None, None)
    return predict_with_parameters(base, kind, parameters, first, has_rounding_class=has_rounding_class)


def as_decoded(fit: Fit | None) -> Parameters | None:
    """A fit as the decoder holds it."""
    if fit is None:
        return None
    parameters = Parameters(1 << 40)
    parameters.gain, parameters.left, parameters.right = fit.gain, fit.left, fit.right
    return parameters


def _propose_fits(tensor: Tensor, sampler: _Sampler, cost: float) -> Iterator[Fit]:
    """Proposals, the later ones built on the best of the earlier ones."""
    assert tensor.base is not None
    base, target = finite_values(tensor.base, tensor.kind), finite_values(tensor.target, tensor.kind)
    if base is None or target is None or (len(tensor.job.segments) > 1 and not tensor.job.shape):
        return
    sampled, count = len(sampler.ordered_target), tensor.count
    best_gain: Fit | None = None
    for fit in propose_gains(base, target, tensor.job.shape):
        trial = sampler.keyed_bits(fit, DEFAULT_SUB_BLOCK, has_rounding_class=False) + fit.cost_bits * sampled / count
        if trial < cost * 0.99:
            best_gain, cost = fit, trial
    if best_gain is not None:
        refit = refit_robustly(best_gain, base, target)
        if refit is not None:
            trial = (
                sampler.keyed_bits(refit, DEFAULT_SUB_BLOCK, has_rounding_class=False)
                + refit.cost_bits * sampled / count
            )
            best_gain = refit if trial < cost else best_gain
        yield best_gain
    rows = matrix_row_count(tensor.job.shape, count)
    if not rows or count < MIN_ELEMENTS:
        return
    difference = target - (base if best_gain is None else _apply_gain(base, best_gain))
    variance = rounding_variance(tensor.target, tensor.kind)
    if tensor.kind.size < 4 or not tensor.kind.is_float:
        variance = variance + rounding_variance(tensor.base, tensor.kind)
    floor = float(variance.mean())
    found = compute_spectrum(difference, rows)
    if found is None:
        return
    proposals = list(propose_low_rank(found, floor))
    if tensor.kind.is_float:
        proposals += propose_exact_low_rank(found, variance)
    for fit in proposals:
        if is_usable(fit):
            yield _with_gain(fit, best_gain)


def _apply_gain(base: Doubles, fit: Fit) -> Doubles:
    assert fit.gain is not None
    factors = fit.gain.factors
    out: Doubles = (base.reshape(-1, len(factors), fit.gain.inner) * factors[None, :, None]).reshape(-1)
    return out


def _with_gain(fit: Fit, gain: Fit | None) -> Fit:
    if gain is None:
        return fit
    return replace(fit, gain=gain.gain, name=f"{gain.name}, {fit.name}", cost_bits=fit.cost_bits + gain.cost_bits)
