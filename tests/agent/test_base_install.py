"""A device with the base install only: it updates and lends files, and refuses what it cannot run or decode."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.apps.client import AppClient
from tests.support.app_lab import WEIGHTS, app_lab, release, socket_path
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

HIDING = Path(__file__).parents[1] / "support" / "base_install"
ENVIRONMENT = {"PYTHONPATH": f"{HIDING}{os.pathsep}{Path(__file__).parents[2]}"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a running device with the base install; the tests of the module run in order."""
    with app_lab(tmp_path_factory.mktemp("base")) as (publisher, device):
        started = device.start(environment=ENVIRONMENT)
        assert started["address"] == "none"
        yield publisher, device


def agent(device: DeviceUnderTest, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the agent with the base install."""
    command = [sys.executable, "-m", "device_agent", "--config", str(device.config_path), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **ENVIRONMENT}
    )


def test_it_updates_by_patch_and_lends(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    assert device.call("update")["release"] == "1.0.0"
    release(publisher, "1.1.0", "one\ntwo\nthree\n")
    result = device.call("update")
    assert (result["outcome"], result["release"]) == ("updated", "1.1.0"), result
    assert 0 < result["downloaded"]["patch"] < len(WEIGHTS) / 20
    assert not result["downloaded"]["full"]
    with AppClient(socket_path(device)) as client, client.open(FAMILY) as bundle:
        assert bundle.read("labels") == b"one\ntwo\nthree\n"
    shown = agent(device, "files", "cat", "labels")
    assert (shown.returncode, shown.stdout) == (0, "one\ntwo\nthree\n"), shown.stderr


def test_it_refuses_a_model_and_fetches_none_of_it(lab: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = lab
    publisher.release("2.0.0")
    result = device.call("update")
    assert (result["outcome"], result["reason"]) == ("refused", "runtime-missing"), result
    assert not result["downloaded"]["patch"] + result["downloaded"]["full"]
    assert "lending 1.1.0 to applications" in agent(device, "status").stdout
