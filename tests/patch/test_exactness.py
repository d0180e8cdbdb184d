"""Arithmetic that device and packager share is bit-exact, also across cuts and streams of residuals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, from_values, to_doubles, to_singles
from bundle.patch.parameters import Factor, Gain, Parameters
from bundle.patch.prediction import apply_periodic, compute_chunk, parameter_computation
from packager.diff.encode.residual_partitions import find_best_cuts
from tests.support import model_formats
from tests.support.memory_bundles import apply_to_memory, make_patch_between


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 700),
    st.sampled_from([1, 2, 9, 255, 256, 300, 5000]),
    st.integers(1, 3000),
    st.one_of(st.integers(0, 5000), st.integers(0, 2**62)),
)
def test_periodic_values_are_those_of_the_formula(values: int, inner: int, count: int, first: int) -> None:
    steps = np.random.default_rng(values).integers(-50, 50, values).astype(np.int8)
    out = np.arange(count, dtype=np.int32)
    apply_periodic(np.add, out, steps, inner, first)
    expected = [i + int(steps[((first + i) // inner) % values]) for i in range(count)]
    assert out.tolist() == expected


def _make_hard_doubles(name: str) -> np.ndarray[Any, Any]:
    """Return all values of the type, all ties between neighbors and their neighbors, and numbers of every magnitude."""
    kind = ELEMENT_TYPE_BY_NAME[name]
    values = np.sort(to_doubles(np.arange(1 << 16, dtype=np.uint16), kind))
    values = values[np.isfinite(values)]
    ties = (values[:-1] + values[1:]) / 2
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.normal(0, 10.0**e, 2000) for e in range(-48, 40, 3)])
    return np.concatenate([values, ties, np.nextafter(ties, -np.inf), np.nextafter(ties, np.inf), sizes])


def test_float16_is_rounded_as_numpy_rounds_it_from_float32() -> None:
    doubles = _make_hard_doubles("f16")
    with np.errstate(over="ignore"):
        expected = doubles.astype(np.float32).astype(np.float16).view(np.uint16)
    assert (from_values(doubles.copy(), ELEMENT_TYPE_BY_NAME["f16"]) == expected).all()


def test_bfloat16_is_the_nearest_of_float32_ties_to_even() -> None:
    doubles = _make_hard_doubles("bf16")
    with np.errstate(over="ignore"):
        single = doubles.astype(np.float32).view(np.uint32).astype(np.uint64)
    low, high = single & 0xFFFF, single >> 16
    expected = high + ((low > 0x8000) | ((low == 0x8000) & (high & 1 == 1)))
    assert (from_values(doubles.copy(), ELEMENT_TYPE_BY_NAME["bf16"]) == expected.astype(np.uint16)).all()


@pytest.mark.parametrize("name", ["i8", "u8", "i16", "f16", "bf16", "f32"])
def test_what_is_not_finite_becomes_zero(name: str) -> None:
    kind = ELEMENT_TYPE_BY_NAME[name]
    assert not from_values(np.array([np.nan, np.inf, -np.inf]), kind).any()


def _gain(rng: np.random.Generator) -> Parameters:
    parameters = Parameters(1 << 20)
    factors = (1 + rng.normal(0, 0.01, 64)).astype(np.float32)
    factors[:4] = 0.0, 1e38, -3e-39, -1.0
    parameters.gain = Gain(factors.astype(np.float64), 16)
    return parameters


def _product(rng: np.random.Generator, shift: int) -> Parameters:
    parameters = Parameters(1 << 20)
    numbers = [rng.integers(-200, 200, (3, length)) for length in (1 << 9, 1 << 8)]
    parameters.left, parameters.right = (Factor(np.ldexp(each, -shift), (shift,) * 3, 0) for each in numbers)
    assert parameters.product_columns(0, 1 << 17, "here") == 1 << 8
    return parameters


@pytest.mark.parametrize("is_finite", [True, False])
@pytest.mark.parametrize("shift", [None, 0, 8, 14])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_what_is_computed_in_singles_is_what_doubles_give(name: str, shift: int | None, is_finite: bool) -> None:
    kind, rng = ELEMENT_TYPE_BY_NAME[name], np.random.default_rng(5)
    parameters = _gain(rng) if shift is None else _product(rng, shift)
    bits = rng.integers(0, 1 << 8 * kind.size, 1 << 17, dtype=kind.bits)
    if is_finite:
        usual = from_values(rng.normal(0, 0.05, len(bits)), kind)
        bits = np.where(np.isfinite(to_doubles(bits, kind)), bits, usual)
    compute = parameter_computation(parameters, has_product=shift is not None)
    assert compute.is_single
    with np.errstate(all="ignore"):
        singles = compute_chunk(bits, kind, compute, 0, has_rounding_class=False)
        doubles = compute_chunk(bits, kind, replace(compute, is_single=False), 0, has_rounding_class=False)
    assert (singles.bits == doubles.bits).all()


def test_all_of_float16_are_the_same_in_singles() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for some in (bits, bits[np.isfinite(bits.view(np.float16))]):
        assert np.array_equal(
            to_singles(some, ELEMENT_TYPE_BY_NAME["f16"]), some.view(np.float16).astype(np.float32), equal_nan=True
        )


def test_a_gain_and_a_product_or_large_sums_need_doubles() -> None:
    rng = np.random.default_rng(6)
    both = _product(rng, 8)
    both.gain = _gain(rng).gain
    assert not parameter_computation(both, has_product=True).is_single
    large = _product(rng, 8)
    assert large.left is not None
    large.left = replace(large.left, values=large.left.values * 2.0**10)
    large = _check_again(large)
    assert not parameter_computation(large, has_product=True).is_single


@pytest.mark.parametrize("shift", [-60, -51, -50, 50, 51, 60])
def test_products_of_any_size_are_those_of_doubles(shift: int) -> None:
    parameters = _product(np.random.default_rng(7), shift)
    assert parameters.left is not None
    assert parameters.right is not None
    expected = (parameters.left.values.T @ parameters.right.values).reshape(-1)
    assert (parameters.product(0, len(expected)) == expected).all()


def _check_again(parameters: Parameters) -> Parameters:
    """Return new parameters with the same factors, checked again."""
    fresh = Parameters(1 << 20)
    fresh.left, fresh.right = parameters.left, parameters.right
    fresh.product_columns(0, 1 << 17, "here")
    return fresh


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_residuals_are_cut_between_keys_and_none_is_lost(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 40, 60_000).astype(np.uint8)
    limit = np.iinfo(dtype)
    residual = np.clip(rng.normal(0, np.exp2(keys / 4)), limit.min, limit.max).astype(dtype)
    residual[:2] = limit.min, limit.max
    cuts = find_best_cuts(keys, residual)
    ends = np.cumsum(np.bincount(keys))
    assert cuts[0] == 0
    assert cuts[-1] == len(keys)
    assert cuts == sorted(set(cuts))
    assert set(cuts[1:]) <= set(ends.tolist())
    assert len(cuts) > 2, "residuals of many sizes in one part"


def test_a_program_takes_lzma_and_bsdiff(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = [rng.bytes(int(n)) for n in rng.integers(3, 12, 400)]
    old = b"".join(words[i] for i in rng.integers(0, 400, 30_000))
    new = bytearray(old)
    for position in range(0, len(old), 23):  # addresses that moved
        new[position] = (new[position] + 64) % 256
    new[70_000:70_000] = b"".join(words[i] for i in rng.integers(0, 400, 3_000))
    patch, report = make_patch_between(tmp_path, {"f": old}, {"f": bytes(new)})
    assert apply_to_memory(patch, {"f": old}) == {"f": bytes(new)}
    assert "lzma" in report.features
    plain, report = make_patch_between(tmp_path / "plain", {"f": old}, {"f": bytes(new)}, "zstd")
    assert "lzma" not in report.features
    assert len(patch) < len(plain)


def test_rows_put_in_between_and_elements_changed_here_and_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, (1400, 300)).astype(np.float32)
    longer = np.concatenate([old[:400], rng.normal(0, 0.05, (3, 300)).astype(np.float32), old[400:]])
    base, target = {"m": model_formats.to_safetensors({"e": old})}, {"m": model_formats.to_safetensors({"e": longer})}
    patch, _ = make_patch_between(tmp_path / "rows", base, target)
    assert apply_to_memory(patch, base) == target
    assert len(patch) < 6000
    sparse = np.where(rng.random(old.shape) < 0.001, old * 2, old)
    target = {"m": model_formats.to_safetensors({"e": sparse})}
    patch, _ = make_patch_between(tmp_path / "sparse", base, target)
    assert apply_to_memory(patch, base) == target
    assert len(patch) < 4500


def test_scales_and_levels_of_quantized_blocks_are_told_apart(tmp_path: Path) -> None:
    def blocks(seed: int) -> bytes:
        rng = np.random.default_rng(7)
        levels = rng.integers(0, 256, (6000, 18)).astype(np.uint8)
        levels[:, 0] = np.random.default_rng(seed).integers(0, 256, 6000)
        return model_formats.to_safetensors({"w": levels})

    patch, report = make_patch_between(tmp_path, {"m": blocks(1)}, {"m": blocks(2)}, "typed")
    assert apply_to_memory(patch, {"m": blocks(1)}) == {"m": blocks(2)}
    assert any("by position" in row.coder for row in report.rows)
    assert len(patch) < 6000 + 600


def test_rows_in_another_order_are_found_as_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    old = rng.normal(0, 0.05, (8000, 3)).astype(np.float32)
    base, target = ({"m": model_formats.to_safetensors({"e": each})} for each in (old, old[rng.permutation(len(old))]))
    patch, _ = make_patch_between(tmp_path / "auto", base, target)
    assert apply_to_memory(patch, base) == target
    dictionary = zstandard.ZstdCompressionDict(base["m"], dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    best = len(zstandard.ZstdCompressor(level=19, dict_data=dictionary).compress(target["m"]))
    assert len(patch) <= best + 1024
