"""Choose how a tensor is coded: predictor, coder and key, by their cost on a sample.

Theory of operation. A tensor has n elements t(i), usually with n base elements b(i) of the same type, both bits [n].
Its coding is a `CodingPlan`: a predictor (the base, the base with fitted parameters, or none), a coder (KEYED, PLANES
or SINGLE_PART, docs/format.md section 9.7), and for KEYED the terms of its key (sub-block size, period, rounding class,
units). Trying all combinations on all elements would take minutes for each model, so:

    1. m sampled elements stand for the tensor (`Tensor.sample_slices`: all, or 4 runs of elements that keep the phase
       of rows and periods). A plan's cost, in bits, is the size of the sample encoded by the real coder, plus the share
       m / n of the bits of its parameters: a fit has to pay for itself.
    2. The choices are made one after the other, each with the winners of the earlier ones. They are nearly independent:
       a better predictor makes residuals smaller, and the key sorts them, whatever their size is.
    3. A later candidate replaces the best one only if it costs less than the best one times a margin. Margins below 1
       are for candidates that look better on a sample than they are, or that take more of the device's time; margins
       above 1 are for candidates that the device decodes faster.

Cases, in order; each is one function:

    1  the base as the prediction; without a base, no prediction
    2  fitted parameters: per-channel gain, low rank, both; each with and without rounding classes in the key
    3  the sub-block size: 64, 256, 2048 elements, or one class for the whole block
    4  one sub-block for each row of the tensor
    5  a pattern: the position in a kernel, the input channel or the column as a part of the key
    6  residuals in units: multiples of steps that a quantizer chose
    7  byte planes instead of sorted residuals
    8  no prediction, if the best plan still takes more than half of the uncompressed size

Numbers below refer to rows of the table "What pays, and what does not" in docs/benchmarks.md.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from bundle.patch.elements import Doubles, ElementType
from bundle.patch.typed import Coder, Predictor
from packager.diff.encode.coding_plan import CodingPlan, PlanSampler
from packager.diff.encode.entropy import SINGLE_CLASS_SUB_BLOCK, Period, is_in_units
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
from packager.diff.encode.tensor_job import Tensor

DEFAULT_SUB_BLOCK: Final = 256  # elements of a sub-block
SUB_BLOCK_SIZES: Final = (64, DEFAULT_SUB_BLOCK, 2048)
FITTABLE_TYPES: Final = ("f32", "f16", "bf16", "f64", "i8", "u8", "i16", "u16")
MIN_FITTED_ELEMENTS: Final = 256  # with fewer elements no fit pays for its parameters

# A candidate must cost less than the best plan times its margin.
FIT_MARGIN: Final = 0.995  # fitted parameters take device time, and a sample flatters them
GAIN_MARGIN: Final = (
    0.99  # a gain against the base alone or the gains before it; row "per-channel gains": 1 % on the CNN
)
LOWER_RANK_MARGIN: Final = 1.005  # a lower rank is applied faster
PRODUCT_MARGIN: Final = 0.98  # for integers: a product doubles the device's time; row "directions of the update": 2 %
ROUNDING_CLASS_MARGIN: Final = 0.995  # takes a seventh of the device's time; row "how a prediction was rounded"
SINGLE_CLASS_MARGIN: Final = 1.003  # one class is decoded faster; row "64-element classes in fine-tunes"
ROW_MARGIN: Final = 0.99  # row "rows as context": less than 1 % of ordinary fine-tunes, 3 % where few levels change
PERIOD_MARGIN: Final = 0.99  # rows "the place in a kernel" (4 % on the fp32 CNN) and "columns as context" (0 to 1 %)
UNITS_MARGIN: Final = 0.99  # row "floats that a quantizer moved in steps": a quarter where it applies, else nothing
PLANES_MARGIN: Final = 0.98  # planes see repetition that may be an accident of the sample
NO_BASE_MARGIN: Final = 1.0  # without a base there is nothing to fit and no extra device time

ROUNDING_CLASS_MAX_BITS: Final = 6.0  # bits per element; longer residuals do not depend on how a prediction was rounded
NO_BASE_MIN_SHARE: Final = 0.5  # of the uncompressed size: below it the base is of use, and case 8 is not tried


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A plan and its cost on the sample, in bits."""

    plan: CodingPlan
    bits: float


_Margin = float | Callable[[CodingPlan, CodingPlan], float]  # a function takes the best plan and the candidate


