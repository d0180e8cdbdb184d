"""The gate on speed: paired runs decide, a busy machine and a difference too small to matter do not."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from packager.models.random_inputs import random_samples
from packager.models.samples import samples_from
from packager.models.sessions import ONE_THREAD_SETTINGS, open_session_of
from packager.quantize.gate import Thresholds
from packager.quantize.latency import MIN_PAIRS, Latency, measure_latency
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.targets import ANY, TARGETS
from tests.support import tiny_models


def repeated_products(count: int) -> onnx.ModelProto:
    """Return a model that multiplies by one 256 x 256 weight `count` times."""
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) / 16
    nodes = [onnx.helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(count)]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [64, 256]) for name in ("x0", f"x{count}")
    ]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [onnx.numpy_helper.from_array(weight, "w")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def test_ratio_of_two_models_is_measured_until_the_interval_excludes_the_limit() -> None:
    sample = {"x0": np.ones((64, 256), np.float32)}
    left, right = (open_session_of(repeated_products(count), ONE_THREAD_SETTINGS) for count in (2, 6))
    found = measure_latency(left, right, samples_from([sample]), 1.2)
    assert found.verdict(1.2) == "above"
    assert found.low <= found.ratio <= found.high
    assert found.pairs >= MIN_PAIRS
    assert measure_latency(right, left, samples_from([sample]), 1.2).verdict(1.2) == "within"


@pytest.mark.parametrize(
    ("latency", "verdict"),
    [
        (Latency(1.0, 1.1, 1.1, 1.05, 1.15, 20), "within"),
        (Latency(1.0, 1.3, 1.3, 1.25, 1.35, 20), "above"),
        (Latency(1.0, 1.3, 1.3, 1.1, 1.5, 20), "undecided"),
        (Latency(0.01, 0.03, 3.0, 2.9, 3.1, 20), "within"),  # 20 microseconds
    ],
)
def test_verdict_needs_the_whole_interval_on_one_side(latency: Latency, verdict: str) -> None:
    assert latency.verdict(1.2) == verdict


def test_form_that_is_too_slow_is_refused_with_its_ratio(tmp_path: Path) -> None:
    model = tiny_models.save(repeated_products(4), tmp_path / "float.onnx")
    samples = samples_from(
        [{"x0": np.random.default_rng(i).standard_normal((64, 256)).astype(np.float32)} for i in range(8)]
    )
    limit = Thresholds(max_latency_ratio=0.01, max_relative_rms=1.0)
    report = quantize_model(model, tmp_path / "out.onnx", "fp16", samples, QuantizeOptions(thresholds=limit))
    if report.outcome == "refused":
        assert "times float's processor time" in report.reason
        assert not (tmp_path / "out.onnx").exists()
    assert report.latency is None or report.latency.pairs >= MIN_PAIRS


def test_target_decides_which_form_is_tried_first(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    for target, method in ((ANY, "weights"), (TARGETS["x86-avx2"], "weights"), (TARGETS["x86-vnni"], "static")):
        options = QuantizeOptions(target=target, measure_latency=False)
        report = quantize_model(model, tmp_path / "out.onnx", "int8", random_samples(model, 32), options)
        assert report.method == method, target.name
