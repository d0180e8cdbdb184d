"""An agent that is killed in any state serves after a restart, and its update completes."""

import signal
import sys
from pathlib import Path

import pytest

from device_agent.errors import DaemonNotRunning
from device_agent.policy.state_machine import MAX_CRASHES, State
from tests.support.endpoint_client import infer
from tests.support.publisher import DeviceUnderTest, Publisher

# state → what leads to it: an update to 1.1.0, a release that fails its probe, an operator's rollback
UPDATE, DAMAGED, ROLLBACK, STAGED = "update", "damaged", "rollback", "staged"
WAYS = dict.fromkeys(State, UPDATE) | {State.REJECTING: DAMAGED, State.ROLLING_BACK: ROLLBACK, State.STAGED: STAGED}
# what a restarted agent serves: from COMMITTING on the new release; a recorded rollback is finished
SERVED = dict.fromkeys(State, "1.0.0") | {State.COMMITTING: "1.1.0", State.STAGED: "1.1.0", State.IDLE: "1.1.0"}


def _run_until_killed(device: DeviceUnderTest, state: State, command: str = "update", times: int = 1) -> None:
    """Run the daemon until it is killed in `state`."""
    device.start(
        [sys.executable, "-m", "tests.support.kill_at_state", state.value, str(times), str(device.config_path)]
    )
    with pytest.raises(DaemonNotRunning):
        device.call(command)
    assert device.daemon is not None
    assert device.daemon.wait(60) == -signal.SIGKILL
    device.close_after_kill()


@pytest.mark.parametrize("state", State)
def test_killed_in(state: State, installed: DeviceUnderTest, publisher: Publisher) -> None:
    device = installed
    match WAYS[state]:
        case "damaged":
            publisher.release("1.2.0", seed=2, drill="damaged-weights", is_shared=True)
            _run_until_killed(device, state)
            publisher.offer("1.1.0")
        case "rollback":
            publisher.offer("1.1.0")
            device.start()
            assert device.call("update")["outcome"] == "updated"
            device.stop()
            _run_until_killed(device, state, "rollback")
        case "staged":
            publisher.offer("1.1.0")
            assert device.update().outcome == "staged"
        case _:
            publisher.offer("1.1.0")
            _run_until_killed(device, state)
    device.start()
    assert infer(device)["model_version"] == SERVED[state]
    assert device.call("status")["state"] == State.IDLE
    device.call("quarantine-clear")
    assert device.call("update")["outcome"] in ("updated", "nothing-new")
    assert infer(device)["model_version"] == "1.1.0"


@pytest.mark.parametrize("state", [State.PROBING, State.PROBATION])  # all CRASH_SUSPECT_STATES: make torture
def test_killed_again_and_again_in_the_same_trial_refuses_the_release(
    state: State, installed: DeviceUnderTest, publisher: Publisher
) -> None:
    publisher.offer("1.1.0")
    for _ in range(MAX_CRASHES):
        _run_until_killed(installed, state)
    installed.start()
    assert infer(installed)["model_version"] == "1.0.0"
    last = installed.call("status")["last_update"]
    assert (last["outcome"], last["reason"], last["release"]) == ("refused", "crash-loop", "1.1.0")
    again = installed.call("update")
    assert (again["outcome"], again["reason"]) == ("refused", "bundle-quarantined")


def test_the_store_holds_nothing_that_no_pointer_names_after_a_kill(
    installed: DeviceUnderTest, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.offer("1.1.0")
    _run_until_killed(installed, State.PATCHING)
    store = installed.directory.root / "store"
    (store / ("f" * 64 + ".incoming")).write_bytes(b"cut off")
    (store / ("e" * 64 + ".sealed")).write_bytes(b"of nobody")
    installed.start()
    assert {path.name for path in store.iterdir()} == {publisher.digest("1.0.0") + ".sealed"}
