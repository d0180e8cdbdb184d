"""Coding plans: how a tensor is coded, and what a plan costs on a sample of the tensor."""

from dataclasses import dataclass

import numpy as np

from bundle.patch.coders import zigzag
from bundle.patch.elements import Bits, ElementType, Signed, to_ordered
from bundle.patch.parameters import Parameters
from bundle.patch.prediction import Prediction, predict_with_parameters
from bundle.patch.typed import Coder, Predictor
from packager.diff.encode.entropy import (
    SINGLE_CLASS_SUB_BLOCK,
    Period,
    compute_residual,
    write_keyed,
    write_part,
    write_planes,
)
from packager.diff.encode.predictors import Fit
from packager.diff.encode.tensor_job import Tensor, block_elements


@dataclass(frozen=True, slots=True)
class CodingPlan:
    """The choices for one tensor.

    Attributes:
        predictor: NONE, BASE or PARAM.
        fit: the parameters; None unless the predictor is PARAM.
        coder: compression of the residuals.
        sub_block: elements of a sub-block of KEYED.
        has_rounding_class: sets the flag ROUNDING_CLASS.
        name: name of the predictor in the report.
        period: sets the flag PATTERN.
        has_units: sets the flag UNIT.
    """

    predictor: Predictor
    fit: Fit | None
    coder: Coder
    sub_block: int
    has_rounding_class: bool
    name: str
    period: Period | None = None
    has_units: bool = False


class PlanSampler:
    """The sample of a tensor and the cost of plans on it.

    Args:
        tensor: the whole tensor.

    Attributes:
        slices: the ranges of elements that make up the sample.
        ordered_target: the sampled target elements as ordered integers [m].
        count: m, the number of sampled elements.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.slices = tensor, tensor.sample_slices()
        parts = [to_ordered(tensor.target[piece], tensor.kind) for piece in self.slices]
        self.ordered_target: Signed = np.concatenate(parts)
        self.count = len(self.ordered_target)
        self._options = tensor.job.options
        self._fit: Fit | None = None
        self._predictions: dict[bool, Prediction] = {}

    def plan_bits(self, plan: CodingPlan) -> float:
        """Return the bits that the sample takes by this plan, and its share of the bits of the parameters."""
        parameter_bits = plan.fit.cost_bits * self.count / self.tensor.count if plan.fit is not None else 0.0
        if plan.predictor is Predictor.NONE:
            return self._bits_without_base(plan)
        return (self._keyed_bits(plan) if plan.coder is Coder.KEYED else self._planes_bits(plan)) + parameter_bits

    @property
    def base_residual(self) -> Signed:
        """The residuals from the unchanged base [m]."""
        prediction = self._prediction(None, has_rounding_class=False)
        return compute_residual(self.ordered_target, prediction, self.tensor.kind)

    def _prediction(self, fit: Fit | None, *, has_rounding_class: bool) -> Prediction:
        """Predict the sample; the predictions of the latest fit are kept, since it is tried in several ways."""
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
        rounding_class = np.concatenate([part.rounding_class for part in parts if part.rounding_class is not None])
        rounded_up = np.concatenate([part.rounded_up for part in parts if part.rounded_up is not None])
        return Prediction(bits, rounding_class, rounded_up)

    def _keyed_bits(self, plan: CodingPlan) -> float:
        kind, period = self.tensor.kind, plan.period
        prediction = self._prediction(plan.fit, has_rounding_class=plan.has_rounding_class)
        residual = compute_residual(self.ordered_target, prediction, kind)
        tables, parts = write_keyed(
            residual, prediction, kind, plan.sub_block, self._options, period, has_units=plan.has_units
        )
        # A period's table has one size for any block, unlike the classes of sub-blocks: count the sample's share of it.
        block = min(block_elements(kind.name), self.tensor.count)
        is_constant = period is not None and plan.sub_block == SINGLE_CLASS_SUB_BLOCK
        return 8.0 * (len(tables) * (self.count / block if is_constant else 1.0) + len(parts))

    def _planes_bits(self, plan: CodingPlan) -> float:
        prediction = self._prediction(plan.fit, has_rounding_class=plan.has_rounding_class)
        residual = compute_residual(self.ordered_target, prediction, self.tensor.kind)
        return 8.0 * len(write_planes(zigzag(residual), self._options))

    def _bits_without_base(self, plan: CodingPlan) -> float:
        kind = self.tensor.kind
        if plan.coder is Coder.KEYED:
            return 8.0 * sum(map(len, write_keyed(self.ordered_target, None, kind, plan.sub_block, self._options)))
        if plan.coder is Coder.SINGLE_PART:
            return 8.0 * len(write_part(self.ordered_target, self._options))
        bits = np.concatenate([self.tensor.target[piece] for piece in self.slices])
        return 8.0 * len(write_planes(bits, self._options))


def predict_block(
    base: Bits, kind: ElementType, parameters: Parameters | None, first: int, *, has_rounding_class: bool
) -> Prediction:
    """Predict a block from the base, with or without parameters.

    Args:
        base: the base's elements [count].
        kind: their type.
        parameters: None predicts the base's elements unchanged.
        first: index of the block's first element in its tensor.
        has_rounding_class: compute rounding classes too; only with parameters.
    """
    if parameters is None:
        return Prediction(base, None, None)
    return predict_with_parameters(base, kind, parameters, first, has_rounding_class=has_rounding_class)


def as_decoded(fit: Fit | None) -> Parameters | None:
    """Convert a fit to the parameters that the decoder will have in force."""
    if fit is None:
        return None
    parameters = Parameters(1 << 40)
    parameters.gain, parameters.left, parameters.right = fit.gain, fit.left, fit.right
    return parameters
