"""TFLite models in LiteRT: in the jail with the delegate, probed, served, swapped, with state."""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.contract import Contract, Health
from bundle.golden.golden_file import GoldenSample, write_golden
from device_agent.errors import ContractMismatch, InferenceFailed, ModelDoesNotLoad, RequestInvalid, RuntimeMissing
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.loaded_model import LoadedModel
from device_agent.runtime.model_backends import load_model
from device_agent.runtime.model_handle import GenerationSpec, ModelProcess, PrestartedProcess
from device_agent.runtime.model_runtime import ModelRuntime
from device_agent.runtime.probe_runner import run_probe_process
from device_agent.runtime.tensors import Array
from tests.support import tflite_models
from tests.support.memfd_bundles import start_front

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (extra litert)")

X = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)}
ONES = {"x": np.ones((1, 4), np.float32)}


@contextmanager
def litert_bundle(data: bytes, samples: list[Mapping[str, Array]] | None = None) -> Iterator[BundleFds]:
    """Yield a bundle of a TFLite model, with golden vectors of a sequence of samples."""
    files = {"model.tflite": create_sealed_memfd("model", data)}
    bundle = BundleFds(files, "model.tflite", runtime="litert")
    if samples:
        loaded = load_model(bundle, threads=1)
        golden = write_golden(tuple(GoldenSample(dict(sample), loaded.run(sample)) for sample in samples))
        files["golden.bin"] = create_sealed_memfd("golden", golden)
        bundle = replace(bundle, golden="golden.bin")
    try:
        yield bundle
    finally:
        bundle.close()


def load(data: bytes) -> LoadedModel:
    with litert_bundle(data) as bundle:
        return load_model(bundle, threads=1)


def contract_of(data: bytes) -> Contract:
    model = load(data)
    return Contract(model.inputs, model.outputs)


def test_a_model_that_does_not_run_with_the_sizes_in_its_file_runs_with_others() -> None:
    model = load(tflite_models.halves())
    with pytest.raises(InferenceFailed):
        model.run({"x": np.arange(3, dtype=np.float32)})
    for count in (4, 6, 4):
        x = np.arange(count, dtype=np.float32)
        assert np.array_equal(model.run({"x": x})["y"], x.reshape(2, -1))
    samples: list[Mapping[str, Array]] = [{"x": np.arange(8, dtype=np.float32)}]
    with litert_bundle(tflite_models.halves(), samples) as bundle:
        assert run_probe_process(bundle, contract_of(tflite_models.halves()), Health()).verdict == "pass"
    with litert_bundle(tflite_models.halves()) as bundle:  # without golden vectors, no size is known
        assert run_probe_process(bundle, contract_of(tflite_models.halves()), Health()).verdict == "pass"


def test_a_model_is_loaded_from_memory_with_its_contract() -> None:
    model = load(tflite_models.dense(1))
    assert [(t.name, t.dtype, t.shape) for t in (*model.inputs, *model.outputs)] == [
        ("x", "float32", (1, 16)),
        ("y", "float32", (1, 8)),
    ]
    assert model.process_facts() == {"delegate": True, "stateful": False}
    weights = np.random.default_rng(1).standard_normal((8, 16)).astype(np.float32)
    assert np.allclose(model.run(X)["y"], X["x"] @ weights.T, atol=1e-5)
    target = {"y": np.empty((1, 8), np.float32)}
    assert model.run_into(X, target)
    assert np.array_equal(target["y"], model.run(X)["y"])


def test_a_free_size_is_given_by_the_inputs() -> None:
    model = load(tflite_models.dense(1, batch=None))
    assert model.inputs[0].shape == ("x.0", 16)
    for batch in (3, 1, 2):
        assert model.run({"x": np.ones((batch, 16), np.float32)})["y"].shape == (batch, 8)
    with pytest.raises(RequestInvalid):
        model.run({"x": np.ones((2, 17), np.float32)})


@pytest.mark.parametrize(
    "inputs", [{}, {"z": X["x"]}, {"x": X["x"].astype(np.float64)}, {"x": X["x"][0]}, {**X, "more": X["x"]}]
)
def test_wrong_inputs_are_the_clients_mistake(inputs: Mapping[str, Array]) -> None:
    with pytest.raises(RequestInvalid):
        load(tflite_models.dense(1)).run(inputs)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 4 + b"TFL3" + b"\xff" * 64, tflite_models.dense(0)[:200]])
