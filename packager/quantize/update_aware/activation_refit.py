"""Ranges of pinned activations: kept where they serve the new model, fitted again where others serve it clearly better.

Rules:
1. The noise of a range is the error that its 256 levels leave, rounding and clipping, each value weighed by how much
   the answers depend on it there (`gradients`). It is taken from a histogram of BINS bins over the new model's values.
2. Both ends of a range are drawn in, in steps of SHRINKING each; the pair with the least noise is the best range.
   Ranges from the extremes alone spend most levels on a few outliers: on a text classifier the relative RMS of all
   activations together fell from .054 to .040.
3. The pinned range is kept unless the best one has less than WORTH_A_CHANGE of its noise, and unless the answers of the
   ordinarily quantized model are no worse with it: what is clipped is clipped in every row alike, and such errors add
   up where rounding errors do not. Where they are worse, a range that counts clipping CLIPPING_COUNTS times is tried.
   What would save less than WORTH_A_TRIAL of all noise is not tried.
4. Where the influence of an activation is not known, it is fitted to the extremes, and only where the new model
   values leave the pinned range by more than RANGE_SLACK or fill less than half of it.
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

HISTOGRAM_BINS: Final = 4_096
SHRINK_FACTOR: Final = 0.93
MAX_SHRINK_STEPS: Final = 24
MAX_NOISE_RATIO: Final = 0.95
MIN_NOISE_SHARE: Final = 0.005  # of the noise of all ranges together
RANGE_SLACK_SHARE: Final = 0.1  # of the pinned span
CLIPPING_WEIGHT: Final = 10.0
MAX_SAMPLES: Final = 48
TRIAL_SAMPLES: Final = 32


def pinned_ranges(template: onnx.ModelProto) -> dict[str, ActivationRange]:
    """Values of the top graph that the template quantizes to uint8 with fixed scales, with their ranges."""
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
    """New ranges of the pinned activations that should change (rules above).

    Args:
        template: the base, whose ranges are pinned.
        prepared: the new float model.
        ordinary: the new model quantized the ordinary way, on which ranges are tried.
        samples: a few of them are used.
    """
    made = {name for node in prepared.graph.node for name in node.output}
    made |= {value.name for value in prepared.graph.input}
    pinned = {name: found for name, found in pinned_ranges(template).items() if name in made}
    if not pinned:
        return {}
    samples = samples.take(MAX_SAMPLES)
    extremes = measure_ranges(prepared, set(pinned), samples)
    weighed = _histograms(prepared, {name: extremes[name] for name in pinned if name in extremes}, samples)
    changed = {
        name: extremes[name] for name, old in pinned.items() if name in extremes and _exceeds_range(extremes[name], old)
    }
    proposals: list[tuple[float, str, list[ActivationRange]]] = []
    total = 0.0
    for name, (values, weights) in weighed.items():
        now = quantization_noise(values, weights, changed.get(name, pinned[name]))
        best = best_range(values, weights)
        gain = now - quantization_noise(values, weights, best)
        total += now
        if gain > (1 - MAX_NOISE_RATIO) * now:
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
    """Weighed squared error of `values` [bins] on the 256 levels of a range (rule 1)."""
    scale, zero = scale_of(found)
    levels = np.rint(values / scale) + zero
    inside = np.clip(levels, 0, ACTIVATION_LEVELS)
    counts = np.where(levels == inside, 1.0, clipping)
    return float((weights * counts) @ np.square((inside - zero) * scale - values))


def best_range(values: np.ndarray, weights: np.ndarray, clipping: float = 1.0) -> ActivationRange:
    """Rule 2 for a histogram: `values` [bins] ascending, `weights` [bins]."""
    shares = SHRINK_FACTOR ** np.arange(MAX_SHRINK_STEPS)
    low, high = min(0.0, float(values[0])), max(0.0, float(values[-1]))
    lows, highs = (low * shares if low < 0 else [0.0]), (high * shares if high > 0 else [0.0])
    candidates = [ActivationRange(float(left), float(right)) for left in lows for right in highs if right > left]
    return min(
        candidates or [ActivationRange(low, high)],
        key=lambda candidate: quantization_noise(values, weights, candidate, clipping),
    )


class _RangeTrial:
    """Rule 3: the ordinary model with scales of activations that can be fed, one range after another."""

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
                # an initializer that is also an input may be fed
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                if all(value.name != tensor.name for value in model.graph.input):
                    model.graph.input.append(info)
        self._running = open_session_of(model, settings_for(model))
        self._samples = list(samples)
        reference = open_session_of(prepared)
        self._reference_outputs = [run_session(reference, sample) for sample in self._samples]
        self._error = self._measure_error(self._fed_scales)

    def is_no_worse(self, name: str, found: ActivationRange) -> bool:
        """Is the answers' error no larger with this range? It is kept then."""
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
        """Squared error over squared spread, summed over the answers."""
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
    """(middles of bins, squared gradients of the values in each) of every activation whose influence is known."""
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
            spots = ((values[name] - low) * (HISTOGRAM_BINS / max(high - low, 1e-30))).astype(np.int64)
            weights = np.square(slope.astype(np.float64)).ravel()
            found[name][1][:] += np.bincount(
                np.clip(spots, 0, HISTOGRAM_BINS - 1).ravel(), weights, minlength=HISTOGRAM_BINS
            )
    return {name: pair for name, pair in found.items() if pair[1].any()}


def _exceeds_range(found: ActivationRange, pinned: ActivationRange) -> bool:
    span = pinned.high - pinned.low
    beyond = max(pinned.low - found.low, found.high - pinned.high)
    return beyond > RANGE_SLACK_SHARE * span or found.high - found.low < 0.5 * span
