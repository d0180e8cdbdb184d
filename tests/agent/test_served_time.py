"""A vital says for how long a release has served, by the boot clock alone, and comes when the soak time ends."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.files import BundleDigest
from bundle.strict_json import StrictObject
from bundle.vital import Vital
from device_agent.config.serve import ServeSettings
from device_agent.host import system_clock
from device_agent.host.device_facts import device_facts
from device_agent.policy.next_vital import ServedCounts
from device_agent.policy.served_time import DAY_S, SAVE_INTERVAL_S, ServedTime
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.journal import Journal
from device_agent.update.context import UpdateContext
from device_agent.update.probe_client import ProbeClient
from device_agent.update.report_sender import make_vital
from device_agent.workers.worker_pool import WorkerPool
from tests.support.publisher import DeviceUnderTest

A, B = BundleDigest("a" * 64), BundleDigest("b" * 64)
readings = st.lists(st.tuples(st.sampled_from(("one", "two", "three")), st.integers(0, 400_000)), max_size=12)


@given(readings)
def test_time_is_counted_once_whatever_is_recorded(boots: list[tuple[str, int]]) -> None:
    boots = sorted(boots)  # each boot once, its clock only rises
    exact = stored = ServedTime(A)
    for boot, seconds in boots:
        exact, now = exact.advance(A, boot, seconds), stored.advance(A, boot, seconds)
        assert 0 <= exact.elapsed_s - now.elapsed_s <= SAVE_INTERVAL_S * len(boots), "only a boot loses time"
        stored = now if stored.is_worth_recording(now) else stored
    last = dict(boots)
    assert exact.elapsed_s == sum(last.values())
    assert ServedTime.parse(StrictObject(exact.as_json(), "served-time")) == exact


def test_another_bundle_begins_at_0() -> None:
    before = ServedTime(A, 5 * DAY_S, "boot", 900, soak_s=DAY_S)
    assert before.advance(B, "boot", 1_000) == ServedTime(B, 0, "boot", 1_000, soak_s=DAY_S)
    assert before.advance(None, "boot", 1_000).soak_left_s is None
    assert before.soak_left_s is None
    assert ServedTime(A, 100, soak_s=DAY_S + 1).soak_left_s == 2 * DAY_S - 100, "vitals say whole days"


class Clock:
    """The clocks of a machine; a test moves them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, journal: Journal, context: UpdateContext) -> None:
        self.boot, self.uptime_s, self.wall_s = "boot", 1_000, 1_800_000_000
        self._journal, self._context = journal, context
        monkeypatch.setattr("device_agent.update.report_sender.read_boot_clock", lambda: (self.boot, self.uptime_s))
        monkeypatch.setattr("time.time_ns", lambda: self.wall_s * 10**9)

    def run(self, seconds: int) -> None:
        self.uptime_s, self.wall_s = self.uptime_s + seconds, self.wall_s + seconds

    def vital(self) -> Vital | None:
        """Let the device make the vital that is due."""
        is_made = make_vital(self._context, DAY_S, ServedCounts(), is_forced=False, is_paused=False)
        found = self._journal.newest_vital
        return found[0] if is_made and found is not None else None


@pytest.fixture
def clock(first_device: DeviceUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    store, journal = BundleStore(device.directory.root), device.journal()
    context = UpdateContext(
        config=device.config,
        device=device.directory,
        identity=device.directory.read_public_identity(),
        store=store,
        journal=journal,
        probe_client=ProbeClient(ServeSettings(), allow_unjailed=False),
        read_facts=device_facts,
        open_workers=lambda: WorkerPool(device.config, device.directory, store),
    )
    return Clock(monkeypatch, journal, context)


def test_the_system_clock_changes_no_served_day(clock: Clock) -> None:
    found = clock.vital()
    assert found is not None
    assert found.served_days == 0
    for wall_s in (1_800_000_000 + 400 * DAY_S, 5, 4_000_000_000):
        clock.wall_s = wall_s
        clock.run(SAVE_INTERVAL_S)
        found = clock.vital()
        assert found is not None, "a clock that jumps makes the vital due"
        assert found.served_days == 0
    clock.run(2 * DAY_S)
    found = clock.vital()
    assert found is not None
    assert found.served_days == 2


def test_one_more_vital_comes_when_the_soak_time_ends(clock: Clock) -> None:
    journal = clock._journal  # of this module
    clock.vital()
    journal.record_served_time(clock.boot, clock.uptime_s, DAY_S)
    clock.run(DAY_S // 2)
    assert clock.vital() is None
    clock.boot, clock.uptime_s = "second", 0  # off for a night, which counts for nothing
    assert clock.vital() is None
    clock.run(DAY_S // 2 - 1)
    clock.wall_s -= DAY_S // 2  # so that no interval is over
    assert clock.vital() is None
    clock.run(1)
    found = clock.vital()
    assert found is not None
    assert found.served_days == 1
    clock.run(60)
    assert clock.vital() is None, "once"


def test_the_boot_clock_is_that_of_the_machine() -> None:
    first, second = system_clock.read_boot_clock(), system_clock.read_boot_clock()
    assert first[0] == second[0]
    assert 0 < first[1] <= second[1]
    assert replace(ServedTime(), digest=A).advance(A, *first).boot_elapsed_s == first[1]
