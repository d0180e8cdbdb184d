"""A daemon that lends and is killed in any state of an update: borrowed files stay whole, and lending goes on."""

import signal
import sys
from collections.abc import Iterator

import pytest

from device_agent.apps.client import AppClient
from device_agent.errors import DaemonNotRunning
from device_agent.policy.state_machine import State
from tests.support.app_lab import app_lab, release, socket_path
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

# the states that an update of a release of runtime "app" passes
STATES = [
    State.CHECKING,
    State.FETCHING,
    State.PATCHING,
    State.SWAPPING,
    State.PROBATION,
    State.COMMITTING,
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a device that has installed 1.0.0; each test installs the next release."""
    with app_lab(tmp_path_factory.mktemp("killed")) as (publisher, device):
        text = device.config_path.read_text()
        device.config_path.write_text(text.replace("window_s = 60", "window_s = 1"))
        device.update()
        yield publisher, device


@pytest.mark.parametrize("state", STATES)
def test_killed_while_it_lends_in(state: State, lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    number = len(publisher.repository.releases(FAMILY))
    words = f"{number} words\n"
    device.start([sys.executable, "-m", "tests.support.kill_at_state", state.value, "1", str(device.config_path)])
    with AppClient(socket_path(device)) as client, AppClient(socket_path(device)) as watcher:
        events = watcher.watch(FAMILY)
        before = next(events)
        assert before is not None
        with client.open(FAMILY) as bundle:
            content = {path: bundle.read(path) for path in bundle.fds}
            release(publisher, f"2.{number}.0", words, runtime="app")
            with pytest.raises(DaemonNotRunning):
                device.call("update")
            assert device.daemon is not None
            assert device.daemon.wait(60) == -signal.SIGKILL
            device.close_after_kill()
            assert {path: bundle.read(path) for path in bundle.fds} == content, "what was borrowed stays"
            with pytest.raises(DaemonNotRunning):
                list(events)
    device.start()
    try:
        with AppClient(socket_path(device)) as client, client.open(FAMILY) as bundle:
            assert bundle.release.release in (before.release, f"2.{number}.0")
            is_new = bundle.release.release != before.release
            assert bundle.read("labels") == (words.encode() if is_new else content["labels/words.txt"])
        assert device.call("update")["outcome"] in ("updated", "nothing-new")
        assert device.command("files", "cat", "labels").stdout == words
    finally:
        device.stop()
