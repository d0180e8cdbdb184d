"""Models of every kind go through `quantize` with random inputs: quantized, or a reason; never a silent no-op."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from packager.inputs import ModelInterface, check_sample, random_samples
from packager.quantize.fidelity import gate
from packager.quantize.graphs import is_quantized
from packager.quantize.schemes import quantize
from tests import models

QUANTIZABLE: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": models.mlp,
    "mlp, operator set 11": lambda: models.mlp(opset=11),
    "convolutions": models.conv_net,
    "convolutions, operator set 11": lambda: models.conv_net(opset=11),
    "LSTM with state": lambda: models.recurrent("LSTM"),
    "GRU with state": lambda: models.recurrent("GRU"),
    "weights in the branches of an If": models.branching,
    "weights in a Loop": models.looping,
    "several inputs, dynamic shapes": models.text_encoder,
}


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_model_becomes_smaller_and_passes_the_gate(kind: str, tmp_path: Path) -> None:
    model = models.save(QUANTIZABLE[kind](), tmp_path / "float.onnx")
    samples = random_samples(model, 48)
    report = quantize(model, tmp_path / "int8.onnx", "int8", samples)
    assert (report.outcome, report.origin) == ("quantized", "random:0"), report.as_text()
    assert report.bytes == (tmp_path / "int8.onnx").stat().st_size < 0.75 * report.float_bytes
    assert is_quantized(onnx.load(tmp_path / "int8.onnx"))
    assert gate(model, tmp_path / "int8.onnx", samples).verdict == "pass"


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    model = models.save(models.conv_net(), tmp_path / "float.onnx")
    written = []
    for name in ("a.onnx", "b.onnx"):
        quantize(model, tmp_path / name, "int8", random_samples(model, 16))
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_model_without_weights_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = models.save(models.without_weights(), tmp_path / "float.onnx")
    report = quantize(model, tmp_path / "int8.onnx", "int8", random_samples(model, 8))
    assert report.outcome == "refused"
    assert "no constant weight" in report.reason
    assert not (tmp_path / "int8.onnx").exists()


def test_answers_that_never_vary_are_inconclusive_and_nothing_is_written(tmp_path: Path) -> None:
    model = models.save(models.constant_answer(), tmp_path / "float.onnx")
    report = quantize(model, tmp_path / "int8.onnx", "int8", random_samples(model, 16))
    assert report.outcome == "inconclusive"
    assert "no output varies" in report.reason
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("size", [1, 37, 640])
def test_sizes_are_searched_until_the_model_runs(size: int, tmp_path: Path) -> None:
    model = models.save(models.only_runs_at(size), tmp_path / "float.onnx")
    samples = random_samples(model, 3)
    assert [sample["x"].shape for sample in samples] == [(1, size)] * 3
    for sample in samples:
        check_sample(sample, ModelInterface.from_file(model), "random")


def test_dynamic_sizes_come_in_several(tmp_path: Path) -> None:
    model = models.save(models.text_encoder(), tmp_path / "float.onnx")
    lengths = {sample["input_ids"].shape for sample in random_samples(model, 12)}
    assert len(lengths) == 3
