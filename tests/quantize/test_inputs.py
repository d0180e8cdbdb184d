"""Names, shapes, dtypes and counts of inputs are checked before a model runs, with one-line errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import AirweightsError
from bundle.golden.golden_file import read_golden
from packager.errors import (
    AlreadyQuantized,
    InputUnsupported,
    ModelDoesNotRun,
    ModelUnreadable,
    NoWorkingInput,
    QuantizationRefused,
    SampleDtypeMismatch,
    SampleHasNan,
    SampleNameMismatch,
    SampleShapeMismatch,
    SamplesUnreadable,
    TooFewSamples,
    WeightsNotFinite,
)
from packager.models.golden_vectors import record_golden
from packager.models.input_recipes import Recipe, one_size_varied, sizes_varied
from packager.models.inputs import ModelInterface, TensorInfo, load_proto
from packager.models.missing_values import load_inputs
from packager.models.random_inputs import random_samples
from packager.models.samples import NpzSource, folder_samples, load_samples
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.update_aware.quantize_update import quantize_update
from tests.support import odd_models, tiny_models


@pytest.fixture
def interface(tmp_path: Path) -> ModelInterface:
    return ModelInterface.from_file(tiny_models.save(tiny_models.text_encoder(), tmp_path / "model.onnx"))


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, allow_pickle=False, **arrays)
    return path


IDS = np.arange(6 * 5, dtype=np.int64).reshape(6, 1, 5) % 50
MASK = np.ones((6, 1, 5), np.int64)


def test_each_sample_is_fed_as_it_is(interface: ModelInterface, tmp_path: Path) -> None:
    samples = load_samples(npz(tmp_path / "x.npz", input_ids=IDS, attention_mask=MASK), interface)
    assert len(samples) == 6
    assert samples.origin == f"npz:{samples.digest}"
    for number, sample in enumerate(samples):
        assert np.array_equal(sample["input_ids"], IDS[number])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_samples_of_an_npz_are_read_in_any_order(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    rows = np.random.default_rng(0).normal(size=(40, 1, 5000)).astype(np.float32)
    save(path, allow_pickle=False, x=rows)
    indices = [5, 6, 6, 30, 2, 0, 39, 38]
    found = NpzSource(path, (TensorInfo("x", "float32", (1, 5000)),)).rows(indices)
    for index, sample in zip(indices, found, strict=True):
        assert np.array_equal(sample["x"], rows[index])


def test_sample_without_its_batch_axis_is_a_batch_of_one(interface: ModelInterface, tmp_path: Path) -> None:
    samples = load_samples(npz(tmp_path / "x.npz", input_ids=IDS[:, 0], attention_mask=MASK), interface)
    assert [sample["input_ids"].shape for sample in samples] == [(1, 5)] * 6
    folder = tmp_path / "folder"
    folder.mkdir()
    npz(folder / "one.npz", input_ids=IDS[0, 0], attention_mask=MASK[0])
    assert next(iter(folder_samples(folder, interface)))["input_ids"].shape == (1, 5)


def test_axis_of_fixed_size_is_never_taken_for_a_batch(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(batch=4), tmp_path / "float.onnx")
    with pytest.raises(SampleShapeMismatch, match=r"shape \[64\].*\[4, 64\]"):
        load_samples(npz(tmp_path / "x.npz", x=np.zeros((4, 64), np.float32)), ModelInterface.from_file(model))


def test_every_other_sample_is_held_back(interface: ModelInterface, tmp_path: Path) -> None:
    samples = load_samples(npz(tmp_path / "x.npz", input_ids=IDS, attention_mask=MASK), interface)
    calibration, held_back = samples.split_halves()
    assert [s["input_ids"][0, 0] for s in calibration] == [IDS[i, 0, 0] for i in (0, 2, 4)]
    assert [s["input_ids"][0, 0] for s in held_back] == [IDS[i, 0, 0] for i in (1, 3, 5)]


@pytest.mark.parametrize(
    ("arrays", "error", "reason", "words"),
    [
        ({"input_ids": IDS}, SampleNameMismatch, "sample-name-mismatch", "attention_mask"),
        (
            {"input_ids": IDS, "attention_mask": MASK, "extra": MASK},
            SampleNameMismatch,
            "sample-name-mismatch",
            "extra",
        ),
        (
            {"input_ids": IDS.astype(np.int32), "attention_mask": MASK},
            SampleDtypeMismatch,
            "sample-dtype-mismatch",
            "int32",
        ),
        ({"input_ids": IDS[:, 0, 0], "attention_mask": MASK}, SampleShapeMismatch, "sample-shape-mismatch", "[]"),
        (
            {"input_ids": IDS[..., None], "attention_mask": MASK},
            SampleShapeMismatch,
            "sample-shape-mismatch",
            "[1, 5, 1]",
        ),
        ({"input_ids": IDS[:4], "attention_mask": MASK}, SampleShapeMismatch, "sample-shape-mismatch", "input_ids 4"),
        ({"input_ids": IDS[:0], "attention_mask": MASK[:0]}, TooFewSamples, "too-few-samples", "0 samples"),
    ],
)
def test_wrong_arrays_are_named(
    arrays: dict[str, np.ndarray],
    error: type[AirweightsError],
    reason: str,
    words: str,
    interface: ModelInterface,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        load_samples(npz(tmp_path / "x.npz", **arrays), interface)
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_sample_with_nan_is_named_and_one_with_infinity_taken(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    interface = ModelInterface.from_file(model)
    x = np.zeros((4, 1, 64), np.float32)
    x[1, 0, 3] = -np.inf
    assert len(load_samples(npz(tmp_path / "x.npz", x=x), interface)) == 4
    x[2, 0, :3] = np.nan
    with pytest.raises(SampleHasNan, match=r"x.npz: sample 2: 3 of 64 numbers of 'x' are NaN, and so is out") as caught:
        load_inputs(model, npz(tmp_path / "x.npz", x=x))
    assert (caught.value.reason, caught.value.exit_code) == ("sample-has-nan", 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "one.npy", x[2])
    with pytest.raises(SampleHasNan, match=r"folder: sample 0: 3 of 64"):
        load_inputs(model, folder)


def test_samples_with_missing_values_are_accepted_where_the_outputs_are_finite(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.missing_values(), tmp_path / "float.onnx")
    x = np.random.default_rng(0).standard_normal((8, 1, 64)).astype(np.float32)
    x[:, 0, ::5] = np.nan
    samples = load_inputs(model, npz(tmp_path / "x.npz", x=x))
    assert len(samples) == 8
    report = record_golden(model, samples, tmp_path / "golden.bin")
    golden = read_golden((tmp_path / "golden.bin").read_bytes())
    assert report.samples == len(golden) == 8
    assert np.isnan(golden[0].inputs["x"]).sum() == 13


def test_float_model_that_answers_nan_alone_is_refused(tmp_path: Path) -> None:
    model = tiny_models.mlp()
    good = tiny_models.save(model, tmp_path / "good.onnx")
    samples = random_samples(good, 16)
    options = QuantizeOptions(measure_latency=False)
    assert quantize_model(good, tmp_path / "base.onnx", "int8", samples, options).outcome == "quantized"
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sqrt"  # of numbers of both signs
    path = tiny_models.save(model, tmp_path / "float.onnx")
    report = quantize_model(path, tmp_path / "int8.onnx", "int8", samples, options)
    assert report.outcome == "refused"
    assert "outputs only NaN on 8 samples" in report.reason
    with pytest.raises(QuantizationRefused, match="outputs only NaN"):
        quantize_update(path, tmp_path / "base.onnx", tmp_path / "update.onnx", *samples.split_halves())
    assert not (tmp_path / "update.onnx").exists()


def test_file_that_is_no_npz_is_refused(interface: ModelInterface, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(SamplesUnreadable):
        load_samples(tmp_path / "x.npz", interface)
    with pytest.raises(SamplesUnreadable):
        load_samples(tmp_path / "missing.npz", interface)


def test_folder_holds_one_sample_a_file(interface: ModelInterface, tmp_path: Path) -> None:
    for number in range(3):
        npz(tmp_path / f"{number}.npz", input_ids=IDS[number], attention_mask=MASK[number])
    samples = folder_samples(tmp_path, interface)
    assert [s["input_ids"][0, 0] for s in samples] == [IDS[i, 0, 0] for i in range(3)]


def test_random_samples_are_labeled_and_repeatable(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "model.onnx")
    first, second = random_samples(model, 4, seed=7), random_samples(model, 4, seed=7)
    assert first.origin == "random:7"
    assert first.is_random
    assert first.digest == second.digest != random_samples(model, 4, seed=8).digest


def test_model_that_runs_at_no_size_says_what_to_do(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.fixed_length(5000), tmp_path / "model.onnx")
    with pytest.raises(NoWorkingInput, match="length") as caught:
        random_samples(model, 2, limit_s=6.0)
    assert "--inputs" in (caught.value.hint or "")


def test_layer_that_fails_for_all_sizes_ends_the_search(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.convolution((8, 3, 3, 3), kernel_shape=[5, 5]), tmp_path / "model.onnx")
    with pytest.raises(ModelDoesNotRun, match=r"for all sizes: .*kernel_shape") as caught:
        random_samples(model, 2, limit_s=600.0)
    assert "layer" in (caught.value.hint or "")


def test_open_axes_get_the_size_that_a_layer_needs(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.convolution((4, 3, 3, 3), group=2), tmp_path / "model.onnx")
    assert next(iter(random_samples(model, 2)))["x"].shape[1] == 6


def test_sizes_are_varied_alone_and_together(interface: ModelInterface) -> None:
    given = Recipe({"batch": 1, "length": 16})
    for symbol, varied in one_size_varied(interface, given).items():
        assert len({recipe.sizes[symbol] for recipe in varied} - {given.sizes[symbol]}) == 3
        assert all(len(given.sizes.items() ^ recipe.sizes.items()) == 2 for recipe in varied)
    together = list(sizes_varied(interface, given, {"batch"}))
    assert {recipe.sizes["batch"] for recipe in together} == {1}
    assert len({recipe.sizes["length"] for recipe in together}) == 3
    assert len({recipe.integer_bound for recipe in together}) == 2


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\tb", "a\u202eb", "a\u200bb", "\ufeffx", "\x1b[2J"])
def test_name_with_an_unprintable_character_is_refused_at_once(name: str) -> None:
    for model in (odd_models.two_layers(name), odd_models.two_layers("x", name)):
        with pytest.raises(InputUnsupported, match="control or format character") as caught:
            ModelInterface.from_proto(model)
        assert caught.value.message.isprintable()
        assert "rename" in (caught.value.hint or "")


def test_segment_of_a_tensor_is_refused(tmp_path: Path) -> None:
    model = odd_models.two_layers()
    model.graph.initializer[0].segment.end = 5
    with pytest.raises(ModelUnreadable, match="segment"):
        load_proto(tiny_models.save(model, tmp_path / "model.onnx"))


def test_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x00garbage")
    with pytest.raises(ModelUnreadable) as caught:
        ModelInterface.from_file(tmp_path / "model.onnx")
    assert "\n" not in caught.value.message
    with pytest.raises(ModelUnreadable, match="no such file"):
        ModelInterface.from_file(tmp_path / "missing.onnx")


def test_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "model.onnx")
    samples = random_samples(model, 32)
    quantize_model(model, tmp_path / "int8.onnx", "int8", samples, QuantizeOptions(measure_latency=False))
    with pytest.raises(AlreadyQuantized, match="already quantized"):
        quantize_model(tmp_path / "int8.onnx", tmp_path / "again.onnx", "int8", samples)
    assert not (tmp_path / "again.onnx").exists()


def test_weights_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    model = tiny_models.mlp()
    tensor = next(t for t in model.graph.initializer if t.name == "w1")
    values = np.frombuffer(tensor.raw_data, np.float32).copy()
    values[3] = np.nan
    tensor.raw_data = values.tobytes()
    path = tiny_models.save(model, tmp_path / "model.onnx")
    with pytest.raises(WeightsNotFinite, match=r"1 of 8192 numbers of 'w1'"):
        quantize_model(path, tmp_path / "int8.onnx", "int8", random_samples(path, 4))
