"""The typed codec is exact for all formats and element types, and smaller than generic tools."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import bsdiff4
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bundle.patch.elements import ELEMENT_TYPES, from_ordered, from_values, to_doubles, to_ordered
from packager.diff.encode.entropy import EncoderOptions, write_part
from packager.diff.encode.zstd_prefix import compress_with_prefix
from packager.diff.write.make_patch import make_patch
from packager.quantize.update_aware.fill_template import round_to_steps
from tests.support import model_formats
from tests.support.memory_bundles import apply_to_memory, make_patch_between, write_bundle


@pytest.mark.parametrize("name", model_formats.FORMATS)
@pytest.mark.parametrize("codec", ["typed", "planes"])
def test_an_update_of_every_format_is_exact_and_beats_bsdiff(tmp_path: Path, name: str, codec: str) -> None:
    arrays = model_formats.make_weights(1)
    new = model_formats.fine_tune(arrays, 2)
    if name == "tflite":
        new = {**new, "shape": new["shape"][:20]}
    base, target = {"m": model_formats.FORMATS[name](arrays)}, {"m": model_formats.FORMATS[name](new)}
    patch, report = make_patch_between(tmp_path, base, target, codec)
    assert apply_to_memory(patch, base) == target
    assert "typed" in report.features
    assert ("pcodec" in report.features) == (codec == "typed")
    assert len(patch) < len(bsdiff4.diff(base["m"], target["m"]))


def test_from_nothing_beats_zstd_on_floats(tmp_path: Path) -> None:
    target = {"m": model_formats.to_safetensors({"w": model_formats.make_weights(3)["embedding"]})}
    typed, _ = make_patch_between(tmp_path / "1", None, target, "typed")
    zstd, _ = make_patch_between(tmp_path / "2", None, target, "zstd")
    assert apply_to_memory(typed, None) == target
    assert len(typed) < len(zstd)


def test_from_nothing_a_table_that_repeats_is_packed_as_bytes(tmp_path: Path) -> None:
    angles = 2 * np.pi * np.outer(np.arange(128), np.arange(64)) / 128
    target = {
        "m": model_formats.to_safetensors(
            {"table": np.cos(angles).astype(np.float32), "w": model_formats.make_weights(3)["embedding"]}
        )
    }
    patch, report = make_patch_between(tmp_path, None, target, "auto")
    assert apply_to_memory(patch, None) == target
    assert {row.name: row.coder for row in report.rows}["table"] in ("LZMA", "zstd")
    assert len(patch) < len(zstandard.ZstdCompressor(level=19).compress(target["m"]))


def test_what_the_predictors_are_for_is_found(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    base, target = (
        model_formats.to_safetensors(arrays),
        model_formats.to_safetensors(model_formats.fine_tune(arrays, 2)),
    )
    _, report = make_patch_between(tmp_path, {"m": base}, {"m": target}, "typed")
    used = {row.name: row.predictor for row in report.rows}
    assert "low rank" in used["dense"]
    assert "gain by output" in used["half"]
    assert used["embedding"].startswith(("base", "low rank"))
    assert any(row.predictor == "copy" for row in report.rows)


def test_renamed_and_reordered_tensors_cost_hardly_more(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    new = model_formats.fine_tune(arrays, 2)
    renamed = {f"other.{name}.w": array for name, array in reversed(new.items())}
    base = {"m": model_formats.to_safetensors(arrays)}
    plain, _ = make_patch_between(tmp_path / "1", base, {"m": model_formats.to_safetensors(new)}, "typed")
    patch, _ = make_patch_between(tmp_path / "2", base, {"m": model_formats.to_safetensors(renamed)}, "typed")
    assert apply_to_memory(patch, base) == {"m": model_formats.to_safetensors(renamed)}
    assert len(patch) < len(plain) * 1.02 + 400


def test_a_transposed_tensor_is_found(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    turned = {**arrays, "dense": np.ascontiguousarray((arrays["dense"] * np.float32(1.001)).T)}
    base, target = {"m": model_formats.to_safetensors(arrays)}, {"m": model_formats.to_safetensors(turned)}
    patch, report = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    assert {row.name: row.predictor for row in report.rows}["dense"] != "none"
    assert len(patch) < 12_000


def test_external_data_is_found_through_the_model(tmp_path: Path) -> None:
    from onnx import TensorProto, external_data_helper, helper, numpy_helper

    def bundle(array: np.ndarray[Any, Any]) -> dict[str, bytes]:
        tensor = numpy_helper.from_array(array, "w")
        external_data_helper.set_external_data(tensor, "weights.bin", offset=64, length=array.nbytes)
        tensor.ClearField("raw_data")
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        graph = helper.make_graph([], "g", [value], [value], [tensor])
        model = helper.make_model(graph).SerializeToString()
        return {"model/m.onnx": model, "model/weights.bin": bytes(64) + array.tobytes()}

    w = model_formats.make_weights(1)["dense"]
    base, target = bundle(w), bundle((w * 1.0001).astype(np.float32))
    patch, report = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    assert "w" in [row.name.strip("/") for row in report.rows]


def test_the_executor_does_not_change_a_byte(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    base = write_bundle(tmp_path / "b", {"m": model_formats.to_onnx(arrays)})
    target = write_bundle(tmp_path / "t", {"m": model_formats.to_onnx(model_formats.fine_tune(arrays, 2))})
    alone, together = BytesIO(), BytesIO()
    calls: list[tuple[int, int]] = []
    first = make_patch(base, target, alone, progress=lambda done, total: calls.append((done, total)))
    with ThreadPoolExecutor(3) as executor:
        second = make_patch(base, target, together, executor=executor)
    assert alone.getvalue() == together.getvalue()
    assert first == second
    elsewhere = BytesIO()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        make_patch(base, target, elsewhere, executor=executor)
    assert alone.getvalue() == elsewhere.getvalue()
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_never_above_the_best_generic_tool_by_more_than_a_kibibyte(tmp_path: Path) -> None:
    import zstandard

    text = "".join(f'"token{i * 7919 % 5000}": {i},\n' for i in range(9000)).encode()
    noise = np.random.default_rng(0).bytes(20_000)
    cases = {
        "text": (text, text.replace(b"token77", b"tok77").replace(b": 4,", b": 5,")),
        "moved": (noise, noise[7000:] + noise[:7000]),
        "unrelated": (noise, np.random.default_rng(1).bytes(20_000)),
        "retrained": (
            model_formats.to_onnx(model_formats.make_weights(1)),
            model_formats.to_onnx(model_formats.make_weights(2, 0.08)),
        ),
        "repeated rows": (model_formats.to_safetensors({"w": np.tile(model_formats.make_weights(1)["dense"], (4, 1))}),)
        * 2,
    }
    for name, (old, new) in cases.items():
        base, target = {"f": old}, {"f": new}
        patch, _ = make_patch_between(tmp_path / name, base, target)
        assert apply_to_memory(patch, base) == target
        raw = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        generic = [
            len(zstandard.ZstdCompressor(level=19).compress(new)),
            len(zstandard.ZstdCompressor(level=19, dict_data=raw).compress(new)),
            len(bsdiff4.diff(old, new)),
        ]
        assert len(patch) <= min(generic) + 1024, (name, len(patch), generic)


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int8, np.uint8, np.int64, np.float64]),
    st.one_of(hnp.array_shapes(max_dims=3, max_side=12), st.tuples(st.integers(1, 3), st.integers(1, 400))),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=3), st.data())
def test_any_array_is_made_from_any_other(tmp_path_factory: pytest.TempPathFactory, old: list[Any], data: Any) -> None:
    new = []
    for array in old:
        raw = bytearray(array.tobytes())
        for position in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=4)):
            raw[position : position + 1] = data.draw(st.binary(min_size=1, max_size=1))
        new.append(np.frombuffer(bytes(raw), array.dtype).reshape(array.shape))
    base = {"m": model_formats.to_safetensors({f"t{i}": array for i, array in enumerate(old)})}
    target = {"m": model_formats.to_safetensors({f"t{i}": array for i, array in enumerate(new)})}
    patch, _ = make_patch_between(
        tmp_path_factory.mktemp("any"), base, target, data.draw(st.sampled_from(["typed", "planes"]))
    )
    assert apply_to_memory(patch, base) == target


@pytest.mark.parametrize("kind", ELEMENT_TYPES, ids=lambda kind: kind.name)
def test_order_and_values_are_exact(kind: Any) -> None:
    rng = np.random.default_rng(0)
    bits = np.frombuffer(rng.bytes(4096 * kind.size), kind.bits)
    assert (from_ordered(to_ordered(bits, kind), kind) == bits).all()
    if kind.is_float and kind.native is not None:
        values = bits.view(kind.native)
        finite = values[np.isfinite(values)]
        by_value = np.sort(finite)
        by_order = from_ordered(np.sort(to_ordered(finite.view(kind.bits), kind)), kind).view(kind.native)
        assert (by_value == by_order).all()
    if kind.size < 8:
        doubles = to_doubles(bits, kind)
        keep = np.isfinite(doubles)
        assert (from_values(doubles[keep], kind) == bits[keep]).all()


def test_rows_changed_here_and_there_do_not_make_the_decoder_wait(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 0.05, (20_000, 100)).astype(np.float32)
    new = old.copy()
    new[::2] += rng.normal(0, 1e-4, new[::2].shape).astype(np.float32)
    base, target = {"m": model_formats.to_safetensors({"e": old})}, {"m": model_formats.to_safetensors({"e": new})}
    patch, report = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    assert report.peak_memory_bytes < 24 << 20


def test_rows_that_changed_more_often_cost_less_than_changes_anywhere(tmp_path: Path) -> None:
    dice = np.random.default_rng(11)
    rates = np.where(np.arange(1200) % 4 == 0, 0.08, 0.008)
    sizes = {}
    for name, rate in (("rows", rates[:, None]), ("anywhere", rates.mean())):
        old = dice.integers(40, 200, (1200, 300), np.uint8)
        new = old + (dice.random(old.shape) < rate) * dice.choice(np.array([1, 255], np.uint8), old.shape)
        base, target = ({"m": model_formats.to_safetensors({"w": side})} for side in (old, new.astype(np.uint8)))
        patch, _ = make_patch_between(tmp_path / name, base, target)
        assert apply_to_memory(patch, base) == target
        sizes[name] = len(patch)
    # 0.89 of it by the entropy of places given their row, and the rows' classes take a bit or two each
    assert sizes["rows"] < 0.95 * sizes["anywhere"]


def test_what_lies_between_unchanged_tensors_is_copied_with_them(tmp_path: Path) -> None:
    names = [f"layers.{i}.dense.weight" for i in range(100)]
    old = {name: np.random.default_rng(i).normal(0, 0.05, (40, 60)).astype(np.float32) for i, name in enumerate(names)}
    new = {**old, names[31]: model_formats.make_weights(5)["dense"], names[77]: np.zeros((1, 2), np.float32)}
    base, target = {"m": model_formats.to_onnx(old)}, {"m": model_formats.to_onnx(new)}
    patch, report = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    (copied,) = [row for row in report.rows if row.predictor == "copy"]
    assert copied.name == "3 unchanged ranges"
    (structure,) = [row for row in report.rows if row.name == "structure"]
    assert structure.target_bytes < 200
    assert structure.patch_bytes + copied.patch_bytes < 300


def test_a_file_without_tensors_that_lies_beside_a_copied_one_is_copied_too(tmp_path: Path) -> None:
    model, text = model_formats.make_tiny_file(1), b"the same words, " * 100
    base = {"a.safetensors": model, "b.txt": text, "c.txt": b"what c was", "d.txt": text[::-1]}
    target = {"a.safetensors": model, "c.txt": text, "d.txt": text[::-1]}
    patch, _ = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
@pytest.mark.parametrize("share", [0.001, 0.02])
def test_single_bytes_edited_in_a_model_cost_what_generic_tools_take(
    tmp_path: Path, dtype: type[np.number[Any]], share: float
) -> None:
    rng = np.random.default_rng(13)
    old = {"w": (rng.normal(0, 0.05, (6000, 50)) * (1 if dtype != np.int64 else 2e4)).astype(dtype)}
    content = np.frombuffer(model_formats.to_onnx(old), np.uint8).copy()
    base = {"m": content.tobytes()}
    places = 200 + rng.choice(len(content) - 400, round(share * len(content)), replace=False)
    content[places] = rng.integers(0, 256, len(places))
    target = {"m": content.tobytes()}
    patch, _ = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    peers = bsdiff4.diff(base["m"], target["m"]), compress_with_prefix(base["m"], target["m"], 19)
    assert len(patch) <= min(map(len, peers)) + 1024


def test_a_few_edits_in_a_large_tensor_cost_a_few_bytes_each(tmp_path: Path) -> None:
    old = np.random.default_rng(14).normal(0, 0.05, (5000, 400)).astype(np.float32)
    new, places = old.copy(), np.random.default_rng(15).choice(old.size, 80, replace=False)
    new.reshape(-1).view(np.uint8).reshape(-1, 4)[places, 1] ^= 0x55
    base, target = ({"m": model_formats.to_safetensors({"w": each})} for each in (old, new))
    patch, _ = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    assert len(patch) < 500 + 16 * len(places)


def test_rare_numbers_are_packed_as_what_they_are_and_not_as_multiples() -> None:
    numbers = np.zeros(1 << 18, np.int8)
    rng = np.random.default_rng(16)
    places = rng.choice(len(numbers), len(numbers) // 1000, replace=False)
    numbers[places] = rng.integers(1, 256, len(places)).astype(np.uint8).view(np.int8)
    # A sample of all numbers holds four that are not 0, which all may be even.
    entropy_bits = len(numbers) * (8e-3 - 1e-3 * np.log2(1e-3) - 0.999 * np.log2(0.999))
    for shift in range(64):
        assert len(write_part(np.roll(numbers, shift), EncoderOptions())) < 1.1 * entropy_bits / 8


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_floats_of_every_size_are_coded_without_a_word(tmp_path: Path, dtype: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(11)
    old = rng.normal(0, 0.05, (200, 300)).astype(dtype)
    content = np.frombuffer(old.tobytes(), np.uint8).copy()
    places = rng.choice(len(content), len(content) // 5, replace=False)
    content[places] = rng.integers(0, 256, len(places))
    new = content.view(dtype).reshape(old.shape)
    new = np.where(np.isfinite(new), new, old)
    base, target = {"m": model_formats.to_safetensors({"w": old})}, {"m": model_formats.to_safetensors({"w": new})}
    patch, _ = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target


def test_floats_that_moved_in_steps_cost_what_the_steps_cost(tmp_path: Path) -> None:
    dice = np.random.default_rng(12)
    old = {f"bias{i}": dice.normal(0, 0.1 * 4.0**-i, 384).astype(np.float32) for i in range(6)}
    moved = {name: (value + dice.normal(0, 1e-4, 384)).astype(np.float32) for name, value in old.items()}
    sizes = {}
    for name, new in (("steps", {key: round_to_steps(old[key], moved[key]) for key in old}), ("any", moved)):
        base, target = {"m": model_formats.to_safetensors(old)}, {"m": model_formats.to_safetensors(new)}
        patch, _ = make_patch_between(tmp_path / name, base, target)
        assert apply_to_memory(patch, base) == target
        sizes[name] = len(patch)
    # steps of half to one standard deviation: 2.1 to 3.1 bits a number, and what patch and tables take
    assert 8 * (sizes["steps"] - 600) < 3.4 * 6 * 384
    assert sizes["steps"] < 0.4 * sizes["any"]


def test_widened_floats_cost_little_more_than_narrow_ones(tmp_path: Path) -> None:
    dice = np.random.default_rng(13)
    old = dice.normal(0, 0.05, (256, 384)).astype(np.float16)
    new = (old + dice.normal(0, 0.002, old.shape)).astype(np.float16)
    sizes = {}
    for dtype in (np.float16, np.float32):
        base, target = ({"m": model_formats.to_safetensors({"w": side.astype(dtype)})} for side in (old, new))
        patch, _ = make_patch_between(tmp_path / dtype.__name__, base, target)
        assert apply_to_memory(patch, base) == target
        sizes[dtype] = len(patch)
    assert sizes[np.float32] < 1.2 * sizes[np.float16]


def test_a_quantized_gguf_whose_last_block_is_shorter_than_a_row_is_exact(tmp_path: Path) -> None:
    # 29,128 rows of 18 bytes: two blocks of elements, and 16 bytes of a third one
    dice = np.random.default_rng(3)
    old = dice.normal(0, 0.02, (29_128, 32)).astype(np.float32)
    new = old + dice.normal(0, 2e-4, old.shape).astype(np.float32)
    base, target = ({"model.gguf": model_formats.to_q4_0_gguf({"w": values})} for values in (old, new))
    patch, report = make_patch_between(tmp_path, base, target, "typed")
    assert apply_to_memory(patch, base) == target
    assert report.plain_size < 0.15 * len(target["model.gguf"])
