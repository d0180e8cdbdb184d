"""A user's metric can fail what the gate passes, and can decide where the gate cannot."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from packager.errors import MetricUnusable
from packager.models.random_inputs import random_samples
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.user_metric import Metric, SampleOutput
from tests.support import tiny_models
from tests.support.packager_cli import run_packager

HERE = f"python:{__name__}"


def mean_of_largest(answers: Iterator[SampleOutput]) -> float:
    return float(np.mean([float(next(iter(a.outputs.values())).max(initial=0.0)) for a in answers]))


def positions(answers: Iterator[SampleOutput]) -> float:
    return float(sum(answer.position for answer in answers))


def return_nan(_answers: Iterator[SampleOutput]) -> float:
    return float("nan")


def raise_key_error(_answers: Iterator[SampleOutput]) -> float:
    raise KeyError("label")


def test_shape_that_depends_on_values_is_left_to_the_metric(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.detector(), tmp_path / "float.onnx")
    samples = random_samples(model, 64)
    alone = quantize_model(model, tmp_path / "a.onnx", "int8", samples, QuantizeOptions(measure_latency=False))
    assert (alone.outcome, "give a metric" in alone.reason) == ("refused", True), alone.as_lines()
    metric = Metric.parse(f"{HERE}:mean_of_largest")
    report = quantize_model(
        model, tmp_path / "b.onnx", "int8", samples, QuantizeOptions(measure_latency=False, metric=metric)
    )
    assert report.outcome == "quantized", report.as_lines()
    assert report.gate is not None
    assert report.gate.metric is not None
    assert report.gate.metric.value == pytest.approx(report.gate.metric.float_value, rel=0.01)


def test_metric_that_falls_fails_the_gate(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    values = iter([1.0, *[0.5] * 99])  # the float model is measured first
    metric = Metric("falling", lambda _answers: next(values), ())
    report = quantize_model(
        model,
        tmp_path / "out.onnx",
        "int8",
        random_samples(model, 32),
        QuantizeOptions(measure_latency=False, metric=metric),
    )
    assert report.outcome == "refused"
    assert "metric 0.5000, float model 1.0000, at least 0.9900 required" in report.reason
    assert not (tmp_path / "out.onnx").exists()


def test_function_is_told_where_each_sample_lies_in_the_file(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    _, held_back = random_samples(model, 8).split_halves()
    assert Metric.parse(f"{HERE}:positions").measure(model, held_back) == 1 + 3 + 5 + 7


def test_command_prints_the_number_on_its_last_line(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    script = tmp_path / "metric.py"
    script.write_text(
        "import os, sys\nprint('measured')\nprint(1 if os.path.getsize(sys.argv[1]) > 20_000 else 0.25)\n"
    )
    options = ["--metric", f"{sys.executable} {script}", "--scheme", "int8"]
    failed = run_packager("quantize", model, "-o", tmp_path / "out.onnx", *options)
    assert failed.code == 5
    assert "metric 0.2500, float model 1.0000" in failed.stderr
    done = run_packager("quantize", model, "-o", tmp_path / "out.onnx", *options, "--max-metric-loss", "0.8")
    assert done.code == 0, done.stderr
    assert "metric 0.2500" in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python:no.such.module:f", "cannot be imported: ModuleNotFoundError"),
        ("python:json:no_such_function", "cannot be imported: AttributeError"),
        ("python:json", "does not name a module and a function"),
        ("python:json:__name__", "expected a function"),
        (f"{HERE}:raise_key_error", "failed: KeyError: 'label'"),
        (f"{HERE}:return_nan", "returned nan for float.onnx, expected a finite number"),
        ("/no/such/program", "cannot be run"),
        ("false", "exit status 1"),
        ("echo", "as its last line, expected a number"),
        ("'", "cannot be split into words"),
        ("", "metric is empty"),
    ],
)
def test_metric_that_cannot_be_used_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    with pytest.raises(MetricUnusable) as caught:
        Metric.parse(text).measure(model, random_samples(model, 2))
    assert words in caught.value.message
    assert "\n" not in caught.value.message
