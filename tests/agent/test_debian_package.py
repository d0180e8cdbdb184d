"""The Debian package in a clean Debian root, under a real systemd: the tutorial's release, reload, sockets, removal.

`make torture` runs it: debootstrap takes minutes.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.debian_root import (
    REPOSITORY,
    Machine,
    build_package,
    create_root,
    reason_without_debian,
    start_machine,
)
from tests.support.load_clients import wait_until

UNIT = "airweights-agent"
CONFIG = "/etc/airweights/config.toml"
DROP_INS = "usr/share/doc/airweights-agent/examples/airweights-agent.service.d"
RELEASE = """
family = "sounds"
version = "1.0.0"
channels = ["stable"]
model = "model-1.onnx"
inputs = "inputs.npz"

[variants.int8]
scheme = "int8"
health.probation_window_s = 3
health.probation_min_requests = 0

[rollout]
percent = 100
"""
CONNECT = "import socket, sys; print(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))"


@dataclass(frozen=True)
class Device:
    """A machine whose agent was installed, enrolled and started as the pages say.

    Attributes:
        machine: the machine.
        config: the text of its configuration.
    """

    machine: Machine
    config: str

    def restart(self, listen: str, *lines: str) -> None:
        """Start the agent again with another endpoint and further lines of `[serve]`."""
        text = re.sub(r"(?m)^listen = .*$", "\n".join([f'listen = "{listen}"', *lines]), self.config)
        (self.machine.root / CONFIG.lstrip("/")).write_text(text)
        self.machine.run("systemctl", "restart", UNIT)

    def add_drop_in(self, name: str) -> None:
        """Copy a drop-in of the package to its place."""
        target = self.machine.root / "etc/systemd/system/airweights-agent.service.d"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.machine.root / DROP_INS / name, target)
        self.machine.run("systemctl", "daemon-reload")

    def status(self) -> str:
        """Return what `status` prints to the agent's user."""
        return self.machine.run("device-agent", "status", user="airweights").stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (why := reason_without_debian()) is not None:
        pytest.skip(why)
    return build_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("debian") / "root"
    create_root(root, package)
    with start_machine(root) as machine:
        yield machine


@pytest.fixture(scope="module")
def device(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("publisher")
    environment = {**os.environ, "PACKAGER_PASSPHRASE": "for-practice-only", "PACKAGER_REPO": "repo"}

    def publish(*words: str | Path) -> None:
        subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True)

    publish(REPOSITORY / "examples" / "make_models.py", ".")
    publish("-m", "packager", "repo", "init", "repo", "--keys", "keys", "--family", "sounds")
    serve = ("-m", "http.server", "--bind", "127.0.0.1", "--directory", folder / "repo" / "published", "8080")
    web = subprocess.Popen(machine.in_network(sys.executable, *serve), stderr=subprocess.DEVNULL)
    try:
        shutil.copy(folder / "repo" / "published" / "metadata" / "1.root.json", machine.root / "srv")
        words = ("--root", "/srv/1.root.json", "--repository-url", "http://127.0.0.1:8080", "--family", "sounds")
        machine.run("device-agent", "init", *words, "--listen", "tcp:127.0.0.1:8500", "--label", "kitchen")
        printed = machine.run("device-agent", "enroll", "--output", "/srv/request.json").stdout
        fingerprint = printed.split("fingerprint: ")[1].strip()
        request = machine.root / "srv" / "request.json"
        publish("-m", "packager", "device", "enroll", request, "--keys", "keys", "--fingerprint", fingerprint)
        (folder / "release.toml").write_text(RELEASE)
        publish("-m", "packager", "release", "release.toml", "--keys", "keys")
        machine.run("systemctl", "enable", "--now", UNIT)
        machine.run("device-agent", "update", user="airweights")
        yield Device(machine, (machine.root / CONFIG.lstrip("/")).read_text())
    finally:
        web.kill()
        web.wait()


def test_the_packages_agent_serves_the_release_of_the_tutorial(device: Device) -> None:
    device.restart("tcp:127.0.0.1:8500")
    assert "sounds on channel stable: 1.0.0 (int8)" in device.status()
    ask = ("http://127.0.0.1:8500", "sounds", "high tone")
    done = subprocess.run(
        device.machine.in_network(sys.executable, REPOSITORY / "examples" / "ask.py", *ask),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "high tone" in done.stdout
    owner = device.machine.run("stat", "-c", "%U %a", "/var/lib/airweights").stdout
    assert owner == "airweights 700\n"


def test_a_reload_keeps_the_process_and_names_what_changed(device: Device) -> None:
    device.restart("tcp:127.0.0.1:8500")
    show = ("systemctl", "show", "--property=MainPID,NRestarts,ActiveState", UNIT)
    before = device.machine.run(*show).stdout
    path = device.machine.root / CONFIG.lstrip("/")
    path.write_text(path.read_text() + "\n[probation]\nwindow_s = 7\n")
    device.machine.run("systemctl", "reload", UNIT)
    wait_until(lambda: "probation.window_s" in device.machine.journal(), 60)
    assert device.machine.run(*show).stdout == before
    assert "ActiveState=active" in before


def test_the_sockets_group_may_send_requests_and_no_other_user(device: Device) -> None:
    device.machine.run("groupadd", "--force", "inference")
    if device.machine.run("id", "member", check=False).returncode != 0:
        device.machine.run("useradd", "--groups", "inference", "member")
    device.add_drop_in("socket-group.conf")
    socket = "/run/airweights/infer.sock"
    device.restart(f"unix:{socket}", 'group = "inference"')
    assert device.machine.run("stat", "-c", "%U %G %a", socket).stdout == "airweights inference 660\n"
    found = [device.machine.run("python3", "-c", CONNECT, socket, user=user).stdout for user in ("member", "nobody")]
    assert found == ["0\n", "13\n"]


def test_the_socket_of_systemd_stays_while_the_agent_restarts(device: Device) -> None:
    device.machine.run("systemctl", "stop", UNIT)
    device.machine.run("systemctl", "start", f"{UNIT}.socket")
    socket = "/run/airweights-infer.sock"
    try:
        device.restart("systemd")
        before = device.machine.run("stat", "-c", "%i %U %G %a", socket).stdout
        device.machine.run("systemctl", "restart", UNIT)
        assert device.machine.run("stat", "-c", "%i %U %G %a", socket).stdout == before
        assert before.split()[1:] == ["airweights", "airweights", "660"]
        assert "serving" in device.status()
    finally:
        device.machine.run("systemctl", "stop", UNIT, f"{UNIT}.socket")


def test_the_package_is_removed_with_its_service_and_without_the_devices_keys(device: Device, package: Path) -> None:
    device.restart("tcp:127.0.0.1:8500")
    device.machine.run("dpkg", "--remove", "airweights-agent")
    assert device.machine.run("systemctl", "is-active", UNIT, check=False).stdout.strip() == "inactive"
    assert (device.machine.root / "var/lib/airweights/identity").is_dir()
    assert not (device.machine.root / "usr/lib/airweights").exists()
    shutil.copy(package, device.machine.root / "srv" / "agent.deb")
    device.machine.run("dpkg", "--install", "/srv/agent.deb")
    device.machine.run("systemctl", "enable", "--now", UNIT)
    assert "1.0.0 (int8)" in device.status()
