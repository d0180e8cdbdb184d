"""Refit the ranges of pinned activations if another range serves the new model clearly better.

Theory of operation. For one activation with values v over the calibration samples:

    B           HISTOGRAM_BINS
    values      float64 [B]     middles of equal bins between the extremes of v
    weights     float64 [B]     sum of the squared gradients g(v)^2 of the values in each bin (`gradients`)
    q(v; r)     v on the 256 levels of a range r = (low, high), clipped
    noise(r)    sum over bins of weights * (q(values; r) - values)^2

noise(r) estimates the output error that the range causes by rounding and clipping.

1. The best range is the one with the least noise among low * SHRINK_FACTOR^i, high * SHRINK_FACTOR^j. Ranges from the
   extremes spend most levels on a few outliers: on a text classifier, the relative RMS of all activations together fell
   from 0.054 to 0.040.
2. The pinned range stays unless noise(best) < MAX_NOISE_RATIO * noise(pinned), the gain is above MIN_NOISE_SHARE of all
   noise, and the outputs of the baseline model are no worse with the new range. Clipping errors are alike in every row
   and add up, which the estimate ignores; so a range with CLIPPING_WEIGHT times the clipping noise is tried second.
3. If gradients are unknown, the range is refitted to the extremes only if the new values exceed the pinned range by
   more than RANGE_SLACK_SHARE, or fill less than half of it.
"""

from typing import Final

import numpy as np
import onnx

from packager.models.graphs import array_of
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, run_session, settings_for
from packager.quantize.activation_ranges import ActivationRange, measure_ranges
from packager.quantize.static import ACTIVATION_LEVELS, scale_of
from packager.quantize.update_aware.gradients import GradientWalk, spread, spreads_of

HISTOGRAM_BINS: Final = 4_096  # sixteen bins for each of the 256 levels
SHRINK_FACTOR: Final = 0.93  # the smallest range tried is 0.93^23 = 0.19 of the extremes
MAX_SHRINK_STEPS: Final = 24  # steps of each end of a range; all pairs are tried
MAX_NOISE_RATIO: Final = (
    0.95  # share of the pinned range's noise; a change costs five bytes (docs/benchmarks.md) and a trial
)
MIN_NOISE_SHARE: Final = 0.005  # of the noise of all ranges together; bounds the number of trials
RANGE_SLACK_SHARE: Final = 0.1  # of the pinned span
CLIPPING_WEIGHT: Final = 10.0  # factor on the noise of clipped values in the second range that is tried
MAX_SAMPLES: Final = 48  # samples of the histograms
TRIAL_SAMPLES: Final = 32  # samples on which a range is tried


def pinned_ranges(template: onnx.ModelProto) -> dict[str, ActivationRange]:
    """Return the ranges that the template fixes for values of the top graph, by name.
    Only uint8 levels with one scale count.
    """
    fixed = {tensor.name: tensor for tensor in template.graph.initializer}
    found: dict[str, ActivationRange] = {}
    for node in template.graph.node:
        if (
            node.op_type != "QuantizeLinear"
            or len(node.input) < 3
            or not {node.input[1], node.input[2]} <= fixed.keys()
        ):
            continue
        scale, zero = fixed[node.input[1]], fixed[node.input[2]]
        if zero.data_type == onnx.TensorProto.UINT8 and not scale.dims:
            step, middle = float(array_of(scale)), int(array_of(zero))
            found[node.input[0]] = ActivationRange(-middle * step, (ACTIVATION_LEVELS - middle) * step)
    return found


def refit_ranges(
    template: onnx.ModelProto, prepared: onnx.ModelProto, baseline: onnx.ModelProto, samples: Samples
) -> dict[str, ActivationRange]:
    """Return new ranges, by value name, of the pinned activations that should change.

    Args:
        template: the base, whose ranges are pinned.
        prepared: the new float model.
        baseline: the new model quantized without the base; ranges are tried on it.
        samples: calibration samples, of which MAX_SAMPLES are used.
    """
    value_names = {name for node in prepared.graph.node for name in node.output}
    value_names |= {value.name for value in prepared.graph.input}
    pinned = {name: found for name, found in pinned_ranges(template).items() if name in value_names}
    if not pinned:
        return {}
    samples = samples.take(MAX_SAMPLES)
    extremes = measure_ranges(prepared, set(pinned), samples)
    histograms = _histograms(prepared, {name: extremes[name] for name in pinned if name in extremes}, samples)
    changed = {
        name: extremes[name] for name, old in pinned.items() if name in extremes and _exceeds_range(extremes[name], old)
    }
    proposals: list[tuple[float, str, list[ActivationRange]]] = []
    total = 0.0
    for name, (values, weights) in histograms.items():
        pinned_noise = quantization_noise(values, weights, changed.get(name, pinned[name]))
        best = best_range(values, weights)
        gain = pinned_noise - quantization_noise(values, weights, best)
        total += pinned_noise
        if gain > (1 - MAX_NOISE_RATIO) * pinned_noise:
            proposals.append((gain, name, [best, best_range(values, weights, CLIPPING_WEIGHT)]))
    proposals = [proposal for proposal in proposals if proposal[0] > MIN_NOISE_SHARE * total]
    if proposals:
        trial = _RangeTrial(prepared, baseline, pinned | changed, samples.take(TRIAL_SAMPLES))
        for _, name, candidates in sorted(proposals, key=lambda p: (-p[0], p[1])):
            accepted = next((found for found in candidates if trial.is_no_worse(name, found)), None)
            if accepted is not None:
                changed[name] = accepted
    return changed


