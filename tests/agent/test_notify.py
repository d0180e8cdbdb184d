"""The daemon reports to systemd over a real notify socket, and the unit file matches it."""

import configparser
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.host.systemd import SystemdNotifier
from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import infer
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = PACKAGING / "systemd" / "airweights-agent.service"


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


def _copy_units(folder: Path, *drop_ins: str) -> list[Path]:
    """Copy the units with a program that exists, and drop-ins of the agent's unit."""
    units = []
    for path in sorted(PACKAGING.glob("systemd/airweights-*.[s]*")):
        if path.is_file():
            units.append(folder / path.name)
            units[-1].write_text(
                path.read_text().replace("/usr/bin/device-agent", "/bin/true").replace("airweights\n", "root\n")
            )
    for name in drop_ins:
        target = folder / f"{UNIT.name}.d" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text((PACKAGING / "systemd" / f"{UNIT.name}.d" / name).read_text())
    return units


@pytest.mark.parametrize("drop_in", ["", "tpm.conf", "pkcs11.conf", "socket-group.conf", "root.conf"])
def test_systemd_finds_nothing_wrong_with_the_units(drop_in: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = _copy_units(tmp_path, *([drop_in] if drop_in else []))
    assert len(units) == 3
    words = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    result = [row for row in done.stderr.splitlines() if "airweights" in row]
    assert result == []


def test_the_exposure_of_the_unit_is_what_its_page_says(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    page = (PACKAGING / "systemd" / "README.md").read_text()
    found = []
    for drop_ins in ((), ("root.conf",)):
        folder = tmp_path / str(len(drop_ins))
        folder.mkdir()
        _copy_units(folder)
        unit = folder / UNIT.name
        for name in drop_ins:  # `--offline` reads no drop-ins
            unit.write_text(unit.read_text() + (PACKAGING / "systemd" / f"{UNIT.name}.d" / name).read_text())
        # the copy has root as its user, so that systemd knows it
        unit.write_text(unit.read_text().replace("User=root\nGroup=root", "User=daemon", 1))
        words = ["systemd-analyze", "security", "--offline=yes", str(unit)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        rating = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
        if rating is None:
            pytest.skip("this systemd-analyze does not rate files")
        found.append(float(rating[1]))
    shown = re.search(r"says ([0-9.]+) \(OK\), and ([0-9.]+) with", page)
    assert shown is not None
    # versions of systemd rate a little differently
    assert [abs(float(shown[number + 1]) - rating) <= 0.3 for number, rating in enumerate(found)] == [True, True], found


def test_the_units_and_the_manual_agree() -> None:
    page = (PACKAGING / "systemd" / "README.md").read_text()
    files = [path for path in (PACKAGING / "systemd").rglob("*") if path.is_file() and path.name != "README.md"]
    assert [path.name for path in files if path.name not in page] == []
    unit = UNIT.read_text()
    assert "ExecReload=/bin/sh -c 'kill -HUP $$MAINPID'" in unit
    assert "User=airweights" in unit
    assert "u airweights " in (PACKAGING / "sysusers.d" / "airweights.conf").read_text()
    shared = tomllib.loads((PACKAGING.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert {"packaging/systemd", "packaging/sysusers.d", "packaging/man"} <= set(shared["shared-data"])
    assert all((PACKAGING.parent / source).exists() for source in shared["shared-data"])


def test_package_and_container_have_what_runs_and_serves_models() -> None:
    recipes = [PACKAGING / "debian" / "build", PACKAGING / "oci" / "Containerfile"]
    installs = [
        line
        for path in recipes
        for line in path.read_text().splitlines()
        if " install --" in line and ".whl" not in line
    ]
    assert len(installs) == 2
    assert all('[device]"' in line for line in installs)


def test_a_dead_front_is_started_again_at_the_same_address(installed: DeviceUnderTest) -> None:
    installed.start()
    assert infer(installed)["model_version"] == "1.0.0"
    (front,) = list_worker_pids(installed, "device_agent.front")
    os.kill(front, signal.SIGKILL)
    found: list[dict[str, Any]] = []

    def is_back() -> bool:
        with contextlib.suppress(OSError):
            found.append(infer(installed))
        return bool(found)

    wait_until(is_back)
    assert found[0]["model_version"] == "1.0.0"
