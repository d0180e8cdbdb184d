"""The census counts each device once, in the group and strata that its lines and the plan decide."""

from pathlib import Path
from typing import Any

import pytest

from bundle.plan import Plan, PlannedRelease
from bundle.rollout import bucket
from bundle.stopping.counts import Counts, Group
from fleet.census import Census, CensusDevice, take_census
from fleet.ingest import ingest
from fleet.line import ReceivedLine
from tests.support.device_reports import REPOSITORY
from tests.support.fleet_devices import SigningDevice, open_store

DAY = 86_400
BEGAN = 1_767_300_000
OLD: dict[str, Any] = {"release": "1.0.0", "counter": 1}
NEW: dict[str, Any] = {"release": "1.1.0", "counter": 2}
PLAN = Plan("kws", "stable", PlannedRelease("1.1.0", 2, "a" * 64), salt="s", soak_s=DAY)
HALF = 5_000


@pytest.fixture(scope="module")
def devices() -> list[SigningDevice]:
    return [SigningDevice(f"device-{number}", "field" if number % 4 else "lab") for number in range(40)]


def is_exposed(device: SigningDevice) -> bool:
    return bucket(PLAN.salt, device.device_id) < HALF


class Rehearsal:
    """A census, and devices that send lines to it at given times."""

    def __init__(self, devices: list[SigningDevice], plan: Plan = PLAN) -> None:
        self.devices = [SigningDevice(device.label, device.cohort) for device in devices]
        rows = [CensusDevice(d.device_id, d.cohort, d.ed25519_public) for d in self.devices]
        self.census = Census(plan, rows, BEGAN)
        self.exposed = [device for device in self.devices if is_exposed(device)]
        self.control = [device for device in self.devices if not is_exposed(device)]

    def send(self, at: int, line: bytes) -> None:
        assert not self.census.add_lines([ReceivedLine(BEGAN + at, line)], REPOSITORY)

    def all_serve_the_old_release(self) -> None:
        for device in self.devices:
            self.send(-DAY, device.vital(**OLD, cpu="cortex-a53" if device.cohort == "lab" else "x86_64-avx2"))

    def look(self, at: int) -> Counts:
        return self.census.counts(HALF, BEGAN, BEGAN + at)


def test_only_devices_that_were_heard_before_are_in_the_census(devices: list[SigningDevice]) -> None:
    one = Rehearsal(devices)
    one.send(-8 * DAY, one.exposed[0].vital(**OLD))
    one.send(+1, one.exposed[1].vital(**NEW))
    assert one.look(10).whole == Group(0)
    one.send(-DAY, one.exposed[2].vital(**OLD))
    one.send(-DAY, one.control[0].vital(**OLD))
    assert one.look(10).whole == Group(exposed=1, control=1)


