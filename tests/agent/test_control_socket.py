"""The control socket answers the owner of the device, and no worker."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from device_agent.apps.app_socket import AppServer
from device_agent.daemon.control_socket import ControlServer, call_daemon, check_peer
from device_agent.errors import AddressUnavailable, ControlPeerRefused
from device_agent.process.jail import JailPolicy
from tests.support.worker_fixtures import start_jail_probe

CONNECT_AND_END = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'x')"


@pytest.fixture
def control(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A control socket that records the commands that it gets."""
    commands: list[str] = []

    def handle(request: object) -> dict[str, object]:
        assert isinstance(request, dict)
        commands.append(str(request["command"]))
        return {"done": True}

    server = ControlServer(tmp_path / "control.sock", handle)
    yield tmp_path / "control.sock", commands
    server.close()


def test_the_owner_of_the_device_is_answered(control: tuple[Path, list[str]]) -> None:
    assert call_daemon(control[0], "status") == {"done": True}
    assert control[1] == ["status"]


@pytest.mark.parametrize("worker", ["key_opener", "token_opener"])
def test_a_worker_that_may_use_unix_sockets_is_refused(control: tuple[Path, list[str]], worker: str) -> None:
    path, commands = control
    path.chmod(0o666)
    policy = JailPolicy(worker, sockets="unix", read=(str(path),), own_user=False)
    with start_jail_probe(policy) as probe:
        assert probe.call("control", {"path": str(path)}, deadline_s=60).value == {"reason": "control-peer-refused"}
    assert commands == []


@pytest.mark.parametrize("worker", ["front", "fetcher", "verifier", "patcher", "probe", "model_process"])
def test_no_other_worker_reaches_it(control: tuple[Path, list[str]], worker: str) -> None:
    path, commands = control
    policy = JailPolicy(worker, sockets="inet" if worker == "fetcher" else "none", own_user=False)
    with start_jail_probe(policy) as probe, pytest.raises(AirweightsError, match="PermissionError"):
        probe.call("control", {"path": str(path)}, deadline_s=60)
    assert commands == []


def test_a_process_that_has_ended_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        subprocess.run([sys.executable, "-c", CONNECT_AND_END, str(tmp_path / "socket")], check=True)
        with listener.accept()[0] as connection, pytest.raises(ControlPeerRefused, match="has ended"):
            check_peer(connection)


def _serve_control(path: Path) -> ControlServer:
    return ControlServer(path, lambda _: {})


def _serve_apps(path: Path) -> AppServer:
    return AppServer(path, dict)


@pytest.mark.parametrize("serve", [_serve_control, _serve_apps])
def test_only_a_socket_that_nobody_serves_is_replaced(
    tmp_path: Path, serve: Callable[[Path], ControlServer | AppServer]
) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    server = serve(path)
    with pytest.raises(AddressUnavailable, match="another server uses it"):
        serve(path)
    server.close()
    path.write_text("a file")
    with pytest.raises(AddressUnavailable, match="in use"):
        serve(path)
    assert path.read_text() == "a file"
    with pytest.raises(AddressUnavailable, match="No such file"):
        serve(tmp_path / "no-such-folder/d.sock")
