"""The daemon process serves, updates under load, rolls back, obeys the control socket, and stops."""

import contextlib
import json
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import AirweightsError
from device_agent.commands.daemon_or_offline import daemon_or_offline, plain_json
from device_agent.config.config import Config, ProbationSettings
from device_agent.daemon.control_socket import ControlServer
from device_agent.errors import DeviceLocked, NothingToRollBack, UpdatesPaused
from device_agent.storage.device_directory import DAEMON, DeviceDirectory
from tests.support import faulty_http_server
from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import infer
from tests.support.faulty_http_server import Site
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest, Publisher


def test_the_daemon_installs_serves_updates_and_goes_back(device: DeviceUnderTest, publisher: Publisher) -> None:
    line = device.start()
    assert line["address"] == device.config.serve.listen
    assert device.call("status")["ready"] is False
    first = device.call("update")
    assert (first["outcome"], first["release"]) == ("updated", "1.0.0"), first
    assert device.call("status")["ready"] is True
    assert infer(device)["model_version"] == "1.0.0"

    publisher.offer("1.1.0")
    assert device.call("plan")["release"] == "1.1.0", "the repository is asked anew"
    second = device.call("update")
    assert (second["outcome"], second["release"]) == ("updated", "1.1.0"), second
    assert (second["reason"], second["probation"]["verdict"], second["probation"]["requests"]) == (
        "untried",
        "untried",
        0,
    )
    history = device.command("history").stdout.splitlines()
    assert history[0].startswith("updated, untried 1.1.0 fp32 (probation: 0 requests in 0 s"), history
    assert "last update: updated, untried 1.1.0" in device.command("status").stdout
    assert first["probation"] is None, "a first install has no probation"
    assert 0 < second["patch_bytes"] < second["full_download_bytes"]
    assert (
        second["patch_bytes"] <= second["downloaded"]["patch"] < second["patch_bytes"] + 500
    )  # with the response head
    assert infer(device)["model_version"] == "1.1.0"
    assert device.call("update")["outcome"] == "nothing-new"

    back = device.call("rollback")
    assert (back["outcome"], back["reason"]) == ("rolled-back", "operator-rollback")
    assert infer(device)["model_version"] == "1.0.0"
    again = device.call("update")
    assert (again["outcome"], again["reason"]) == ("refused", "bundle-quarantined")
    assert device.call("quarantine-clear") == {"cleared": 1}
    assert device.call("update")["outcome"] == "updated"

    status = json.loads(device.command("status", "--json").stdout)
    assert (status["daemon"], status["active"]["release"], status["previous"]["release"]) == (True, "1.1.0", "1.0.0")
    assert device.stop() == 0
    assert json.loads(device.command("status", "--json").stdout)["daemon"] is False
    assert not device.directory.control_path.exists()


def _start_with_probation(device: DeviceUnderTest, requests: int) -> None:
    """Start the device with a probation that needs so many requests."""
    device.config = replace(device.config, probation=ProbationSettings(window_s=3600, min_requests=requests))
    device.write_config()
    device.start()


def test_a_release_that_answers_nan_under_live_requests_is_rolled_back(
    installed: DeviceUnderTest, publisher: Publisher
) -> None:
    publisher.release("1.2.0", seed=2, drill="live-nan")
    _start_with_probation(installed, requests=1000)
    with _send_requests(installed) as versions:
        update_result = installed.call("update")
    assert (update_result["outcome"], update_result["reason"], update_result["release"]) == (
        "rolled-back",
        "probation-failed",
        "1.2.0",
    )
    assert "NaN" in update_result["detail"]
    assert "1.2.0" in versions
    assert infer(installed)["model_version"] == "1.0.0"
    assert installed.call("status")["quarantine"][0]["reason"] == "probation-failed"