def test_damaged_models_do_not_load(data: bytes) -> None:
    with litert_bundle(data or b"x") as bundle, pytest.raises(ModelDoesNotLoad):
        load_model(bundle)


def test_a_streaming_model_has_state_until_it_is_reset() -> None:
    model = load(tflite_models.counter())
    assert model.is_stateful
    assert [float(model.run(ONES)["y"][0, 0]) for _ in range(3)] == [1, 2, 3]
    other = model.in_initial_state()
    assert float(other.run(ONES)["y"][0, 0]) == 1
    assert float(model.run(ONES)["y"][0, 0]) == 4
    model.reset()
    assert float(model.run(ONES)["y"][0, 0]) == 1


@pytest.mark.parametrize(
    ("data", "samples"),
    [(tflite_models.dense(1), [X]), (tflite_models.counter(), [ONES, ONES, ONES])],
    ids=["dense", "counter"],
)
def test_the_probe_passes_a_sound_model_and_fails_a_damaged_one(
    data: bytes, samples: list[Mapping[str, Array]]
) -> None:
    damaged = tflite_models.dense(2) if len(samples) == 1 else tflite_models.counter(step=2.0)
    with litert_bundle(data, samples) as bundle:
        report = run_probe_process(bundle, contract_of(data), Health(), threads=1)
        assert (report.verdict, report.samples) == ("pass", len(samples)), report.detail
        model = create_sealed_memfd("model", damaged)
        with_golden = replace(bundle, files={**bundle.files, "model.tflite": model})
        report = run_probe_process(with_golden, contract_of(data), Health(), threads=1)
        assert (report.verdict, report.reason) == ("fail", "golden-mismatch")
        renamed = replace(contract_of(data), outputs=(replace(contract_of(data).outputs[0], name="z"),))
        report = run_probe_process(bundle, renamed, Health(), threads=1)
        assert report.reason == ContractMismatch.reason


def test_the_endpoint_serves_it_from_the_jail_with_the_delegate() -> None:
    data = tflite_models.dense(1)
    spec = GenerationSpec("kws", 1, "1.0.0", "tflite", contract_of(data), threads=1)
    with litert_bundle(data, [X]) as bundle, start_front(families=("kws",)) as front:
        unused = PrestartedProcess.start()  # it has imported onnxruntime
        process = ModelProcess.start(bundle, spec, prestarted=unused)
        try:
            assert not unused.is_alive()
            assert process.is_jailed
            facts = process.facts()
            assert facts["model"]["delegate"]
            assert "onnxruntime" not in facts["modules"]
            front.publish("kws", process)
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 16], "data": X["x"].ravel().tolist()}]}
            answer = post(front.address, "/v2/models/kws/infer", body)
            assert np.allclose(answer["outputs"][0]["data"], load(data).run(X)["y"].ravel(), atol=1e-6)
            assert get(front.address, "/v2/models/kws")["platform"] == "litert_tflite"
        finally:
            process.stop()


def post(address: str, path: str, body: object) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return dict(json.load(reply))


def get(address: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}{path}", timeout=60) as reply:
        return dict(json.load(reply))


@pytest.mark.parametrize("isolation", ["inproc", "worker"])
def test_an_app_swaps_and_rolls_back_models_of_two_runtimes(isolation: str) -> None:
    counter, dense = tflite_models.counter(), tflite_models.dense(1)
    with ModelRuntime(isolation=isolation, threads=1) as runtime:
        with litert_bundle(counter, [ONES, ONES]) as bundle:
            runtime.swap(bundle)
        # golden runs leave no state
        assert [float(runtime.run(ONES)["y"][0, 0]) for _ in range(2)] == [1, 2]
        with litert_bundle(dense, [X]) as bundle:
            runtime.swap(bundle)
        assert np.allclose(runtime.run(X)["y"], load(dense).run(X)["y"])
        runtime.rollback()
        assert float(runtime.run(ONES)["y"][0, 0]) == 3


def test_a_runtime_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with litert_bundle(b"x") as bundle, pytest.raises(RuntimeMissing, match="litert is not installed"):
        load_model(bundle)
