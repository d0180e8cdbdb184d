"""The gate passes accurate models, fails broken ones, and reports when it cannot decide."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.models.graphs import array_of
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, samples_from
from packager.quantize.gate import run_gate
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, Path, Samples]:
    """Return (float model, its int8 model, samples)."""
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    samples = random_samples(model, 64)
    report = quantize_model(model, tmp_path / "int8.onnx", "int8", samples, QuantizeOptions(measure_latency=False))
    assert report.outcome == "quantized", report.as_lines()
    return model, tmp_path / "int8.onnx", samples


def scale_initializer(source: Path, out: Path, name: str, change: float) -> Path:
    """Write `source` with one initializer multiplied by `change`."""
    model = onnx.load(source)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = array_of(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * change).astype(values.dtype), name))
    return tiny_models.save(model, out)


def test_good_quantization_passes(encoder: tuple[Path, Path, Samples]) -> None:
    report = run_gate(*encoder)
    assert (report.verdict, report.samples) == ("pass", 64)
    assert report.relative_rms is not None
    assert 0 < report.relative_rms < 0.1


@pytest.mark.parametrize("layer", ["table_scale", "up0_scale", "down1_scale", "head_scale"])
def test_one_layer_of_zeros_is_caught(layer: str, encoder: tuple[Path, Path, Samples], tmp_path: Path) -> None:
    model, quantized, samples = encoder
    report = run_gate(model, scale_initializer(quantized, tmp_path / "broken.onnx", layer, 0.0), samples)
    assert report.verdict == "fail"
    assert "relative RMS" in report.explanation


def test_answers_that_became_nan_fail(encoder: tuple[Path, Path, Samples], tmp_path: Path) -> None:
    model, quantized, samples = encoder
    report = run_gate(model, scale_initializer(quantized, tmp_path / "nan.onnx", "head_scale", float("nan")), samples)
    assert report.verdict == "fail"
    assert "NaN" in report.explanation


def test_error_far_above_ordinary_quantization_fails_even_below_the_floor(
    encoder: tuple[Path, Path, Samples],
) -> None:
    model, quantized, samples = encoder
    found = run_gate(model, quantized, samples).relative_rms or 0.0
    report = run_gate(model, quantized, samples, baseline_rms=found / 2)
    assert report.verdict == "fail"
    assert "x the baseline's" in report.explanation


def test_update_that_changes_nothing_fails_against_the_stale_model(encoder: tuple[Path, Path, Samples]) -> None:
    model, quantized, samples = encoder
    found = run_gate(model, quantized, samples).relative_rms or 0.0
    report = run_gate(model, quantized, samples, unchanged_base_rms=found)
    assert report.verdict == "fail"
    assert "the unchanged base's" in report.explanation


def test_one_sample_twice_is_inconclusive(encoder: tuple[Path, Path, Samples]) -> None:
    model, quantized, samples = encoder
    sample = next(iter(samples))
    report = run_gate(model, quantized, samples_from([sample, sample]))
    assert report.verdict == "inconclusive"


def test_classifier_that_names_one_class_is_inconclusive(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    rng = np.random.default_rng(0)
    center = rng.standard_normal((1, 64))
    near = [{"x": (center + 0.01 * rng.standard_normal((1, 64))).astype(np.float32)} for _ in range(20)]
    report = run_gate(model, model, samples_from(near))
    assert report.verdict == "inconclusive"
    assert not report.outputs[0].varies


def test_constant_output_must_stay_where_it_is(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.constant_output(), tmp_path / "float.onnx")
    moved = scale_initializer(model, tmp_path / "moved.onnx", "b", 3.0)
    report = run_gate(model, moved, random_samples(model, 8))
    assert report.verdict == "fail"
    assert "does not vary, but is off" in report.explanation
