"""AgentRuntime: the model of an application follows the swaps and rollbacks of a real daemon, while calls run."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from airweights import AgentRuntime
from bundle.errors import AirweightsError
from device_agent.apps.client import ServingRelease
from device_agent.errors import DaemonNotRunning, FileUnknown, ModelDoesNotLoad
from tests.support.app_lab import app_lab, release, socket_path
from tests.support.memfd_bundles import floats, make_scale_model
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

FILE = '[[files]]\npath = "scale.onnx"\nrole = "model"\n'
TIMEOUT_S = 60
UNKNOWN_FACTOR = 13.0
Changes = queue.Queue[tuple[ServingRelease, AirweightsError | None]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a device that lends 1.1.0, whose model doubles its input."""
    with app_lab(tmp_path_factory.mktemp("follow")) as (publisher, device):
        publish(publisher, "1.1.0", 2.0)
        device.update()
        device.start()
        yield publisher, device


def publish(publisher: Publisher, version: str, factor: float | None) -> None:
    """Publish a release that an application runs; its model multiplies by `factor`, or is noise."""
    data = b"noise" if factor is None else make_scale_model(factor).SerializeToString()
    (publisher.folder / "scale.onnx").write_bytes(data)
    release(publisher, version, f"{version}\n", runtime="app", extra=FILE)


def first(runtime: AgentRuntime) -> float:
    return float(runtime.run({"x": floats(1, 2, 3, 4)})["y"][0])


def judge(runtime: AgentRuntime) -> str:
    if first(runtime) == UNKNOWN_FACTOR:
        raise LookupError("no such factor")
    return "" if first(runtime) < 100 else f"{first(runtime):g} is too loud"


def test_a_model_follows_updates_and_rollbacks_while_calls_run(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    changes: Changes = queue.Queue()
    path = socket_path(device)

    def on_change(serving: ServingRelease, error: AirweightsError | None) -> None:
        changes.put((serving, error))
        raise LookupError("an exception of the application")

    with AgentRuntime(FAMILY, path, model="scale.onnx", judge=judge, on_change=on_change, threads=1) as runtime:
        assert runtime.release is not None
        assert (runtime.release.release, first(runtime)) == ("1.1.0", 2.0)
        seen, stop = set(), threading.Event()

        def call() -> None:
            while not stop.wait(0.01):
                seen.add(first(runtime))

        caller = threading.Thread(target=call)
        caller.start()
        try:
            publish(publisher, "1.2.0", 3.0)
            updated = device.call("update")
            assert (updated["outcome"], updated["probation"]["unit"]) == ("updated", "verdicts"), updated
            serving, error = changes.get(timeout=TIMEOUT_S)
            assert (serving.release, error, first(runtime), runtime.generation) == ("1.2.0", None, 3.0, 2)

            # an operator's rollback switches to the model that is still loaded
            assert device.call("rollback")["outcome"] == "rolled-back"
            assert changes.get(timeout=TIMEOUT_S)[0].release == "1.1.0"
            assert (first(runtime), runtime.generation) == (2.0, 1)

            # the application rejects a release, and the agent rolls it back
            publish(publisher, "1.3.0", 1000.0)
            rejected = device.call("update")
            assert (rejected["outcome"], rejected["release"]) == ("rolled-back", "1.3.0")
            assert "1000 is too loud" in rejected["detail"]
            assert [changes.get(timeout=TIMEOUT_S)[0].release for _ in range(2)] == ["1.3.0", "1.1.0"]
            assert (first(runtime), runtime.release and runtime.release.release) == (2.0, "1.1.0")

            # so does one on which the application's own code fails
            publish(publisher, "1.3.1", UNKNOWN_FACTOR)
            rejected = device.call("update")
            assert (rejected["outcome"], rejected["release"]) == ("rolled-back", "1.3.1")
            assert "the judge failed: LookupError: no such factor" in rejected["detail"]
            assert [changes.get(timeout=TIMEOUT_S)[0].release for _ in range(2)] == ["1.3.1", "1.1.0"]
            assert first(runtime) == 2.0

            # so does one that does not load
            publish(publisher, "1.4.0", None)
            assert device.call("update")["outcome"] == "rolled-back"
            serving, error = changes.get(timeout=TIMEOUT_S)
            assert serving.release == "1.4.0"
            assert isinstance(error, ModelDoesNotLoad)
            assert changes.get(timeout=TIMEOUT_S)[0].release == "1.1.0"

            # the daemon ends and starts: calls go on, and the runtime follows the new daemon
            device.stop()
            assert first(runtime) == 2.0
            device.start()
            assert changes.get(timeout=TIMEOUT_S)[0].release == "1.1.0"
            assert first(runtime) == 2.0
        finally:
            stop.set()
            caller.join()
        assert {2.0, 3.0} <= seen <= {2.0, 3.0, UNKNOWN_FACTOR, 1000.0}
    runtime.close()


def test_what_cannot_be_followed_is_an_error_at_once(lab: tuple[Publisher, DeviceUnderTest], tmp_path: Path) -> None:
    _, device = lab
    with pytest.raises(FileUnknown, match="2 files"):
        AgentRuntime(FAMILY, socket_path(device))
    with pytest.raises(DaemonNotRunning):
        AgentRuntime(FAMILY, tmp_path / "nowhere.sock")