def quantization_noise(values: np.ndarray, weights: np.ndarray, found: ActivationRange, clipping: float = 1.0) -> float:
    """Return the weighted squared error of values on the 256 levels of a range.

    Args:
        values: float64 [bins].
        weights: float64 [bins].
        found: the range.
        clipping: factor on the errors of clipped values.
    """
    scale, zero = scale_of(found)
    levels = np.rint(values / scale) + zero
    inside = np.clip(levels, 0, ACTIVATION_LEVELS)
    counts = np.where(levels == inside, 1.0, clipping)
    return float((weights * counts) @ np.square((inside - zero) * scale - values))


def best_range(values: np.ndarray, weights: np.ndarray, clipping: float = 1.0) -> ActivationRange:
    """Return the range with the least noise for a histogram.

    Args:
        values: float64 [bins], ascending.
        weights: float64 [bins].
        clipping: factor on the errors of clipped values.
    """
    shares = SHRINK_FACTOR ** np.arange(MAX_SHRINK_STEPS)
    low, high = min(0.0, float(values[0])), max(0.0, float(values[-1]))
    lows, highs = (low * shares if low < 0 else [0.0]), (high * shares if high > 0 else [0.0])
    candidates = [ActivationRange(float(left), float(right)) for left in lows for right in highs if right > left]
    return min(
        candidates or [ActivationRange(low, high)],
        key=lambda candidate: quantization_noise(values, weights, candidate, clipping),
    )


class _RangeTrial:
    """The baseline model with activation scales that can be fed.
    Ranges are tried and kept one after another.
    """

    def __init__(
        self, prepared: onnx.ModelProto, baseline: onnx.ModelProto, ranges: dict[str, ActivationRange], samples: Samples
    ) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(baseline)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._fed_scales: dict[str, np.ndarray] = {}
        self._value_positions: dict[str, tuple[onnx.TensorProto, onnx.TensorProto]] = {}
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in ranges and {*node.input[1:3]} <= tensors.keys():
                self._value_positions[node.input[0]] = (tensors[node.input[1]], tensors[node.input[2]])
        for name, pair in self._value_positions.items():
            self._fed_scales.update(self._scale_values(name, ranges[name]))
            for tensor in pair:
                # an initializer that is also an input can be fed
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                if all(value.name != tensor.name for value in model.graph.input):
                    model.graph.input.append(info)
        self._running = open_session_of(model, settings_for(model))
        self._samples = list(samples)
        reference = open_session_of(prepared)
        self._reference_outputs = [run_session(reference, sample) for sample in self._samples]
        self._error = self._measure_error(self._fed_scales)

    def is_no_worse(self, name: str, found: ActivationRange) -> bool:
        """Try a range; if the outputs' error does not grow, keep it and return True."""
        if name not in self._value_positions:
            return False
        fed = self._fed_scales | self._scale_values(name, found)
        error = self._measure_error(fed)
        if error > self._error:
            return False
        self._fed_scales, self._error = fed, error
        return True

    def _scale_values(self, name: str, found: ActivationRange) -> dict[str, np.ndarray]:
        scale, zero = (np.asarray(number) for number in scale_of(found))
        pair = zip(self._value_positions[name], (scale, zero), strict=True)
        return {
            tensor.name: number.astype(array_of(tensor).dtype).reshape(tuple(tensor.dims)) for tensor, number in pair
        }

    def _measure_error(self, fed: dict[str, np.ndarray]) -> float:
        """Return the error of the outputs: squared error over squared spread, summed over the outputs."""
        errors: dict[int, float] = {}
        for sample, right in zip(self._samples, self._reference_outputs, strict=True):
            for i, (a, b) in enumerate(zip(run_session(self._running, {**sample, **fed}), right, strict=True)):
                if a.dtype.kind == "f" and a.shape == b.shape:
                    errors[i] = errors.get(i, 0.0) + float(np.mean(np.square(a.astype(np.float64) - b)))
        spreads = {i: spread([right[i] for right in self._reference_outputs]) for i in errors}
        return sum(error / spreads[i] ** 2 for i, error in errors.items() if spreads[i] > 0)


def _histograms(
    prepared: onnx.ModelProto, extremes: dict[str, ActivationRange], samples: Samples
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (middles of the bins, squared gradients in each) of every activation whose gradient is known."""
    gradients = GradientWalk(prepared, frozenset(extremes))
    spreads = spreads_of(prepared, samples)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if not gradients.known_names:
        return found
    for values, slopes in gradients.gradients_with_values(samples, spreads):
        for name, slope in slopes.items():
            low, high = extremes[name].low, extremes[name].high
            if name not in found:
                edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
                found[name] = ((edges[:-1] + edges[1:]) / 2, np.zeros(HISTOGRAM_BINS))
            bins = ((values[name] - low) * (HISTOGRAM_BINS / max(high - low, 1e-30))).astype(np.int64)
            weights = np.square(slope.astype(np.float64)).ravel()
            found[name][1][:] += np.bincount(
                np.clip(bins, 0, HISTOGRAM_BINS - 1).ravel(), weights, minlength=HISTOGRAM_BINS
            )
    return {name: pair for name, pair in found.items() if pair[1].any()}


def _exceeds_range(found: ActivationRange, pinned: ActivationRange) -> bool:
    span = pinned.high - pinned.low
    beyond = max(pinned.low - found.low, found.high - pinned.high)
    return beyond > RANGE_SLACK_SHARE * span or found.high - found.low < 0.5 * span
