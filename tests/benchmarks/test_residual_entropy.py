"""The residual entropy of known distributions is computed correctly."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.residual_entropy import compute_residual_bits, measure_pair
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from tests.support import model_formats


@pytest.mark.parametrize("spread", [1, 7, 40])
def test_uniform_integers_have_the_entropy_of_their_range(spread: int) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(-20, 20, 100_000).astype(np.int8)
    target = (base + rng.integers(-spread, spread + 1, base.size)).astype(np.int8)
    bits = compute_residual_bits(base.view(np.uint8), target.view(np.uint8), ELEMENT_TYPE_BY_NAME["i8"]) / base.size
    assert bits == pytest.approx(np.log2(2 * spread + 1), rel=0.002)


def test_rare_large_residuals_are_not_taken_for_free() -> None:
    rng = np.random.default_rng(0)
    base = np.full(50_000, 0.02, np.float32)  # one exponent
    residual = rng.integers(1 << 17, 1 << 18, base.size, dtype=np.int32)
    target = base.view(np.int32) + residual
    bits = compute_residual_bits(base.view(np.uint32), target.view(np.uint32), ELEMENT_TYPE_BY_NAME["f32"]) / base.size
    assert bits == pytest.approx(17, rel=0.003)  # counted one by one, 50,000 values could not have more than 15.6


def test_what_the_exponent_tells_does_not_count() -> None:
    rng = np.random.default_rng(0)
    exponent = rng.integers(0, 16, 100_000)
    base = np.ldexp(1.0, exponent - 8).astype(np.float32)
    target = (base.view(np.int32) + exponent.astype(np.int32)).view(np.float32)
    bits = compute_residual_bits(base.view(np.uint32), target.view(np.uint32), ELEMENT_TYPE_BY_NAME["f32"])
    assert bits / base.size < 0.002


def test_a_pair_is_measured_against_its_patch(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    base.write_bytes(model_formats.to_safetensors(arrays))
    target.write_bytes(model_formats.to_safetensors(model_formats.fine_tune(arrays, 2)))
    row = measure_pair("small", base, target)
    assert row["elements"] > 0
    assert row["goal"] == 0.01
    assert abs(row["distance"]) < 0.1
