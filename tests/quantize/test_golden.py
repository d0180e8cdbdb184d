"""Golden vectors come from the shipped file, hold for other threads and optimization levels, and detect damage."""

from pathlib import Path

import numpy as np
import pytest

from bundle.errors import GoldenMismatch
from bundle.golden import check_outputs, read_golden
from packager.models.golden_vectors import record_golden
from packager.models.random_inputs import random_samples
from packager.models.sessions import open_session, run_session
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support import tiny_models


def test_shipped_model_answers_its_golden_vectors(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.conv_net(), tmp_path / "float.onnx")
    samples = random_samples(model, 24)
    quantize_model(model, tmp_path / "int8.onnx", "int8", samples, QuantizeOptions(measure_latency=False))
    report = record_golden(tmp_path / "int8.onnx", samples, tmp_path / "golden.safetensors", count=6)
    assert 1_000 <= report.tolerance_ppm <= 50_000
    golden = read_golden((tmp_path / "golden.safetensors").read_bytes())
    assert len(golden) == report.samples == 6
    running = open_session(tmp_path / "int8.onnx")
    for number, sample in enumerate(golden):
        inputs = {name: np.asarray(array) for name, array in sample.inputs.items()}
        answers = dict(zip(["logits"], run_session(running, inputs), strict=True))
        check_outputs(answers, sample, tolerance_ppm=report.tolerance_ppm, where=f"sample {number}")


def test_smallest_and_largest_inputs_are_among_them(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "model.onnx")
    samples = random_samples(model, 24)
    record_golden(model, samples, tmp_path / "golden.safetensors", count=2)
    golden = read_golden((tmp_path / "golden.safetensors").read_bytes())
    lengths = {sample["input_ids"].shape[1] for sample in samples}
    assert {sample.inputs["input_ids"].shape[1] for sample in golden} == {min(lengths), max(lengths)}


def test_other_weights_miss_the_golden_vectors(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(0), tmp_path / "model.onnx")
    other = tiny_models.save(tiny_models.mlp(1), tmp_path / "other.onnx")
    report = record_golden(model, random_samples(model, 8), tmp_path / "golden.safetensors")
    sample = read_golden((tmp_path / "golden.safetensors").read_bytes())[0]
    inputs = {name: np.asarray(array) for name, array in sample.inputs.items()}
    answers = dict(zip(["probabilities"], run_session(open_session(other), inputs), strict=True))
    with pytest.raises(GoldenMismatch):
        check_outputs(answers, sample, tolerance_ppm=report.tolerance_ppm, where="sample 0")
