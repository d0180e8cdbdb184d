"""Golden vectors come from the shipped file, hold for other threads and optimization levels, and detect damage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundle.errors import GoldenMismatch
from bundle.golden.comparison import check_outputs
from bundle.golden.golden_file import read_golden, read_golden_file
from packager.diff.bundle_folder import open_bundle
from packager.diff.write.make_patch import make_patch
from packager.models.golden_vectors import record_golden
from packager.models.random_inputs import random_samples
from packager.models.samples import samples_from
from packager.models.sessions import open_session, run_session
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models


def test_shipped_model_answers_its_golden_vectors(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.conv_net(), tmp_path / "float.onnx")
    samples = random_samples(model, 24)
    quantize_model(model, tmp_path / "int8.onnx", "int8", samples, QuantizeOptions(measure_latency=False))
    report = record_golden(tmp_path / "int8.onnx", samples, tmp_path / "golden.bin", count=6)
    assert 1_000 <= report.tolerance_ppm <= 50_000
    golden = read_golden((tmp_path / "golden.bin").read_bytes())
    assert 2 <= len(golden) == report.samples <= 6
    running = open_session(tmp_path / "int8.onnx")
    for number, sample in enumerate(golden):
        inputs = {name: np.asarray(array) for name, array in sample.inputs.items()}
        answers = dict(zip(["logits"], run_session(running, inputs), strict=True))
        check_outputs(answers, sample, tolerance_ppm=report.tolerance_ppm, where=f"sample {number}")


def test_smallest_and_largest_inputs_are_among_them(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "model.onnx")
    samples = random_samples(model, 24)
    record_golden(model, samples, tmp_path / "golden.bin", count=2)
    golden = read_golden((tmp_path / "golden.bin").read_bytes())
    lengths = {sample["input_ids"].shape[1] for sample in samples}
    assert {sample.inputs["input_ids"].shape[1] for sample in golden} == {min(lengths), max(lengths)}


def test_earlier_inputs_that_the_model_does_not_run_on_are_replaced(tmp_path: Path) -> None:
    """A smaller vocabulary lacks numbers of words that the earlier release had."""
    samples = {}
    for size in (50, 20):
        model = tiny_models.save(tiny_models.text_encoder(vocabulary=size), tmp_path / f"{size}.onnx")
        ids = np.full((1, 6), size - 1, np.int64)
        samples[size] = samples_from([{"input_ids": ids, "attention_mask": np.ones((1, 6), np.int64)}])
        earlier = None if size == 50 else read_golden_file((tmp_path / "50.bin").read_bytes())
        record_golden(model, samples[size], tmp_path / f"{size}.bin", earlier=earlier)
    (vector,) = read_golden((tmp_path / "20.bin").read_bytes())
    assert (np.asarray(vector.inputs["input_ids"]) == 19).all()


def test_other_weights_miss_the_golden_vectors(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(0), tmp_path / "model.onnx")
    other = tiny_models.save(tiny_models.mlp(1), tmp_path / "other.onnx")
    report = record_golden(model, random_samples(model, 8), tmp_path / "golden.bin")
    sample = read_golden((tmp_path / "golden.bin").read_bytes())[0]
    inputs = {name: np.asarray(array) for name, array in sample.inputs.items()}
    answers = dict(zip(["probabilities"], run_session(open_session(other), inputs), strict=True))
    with pytest.raises(GoldenMismatch):
        check_outputs(answers, sample, tolerance_ppm=report.tolerance_ppm, where="sample 0")


def damage(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """Return a copy of the model with one changed weight."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [tensor for tensor in copy.graph.initializer if tensor.name == name]
    values = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy


def worst_error(model: Path, golden: bytes, tolerance_ppm: int) -> float:
    running = open_session(model)
    names = [output.name for output in running.get_outputs()]
    worst = 0.0
    for sample in read_golden(golden):
        outputs = dict(zip(names, run_session(running, sample.inputs), strict=True))
        worst = max(worst, check_outputs(outputs, sample, tolerance_ppm=tolerance_ppm, where="golden"))
    return worst


