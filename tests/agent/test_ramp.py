"""A device takes a release with a ramp when the ramp covers it, and no online key makes it sooner."""

from pathlib import Path

import pytest

from bundle.manifest import Manifest
from bundle.plan import Plan, PlannedRelease
from device_agent.host import system_clock
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.storage.bundle_store import BundleStore
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher
from torture.in_process import InProcessWorkerPool

RAMP = 'ramp = ["0h 0.01%", "24h 100%"]\n'  # at first one device of 10,000


class Machine:
    """A device whose boot clock a test moves."""

    def __init__(self, device: DeviceUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
        self._device, self.uptime_s = device, 1_000
        real = system_clock.clock_facts
        monkeypatch.setattr(
            "device_agent.workers.worker_pool.clock_facts",
            lambda: real() | {"boot_elapsed_s": self.uptime_s, "boot_id": "boot", "is_synchronized": True},
        )

    def update(self) -> UpdateResult:
        store = BundleStore(self._device.directory.root)
        return self._device.update(
            open_workers=lambda: InProcessWorkerPool(self._device.config, self._device.directory, store)
        )


@pytest.fixture
def ramped(publisher: Publisher) -> Publisher:
    """Return a publisher that offers 1.2.0, which has a ramp, to all devices."""
    publisher.release("1.2.0", seed=2, head=RAMP)
    return publisher


def test_a_device_waits_for_its_share_and_then_updates(
    installed: DeviceUnderTest, ramped: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(installed, monkeypatch)
    result = machine.update()
    assert (result.outcome, result.reason) == (Outcome.WAITING, "not-eligible")
    assert result.detail.startswith("ramp: this device is at ")
    assert "after 24.0 more hours of operation" in result.detail
    for hours, changes in ((6, {"salt": "mine"}), (12, {"halted": True}), (18, {"salt": "again", "began_s": 1})):
        ramped.offer("1.2.0", **changes)  # what a thief of the online keys can sign
        machine.uptime_s = 1_000 + hours * 3600
        assert machine.update().outcome is Outcome.WAITING
    assert BundleStore(installed.directory.root).digests() == {ramped.digest("1.0.0")}
    machine.uptime_s = 1_000 + 36 * 3600  # 12 hours in which the release was halted do not count
    assert machine.update().outcome is Outcome.STAGED


def test_a_device_with_nothing_installed_waits_if_no_plan_names_another_release(
    device: DeviceUnderTest, ramped: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(device, monkeypatch)
    assert machine.update().outcome is Outcome.WAITING
    assert BundleStore(device.directory.root).digests() == set()
    ramped.offer("1.1.0")  # an operator can point the channel at a release without a ramp
    assert machine.update().outcome is Outcome.STAGED


def planned(manifest: Manifest) -> PlannedRelease:
    return PlannedRelease(manifest.version, manifest.counter, manifest.digest_without_patches())


def test_a_device_with_nothing_installed_takes_the_newest_fallback_of_the_plan(
    device: DeviceUnderTest,
    first_device: DeviceUnderTest,
    ramped: Publisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fallbacks = tuple(planned(ramped.manifest(version)) for version in ("1.0.0", "1.1.0"))
    plan = Plan(FAMILY, "stable", planned(ramped.manifest("1.2.0")), fallbacks, salt="kws-3", stages_bp=(10_000,))
    ramped.repository.stage_plan(plan)
    ramped.offer("1.2.0", salt=plan.salt, plan=plan.digest())
    assert Machine(device, monkeypatch).update().outcome is Outcome.STAGED
    assert BundleStore(device.directory.root).digests() == {ramped.digest("1.1.0")}
    installed = first_device.copy(tmp_path / "other", device.config.repository_url)
    assert Machine(installed, monkeypatch).update().outcome is Outcome.WAITING, "a device that serves one keeps it"
