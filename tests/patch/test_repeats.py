"""What the target has twice is coded once: tied weights, exchanged rows and columns, equal files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import model_formats
from tests.support.memory_bundles import Files, apply_to_memory, make_patch_between

RANDOM = np.random.default_rng(5)
WEIGHT = RANDOM.standard_normal((192, 64)).astype(np.float32)
NEXT = (WEIGHT + RANDOM.standard_normal(WEIGHT.shape) * 1e-3).astype(np.float32)
SLACK_BYTES = 300  # the header's table and one more range


def bundle(**arrays: np.ndarray) -> Files:
    return {"model.safetensors": model_formats.to_safetensors(arrays)}


def size_of(folder: Path, base: Files | None, target: Files) -> int:
    patch, _ = make_patch_between(folder, base, target)
    assert apply_to_memory(patch, base) == target

    return len(patch)


REPEATS: dict[str, Callable[[Any], Any]] = {
    "exact": lambda weight: weight,
    "transposed": lambda weight: np.ascontiguousarray(weight.T),
    "with another shape": lambda weight: weight.reshape(-1),
    "transposed, as a convolution": lambda weight: np.ascontiguousarray(weight.T)[:, :, None, None],
}


@pytest.mark.parametrize("kind", REPEATS)
@pytest.mark.parametrize("base", [None, "one", "both"])
def test_a_repeated_array_costs_one_percent_at_most(tmp_path: Path, kind: str, base: str | None) -> None:
    repeat = REPEATS[kind]
    known = {None: None, "one": bundle(w=WEIGHT), "both": bundle(w=WEIGHT, z=repeat(WEIGHT))}[base]
    alone = size_of(tmp_path / "1", None if base is None else bundle(w=WEIGHT), bundle(w=NEXT))
    both = size_of(tmp_path / "2", known, bundle(w=NEXT, z=repeat(NEXT)))
    assert both <= 1.01 * alone + SLACK_BYTES


def test_many_repeats_of_small_and_large_arrays(tmp_path: Path) -> None:
    layers = {
        f"layer{number}.{name}": array for number in range(12) for name, array in (("w", WEIGHT), ("b", WEIGHT[0]))
    }
    alone = size_of(tmp_path / "1", None, bundle(w=WEIGHT, b=WEIGHT[0]))
    assert size_of(tmp_path / "2", None, bundle(**layers)) <= 1.01 * alone + 4 * SLACK_BYTES


def test_equal_files_are_coded_once(tmp_path: Path) -> None:
    data = RANDOM.bytes(50_000)
    alone = size_of(tmp_path / "1", None, {"a": data})
    assert size_of(tmp_path / "2", None, {"a": data, "b": data, "c": data}) <= 1.01 * alone + SLACK_BYTES
    assert size_of(tmp_path / "3", {"a": b"old"}, {"a": b"old", "b": data, "c": data}) <= 1.01 * alone + SLACK_BYTES


def test_a_patch_without_repeats_does_not_need_the_feature(tmp_path: Path) -> None:
    _, report = make_patch_between(tmp_path, bundle(w=WEIGHT), bundle(w=NEXT))
    assert "repeat" not in report.features
