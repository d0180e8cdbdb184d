"""Generated models of every oddity travel from a release to a served answer that is bit-equal to onnxruntime's."""

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from device_agent.runtime.comparison import decode_response
from device_agent.runtime.golden_requests import encode_request
from packager.models.model_facts import contract_of
from tests.support.faulty_http_server import serve_folder
from tests.support.generated_models import GENERATED_MODELS
from tests.support.odd_models import OddModel
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

SETTINGS = """
channels = ["stable"]
model = "model.onnx"
inputs = "inputs.npz"
golden = 2
[variants.fp32]
required = true
health.probation_window_s = 0
health.probation_min_requests = 0
[variants.weights]
scheme = "int8-weights"
[patches]
from = 0
[rollout]
"""


class Lab:
    """A publisher and a device with a running daemon."""

    def __init__(self, publisher: Publisher, device: DeviceUnderTest) -> None:
        self.publisher, self.device, self._released = publisher, device, 0

    def serve(self, odd: OddModel) -> Path:
        """Release a model, update the device, and return the model's path."""
        folder = self.publisher.folder
        onnx.save(odd.model, folder / "model.onnx")
        samples = odd.samples(8)
        arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        arrays = {name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()}
        np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
        self._released += 1
        text = f'family = "{FAMILY}"\nversion = "3.{self._released}.0"\n{SETTINGS}'
        (folder / "release.toml").write_text(text)
        self.publisher.publish_release_file()
        result = self.device.call("update")
        assert result["outcome"] == "updated", result
        return folder / "model.onnx"

    def ask(self, body: bytes, json_bytes: int | None) -> tuple[bytes, int]:
        """Return the body of the response and the length of its JSON part."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(self.device.config.serve.listen.removeprefix("unix:"))
        headers = {"Content-Type": "application/json"}
        if json_bytes is not None:
            headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(json_bytes)}
        try:
            connection.request("POST", f"/v2/models/{FAMILY}/infer", body, headers)
            response = connection.getresponse()
            data = response.read()
            assert response.status == 200, data[:500]
            return data, int(response.headers.get("Inference-Header-Content-Length") or len(data))
        finally:
            connection.close()


@pytest.fixture(scope="module")
def lab(
    first_publisher: Publisher, first_device: DeviceUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("generated")
    publisher = first_publisher.copy(folder / "site")
    with serve_folder(publisher.published) as site:
        device = first_device.copy(folder / "lab", site.url)
        device.start()
        try:
            yield Lab(publisher, device)
        finally:
            device.stop()


def test_there_are_sixty() -> None:
    assert len(GENERATED_MODELS) >= 60


@pytest.mark.parametrize("kind", GENERATED_MODELS)
def test_a_generated_model_is_served_with_the_bits_of_onnxruntime(lab: Lab, kind: str) -> None:
    odd = GENERATED_MODELS[kind]()
    path = lab.serve(odd)
    contract = contract_of(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in plain.get_outputs()]
    for sample in odd.samples(2):
        expected = plain.run(names, sample)
        body, json_bytes = encode_request(sample, contract, is_raw=True)
        data, length = lab.ask(body, json_bytes)
        found = decode_response(memoryview(data), length)
        for name, array in zip(names, expected, strict=True):
            assert np.asarray(found[name]).dtype == np.asarray(array).dtype or array.dtype == object
            np.testing.assert_array_equal(found[name], array)
