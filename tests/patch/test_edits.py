"""Edits at any positions of a model are exact, near their entropy, and within the decoder's limits."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.patch.container import Op, read_frames, read_header
from bundle.patch.edits import WAITING_BYTES_PER_EDIT
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, ELEMENT_TYPES
from bundle.patch.limits import DEFAULT_LIMITS
from packager.diff.byte_range import BytePosition
from packager.diff.encode import encode_edits
from packager.diff.encode.encode_edits import (
    EditedRange,
    EditJob,
    choose_edit_type,
    compare_arrays,
    join_copies,
    make_edit_jobs,
)
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.sources import NOWHERE
from tests.support import model_formats
from tests.support.memory_bundles import apply_to_memory, make_patch_between


def list_operations(patch: bytes) -> list[Op]:
    stream = io.BytesIO(patch)
    return [frame.op for frame in read_frames(stream, read_header(stream, DEFAULT_LIMITS))]


def edit_elements(array: npt.NDArray[Any], share: float, seed: int) -> npt.NDArray[Any]:
    """Return the array with small changes (floats) or changes by 1 (integers) at random positions."""
    dice = np.random.default_rng(seed)
    out = array.copy().reshape(-1)
    places = np.flatnonzero(dice.random(out.size) < share)
    if out.dtype.kind == "f":
        out[places] *= (1 + 1e-2 * dice.standard_normal(len(places))).astype(out.dtype)
    else:
        out[places] += dice.choice(np.array([1, -1]), len(places)).astype(out.dtype)
    return out.reshape(array.shape)


def edit_entropy_bytes(elements: int, share: float, bits: float) -> float:
    """Return the entropy of random positions and of `bits` per edit, in bytes."""
    places = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return float((places + share * bits) * elements / 8)


@pytest.mark.parametrize("name", model_formats.FORMATS)
@pytest.mark.parametrize("codec", ["typed", "planes"])
def test_edits_in_every_format_are_exact(tmp_path: Path, name: str, codec: str) -> None:
    arrays = model_formats.make_weights(1)
    new = {key: edit_elements(array, 0.01, i) for i, (key, array) in enumerate(arrays.items())}
    base, target = {"m": model_formats.FORMATS[name](arrays)}, {"m": model_formats.FORMATS[name](new)}
    patch, report = make_patch_between(tmp_path, base, target, codec)
    assert apply_to_memory(patch, base) == target
    assert "edit" in report.features
    assert ("pcodec" in report.features) == (codec == "typed")


@pytest.mark.parametrize("share", [1e-4, 1e-3, 1e-2])
def test_bytes_edited_anywhere_cost_their_entropy(tmp_path: Path, share: float) -> None:
    dice = np.random.default_rng(3)
    old = {f"w{i}": dice.normal(0, 0.05, (400, 500)).astype(np.float32) for i in range(10)}
    base = model_formats.to_onnx(old)
    content = np.frombuffer(base, np.uint8).copy()
    places = 200 + dice.choice(len(content) - 400, round(share * len(content)), replace=False)
    content[places] += dice.integers(1, 256, len(places)).astype(np.uint8)
    patch, _ = make_patch_between(tmp_path, {"m": base}, {"m": content.tobytes()})
    assert apply_to_memory(patch, {"m": base}) == {"m": content.tobytes()}
    assert len(patch) < 1.02 * edit_entropy_bytes(len(content), share, 8) + 600


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int64])
def test_numbers_edited_anywhere_are_told_as_numbers(tmp_path: Path, dtype: type[np.number[Any]]) -> None:
    dice = np.random.default_rng(4)
    old = (dice.normal(0, 0.05, (600, 500)) * (1 if np.dtype(dtype).kind == "f" else 800)).astype(dtype)
    base = {"m": model_formats.to_safetensors({"w": old})}
    target = {"m": model_formats.to_safetensors({"w": edit_elements(old, 2e-3, 5)})}
    patch, report = make_patch_between(tmp_path, base, target)
    assert apply_to_memory(patch, base) == target
    (row,) = [row for row in report.rows if row.coder == "edits"]
    assert row.dtype == {"float32": "f32", "float16": "f16", "int8": "u8", "int64": "i64"}[old.dtype.name]
    bits = {2: 7, 4: 20}[old.itemsize] if old.dtype.kind == "f" else 1
    assert len(patch) < 1.04 * edit_entropy_bytes(old.size, 2e-3, bits) + 500


def test_a_file_without_tensors_is_edited_too(tmp_path: Path) -> None:
    dice = np.random.default_rng(5)
    content = dice.integers(0, 256, 3 << 20).astype(np.uint8)
    base = {"m": content.tobytes()}
    places = dice.choice(len(content), 300, replace=False)
    content[places] += dice.integers(1, 256, 300).astype(np.uint8)
    target = {"m": content.tobytes()}
    patch, report = make_patch_between(tmp_path, base, target)
    assert apply_to_memory(patch, base) == target
    assert list_operations(patch) == [Op.EDIT]
    assert report.rows[0].coder == "edits"
    assert len(patch) < edit_entropy_bytes(len(content), 1e-4, 8) + 400


@pytest.mark.parametrize("head", [b"", b"what was not there before"])
def test_a_file_without_tensors_that_was_edited_and_moved_is_told_as_both(tmp_path: Path, head: bytes) -> None:
    dice = np.random.default_rng(10)
    content = dice.integers(0, 256, 400_000).astype(np.uint8)
    base = {"m": content.tobytes()}
    places = dice.choice(len(content), 1000, replace=False)
    content[places] += dice.integers(1, 256, 1000).astype(np.uint8)
    edited = content.tobytes()
    target = {"m": head + edited[:60_000] + dice.bytes(70) + edited[60_000:300_000] + edited[310_000:] + b"tail"}
    patch, report = make_patch_between(tmp_path, base, target)
    assert apply_to_memory(patch, base) == target
    assert list_operations(patch) == ([Op.BYTES] if head else []) + [Op.EDIT, Op.BYTES]
    assert report.rows[0].coder == "edits"
    assert len(patch) < edit_entropy_bytes(len(content), 1000 / len(content), 8) + 600


def test_what_is_copied_beside_edits_joins_them(tmp_path: Path) -> None:
    dice = np.random.default_rng(6)
    old = {f"w{i}": dice.normal(0, 0.05, (100, 100)).astype(np.float32) for i in range(40)}
    base = model_formats.to_safetensors(old)
    content = np.frombuffer(base, np.uint8).copy()
    for tensor in (3, 17, 31):
        content[len(content) - 40_000 * (40 - tensor) + 5 :: 8000][:3] ^= 1
    patch, report = make_patch_between(tmp_path, {"m": base}, {"m": content.tobytes()})
    assert apply_to_memory(patch, {"m": base}) == {"m": content.tobytes()}
    assert list_operations(patch) == [Op.EDIT]
    assert len(patch) < 500
    assert [row.target_bytes for row in report.rows] == [len(base)]


def test_rows_of_floats_that_changed_are_coded_as_rows(tmp_path: Path) -> None:
    dice = np.random.default_rng(7)
    old = dice.normal(0, 0.05, (1000, 320)).astype(np.float32)
    new = old.copy()
    rows = np.flatnonzero(dice.random(1000) < 0.05)
    new[rows] += dice.normal(0, 1e-4, (len(rows), 320)).astype(np.float32)
    base, target = {"m": model_formats.to_safetensors({"e": old})}, {"m": model_formats.to_safetensors({"e": new})}
    patch, report = make_patch_between(tmp_path, base, target)
    assert apply_to_memory(patch, base) == target
    assert "edit" not in report.features


@pytest.mark.parametrize("run", [4, 16, 64])
def test_runs_of_bytes_cost_their_bytes(tmp_path: Path, run: int) -> None:
    dice = np.random.default_rng(run)
    base = model_formats.to_onnx({f"w{i}": dice.normal(0, 0.05, (400, 500)).astype(np.float32) for i in range(4)})
    content = np.frombuffer(base, np.uint8).copy()
    starts = 200 + dice.choice((len(content) - 400) // 100, 300, replace=False) * 100
    places = (starts[:, None] + np.arange(run)).reshape(-1)
    content[places] += dice.integers(1, 256, len(places)).astype(np.uint8)
    patch, _ = make_patch_between(tmp_path, {"m": base}, {"m": content.tobytes()})
    assert apply_to_memory(patch, {"m": base}) == {"m": content.tobytes()}
    assert len(patch) < 1.02 * edit_entropy_bytes(len(content), 300 / len(content), 8 * run) + 600


def test_many_edits_wait_within_what_is_announced(tmp_path: Path) -> None:
    dice = np.random.default_rng(8)
    old = {f"w{i}": dice.normal(0, 0.05, (1000, 500)).astype(np.float32) for i in range(4)}
    new = {name: edit_elements(array, 0.05, i) for i, (name, array) in enumerate(old.items())}
    base, target = {"m": model_formats.to_safetensors(old)}, {"m": model_formats.to_safetensors(new)}
    patch, _ = make_patch_between(tmp_path, base, target)
    assert apply_to_memory(patch, base) == target
    assert list_operations(patch).count(Op.EDIT) == 2
    announced = read_header(io.BytesIO(patch), DEFAULT_LIMITS).declared_limits
    assert announced.pending_bytes <= WAITING_BYTES_PER_EDIT * encode_edits.MAX_WAITING_EDITS
    assert announced.block_elements <= encode_edits.MAX_WAITING_EDITS


def test_edits_of_a_file_between_two_models_wait_beside_theirs(tmp_path: Path) -> None:
    dice = np.random.default_rng(11)
    old = {"w": dice.normal(0, 0.05, (700, 500)).astype(np.float32)}
    noise = dice.integers(0, 256, 1_200_000).astype(np.uint8)
    base = {"a": model_formats.to_safetensors(old), "b": noise.tobytes(), "c": model_formats.to_safetensors(old)}
    for i in range(20_000):
        noise[60 * i] ^= 1 + i % 200
    new = model_formats.to_safetensors({"w": edit_elements(old["w"], 0.05, 12)})
    other = model_formats.to_safetensors({"w": edit_elements(old["w"], 0.05, 13)})
    target = {"a": new, "b": noise.tobytes(), "c": other}
    patch, _ = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    assert list_operations(patch) == [Op.EDIT, Op.EDIT]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_edits_of_any_type_anywhere_are_exact(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    seed, count = data.draw(st.integers(0, 2**32)), data.draw(st.integers(1, 3000))
    dice = np.random.default_rng(seed)
    dtype = data.draw(st.sampled_from(["float32", "float16", "float64", "int8", "uint8", "int64"]))
    size = np.dtype(dtype).itemsize
    old = dice.integers(0, 256, (2, count * size), np.uint8)  # all bits: also NaNs and what wraps around
    new = old.copy().reshape(-1)
    places = dice.choice(new.size, data.draw(st.integers(1, max(1, new.size // 70))), replace=False)
    new[places] ^= dice.integers(1, 256, len(places)).astype(np.uint8)
    sides = [model_formats.to_safetensors({"w": side.reshape(-1).view(dtype)}) for side in (old, new)]
    base, target = ({"m": side, "n": b"a file between", "o": side} for side in sides)
    patch, _ = make_patch_between(
        tmp_path_factory.mktemp("any"), base, target, data.draw(st.sampled_from(["typed", "planes"]))
    )
    assert apply_to_memory(patch, base) == target


@pytest.mark.parametrize("kind", ELEMENT_TYPES, ids=lambda kind: kind.name)
def test_what_is_compared_is_counted(kind: Any) -> None:
    old = np.zeros(10_000, kind.bits)
    new = old.copy()
    new[[0, 1, 5000, 9999]] = 1
    change = compare_arrays(new.data.cast("B"), old.data.cast("B"), kind)
    assert change is not None
    assert (change.elements, change.runs, change.value_bits) == (10_000, 3, 4.0)
    assert change.changed_counts.tolist() == change.changed_byte_counts.tolist() == [2, 1, 1]
    assert not compare_arrays(old.data.cast("B"), old.data.cast("B"), kind).runs  # type: ignore[union-attr] # few differ: none
    assert compare_arrays((old + 1).astype(kind.bits).data.cast("B"), old.data.cast("B"), kind) is None


def test_upper_bytes_are_edited_as_bytes_and_lower_ones_as_numbers() -> None:
    kind = ELEMENT_TYPE_BY_NAME["f32"]
    old = np.random.default_rng(9).integers(0, 1 << 32, 50_000).astype(np.uint32)
    for flip, unit in ((1 << 30, "u8"), (0xABCD, "f32")):
        new = old.copy()
        new[::500] ^= np.uint32(flip)
        change = compare_arrays(new.data.cast("B"), old.data.cast("B"), kind)
        assert change is not None
        assert choose_edit_type(kind, [change]).name == unit


def _make_edited_range(start: int, base: int, size: int, many: int = 0) -> EditedRange:
    return EditedRange(BytePosition(NOWHERE, 0, start), BytePosition(NOWHERE, 0, base), size, many)


def test_only_whole_elements_that_follow_on_both_sides_join() -> None:
    edited = {"f32": [_make_edited_range(100, 100, 40, 1)]}
    copies = [(0, 0, 80), (80, 80, 20), (140, 140, 8), (148, 148, 6), (154, 154, 4), (200, 240, 4)]
    joined, left = join_copies(edited, copies)
    assert [(p.target.address, p.size) for p in joined["f32"]] == [(0, 80), (80, 20), (100, 40), (140, 8)]
    assert left == [(148, 148, 6), (154, 154, 4), (200, 240, 4)]
    moved, left = join_copies(edited, [(0, 0, 100), (140, 150, 4)])
    assert [p.size for p in moved["f32"]] == [100, 40]
    assert left == [(140, 150, 4)]


def test_frames_of_edits_are_cut_where_they_grow_too_large() -> None:
    full = encode_edits.MAX_WAITING_EDITS
    pieces = [
        _make_edited_range(0, 0, 8, full),
        _make_edited_range(8, 8, 8, 1),
        _make_edited_range(16, 16, encode_edits.MAX_FRAME_SPAN_BYTES, 0),
        _make_edited_range(0, 0, 8, 1),
    ]
    jobs = list(make_edit_jobs("u8", pieces, EncoderOptions()))
    assert [job.edit_count if isinstance(job, EditJob) else 0 for job in jobs] == [full, 1, 0, 1]
    assert [job.size for job in jobs] == [8, 8, encode_edits.MAX_FRAME_SPAN_BYTES, 8]
    apart = [_make_edited_range(10 * i, 10 * i, 8, 1) for i in range(encode_edits.MAX_FRAME_RANGES + 1)]
    assert [len(job.ranges) for job in make_edit_jobs("u8", apart, EncoderOptions())] == [
        encode_edits.MAX_FRAME_RANGES,
        1,
    ]