@np.errstate(
    over="ignore", invalid="ignore"
)  # doubles near the end of their range: a fit that is not finite is dropped
def choose_coding(tensor: Tensor) -> CodingPlan:
    """Return the cheapest coding of a tensor on a sample of its elements (see the module's cases)."""
    sampler = PlanSampler(tensor)
    best = _base_or_nothing(sampler)  # 1
    if tensor.base is not None:
        best = _cheaper(best, _fitted_predictors(sampler, best), _fit_margin(tensor.kind))  # 2
        sizes = list(_sub_block_sizes(sampler, best))
        best = _cheaper(min(sizes, key=lambda size: size.bits), sizes[-1:], SINGLE_CLASS_MARGIN)  # 3
        best = _cheaper(best, _sub_blocks_of_rows(sampler, best), ROW_MARGIN)  # 4
        for period in tensor.propose_periods():
            best = _cheaper(best, _keys_by_position(sampler, best, period), PERIOD_MARGIN)  # 5
        best = _cheaper(best, _residuals_in_units(sampler, best), UNITS_MARGIN)  # 6
        best = _cheaper(best, _byte_planes(sampler, best), PLANES_MARGIN)  # 7
    return _cheaper(best, _without_base(sampler, best), NO_BASE_MARGIN).plan  # 8


def _candidate(sampler: PlanSampler, plan: CodingPlan) -> _Candidate:
    return _Candidate(plan, sampler.plan_bits(plan))


def _cheaper(best: _Candidate, candidates: Iterable[_Candidate], margin: _Margin) -> _Candidate:
    """Return the best plan after replacing it by each candidate that costs less than it times the margin."""
    for candidate in candidates:
        factor = margin(best.plan, candidate.plan) if callable(margin) else margin
        if candidate.bits < best.bits * factor:
            best = candidate
    return best


def _base_or_nothing(sampler: PlanSampler) -> _Candidate:
    """Case 1: predict the base's elements; without a base, no plan yet, at an infinite cost."""
    job = sampler.tensor.job
    if sampler.tensor.base is None:
        nothing = CodingPlan(Predictor.NONE, None, Coder.KEYED, DEFAULT_SUB_BLOCK, False, "none")
        return _Candidate(nothing, float("inf"))
    name = "transposed base" if job.is_transposed else "base"
    plan = CodingPlan(Predictor.BASE, None, Coder.KEYED, DEFAULT_SUB_BLOCK, False, name)
    return _candidate(sampler, plan)


def _fitted_predictors(sampler: PlanSampler, base: _Candidate) -> Iterator[_Candidate]:
    """Case 2: predict by fitted parameters, with rounding classes in the key if these pay."""
    tensor = sampler.tensor
    job, kind = tensor.job, tensor.kind
    if not (job.can_fit and job.options.has_fitting and kind.name in FITTABLE_TYPES):
        return
    if tensor.count < MIN_FITTED_ELEMENTS:
        return
    for fit in _propose_fits(sampler, base.bits):
        plan = replace(base.plan, predictor=Predictor.PARAM, fit=fit, name=fit.name)
        bits = sampler.plan_bits(plan)
        if bits < ROUNDING_CLASS_MAX_BITS * sampler.count and kind.name != "f64":
            with_class = replace(plan, has_rounding_class=True)
            with_class_bits = sampler.plan_bits(with_class)
            if with_class_bits < ROUNDING_CLASS_MARGIN * bits:
                plan, bits = with_class, with_class_bits
        yield _Candidate(plan, bits)


def _fit_margin(kind: ElementType) -> _Margin:
    """Return the margin of case 2 for elements of one type; it depends on the ranks of both plans."""

    def margin(best: CodingPlan, candidate: CodingPlan) -> float:
        best_rank = 0 if best.fit is None else best.fit.rank
        rank = 0 if candidate.fit is None else candidate.fit.rank
        if rank and not best_rank and not kind.is_float:
            return PRODUCT_MARGIN
        # Proposals of one kind come with falling rank: if two cost the same, the later one is applied faster.
        return LOWER_RANK_MARGIN if rank < best_rank else FIT_MARGIN

    return margin


def _sub_block_sizes(sampler: PlanSampler, best: _Candidate) -> Iterator[_Candidate]:
    """Case 3: classes of several sub-block sizes; one class for the whole block comes last."""
    for sub_block in (*SUB_BLOCK_SIZES, SINGLE_CLASS_SUB_BLOCK):
        yield _candidate(sampler, replace(best.plan, sub_block=sub_block))


def _sub_blocks_of_rows(sampler: PlanSampler, best: _Candidate) -> Iterator[_Candidate]:
    """Case 4: a class for each row."""
    if sampler.tensor.row_elements:
        yield _candidate(sampler, replace(best.plan, sub_block=sampler.tensor.row_elements))


