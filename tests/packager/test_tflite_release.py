"""A TFLite model is released, installed, updated by a patch and served; a damaged one is refused."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.golden.golden_file import read_golden
from device_agent.policy.attempt import Outcome
from packager.errors import ModelUnreadable, QuantizationRefused, ReleaseFileInvalid
from packager.models.golden_vectors import record_golden
from packager.models.random_inputs import random_samples
from packager.models.sessions import open_session
from packager.models.tflite_model import read_facts
from packager.quantize.lint import lint
from packager.quantize.schemes import quantize_model
from packager.release.release_file import parse_release_file
from tests.support import tflite_models
from tests.support.faulty_http_server import serve_folder
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (extra litert)")

SETTINGS = """
family = "{family}"
version = "{version}"
channels = ["stable"]
runtime = "litert"
model = "model.tflite"
golden = 3
{extra}
[variants.tflite]
{variant}
[rollout]
percent = 100
"""


def write_release(publisher: Publisher, version: str, model: bytes, *, extra: str = "", variant: str = "") -> Path:
    """Write a model and its release file, and return the release file."""
    (publisher.folder / "model.tflite").write_bytes(model)
    out = publisher.folder / "release.toml"
    out.write_text(SETTINGS.format(family=FAMILY, version=version, extra=extra, variant=variant))
    return out


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a device that is not updated yet; the tests of the module run in order."""
    folder = tmp_path_factory.mktemp("tflite")
    publisher = Publisher(folder / "site")
    with serve_folder(publisher.published) as site:
        device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root, variant="auto")
        publisher.enroll(device.directory)
        try:
            yield publisher, device
        finally:
            device.stop()


def test_release_patch_and_endpoint(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    write_release(publisher, "1.0.0", tflite_models.dense(1, 256, 256))
    publisher.publish_release_file()
    variant = publisher.manifest("1.0.0").variant("tflite")
    assert variant is not None
    assert (variant.runtime.name, variant.require_model().file) == ("litert", f"{FAMILY}/tflite/model.tflite")
    assert [(t.name, t.dtype, t.shape) for t in variant.require_model().contract.inputs] == [("x", "float32", (1, 256))]
    assert variant.requires.memory_bytes > 10**7
    assert device.update().outcome is Outcome.STAGED
    device.start()
    write_release(publisher, "1.1.0", tflite_models.dense(1, 256, 256, scale=1.0001))
    publisher.publish_release_file()
    result = device.call("update")
    assert (result["outcome"], result["release"]) == ("updated", "1.1.0"), result
    assert result["downloaded"]["patch"] < 256 * 256 * 4 / 2
    x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 256)
    answer = ask(device, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 256], "data": x.tolist()}]})
    expected = open_session(publisher.folder / "model.tflite").run(None, {"x": x})[0]
    assert np.allclose(answer["outputs"][0]["data"], expected.ravel(), rtol=1e-4, atol=1e-4)


def ask(device: DeviceUnderTest, body: object) -> dict[str, Any]:
    """Return the answer of the device's endpoint to an inference request."""
    import http.client
    import socket

    path = device.config.serve.listen.removeprefix("unix:")
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("POST", f"/v2/models/{FAMILY}/infer", json.dumps(body), {"Content-Type": "application/json"})
    return dict(json.load(connection.getresponse()))


@pytest.mark.parametrize(
    ("extra", "variant", "words"),
    [
        ("", 'scheme = "int8"', "released unchanged"),
        ("", 'requires.providers = ["OpenVINO"]', "for the CPU, expected no requires.providers"),
        ("", 'session.graph_optimization = "off"', "for the CPU, expected no requires.providers"),
        ('drill = "damaged-weights"', "", "has no effect for runtime 'litert'"),
    ],
)
def test_what_is_not_done_to_a_tflite_model_is_refused(
    lab: tuple[Publisher, DeviceUnderTest], extra: str, variant: str, words: str
) -> None:
    place = write_release(lab[0], "2.0.0", tflite_models.dense(1), extra=extra, variant=variant)
    with pytest.raises(ReleaseFileInvalid, match=words):
        parse_release_file(place)


@pytest.mark.parametrize("data", [b"\0\0\0\0TFL3", b"\x08\0\0\0TFL3" + b"\xff" * 40, tflite_models.dense(0)[:300]])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.tflite").write_bytes(data)
    with pytest.raises(ModelUnreadable, match=r"model\.tflite"):
        read_facts(tmp_path / "model.tflite")


def test_golden_vectors_of_a_streaming_model_are_a_sequence(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(tflite_models.counter())
    assert read_facts(model).is_stateful
    samples = random_samples(model, 4)
    report = record_golden(model, samples, tmp_path / "golden.bin", 3)
    assert report.samples == 3
    golden = read_golden((tmp_path / "golden.bin").read_bytes())
    given = [sample["x"] for sample in samples][:3]
    assert all(np.array_equal(one.inputs["x"], x) for one, x in zip(golden, given, strict=True))


def test_free_sizes_are_found_and_named(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(tflite_models.dense(1, batch=None))
    assert read_facts(model).inputs[0].shape == ("x.0", 16)
    assert all(sample["x"].shape == (1, 16) for sample in random_samples(model, 4))


def test_lint_and_quantize_know_the_format(tmp_path: Path) -> None:
    model, streaming = tmp_path / "model.tflite", tmp_path / "streaming.tflite"
    model.write_bytes(tflite_models.dense(1))
    streaming.write_bytes(tflite_models.counter())
    assert lint(model) == []
    assert [finding.code for finding in lint(streaming)] == ["keeps-state"]
    with pytest.raises(QuantizationRefused, match="left unchanged"):
        quantize_model(model, tmp_path / "out.tflite", "int8", random_samples(model, 2))


def test_a_model_that_does_not_run_with_the_sizes_in_its_file_is_read_and_run(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(tflite_models.halves())
    facts = read_facts(model)
    assert [tensor.shape for tensor in (*facts.inputs, *facts.outputs)] == [("x.0",), (2, "y.1")]
    assert facts.has_delegate  # not known before it runs: nothing is said against it
    session, x = open_session(model), np.arange(4, dtype=np.float32)
    for values in (np.ones(3, np.float32), x):
        with pytest.raises(RuntimeError) if len(values) % 2 else nullcontext():
            assert np.array_equal(session.run(None, {"x": values})[0], values.reshape(2, -1))
