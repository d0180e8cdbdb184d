"""Blocks that repeat inside arrays are coded once: stacked layers, joined and exchanged weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from packager.diff.match.find_blocks import find_blocks
from packager.diff.match.match_arrays import Array
from packager.tensors.region import Region
from tests.support import model_formats
from tests.support.memory_bundles import Files, apply_to_memory, make_patch_between

SIDE: Final = 128
SLACK_BYTES: Final = 300  # the header's table, and the tables of ranges

Arrays = dict[str, Any]
BLOCKS: Final[dict[str, tuple[int, Callable[[Any, Any, Any], Arrays]]]] = {  # weights that it takes, arrays
    "rows, five times": (1, lambda w, v, x: {"a": np.vstack([w] * 5)}),
    "columns, three times": (1, lambda w, v, x: {"a": np.hstack([w] * 3)}),
    "a stack of layers": (1, lambda w, v, x: {"a": np.stack([w] * 4)}),
    "a stack without axes": (1, lambda w, v, x: {"a": np.stack([w] * 4).reshape(-1)}),
    "beside its transpose": (1, lambda w, v, x: {"a": np.vstack([w, w.T])}),
    "a block matrix": (3, lambda w, v, x: {"a": np.block([[w, v], [x, w.T]])}),
    "in the middle": (3, lambda w, v, x: {"a": np.vstack([v[:50], w, v[50:]]), "b": np.vstack([x[:9], w, x[9:]])}),
    "three and their rows": (3, lambda w, v, x: {"a": w, "b": v, "c": x, "d": np.vstack([w, v, x])}),
    "three and their columns": (3, lambda w, v, x: {"a": w, "b": v, "c": x, "d": np.hstack([w, v, x])}),
    "columns and the three": (3, lambda w, v, x: {"a": np.hstack([w, v, x]), "b": w, "c": v, "d": x}),
    "three and their exchanged rows": (
        3,
        lambda w, v, x: {"a": w, "b": v, "c": x, "d": np.vstack([w.T, v.T, x.T])},
    ),
    "three and their exchanged columns": (
        3,
        lambda w, v, x: {"a": w, "b": v, "c": x, "d": np.hstack([w.T, v.T, x.T])},
    ),
    "exchanged columns and the three": (
        3,
        lambda w, v, x: {"a": np.hstack([w.T, v.T, x.T]), "b": w, "c": v, "d": x},
    ),
}


def make_weights(kind: str) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(7)
    if kind == "int8":
        whole = [random.integers(-60, 60, (SIDE, SIDE)) for _ in range(3)]
        moved = [w + (random.random(w.shape) < 0.3) * random.integers(-1, 2, w.shape) for w in whole]
        return [w.astype(np.int8) for w in whole], [w.astype(np.int8) for w in moved]
    old = [(random.standard_normal((SIDE, SIDE)) * 0.05).astype(kind) for _ in range(3)]
    return old, [(w + random.standard_normal(w.shape) * 2e-3).astype(kind) for w in old]


def bundle(arrays: Arrays) -> Files:
    return {"model.safetensors": model_formats.to_safetensors({n: np.ascontiguousarray(a) for n, a in arrays.items()})}


def size_of(folder: Path, base: Files | None, target: Files) -> int:
    patch, _ = make_patch_between(folder, base, target, codec="typed")
    assert apply_to_memory(patch, base) == target

    return len(patch)


def test_blocks_of_an_update_are_copied(tmp_path: Path) -> None:
    old, new = make_weights("float32")
    alone = size_of(tmp_path / "1", bundle({"a": old[0]}), bundle({"a": new[0]}))
    for name in ("rows, five times", "columns, three times", "beside its transpose"):
        _, build = BLOCKS[name]
        assert size_of(tmp_path / name, bundle(build(*old)), bundle(build(*new))) <= 1.01 * alone + SLACK_BYTES, name


@pytest.mark.parametrize(
    ("kind", "has_base"),
    [("int8", False), ("int8", True), ("float32", False), ("float32", True), ("float16", True)],
)
def test_a_repeated_block_costs_one_percent_at_most(tmp_path: Path, kind: str, has_base: bool) -> None:
    old, new = make_weights(kind)
    alone = {
        count: size_of(
            tmp_path / f"alone{count}",
            bundle(dict(zip("abc", old[:count], strict=False))) if has_base else None,
            bundle(dict(zip("abc", new[:count], strict=False))),
        )
        for count in (1, 3)
    }
    for name, (count, build) in BLOCKS.items():
        size = size_of(tmp_path / name, bundle(build(*old)) if has_base else None, bundle(build(*new)))
        assert size <= 1.01 * alone[count] + SLACK_BYTES, name


def test_exchanged_blocks_of_large_arrays_wait_within_the_limit(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    whole = random.integers(-128, 128, (1024, 768)).astype(np.int8)
    target = bundle({"a": whole, "b": np.hstack([whole.T, np.zeros((768, 64), np.int8), whole.T])})
    assert size_of(tmp_path, None, target) <= 1.01 * whole.size + 2 * SLACK_BYTES


def blocks_of(*arrays: Any) -> list[Any]:
    """Return the blocks of the last array, the others being earlier ones."""
    contents = [np.ascontiguousarray(array).tobytes() for array in arrays]
    at = np.cumsum([0, *map(len, contents)])
    listed = [
        Array(0, int(start), Region(int(start), len(content), "f32", str(start), array.shape))
        for start, content, array in zip(at, contents, arrays, strict=False)
    ]
    joined = memoryview(b"".join(contents))
    return find_blocks(
        listed, {listed[-1].address: None}, lambda array: joined[array.address : array.address + array.region.size]
    ).get(listed[-1].address, [])


def test_content_that_codes_to_little_is_no_block() -> None:
    wave = np.tile(np.sin(np.arange(16, dtype=np.float32)), (512, 16))
    assert blocks_of(np.zeros((512, 256), np.float32), np.zeros((512, 256), np.float32)) == []
    assert blocks_of(np.ones((512, 256), np.float32)) == []
    assert sum(block.rows * block.columns for block in blocks_of(wave)) * 4 < 1 << 16


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_equal_earlier_and_disjoint(seed: int) -> None:
    random = np.random.default_rng(seed)
    pool = random.standard_normal((4, 48, 48)).astype(np.float32)
    rows, columns = random.integers(1, 5, 2)

    def tile() -> Any:
        one = pool[random.integers(4)]
        return one.T if random.random() < 0.3 else one

    arrays = [np.block([[tile() for _ in range(columns)] for _ in range(rows)]) for _ in range(3)]
    content = np.concatenate([array.reshape(-1) for array in arrays])
    start = len(content) - arrays[-1].size
    is_covered = np.zeros(arrays[-1].size, np.bool_)
    for block in blocks_of(*arrays):
        target = block.first + np.arange(block.rows)[:, None] * block.width + np.arange(block.columns)
        across, down = np.arange(block.columns), np.arange(block.rows)[:, None]
        if block.is_transposed:
            source = block.earlier // 4 + block.earlier_column + across * block.earlier_width + down
            end = block.earlier // 4 + block.columns * block.earlier_width
            assert end <= start + block.first // block.width * block.width
        else:
            source = block.earlier // 4 + down * block.earlier_width + across
            assert (source.max(axis=1) < start + target.min(axis=1)).all()
        assert (content[source] == content[start + target]).all()
        assert not is_covered[target].any()
        is_covered[target] = True
