"""A collector and a follower as they run for real: a halt is signed and on the page soon after its deciding report."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from packager.demo.collector import Collector
from tests.support.fleet_devices import SigningDevice
from tests.support.metadata_publisher import PASSPHRASE, MetadataPublisher
from tests.support.planned_fleet import OLD, PlannedFleet

DEVICES = 120
PATIENCE_S = 60
GOAL_S = 30  # 10 on a quiet machine


@pytest.fixture
def fleet(publisher: MetadataPublisher) -> PlannedFleet:
    return PlannedFleet(publisher, [SigningDevice(f"device-{number}") for number in range(DEVICES)])


@pytest.fixture
def collector(fleet: PlannedFleet, tmp_path: Path) -> Iterator[Collector]:
    running = Collector(fleet.repository.layout.root, tmp_path / "fleet.db", tmp_path / "collector.log")
    yield running
    running.stop()


@pytest.fixture
def follower(fleet: PlannedFleet, collector: Collector, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the follower's daemon after the devices' vitals arrived and the rollout began."""
    post(collector, [device.vital(**OLD, **fleet.common) for device in fleet.devices])
    time.sleep(1.1)  # times of receipt are whole seconds
    fleet.roll_out(int(time.time()))
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(PASSPHRASE.value)
    passphrase.chmod(0o600)
    words = ["rollout", "follow", "--json", "--store", collector.store, "--repo", str(fleet.repository.layout.root)]
    words += ["--keys", str(fleet.publisher.keys), "--passphrase-file", str(passphrase)]
    process = subprocess.Popen([sys.executable, "-P", "-m", "packager", *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    while process.stdout.readline().rstrip() != b"}":  # the first look
        pass
    yield process
    process.kill()
    process.communicate()


def post(collector: Collector, lines: list[bytes]) -> None:
    request = urllib.request.Request(f"{collector.url}/v1/lines", b"\n".join(lines))
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        assert json.loads(response.read())["new"] == len(lines)


def page(collector: Collector) -> str:
    with urllib.request.urlopen(f"{collector.url}/", timeout=PATIENCE_S) as response:
        return str(response.read().decode())


def wait_for(collector: Collector, words: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while words not in (text := page(collector)):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    return text


def test_a_halt_is_signed_and_on_the_page_soon_after_its_report(
    fleet: PlannedFleet, collector: Collector, follower: "subprocess.Popen[bytes]"
) -> None:
    before = wait_for(collector, "what the follower sees")
    assert "Decision: wait, the soak time ends in" in before
    post(collector, [fleet.failure_of(device) for device in fleet.exposed[:14]])
    began = time.monotonic()
    text = wait_for(collector, ">halted: halt, failures: evidence ")
    seconds = time.monotonic() - began
    print(f"halted on the page after {seconds:.1f} s")
    assert fleet.current.halted
    assert seconds <= GOAL_S
    text = wait_for(collector, "Decision: halt, ")
    assert f"14 of {len(fleet.exposed)} devices failed" in text
    assert follower.poll() is None
