"""The daemon reports to systemd over a real notify socket, and the unit file matches it."""

import configparser
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.host.systemd import SystemdNotifier
from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import infer
from tests.support.publisher import DeviceUnderTest

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "airweights-agent.service"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(60)
        yield listener


def _wait_for_notification(systemd: socket.socket, word: str) -> bytes:
    while word.encode() not in (message := systemd.recv(4096)):
        pass
    return message


def test_the_daemon_is_ready_when_it_serves_and_says_so_while_the_model_answers(
    installed: DeviceUnderTest, systemd: socket.socket
) -> None:
    environment = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "200000"}
    installed.start(environment=environment)
    assert b"STATUS=serving at" in _wait_for_notification(systemd, "READY=1")
    _wait_for_notification(systemd, "WATCHDOG=1")
    assert infer(installed)["model_version"] == "1.0.0"
    pid = installed.call("status")["serving"]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert infer(installed)["model_version"] == "1.0.0", "the request waits for the next process"
    _wait_for_notification(systemd, "WATCHDOG=1")
    assert installed.stop() == 0
    _wait_for_notification(systemd, "STOPPING=1")


def test_a_model_that_does_not_answer_earns_no_watchdog_message(systemd: socket.socket) -> None:
    notifier = SystemdNotifier({"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "20000"})
    answers = iter([False, False, True])
    states = []

    def is_responding() -> bool:
        states.append(next(answers, True))
        return states[-1]

    notifier.start_watchdog(is_responding)
    assert systemd.recv(100) == b"WATCHDOG=1"
    assert states[:3] == [False, False, True]
    notifier.stop()


def test_without_systemd_nothing_is_said() -> None:
    notifier = SystemdNotifier({})
    notifier.send("READY=1")
    notifier.start_watchdog(lambda: True)
    notifier.stop()


def test_a_watchdog_for_another_process_is_not_ours(systemd: socket.socket) -> None:
    words = {"NOTIFY_SOCKET": str(systemd.getsockname()), "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}
    notifier = SystemdNotifier(words)
    notifier.start_watchdog(lambda: True)
    notifier.send("READY=1")
    assert systemd.recv(100) == b"READY=1"
    notifier.stop()


def test_the_unit_file_says_what_the_daemon_does() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert service["ExecStart"].endswith("/device-agent --config /etc/airweights/config.toml run")
    assert service["NoNewPrivileges"] == "yes"
    assert service["LimitCORE"] == "0"


def test_systemd_finds_nothing_wrong_with_the_unit_file(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # only the program is not where the unit expects it
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/device-agent", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    result = [row for row in done.stderr.splitlines() if UNIT.name in row]
    assert result == []


def test_a_dead_front_is_started_again_at_the_same_address(installed: DeviceUnderTest) -> None:
    installed.start()
    assert infer(installed)["model_version"] == "1.0.0"
    for pid in list_worker_pids(installed):
        if b"device_agent.front" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert _infer_with_retries(installed)["model_version"] == "1.0.0"


def _infer_with_retries(device: DeviceUnderTest) -> dict[str, Any]:
    for _ in range(50):
        try:
            return infer(device)
        except OSError:
            device.call("pause")  # answered by the main thread, in turn with the news of the front
    raise AssertionError("the front did not come back")
