"""An update is quantized near its base with a small patch and equal accuracy; a retrained model is recognized."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import quantization as foreign

from packager.errors import BaseIncompatible
from packager.models.graphs import array_of
from packager.models.random_inputs import random_samples
from packager.quantize.candidates import Method
from packager.quantize.int4 import quantize_int4
from packager.quantize.nbits import pack_levels, unpack_levels
from packager.quantize.prepare import prepare_model
from packager.quantize.schemes import DEFAULT_OPTIONS, QuantizeOptions, quantize_model, save_model
from packager.quantize.update_aware import coordinate_descent
from packager.quantize.update_aware.coordinate_descent import Layer, bits_of_changes, choose_levels
from packager.quantize.update_aware.quantize_update import UpdateReport, quantize_update
from packager.quantize.update_aware.rate_search import entropy_bits
from tests.support import tiny_models
from tests.support.model_pairs import STATIC, QuantizedBase, fine_tune, quantize_base


def fine_tune_and_update(folder: Path, base: QuantizedBase, amount: float = 0.01) -> tuple[UpdateReport, Path]:
    """Fine-tune the model behind `base` and update `base` to it; return the report and the update."""
    calibration, held_out = base.samples.split_halves()
    new, out = base.write_fine_tuned(folder, amount), folder / "update.onnx"
    return quantize_update(new, base.path, out, calibration, held_out, max_over_baseline=1.15), out


def changed_bytes(base: Path, update_: Path) -> int:
    left, right = base.read_bytes(), update_.read_bytes()
    assert len(left) == len(right)
    return int(np.count_nonzero(np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8)))


@pytest.mark.parametrize("method", ["static", "dynamic", "weights"])
def test_small_update_changes_few_levels_and_stays_near_ordinary_quality(
    method: Method, text_base: QuantizedBase, tmp_path: Path
) -> None:
    other = QuantizeOptions(methods=(method,), measure_latency=False)
    base = text_base if method == "static" else quantize_base(text_base.model, tmp_path, 96, other)
    report, out = fine_tune_and_update(tmp_path, base)
    assert report.method == "joint", report.reason
    assert report.gate.relative_rms is not None
    assert report.baseline.relative_rms is not None
    assert report.gate.relative_rms <= 1.3 * report.baseline.relative_rms
    nearest_levels = 0.5  # bits a weight that rounding to nearest costs for this step, roughly
    assert report.bits_per_weight is not None
    assert report.bits_per_weight < nearest_levels
    assert changed_bytes(base.path, out) < 0.25 * base.path.stat().st_size


@pytest.mark.parametrize("kind", [pytest.param("convolutions", marks=pytest.mark.slow), "recurrent", "nested"])
def test_other_networks_are_updated_by_the_same_method(kind: str, tmp_path: Path) -> None:
    made = {
        "convolutions": tiny_models.conv_net(),
        "recurrent": tiny_models.recurrent(),
        "nested": tiny_models.branching(),
    }
    base = quantize_base(made[kind], tmp_path, 96, DEFAULT_OPTIONS)
    report, out = fine_tune_and_update(tmp_path, base)
    assert report.gate.relative_rms is not None
    assert len(out.read_bytes()) == pytest.approx(len(base.path.read_bytes()), rel=0.01)
    onnx.checker.check_model(onnx.load(out))


def test_retrained_model_is_told_apart_and_quantized_afresh(tmp_path: Path) -> None:
    old = tiny_models.save(tiny_models.text_encoder(0), tmp_path / "old.onnx")
    new = tiny_models.save(tiny_models.text_encoder(99), tmp_path / "new.onnx")
    samples = random_samples(old, 64)
    quantize_model(old, tmp_path / "base.onnx", "int8", samples, STATIC)
    calibration, held = samples.split_halves()
    report = quantize_update(new, tmp_path / "base.onnx", tmp_path / "out.onnx", calibration, held)
    assert report.method == "baseline"
    assert "would be requantized" in report.reason
    assert report.gate.relative_rms == report.baseline.relative_rms


def test_model_with_other_layers_does_not_fit(tmp_path: Path) -> None:
    old = tiny_models.save(tiny_models.text_encoder(layers=2), tmp_path / "old.onnx")
    new = tiny_models.save(tiny_models.text_encoder(layers=1), tmp_path / "new.onnx")
    samples = random_samples(old, 32)
    quantize_model(old, tmp_path / "base.onnx", "int8", samples, STATIC)
    with pytest.raises(BaseIncompatible, match="is not in the new model") as caught:
        quantize_update(new, tmp_path / "base.onnx", tmp_path / "out.onnx", *samples.split_halves())
    assert caught.value.reason == "base-incompatible"


def test_int4_update_keeps_the_block_scales(tmp_path: Path) -> None:
    model = tiny_models.text_encoder(width=128)
    old = tiny_models.save(model, tmp_path / "old.onnx")
    new = tiny_models.save(fine_tune(model, 1, 0.01), tmp_path / "new.onnx")
    samples = random_samples(old, 64)
    base = quantize_int4(prepare_model(old, next(iter(samples))).model)
    save_model(base, tmp_path / "base.onnx")
    report = quantize_update(
        new, tmp_path / "base.onnx", tmp_path / "out.onnx", *samples.split_halves(), max_over_baseline=1.2
    )
    out = onnx.load(tmp_path / "out.onnx")
    scales = {t.name: array_of(t) for t in base.graph.initializer if t.name.endswith("_scales")}
    assert scales
    assert report.method == "joint", report.reason
    for tensor in out.graph.initializer:
        if tensor.name in scales:
            assert np.array_equal(array_of(tensor), scales[tensor.name])


def optimize_levels(layer: Layer, inputs: np.ndarray, price: float, rows: float | None = None) -> np.ndarray:
    """Return the optimal levels for inputs [rows, inputs], weighted as `rows` rows if given."""
    h = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    wanted = h @ layer.weight.astype(np.float32)
    return choose_levels(layer, h, wanted, float(np.sum(layer.weight * wanted)), price, rows or len(inputs))


def layer_error(layer: Layer, levels: np.ndarray, inputs: np.ndarray) -> float:
    """Return the mean squared error of a layer's outputs for inputs [rows, inputs]."""
    return float(np.square(inputs @ (levels * layer.scale - layer.weight)).mean())


