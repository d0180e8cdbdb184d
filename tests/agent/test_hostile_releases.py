"""Signed releases with harmful models are refused for their own reason while the old model serves."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from packager.release import fire_drill
from tests.support import hostile_models as hostile
from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import infer
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest, Publisher

SOON = "[variants.fp32.health]\nprobe_deadline_s = 4\n"


def add_large_tensor(size: int) -> Callable[[onnx.ModelProto], bytes]:
    """Return a function that adds a tensor of size x size elements before the output of a model."""

    def burden(model: onnx.ModelProto) -> bytes:
        out = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = [f"{name}_before" if name == out else name for name in node.output]
        model.graph.initializer.append(numpy_helper.from_array(np.array([size, size]), "burden_shape"))
        model.graph.node.extend(
            [
                helper.make_node("ConstantOfShape", ["burden_shape"], ["burden"]),
                helper.make_node("ReduceSum", ["burden"], ["burden_sum"], keepdims=0),
                helper.make_node("Add", [f"{out}_before", "burden_sum"], [out]),
            ]
        )
        return bytes(model.SerializeToString())

    return burden


def add_endless_loop(model: onnx.ModelProto) -> bytes:
    """Add a loop of almost endless iterations before the output of a model."""
    out = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [f"{name}_before" if name == out else name for name in node.output]
    loop = hostile.make_hanging_model().graph
    (node,) = loop.node
    node.output[0] = "turned"
    node.input[2] = "four"
    model.graph.initializer.extend([*loop.initializer, numpy_helper.from_array(np.zeros(4, np.float32), "four")])
    model.graph.node.extend(
        [
            node,
            helper.make_node("ReduceSum", ["turned"], ["turned_sum"], keepdims=0),
            helper.make_node("Add", [f"{out}_before", "turned_sum"], [out]),
        ]
    )
    return bytes(model.SerializeToString())


CASES: dict[str, tuple[Callable[[onnx.ModelProto], bytes], str]] = {
    "6.0.0": (lambda _: os.urandom(5000), "model-does-not-load"),
    "6.1.0": (lambda _: hostile.make_nan_model().SerializeToString(), "contract-mismatch"),
    "6.2.0": (add_large_tensor(1 << 20), "inference-failed"),
    "6.3.0": (add_endless_loop, "probe-timeout"),
}


def test_each_is_refused_for_its_own_reason_while_the_old_release_answers(
    installed: DeviceUnderTest, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.start()
    assert installed.daemon is not None
    with send_requests(installed) as versions:
        for version, (harm, reason) in CASES.items():

            def spoil(
                _kind: str, model: Path, _golden: object, harm: Callable[[onnx.ModelProto], bytes] = harm
            ) -> None:
                model.write_bytes(harm(onnx.load(model)))

            # a drill is where a signed release becomes other than it says
            monkeypatch.setattr(fire_drill, "apply_drill", spoil)
            extra = SOON if reason == "probe-timeout" else ""
            publisher.release(version, seed=2, drill="damaged-weights", extra=extra)
            result = installed.call("update")
            assert (result["outcome"], result["reason"], result["release"]) == ("unfit", reason, version), result
            again = installed.call("update")
            assert (again["outcome"], again["reason"]) == ("refused", "bundle-quarantined")
    assert versions == {"1.0.0"}
    status = installed.call("status")
    assert {row["reason"] for row in status["quarantine"]} == {reason for _, reason in CASES.values()}
    assert (status["ready"], status["serving"]["release"]) == (True, "1.0.0")
    # the front and the model, and no zombie
    wait_until(lambda: len(list_worker_pids(installed)) == 2)
    publisher.offer("1.1.0")
    assert installed.call("update")["outcome"] == "updated"


@contextmanager
def send_requests(device: DeviceUnderTest) -> Iterator[set[str]]:
    """Send requests in the background; yield the versions of the responses, and raise the first failure at the end."""
    versions: set[str] = set()
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.wait(0.05):
                versions.add(infer(device)["model_version"])
        except BaseException as error:  # noqa: BLE001  # raised below, in the test's thread
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield versions
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