def test_failures_count_at_once_and_the_rest_at_a_checkpoint(devices: list[SigningDevice]) -> None:
    one = Rehearsal(devices)
    one.all_serve_the_old_release()
    total, rest = len(one.exposed), len(one.control)
    bad, late, mute, slow = one.exposed[:4]
    one.send(60, bad.report(**NEW, outcome="rolled-back", state="probation", reason="probation-failed"))
    assert one.look(61).whole == Group(exposed=total, bad=1, control=rest)
    one.send(90, late.report(**NEW))
    for device in one.exposed[4:]:
        one.send(100, device.report(**NEW))
        one.send(DAY - 50, device.vital(**NEW, served_days=1))
    one.send(DAY - 40, slow.vital(**NEW, served_days=0))
    for device in one.control[2:]:
        one.send(DAY - 50, device.vital(**OLD))
    # mute sent nothing, late no vital, slow does not report the end of the soak time
    group = one.look(DAY + 5).whole
    assert group == Group(exposed=total, bad=1, complete=total - 4, silent=1, control=rest, control_silent=2)
    one.send(DAY + 60, late.vital(**NEW, restarts=3))
    assert one.look(DAY + 61).whole.bad == 2, "a late failure counts at once"
    one.send(DAY + 70, mute.vital(**NEW, served_days=1))
    assert one.look(DAY + 80).whole.complete == total - 4, "the next checkpoint is not reached"
    assert one.look(DAY + DAY // 4).whole.complete == total - 3


def test_a_refusal_that_does_not_count_makes_a_device_neither_bad_nor_complete(devices: list[SigningDevice]) -> None:
    one = Rehearsal(devices)
    one.all_serve_the_old_release()
    one.send(60, one.exposed[0].report(**NEW, outcome="refused", state="checking", reason="no-variant"))
    one.send(61, one.exposed[1].report(**NEW, reason="untried"))
    one.send(DAY - 9, one.exposed[1].vital(**NEW, probation="untried", served_days=1))
    group = one.look(DAY).whole
    assert (group.bad, group.complete) == (0, 0)


def test_another_release_or_channel_is_not_counted(devices: list[SigningDevice]) -> None:
    one = Rehearsal(devices)
    one.all_serve_the_old_release()
    failure = {"outcome": "unfit", "state": "probing", "reason": "nan-output"}
    one.send(60, one.exposed[0].report(release="1.0.9", counter=9, **failure))
    one.send(60, one.exposed[1].report(**NEW, channel="beta", **failure))
    one.send(60, one.exposed[2].report(**NEW, family="sounds", **failure))
    assert one.look(70).whole.bad == 0


def test_a_suspect_is_silent_and_neither_bad_nor_complete(devices: list[SigningDevice]) -> None:
    one = Rehearsal(devices)
    one.all_serve_the_old_release()
    device = one.exposed[0]
    clone = device.copy_of_disk()
    one.send(60, device.report(**NEW))
    one.send(61, clone.report(**NEW, outcome="rolled-back", state="probation", reason="probation-failed"))
    one.send(DAY - 9, device.vital(**NEW, served_days=1))
    group = one.look(DAY).whole
    assert (group.bad, group.complete) == (0, 0)
    assert one.census.suspects() == (device.device_id,)


def test_strata_come_from_before_the_release_and_each_device_is_in_one_of_each_kind(
    devices: list[SigningDevice],
) -> None:
    one = Rehearsal(devices)
    one.all_serve_the_old_release()
    for device in one.exposed:
        one.send(50, device.vital(**NEW, cpu="cortex-a72", agent="9.9.9", variant="fp32"))
    counts = one.look(60)
    assert set(counts.strata) == {
        *("cohort:field", "cohort:lab", "variant:int8", "cpu:cortex-a53", "cpu:x86_64-avx2", "agent:0.1.0")
    }
    for kind in ("cohort", "variant", "cpu", "agent"):
        parts = [group for name, group in counts.strata.items() if name.startswith(f"{kind}:")]
        assert sum(part.exposed for part in parts) == counts.whole.exposed
        assert sum(part.control for part in parts) == counts.whole.control


def test_the_cohorts_of_the_plan_limit_the_census(devices: list[SigningDevice]) -> None:
    plan = Plan("kws", "stable", PlannedRelease("1.1.0", 2, "a" * 64), salt="s", soak_s=DAY, cohorts=("lab",))
    one = Rehearsal(devices, plan)
    one.all_serve_the_old_release()
    whole = one.look(10).whole
    assert whole.exposed + whole.control == 10


def test_a_census_from_the_store_verifies_every_line_again(devices: list[SigningDevice], tmp_path: Path) -> None:
    senders = [SigningDevice(device.label, device.cohort) for device in devices]
    store = open_store(tmp_path, senders)
    ingest(store, [device.vital(**OLD) for device in senders], now_s=lambda: BEGAN - DAY)
    exposed = [device for device in senders if is_exposed(device)]
    failure = {"outcome": "unfit", "state": "probing", "reason": "nan-output"}
    ingest(store, [device.report(**NEW, **failure) for device in exposed[:3]], now_s=lambda: BEGAN + 60)
    assert take_census(store, PLAN, BEGAN).counts(HALF, BEGAN, BEGAN + 90).whole == Group(
        exposed=len(exposed), bad=3, control=40 - len(exposed)
    )
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE report SET line = CAST(replace(line, 'nan-output', 'nan-xutput') AS BLOB)")
    assert take_census(store, PLAN, BEGAN).counts(HALF, BEGAN, BEGAN + 90).whole.bad == 0
