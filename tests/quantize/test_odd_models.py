"""Unusual models are quantized and served with the answers of plain onnxruntime; damaged ones end in one line."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bundle.errors import Invalid, Unavailable
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.session import OnnxModel
from packager.models.model_package import build_package
from packager.models.samples import samples_from
from packager.quantize.lint import lint
from packager.quantize.schemes import QuantizeOptions, quantize_model
from tests.support.odd_models import ODD_MODELS, REFUSED_MODELS, OddModel, random_outputs, two_layers, unknown_rank
from tests.support.packager_cli import run_packager

OPTIONS = QuantizeOptions(measure_latency=False)


def answers_on_a_device(model: Path, folder: Path, samples: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """Package a model, open it from sealed memory, and return its outputs of each sample."""
    bundle = build_package(model, folder, family="odd", version="1.0.0", variant="v")
    paths = {file.path: file.role for file in bundle.files if file.role in ("model", "external-data")}
    fds = {path: create_sealed_memfd("odd", (bundle.root / path).read_bytes()) for path in paths}
    external = tuple(path for path, role in paths.items() if role == "external-data")
    model_path = next(path for path, role in paths.items() if role == "model")
    loaded = OnnxModel.load(BundleFds(fds, model_path, None, external), threads=1)
    return [[np.asarray(value) for value in loaded.run(sample).values()] for sample in samples]


@pytest.mark.parametrize("kind", ODD_MODELS)
def test_odd_model_is_quantized_and_answers_on_a_device_as_onnxruntime_does(kind: str, tmp_path: Path) -> None:
    odd: OddModel = ODD_MODELS[kind]()
    path, samples = tmp_path / "float.onnx", odd.samples()
    path.write_bytes(odd.model.SerializeToString())
    lint(path)
    report = quantize_model(path, tmp_path / "out.onnx", "int8-weights", samples_from(samples), OPTIONS)
    assert report.outcome == "quantized", report.reason
    for number, model in enumerate((path, tmp_path / "out.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        plain = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        served = answers_on_a_device(model, tmp_path / f"bundle{number}", samples[:3])
        for sample, answer in zip(samples[:3], served, strict=True):
            for a, b in zip(plain.run(None, sample), answer, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", [*REFUSED_MODELS, "damaged"])
def test_model_that_cannot_be_released_ends_in_one_line(kind: str, tmp_path: Path) -> None:
    path, out = tmp_path / "float.onnx", tmp_path / "out.onnx"
    made: Callable[[], onnx.ModelProto] = REFUSED_MODELS.get(kind, two_layers)
    data = made().SerializeToString()
    path.write_bytes(data if kind != "damaged" else data[: len(data) // 2])
    done = run_packager("quantize", path, "-o", out, "--scheme", "int8-weights")
    assert done.code in (2, 5), done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert run_packager("lint", path).code in (0, 2)


def test_lint_names_what_a_release_would_refuse(tmp_path: Path) -> None:
    expected = {"a bfloat16 input": "bfloat16", "a name of 308 characters": "256"}
    for kind, words in expected.items():
        path = tmp_path / "model.onnx"
        path.write_bytes(REFUSED_MODELS[kind]().SerializeToString())
        assert any(words in finding.message for finding in lint(path)), kind
    for made, words in ((unknown_rank, "number of axes"), (random_outputs, "golden = 0")):
        path.write_bytes(made().SerializeToString())
        assert any(words in finding.message for finding in lint(path))


def test_damaged_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    data, draw = bytearray(two_layers().SerializeToString()), random.Random(0)
    path = tmp_path / "damaged.onnx"
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            end = min(len(damaged), 400) if draw.random() < 0.7 else len(damaged)
            damaged[draw.randrange(end)] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randrange(1, len(damaged))] if draw.random() < 0.2 else damaged)
        with suppress(Invalid, Unavailable):
            lint(path)