def test_golden_vectors_of_large_outputs_stay_within_their_budget(tmp_path: Path) -> None:
    first = tiny_models.large_outputs()
    model = tiny_models.save(first, tmp_path / "1.onnx")
    samples = random_samples(model, 16)
    report = record_golden(model, samples, tmp_path / "1.bin")
    assert report.samples >= 2
    assert report.bytes < 64 * 1024
    assert report.expected_bytes <= 1024
    tuned = damage(first, "head", lambda w: w * 1.0001)
    model = tiny_models.save(damage(tuned, "filters", lambda w: w + 1e-4), tmp_path / "2.onnx")
    earlier = read_golden_file((tmp_path / "1.bin").read_bytes())
    # other samples: the inputs are the earlier release's nonetheless
    record_golden(model, random_samples(model, 16, seed=9), tmp_path / "2.bin", earlier=earlier)
    with (tmp_path / "patch").open("wb") as out:
        patch = make_patch(open_bundle(tmp_path / "1.bin"), open_bundle(tmp_path / "2.bin"), out)
    assert patch.plain_size <= 1024 + 128  # the header of a patch is not the golden vectors'


def test_large_inputs_are_rounded_or_drawn(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.large_outputs(samples=40_000), tmp_path / "1.onnx")
    rng = np.random.default_rng(0)
    sound = np.cumsum(rng.standard_normal((4, 1, 40_000)), axis=2).astype(np.float32) / 200
    report = record_golden(model, samples_from([{"sound": s} for s in sound]), tmp_path / "noise.bin")
    golden = read_golden_file((tmp_path / "noise.bin").read_bytes())
    assert {sample["sound"].code for sample in golden.inputs} == {"noise"}
    assert report.bytes < 64 * 1024
    large = record_golden(
        model, samples_from([{"sound": s} for s in sound]), tmp_path / "real.bin", golden_bytes=400_000
    )
    golden = read_golden_file((tmp_path / "real.bin").read_bytes())
    assert {sample["sound"].code for sample in golden.inputs} == {"u16"}
    stored = golden.samples[0].inputs["sound"].astype(float)  # of any sample: those that show damage best come first
    assert min(np.abs(stored - one).max() / np.abs(one).max() for one in sound) < 1e-4
    assert 64 * 1024 < large.bytes < 400_000


def test_an_output_that_never_varies_is_stored_in_few_bytes(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.constant_output(), tmp_path / "1.onnx")
    record_golden(model, random_samples(model, 8), tmp_path / "golden.bin")
    assert (tmp_path / "golden.bin").stat().st_size < 8_000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """Return the golden vectors of a model with large outputs, which it passes, and their tolerance in ppm."""
    folder = tmp_path_factory.mktemp("recorded")
    good = tiny_models.save(tiny_models.large_outputs(), folder / "good.onnx")
    report = record_golden(good, random_samples(good, 8), folder / "golden.bin")
    golden = (folder / "golden.bin").read_bytes()
    assert 1e6 * worst_error(good, golden, report.tolerance_ppm) <= report.tolerance_ppm
    return golden, report.tolerance_ppm


@pytest.mark.parametrize(
    ("weight", "change"),
    [
        ("head", lambda w: 0 * w),
        ("pool", lambda w: 0 * w),
        ("filters", lambda w: 0 * w),
        ("filters", lambda w: np.concatenate([-w[:1], w[1:]])),
        ("pool", lambda w: np.concatenate([-w[:, :1], w[:, 1:]], axis=1)),
        ("head", lambda w: np.concatenate([w[:, :3], 1.02 * w[:, 3:]], axis=1)),
        ("pool", lambda w: 1.02 * w),
    ],
)
def test_damage_of_one_layer_channel_or_scale_is_found(
    weight: str, change: Callable[[np.ndarray], np.ndarray], recorded: tuple[bytes, int], tmp_path: Path
) -> None:
    golden, tolerance_ppm = recorded
    bad = tiny_models.save(damage(tiny_models.large_outputs(), weight, change), tmp_path / "bad.onnx")
    with pytest.raises(GoldenMismatch):
        worst_error(bad, golden, tolerance_ppm)


def test_of_many_large_inputs_those_are_kept_that_show_small_damage(tmp_path: Path) -> None:
    """A probability that is 1 hides damaged weights; one sample of eight has others."""
    model = tiny_models.saturating(8_192)
    good = tiny_models.save(model, tmp_path / "good.onnx")
    rng = np.random.default_rng(0)
    gains = [1, 1, 1, 1, 1, 1, 2**-11, 1]
    rows = [{"x": (gain * rng.integers(-127, 128, (1, 8_192))).astype(np.float32)} for gain in gains]
    report = record_golden(good, samples_from(rows), tmp_path / "golden.bin", golden_bytes=80_000)
    assert 3 <= report.samples < 6
    bad = tiny_models.save(damage(model, "w", lambda w: 1.02 * w), tmp_path / "bad.onnx")
    with pytest.raises(GoldenMismatch):
        worst_error(bad, (tmp_path / "golden.bin").read_bytes(), report.tolerance_ppm)
