"""Rows after inserted or removed rows are predicted from their own base rows."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from packager.diff.match.align_rows import MAX_RUNS, RowRun, align_rows
from tests.support import model_formats
from tests.support.memory_bundles import apply_to_memory, make_patch_between

Matrix = npt.NDArray[Any]
NAMES = {"float32": "f32", "float16": "f16", "int8": "i8", "uint8": "u8", "int64": "i64"}


def matrix(rows: int, dtype: str = "float32", seed: int = 0, columns: int = 48) -> Matrix:
    numbers = np.random.default_rng(seed).normal(0, 0.05, (rows, columns))
    if dtype.startswith("float"):
        return numbers.astype(dtype)
    levels = np.clip(np.rint(numbers * 500), -127, 127)
    return np.asarray(levels + 128 if dtype == "uint8" else levels, dtype)


def tuned(old: Matrix, seed: int = 1) -> Matrix:
    dice = np.random.default_rng(seed)
    if old.dtype.kind == "f":
        return np.asarray(old + dice.normal(0, 1e-4, old.shape), old.dtype)
    return np.asarray(old + dice.choice(np.array([0, 0, 0, 1]), old.shape), old.dtype)


def aligned(target: Matrix, base: Matrix) -> list[RowRun] | None:
    kind = ELEMENT_TYPE_BY_NAME[NAMES[base.dtype.name]]
    return align_rows(target.view(kind.bits), base.view(kind.bits), kind)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("is_tuned", [False, True])
def test_rows_put_in_and_left_out_are_found(dtype: str, is_tuned: bool) -> None:
    old = matrix(2000, dtype)
    new = tuned(old) if is_tuned else old
    target = np.concatenate([new[:300], matrix(3, dtype, 9), new[300:1200], new[1250:], matrix(10, dtype, 8)])
    runs = aligned(target, old)
    assert runs == [RowRun(0, 0, 300), RowRun(303, 300, 900), RowRun(1203, 1250, 750)]


@pytest.mark.parametrize("dtype", NAMES)
def test_rows_that_moved_in_a_matrix_of_the_same_size_are_found(dtype: str) -> None:
    old = matrix(500, dtype)
    target = np.concatenate([matrix(20, dtype, 9), tuned(old)[:480]])
    assert aligned(target, old) == [RowRun(20, 0, 480)]


@pytest.mark.parametrize("dtype", NAMES)
def test_an_update_or_another_matrix_is_left_as_it_is(dtype: str) -> None:
    old = matrix(500, dtype)
    for other in (old, tuned(old), matrix(500, dtype, 7), matrix(700, dtype, 7), np.zeros_like(old)):
        assert aligned(other, old) is None
    assert aligned(old[:60], old) is None, "too few rows to tell"
    assert aligned(matrix(500, dtype, 3, 8), matrix(600, dtype, 3, 8)) is None, "too few columns"


def test_rows_in_another_order_are_left_as_they_are() -> None:
    old = matrix(3000)
    runs = aligned(old[np.random.default_rng(2).permutation(3000)], old)
    assert runs is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 12))
def test_runs_are_of_the_rows_that_they_say(seed: int, is_tuned: bool, changes: int) -> None:
    dice = np.random.default_rng(seed)
    old = matrix(400, seed=seed)
    target = tuned(old) if is_tuned else old
    source = np.arange(400)
    for _ in range(changes):
        at, many = int(dice.integers(0, len(source))), int(dice.integers(1, 9))
        if dice.random() < 0.5:
            target = np.insert(target, at, matrix(many, seed=int(dice.integers(2**32))), axis=0)
            source = np.insert(source, at, np.full(many, -1))
        else:
            target, source = np.delete(target, slice(at, at + many), axis=0), np.delete(source, slice(at, at + many))
    runs = aligned(target, old)
    if runs is None:
        return
    assert 0 < len(runs) <= MAX_RUNS
    for one, following in pairwise(runs):
        assert one.target + one.rows <= following.target
        assert one.base + one.rows <= following.base
    assert runs[-1].target + runs[-1].rows <= len(target)
    assert runs[-1].base + runs[-1].rows <= len(old)
    found = np.full(len(source), -1)
    for run in runs:
        found[run.target : run.target + run.rows] = np.arange(run.base, run.base + run.rows)
    known = source >= 0
    assert (found[known] == source[known]).mean() > 0.97


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_a_vocabulary_that_grew_in_the_middle_costs_its_new_rows(tmp_path: Path, name: str) -> None:
    old = {"head": matrix(300, seed=3), "words": matrix(3000), "tail": matrix(300, seed=4)}
    grown = {**old, "words": np.insert(old["words"], 1234, matrix(2, seed=5), axis=0)}
    base, target = {"m": model_formats.FORMATS[name](old)}, {"m": model_formats.FORMATS[name](grown)}
    patch, _ = make_patch_between(tmp_path, base, target)
    assert apply_to_memory(patch, base) == target
    assert len(patch) < 2 * 48 * 4 + 600


def test_a_vocabulary_that_grew_and_was_tuned_costs_both(tmp_path: Path) -> None:
    old = {"words": matrix(3000)}
    new = tuned(old["words"])
    sizes = {}
    for name, rows in (("tuned", new), ("grown", np.insert(new, [10, 2000, 2000], matrix(3, seed=5), axis=0))):
        base, target = {"m": model_formats.to_safetensors(old)}, {"m": model_formats.to_safetensors({"words": rows})}
        patch, _ = make_patch_between(tmp_path / name, base, target)
        assert apply_to_memory(patch, base) == target
        sizes[name] = len(patch)
    assert sizes["grown"] < 1.01 * sizes["tuned"] + 3 * 48 * 4 + 600


def test_the_same_vocabulary_in_two_files_grows_in_both(tmp_path: Path) -> None:
    old = {"words": matrix(3000)}
    new = {"words": np.insert(tuned(old["words"]), [10, 2000], matrix(2, seed=5), axis=0)}
    sizes = []
    for names in (("encoder",), ("decoder", "encoder")):
        base, target = (
            {f"{name}.safetensors": model_formats.to_safetensors(side) for name in names} for side in (old, new)
        )
        patch, _ = make_patch_between(tmp_path / "-".join(names), base, target)
        assert apply_to_memory(patch, base) == target
        sizes.append(len(patch))
    assert sizes[1] < 2.05 * sizes[0]
