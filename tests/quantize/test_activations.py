"""Activation ranges use levels where outputs depend on them, and pinned ranges stay if they are adequate."""

from pathlib import Path

import numpy as np

from packager.models.graphs import float_bytes
from packager.models.samples import samples_from
from packager.quantize.activation_ranges import ActivationRange
from packager.quantize.candidates import CandidateBuilder
from packager.quantize.prepare import prepare_model
from packager.quantize.update_aware.activation_refit import best_range, pinned_ranges, quantization_noise, refit_ranges
from packager.quantize.update_aware.fill_template import UpdateChoice, fill_template
from tests.support import tiny_models

VALUES = np.linspace(-1, 9, 1001)


def test_outliers_on_which_nothing_depends_are_clipped() -> None:
    weights = np.where(VALUES < 1, 1.0, 1e-9)
    found = best_range(VALUES, weights)
    assert found.high < 2
    assert quantization_noise(VALUES, weights, found) < 0.1 * quantization_noise(
        VALUES, weights, ActivationRange(-1, 9)
    )


def test_outliers_that_matter_are_kept() -> None:
    weights = np.where(VALUES < 1, 1.0, 0.5)
    assert best_range(VALUES, weights).high > 8


def test_the_more_clipping_counts_the_wider_the_range() -> None:
    weights = np.where(VALUES < 1, 1.0, 1e-9)
    assert best_range(VALUES, weights, clipping=1e4).high > best_range(VALUES, weights).high


def test_range_of_one_side_stays_on_it() -> None:
    values = np.linspace(0, 5, 101)
    found = best_range(values, np.ones(101))
    assert found.low == 0.0
    assert found.high > 4


def test_ranges_that_serve_stay_as_they_are(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.text_encoder(), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    samples = samples_from(
        [{"input_ids": rng.integers(0, 50, (1, 9)), "attention_mask": np.ones((1, 9), np.int64)} for _ in range(24)]
    )
    model = prepare_model(path, next(iter(samples))).model
    quantized = CandidateBuilder(model, samples, float_bytes(model)).build("static")
    changed = refit_ranges(quantized, model, quantized, samples)
    assert changed.keys() <= pinned_ranges(quantized).keys()
    again = fill_template(quantized, model, [], UpdateChoice(), changed)
    assert not refit_ranges(again, model, again, samples)