def test_a_model_process_that_dies_in_probation_is_a_rollback(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0")
    _start_with_probation(installed, requests=1000)
    result: dict[str, Any] = {}
    update = threading.Thread(target=lambda: result.update(installed.call("update")))
    update.start()
    os.kill(_wait_for_probation(installed), signal.SIGKILL)
    update.join(120)
    assert (result["outcome"], result["reason"]) == ("rolled-back", "probation-failed")
    assert "crashed" in result["detail"]
    assert infer(installed)["model_version"] == "1.0.0"


def test_an_operator_ends_a_probation(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0")
    _start_with_probation(installed, requests=1000)
    result: dict[str, Any] = {}
    update = threading.Thread(target=lambda: result.update(installed.call("update")))
    update.start()
    _wait_for_probation(installed)
    infer(installed)
    progress = installed.call("status")["probation"]
    assert (progress["release"], progress["needed_requests"], progress["unit"]) == ("1.1.0", 1000, "requests")
    assert 0 < progress["left_s"] <= 3600
    assert "of 1000 requests, " in installed.command("status").stdout
    back = installed.call("rollback")
    update.join(120)
    assert (result["outcome"], result["reason"]) == ("rolled-back", "operator-rollback")
    assert (back["outcome"], back["release"]) == ("rolled-back", "1.1.0")
    assert infer(installed)["model_version"] == "1.0.0"
    assert installed.call("status")["probation"] is None


def test_what_could_not_be_started_at_once_is_started_later(installed: DeviceUnderTest) -> None:
    while not _start_and_kill_the_first_patcher(installed):  # on a busy machine it may end before it is seen
        installed.stop()
    wait_until(lambda: bool(installed.call("status")["ready"]))
    assert infer(installed)["model_version"] == "1.0.0"
    assert installed.call("status")["degraded"] is False


def _start_and_kill_the_first_patcher(device: DeviceUnderTest) -> bool:
    """Return whether a patcher was killed before the daemon had started."""
    killed, started = threading.Event(), threading.Event()

    def kill_the_first_patcher() -> None:
        while not killed.is_set() and not started.is_set():
            with contextlib.suppress(AssertionError, OSError):  # no daemon yet, or a process that has just ended
                for pid in list_worker_pids(device):
                    if b"device_agent.workers.patcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        killed.set()
                        return
            time.sleep(0.002)

    killer = threading.Thread(target=kill_the_first_patcher)
    killer.start()
    device.start()
    started.set()
    killer.join()
    return killed.is_set()


def test_a_daemon_that_is_stopped_in_a_probation_serves_the_old_release_afterwards(
    installed: DeviceUnderTest, publisher: Publisher
) -> None:
    publisher.offer("1.1.0")
    _start_with_probation(installed, requests=1000)
    update = threading.Thread(target=_update_ignoring_errors, args=(installed,))
    update.start()
    _wait_for_probation(installed)
    assert installed.stop() == 0
    update.join(120)
    installed.start()
    assert infer(installed)["model_version"] == "1.0.0"
    last = installed.call("status")["last_update"]
    assert (last["outcome"], last["reason"]) == ("interrupted", "agent-stopping")


def test_a_first_install_that_fails_is_told_and_tried_again(device: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.release("1.2.0", seed=2, drill="damaged-weights", is_shared=True)
    device.start()
    update_result = device.call("update")
    assert (update_result["outcome"], update_result["reason"], update_result["exit_code"]) == (
        "unfit",
        "golden-mismatch",
        5,
    )
    assert device.call("status")["ready"] is False
    publisher.offer("1.1.0")
    assert device.call("update")["outcome"] == "updated"
    assert infer(device)["model_version"] == "1.1.0"


def test_the_daemon_polls_by_itself_unless_it_is_paused(installed: DeviceUnderTest, publisher: Publisher) -> None:
    text = installed.config_path.read_text().replace("automatic = false", "automatic = true\npoll_interval_s = 1")
    installed.config_path.write_text(text)
    installed.start()
    assert installed.call("pause") == {"paused": True}
    with pytest.raises(UpdatesPaused):
        installed.call("update")
    publisher.offer("1.1.0")
    installed.call("resume")
    deadline = time.monotonic() + 60
    while installed.call("status")["active"]["release"] != "1.1.0":
        assert time.monotonic() < deadline
    assert installed.call("history")["history"][0]["trigger"] == "poll"


def test_the_daemon_stops_at_once_though_a_server_hangs(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    release, arrived = threading.Event(), threading.Event()
    site.faults = [faulty_http_server.only_below("blobs/", faulty_http_server.hang(release, arrived))]
    installed.start()
    update = threading.Thread(target=_update_ignoring_errors, args=(installed,))
    update.start()
    assert arrived.wait(60)
    try:
        assert installed.stop() == 0
    finally:
        release.set()
        update.join(120)


def test_a_standby_takes_over_when_the_model_process_dies(installed: DeviceUnderTest) -> None:
    text = installed.config_path.read_text().replace("[serve]\n", "[serve]\nstandby = true\n")
    installed.config_path.write_text(text)
    installed.start()
    seen = set()
    for _ in range(3):
        pid = installed.call("status")["serving"]["pid"]
        seen.add(pid)
        with _send_requests(installed) as versions:
            with pytest.raises(NothingToRollBack):  # answered in turn: the standby is in its place
                installed.call("rollback")
            os.kill(pid, signal.SIGKILL)
            while installed.call("status")["serving"]["pid"] == pid:
                pass
        assert set(versions) == {"1.0.0"}
    assert len(seen) == 3


def test_a_daemon_is_small_at_rest_and_a_second_one_finds_the_directory_taken(installed: DeviceUnderTest) -> None:
    installed.start()
    process = Path(f"/proc/{installed.daemon_pid}")

    def resident_kib() -> int:
        fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0])

    wait_until(lambda: resident_kib() <= 24.5 * 1024)
    assert "libcrypto" not in (process / "maps").read_text(), "digests of short texts need no OpenSSL"
    second = installed.command("run")
    assert second.returncode == 4
    assert '"device-locked"' in second.stderr


def test_a_command_waits_for_a_daemon_that_starts(installed: DeviceUnderTest) -> None:
    def take_lock(config: Config) -> dict[str, int]:
        with DeviceDirectory(config.directory).acquire_lock():
            return {"offline": 1}

    def call() -> dict[str, Any]:
        return daemon_or_offline(installed.config_path, "plan", take_lock, plain_json)

    with ThreadPoolExecutor(1) as pool, installed.directory.acquire_lock(DAEMON):
        waiting = pool.submit(call)
        with pytest.raises(TimeoutError):
            waiting.result(0.5)
        server = ControlServer(installed.directory.control_path, lambda request: {"command": request["command"]})
        assert waiting.result(60) == {"command": "plan"}
        server.close()
    assert call() == {"offline": 1}
    with installed.directory.acquire_lock(), pytest.raises(DeviceLocked, match="another process uses"):
        call()


def test_the_control_socket_is_for_its_owner_alone(installed: DeviceUnderTest) -> None:
    installed.start()
    assert stat.S_IMODE(installed.directory.control_path.stat().st_mode) == 0o600


def _update_ignoring_errors(device: DeviceUnderTest) -> None:
    with contextlib.suppress(AirweightsError):
        device.call("update")


def _wait_for_probation(device: DeviceUnderTest) -> int:
    """Return the process id of the candidate as soon as it is on probation."""
    deadline = time.monotonic() + 60
    while True:
        status = device.call("status")
        # also between two steps of the update
        assert (status["probation"] is not None) == (status["state"] == "probation"), status
        if status["state"] == "probation":
            return int(status["serving"]["pid"])
        assert time.monotonic() < deadline, status["state"]


@contextlib.contextmanager
def _send_requests(device: DeviceUnderTest) -> Iterator[list[str]]:
    """Send requests in a thread, one after the other; yield the versions of the responses."""
    versions: list[str] = []
    done = threading.Event()

    def ask() -> None:
        value = 0.1
        while not done.is_set():
            value += 0.01
            versions.append(infer(device, value)["model_version"])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield versions
    finally:
        done.set()
        thread.join(60)