def _keys_by_position(sampler: PlanSampler, best: _Candidate, period: Period) -> Iterator[_Candidate]:
    """Case 5: a pattern of one period, with the best sub-blocks so far, one class, and rows as sub-blocks."""
    sub_blocks = {best.plan.sub_block, SINGLE_CLASS_SUB_BLOCK}
    if sampler.tensor.row_elements:
        sub_blocks.add(sampler.tensor.row_elements)
    for sub_block in sorted(sub_blocks):
        yield _candidate(sampler, replace(best.plan, sub_block=sub_block, period=period))


def _residuals_in_units(sampler: PlanSampler, best: _Candidate) -> Iterator[_Candidate]:
    """Case 6: residuals from the unchanged base, divided by the step that a quantizer chose."""
    if best.plan.fit is None and is_in_units(sampler.base_residual, sampler.tensor.kind):
        for sub_block in SUB_BLOCK_SIZES:
            yield _candidate(sampler, replace(best.plan, sub_block=sub_block, period=None, has_units=True))


def _byte_planes(sampler: PlanSampler, best: _Candidate) -> Iterator[_Candidate]:
    """Case 7: byte planes of the residuals."""
    yield _candidate(sampler, replace(best.plan, coder=Coder.PLANES))


def _without_base(sampler: PlanSampler, best: _Candidate) -> Iterator[_Candidate]:
    """Case 8: no prediction, if there is no base or it is of little use."""
    tensor = sampler.tensor
    if tensor.base is not None and best.bits <= NO_BASE_MIN_SHARE * 8 * tensor.kind.size * sampler.count:
        return
    for coder, sub_block in (
        (Coder.KEYED, 64),
        (Coder.KEYED, DEFAULT_SUB_BLOCK),
        (Coder.SINGLE_PART, 0),
        (Coder.PLANES, 0),
    ):
        yield _candidate(sampler, CodingPlan(Predictor.NONE, None, coder, sub_block, False, "none"))


def _propose_fits(sampler: PlanSampler, base_bits: float) -> Iterator[Fit]:
    """Propose fits: the best gain, then low-rank products on top of it."""
    tensor = sampler.tensor
    assert tensor.base is not None
    base, target = finite_values(tensor.base, tensor.kind), finite_values(tensor.target, tensor.kind)
    if base is None or target is None or (len(tensor.job.segments) > 1 and not tensor.job.shape):
        return
    best_gain = _choose_gain(sampler, base, target, base_bits)
    if best_gain is not None:
        yield best_gain
    rows = matrix_row_count(tensor.job.shape, tensor.count)
    if not rows or tensor.count < MIN_ELEMENTS:
        return
    difference = target - (base if best_gain is None else _apply_gain(base, best_gain))
    variance = rounding_variance(tensor.target, tensor.kind)
    if tensor.kind.size < 4 or not tensor.kind.is_float:
        variance = variance + rounding_variance(tensor.base, tensor.kind)
    floor = float(variance.mean())
    spectrum = compute_spectrum(difference, rows)
    if spectrum is None:
        return
    proposals = list(propose_low_rank(spectrum, floor))
    if tensor.kind.is_float:
        proposals += propose_exact_low_rank(spectrum, variance)
    for fit in proposals:
        if is_usable(fit):
            yield _with_gain(fit, best_gain)


def _choose_gain(sampler: PlanSampler, base: Doubles, target: Doubles, base_bits: float) -> Fit | None:
    """Return the cheapest gain, fitted robustly if that is cheaper; None if the base alone is as cheap."""

    def gain_bits(fit: Fit) -> float:
        plan = CodingPlan(Predictor.PARAM, fit, Coder.KEYED, DEFAULT_SUB_BLOCK, False, fit.name)
        return sampler.plan_bits(plan)

    best, best_bits = None, base_bits
    for fit in propose_gains(base, target, sampler.tensor.job.shape):
        bits = gain_bits(fit)
        if bits < best_bits * GAIN_MARGIN:
            best, best_bits = fit, bits
    refit = refit_robustly(best, base, target) if best is not None else None
    return refit if refit is not None and gain_bits(refit) < best_bits else best


def _apply_gain(base: Doubles, fit: Fit) -> Doubles:
    assert fit.gain is not None
    factors = fit.gain.factors
    out: Doubles = (base.reshape(-1, len(factors), fit.gain.inner) * factors[None, :, None]).reshape(-1)
    return out


def _with_gain(fit: Fit, gain: Fit | None) -> Fit:
    if gain is None:
        return fit
    return replace(fit, gain=gain.gain, name=f"{gain.name}, {fit.name}", cost_bits=fit.cost_bits + gain.cost_bits)
