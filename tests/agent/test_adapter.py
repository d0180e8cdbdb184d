"""A user's LoRA adapter stays attached across compatible updates, and is detached by incompatible ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.runtime.tensors import Array
from tests.support.endpoint_client import infer
from tests.support.faulty_http_server import Site, serve_folder
from tests.support.json_schemas import check_schema
from tests.support.publisher import DeviceUnderTest, Publisher

RANK = 2
RNG = np.random.default_rng(3)
WEIGHTS = RNG.standard_normal((64, 10)).astype(np.float32) / 8
LORA_A = RNG.standard_normal((64, RANK)).astype(np.float32) / 8
LORA_B = RNG.standard_normal((RANK, 10)).astype(np.float32)
X = np.full((1, 64), 0.5, np.float32)


def make_base_model(weights: Array, prefix: str = "lora") -> onnx.ModelProto:
    """Return a model y = x W + x A B; A and B, named with `prefix`, are empty without an adapter."""
    value, a, b = helper.make_tensor_value_info, f"{prefix}_a", f"{prefix}_b"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["own"]),
        helper.make_node("MatMul", ["x", a], ["low"]),
        helper.make_node("MatMul", ["low", b], ["more"]),
        helper.make_node("Add", ["own", "more"], ["y"]),
    ]
    inputs = [
        value("x", TensorProto.FLOAT, [1, 64]),
        value(a, TensorProto.FLOAT, [64, "rank"]),
        value(b, TensorProto.FLOAT, ["rank", 10]),
    ]
    weights_of = {"w": weights, a: np.zeros((64, 0), np.float32), b: np.zeros((0, 10), np.float32)}
    graph = helper.make_graph(
        nodes,
        "lora",
        inputs,
        [value("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights_of.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def adapter_file(tmp_path: Path) -> Path:
    """Write an adapter file with LORA_A and LORA_B."""
    file = ort.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    parameters = {"lora_a": LORA_A, "lora_b": LORA_B}
    file.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in parameters.items()})
    path = tmp_path / "mine.onnx_adapter"
    file.export_adapter(str(path))
    return path


def _run_command(device: DeviceUnderTest, *words: str, code: int = 0) -> dict[str, Any]:
    done = device.command(*words, "--json")
    assert done.returncode == code, done.stderr
    if code == 0:
        check_schema("agent-adapter", json.loads(done.stdout))
    return dict(json.loads(done.stdout)) if code == 0 else dict(json.loads(done.stderr)["error"])


def _infer_outputs(device: DeviceUnderTest) -> Array:
    return np.array(infer(device)["outputs"][0]["data"], np.float32)


def _assert_outputs(found: Array, weights: Array, *, with_adapter: bool) -> None:
    expected = X @ weights + (X @ LORA_A @ LORA_B if with_adapter else 0)
    assert np.allclose(found, expected.reshape(-1), rtol=1e-4, atol=1e-5)


def test_an_adapter_outlives_updates_that_it_fits_and_comes_back_after_one_that_it_does_not(
    publisher: Publisher, tmp_path: Path, adapter_file: Path
) -> None:
    publisher.release("2.0.0", model=make_base_model(WEIGHTS))
    with serve_folder(publisher.published) as site:
        device = _create_serving_device(publisher, site, tmp_path)
        try:
            _assert_outputs(_infer_outputs(device), WEIGHTS, with_adapter=False)
            [row] = _run_command(device, "adapter", "attach", str(adapter_file))["adapters"]
            assert (row["name"], row["state"], row["compatible_with_active"]) == ("mine.onnx_adapter", "attached", True)
            _assert_outputs(_infer_outputs(device), WEIGHTS, with_adapter=True)

            near = WEIGHTS + np.float32(0.001)
            publisher.release("2.1.0", model=make_base_model(near))
            assert device.call("update")["outcome"] == "updated"
            _assert_outputs(_infer_outputs(device), near, with_adapter=True)

            publisher.release("2.2.0", model=make_base_model(near, prefix="other"))
            assert device.call("update")["outcome"] == "updated", "the release is good, only the adapter is not"
            _assert_outputs(_infer_outputs(device), near, with_adapter=False)
            [row] = _run_command(device, "adapter", "list")["adapters"]
            assert (row["state"], row["enabled"], row["compatible_with_active"]) == ("kept", True, False)
            assert _run_command(device, "adapter", "attach", code=5)["reason"] == "adapter-incompatible"

            assert device.call("rollback")["outcome"] == "rolled-back"
            _assert_outputs(_infer_outputs(device), near, with_adapter=True)
            device.stop()
            device.start()
            _assert_outputs(_infer_outputs(device), near, with_adapter=True)

            assert _run_command(device, "adapter", "detach")["adapters"][0]["state"] == "kept"
            _assert_outputs(_infer_outputs(device), near, with_adapter=False)
            assert _run_command(device, "adapter", "attach")["adapters"][0]["state"] == "attached"
            _assert_outputs(_infer_outputs(device), near, with_adapter=True)
            _assert_no_plain_adapter(device)
        finally:
            device.stop()
        # without a daemon the same words work on the directory
        assert _run_command(device, "adapter", "detach")["adapters"][0]["state"] == "kept"
        assert _run_command(device, "adapter", "list")["adapters"][0]["enabled"] is False


def test_what_is_no_adapter_changes_nothing(installed: DeviceUnderTest, tmp_path: Path, adapter_file: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(bytes(range(256)) * 20)
    for place, reason, code in (
        (str(nonsense), "adapter-incompatible", 5),
        (str(adapter_file), "adapter-incompatible", 5),  # the model has no inputs of these names
        (str(tmp_path / "missing"), "config-invalid", 2),
    ):
        assert _run_command(installed, "adapter", "attach", place, code=code)["reason"] == reason
    assert _run_command(installed, "adapter", "attach", code=2)["reason"] == "adapter-missing"
    assert _run_command(installed, "adapter", "detach", code=2)["reason"] == "adapter-missing"
    assert _run_command(installed, "adapter", "list") == {"adapters": []}


def _create_serving_device(publisher: Publisher, site: Site, folder: Path) -> DeviceUnderTest:
    device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root)
    publisher.enroll(device.directory)
    device.start()
    assert device.call("update")["outcome"] == "updated"
    return device


def _assert_no_plain_adapter(device: DeviceUnderTest) -> None:
    needle = LORA_B.tobytes()
    for path in device.directory.root.rglob("*"):
        if path.is_file():
            assert needle not in path.read_bytes(), path
