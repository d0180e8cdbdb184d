"""Every kind of model is quantized with random inputs, or refused with a reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.errors import WeightsNotFinite
from packager.models.graphs import is_quantized
from packager.models.inputs import ModelInterface, check_sample
from packager.models.random_inputs import random_samples
from packager.models.sessions import RunSettings, open_session, run_session
from packager.quantize.fp16 import quantize_fp16
from packager.quantize.gate import run_gate
from packager.quantize.lint import lint
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models

QUANTIZABLE: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": tiny_models.mlp,
    "mlp, operator set 11": lambda: tiny_models.mlp(opset=11),
    "convolutions": tiny_models.conv_net,
    "convolutions, operator set 11": lambda: tiny_models.conv_net(opset=11),
    "LSTM with state": lambda: tiny_models.recurrent("LSTM"),
    "GRU with state": lambda: tiny_models.recurrent("GRU"),
    "weights in the branches of an If": tiny_models.branching,
    "weights in a Loop": tiny_models.looping,
    "a weight in an Einsum": tiny_models.einsum,
    "a function of its own": tiny_models.with_function,
    "weights stored in half precision": lambda: quantize_fp16(tiny_models.text_encoder())[0],
    "several inputs, dynamic shapes": tiny_models.text_encoder,
}


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_model_becomes_smaller_and_passes_the_gate(kind: str, tmp_path: Path) -> None:
    model = tiny_models.save(QUANTIZABLE[kind](), tmp_path / "float.onnx")
    samples = random_samples(model, 48)
    report = quantize_model(
        model, tmp_path / "int8.onnx", "int8", samples, QuantizeOptions(optimize=kind != "a function of its own")
    )
    assert (report.outcome, report.origin) == ("quantized", "random:0"), report.as_lines()
    assert report.bytes == (tmp_path / "int8.onnx").stat().st_size < 0.75 * report.float_bytes
    assert is_quantized(onnx.load(tmp_path / "int8.onnx"))
    assert run_gate(model, tmp_path / "int8.onnx", samples).verdict == "pass"


def test_model_without_a_layer_for_four_bits_is_not_called_int4(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.einsum(), tmp_path / "float.onnx")
    report = quantize_model(model, tmp_path / "int4.onnx", "int4", random_samples(model, 8))
    assert report.outcome == "refused"
    assert "4 bits need a MatMul or Gemm" in report.reason
    assert not (tmp_path / "int4.onnx").exists()


def test_weights_beyond_half_precision_stay_float_and_are_named(tmp_path: Path) -> None:
    large = tiny_models.text_encoder()
    tensor = next(t for t in large.graph.initializer if t.name == "up0")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), "up0"))
    back = next(t for t in large.graph.initializer if t.name == "down0")
    back.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(back) * np.float32(1e-6), "down0"))
    model = tiny_models.save(large, tmp_path / "float.onnx")
    report = quantize_model(
        model, tmp_path / "half.onnx", "fp16", random_samples(model, 32), QuantizeOptions(measure_latency=False)
    )
    assert report.outcome == "quantized", report.as_lines()
    assert report.float_nodes == ("up0", "down0")  # too large, and too small to keep their energy


def test_infinite_weight_is_told_before_any_work(tmp_path: Path) -> None:
    broken = tiny_models.mlp()
    values = numpy_helper.to_array(broken.graph.initializer[0]).copy()
    values[3, 4] = np.inf
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w1"))
    model = tiny_models.save(broken, tmp_path / "float.onnx")
    with pytest.raises(WeightsNotFinite, match="1 of 8192 numbers of 'w1'"):
        quantize_model(model, tmp_path / "int8.onnx", "int8", random_samples(model, 8))


def test_input_that_does_not_say_how_many_axes_it_has_is_searched(tmp_path: Path) -> None:
    shapeless = tiny_models.mlp()
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    model = tiny_models.save(shapeless, tmp_path / "float.onnx")
    assert [sample["x"].shape for sample in random_samples(model, 2)] == [(1, 64), (1, 64)]


def test_weights_only_model_computes_in_float_at_every_optimization_level(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.with_outlier_feature(3000.0), tmp_path / "float.onnx")
    samples = random_samples(model, 16)
    options = QuantizeOptions(measure_latency=False, methods=("weights",))
    report = quantize_model(model, tmp_path / "int8.onnx", "int8", samples, options)
    assert report.outcome == "quantized", report.as_lines()
    plain, optimized = (open_session(tmp_path / "int8.onnx", RunSettings(2, level)) for level in (False, True))
    for sample in samples:
        for a, b in zip(run_session(plain, sample), run_session(optimized, sample), strict=True):
            assert np.allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())
    assert not [f.code for f in lint(tmp_path / "int8.onnx") if f.severity == "warning"]


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.conv_net(), tmp_path / "float.onnx")
    written = []
    for name in ("a.onnx", "b.onnx"):
        quantize_model(model, tmp_path / name, "int8", random_samples(model, 16))
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_model_without_weights_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.without_weights(), tmp_path / "float.onnx")
    report = quantize_model(model, tmp_path / "int8.onnx", "int8", random_samples(model, 8))
    assert report.outcome == "refused"
    assert "no constant weight" in report.reason
    assert not (tmp_path / "int8.onnx").exists()


def test_answers_that_never_vary_are_inconclusive_and_nothing_is_written(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.constant_output(), tmp_path / "float.onnx")
    report = quantize_model(model, tmp_path / "int8.onnx", "int8", random_samples(model, 16))
    assert report.outcome == "inconclusive"
    assert "no output varies" in report.reason
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("size", [1, 37, 640])
def test_sizes_are_searched_until_the_model_runs(size: int, tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.fixed_length(size), tmp_path / "float.onnx")
    samples = random_samples(model, 3)
    assert [sample["x"].shape for sample in samples] == [(1, size)] * 3
    for sample in samples:
        check_sample(sample, ModelInterface.from_file(model), "random")


def test_dynamic_sizes_come_in_several(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    lengths = {sample["input_ids"].shape for sample in random_samples(model, 12)}
    assert len(lengths) == 3