def test_joint_choice_beats_rounding_at_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2000, 64)) @ rng.standard_normal((64, 64)) / 8
    old = rng.standard_normal((64, 96)) * 0.1
    new = old + 0.004 * rng.standard_normal((64, 96))
    scale = np.abs(old).max(axis=0, keepdims=True) / 127
    base = np.rint(old / scale).astype(np.int32)
    layer = Layer(new, scale, np.zeros((1, 96)), base, -127, 127)
    levels = optimize_levels(layer, inputs, 1e-7)
    assert entropy_bits(levels - base) < 0.5 * entropy_bits(layer.nearest() - base)
    assert layer_error(layer, levels, inputs) < layer_error(layer, base, inputs)


def make_moved_layer(inputs: int, steps: float) -> Layer:
    """Return a layer whose weights moved by a standard deviation of `steps` steps."""
    rng = np.random.default_rng(1)
    base = rng.integers(-90, 90, (inputs, 96)).astype(np.int32)
    scale = np.full((1, 96), 1e-3)
    return Layer((base + steps * rng.standard_normal(base.shape)) * scale, scale, np.zeros((1, 96)), base, -127, 127)


@pytest.mark.parametrize("steps", [0.5, 2.0, 6.0])
def test_joint_choice_follows_a_weight_however_far_it_moved(steps: float) -> None:
    rng, layer = np.random.default_rng(1), make_moved_layer(64, steps)
    inputs = rng.standard_normal((2000, 64)) @ rng.standard_normal((64, 64)) / 8
    levels, nearest = optimize_levels(layer, inputs, 1e-9), layer.nearest()
    assert layer_error(layer, levels, inputs) < layer_error(layer, nearest, inputs)
    assert entropy_bits(levels - layer.base) < 1.1 * entropy_bits(nearest - layer.base)


def test_walk_to_weights_that_moved_far_starts_near_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, layer = np.random.default_rng(3), make_moved_layer(256, 4.0)
    inputs = rng.standard_normal((2000, 256)) @ rng.standard_normal((256, 256)) / 16
    near = layer_error(layer, optimize_levels(layer, inputs, 1e-9), inputs)
    monkeypatch.setattr(coordinate_descent, "MANY_CHANGED_SHARE", 1.0)
    assert near < 0.98 * layer_error(layer, optimize_levels(layer, inputs, 1e-9), inputs)


def test_few_rows_are_not_taken_for_more_than_they_tell() -> None:
    rng, layer = np.random.default_rng(2), make_moved_layer(128, 0.4)
    seen, unseen = rng.standard_normal((16, 128)), rng.standard_normal((4000, 128))
    few, many = (layer_error(layer, optimize_levels(layer, seen, 1e-9, rows), unseen) for rows in (16.0, 1e9))
    assert few < 0.95 * many


def test_four_bit_levels_survive_packing() -> None:
    levels = np.random.default_rng(0).integers(0, 16, (5, 70)).astype(np.uint8)
    assert np.array_equal(unpack_levels(pack_levels(levels, 32), 70), levels)


def test_frequent_changes_are_cheaper_than_rare_ones() -> None:
    bits = bits_of_changes(np.array([0] * 90 + [1] * 9 + [2]))
    middle = len(bits) // 2
    assert bits[middle] < bits[middle + 1] < bits[middle + 2] < bits[middle + 5]


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_base_that_onnxruntime_quantized_is_updated_too(how: str, tmp_path: Path) -> None:
    model = tiny_models.text_encoder(width=128)
    old, base = tiny_models.save(model, tmp_path / "old.onnx"), tmp_path / "base.onnx"
    new = tiny_models.save(fine_tune(model, 1, 0.01), tmp_path / "new.onnx")
    samples = random_samples(old, 64)

    class Reader(foreign.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime carries no types
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    # weights of full range saturate on a CPU without VNNI, and what runs there is no base to improve on
    settings = {"per_channel": True, "reduce_range": True, "op_types_to_quantize": ["MatMul", "Gemm"]}
    if how == "static":
        foreign.quantize_static(old, base, Reader(), **settings)
    else:
        foreign.quantize_dynamic(old, base, **settings)
    report = quantize_update(new, base, tmp_path / "out.onnx", *samples.split_halves(), max_over_baseline=2.0)
    assert report.method == "joint", report.reason
    assert report.gate.relative_rms is not None
    assert report.unchanged_base.relative_rms is not None
    assert report.gate.relative_rms < 2.5 * (report.baseline.relative_rms or 0.0)
