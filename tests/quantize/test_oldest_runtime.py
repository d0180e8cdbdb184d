"""A model needs the runtime of its operators, and a release file cannot claim an older one."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

from packager.models.model_facts import runtime_of
from packager.models.oldest_runtime import oldest_runtime, parse_version
from packager.models.random_inputs import random_samples
from packager.quantize.gate import Thresholds
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models


@pytest.mark.parametrize(("opset", "oldest"), [(13, "1.10"), (17, "1.12"), (20, "1.17"), (21, "1.18")])
def test_operator_set_and_file_version_name_the_runtime(opset: int, oldest: str) -> None:
    assert str(oldest_runtime(tiny_models.mlp(opset=opset))) == oldest


def test_operator_set_of_the_future_asks_for_the_runtime_that_is_here() -> None:
    model = tiny_models.mlp()
    model.opset_import[0].version = 99
    assert oldest_runtime(model).version == parse_version(onnxruntime.__version__)
    assert oldest_runtime(model).explanation == "operator set 99"


@pytest.mark.parametrize(("scheme", "oldest"), [("int8", "1.12"), ("int4", "1.17"), ("fp16", "1.12")])
def test_quantized_model_says_where_it_loads(scheme: str, oldest: str, tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    lenient = QuantizeOptions(
        measure_latency=False, thresholds=Thresholds(2.0, 0.0, -1.0)
    )  # int4 of random weights fails the gate
    report = quantize_model(model, tmp_path / "out.onnx", scheme, random_samples(model, 32), lenient)
    assert (report.outcome, report.oldest_runtime) == ("quantized", oldest), report.as_lines()
    assert str(oldest_runtime(onnx.load(tmp_path / "out.onnx"))) == oldest
    assert runtime_of(tmp_path / "out.onnx").min_version == "1.31"
