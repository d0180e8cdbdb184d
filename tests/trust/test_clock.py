"""No clock makes expired metadata valid, and none makes valid metadata expired permanently."""

from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.ngclient import Updater

from bundle.errors import MetadataExpired
from bundle.trust import updater
from bundle.trust.clock import MAX_TIME_S, ClockFacts, TimeFloor, current_time, parse_time, raise_floor
from tests.support.metadata_publisher import NOW_S, CheckClient, MetadataPublisher

DAY_S = 86_400
YEAR_S = 365 * DAY_S
FLOOR = TimeFloor(NOW_S, "boot", 1000)


def test_a_synchronized_clock_is_believed_forward_and_never_behind_the_floor() -> None:
    assert current_time(ClockFacts(NOW_S + 50, True, 0, 2000, "boot"), FLOOR) == NOW_S + 50
    assert current_time(ClockFacts(0, True, 0, 2000, "boot"), FLOOR) == NOW_S
    assert current_time(ClockFacts(0, True, NOW_S + 9, 2000, "boot"), FLOOR) == NOW_S + 9


def test_an_unsynchronized_clock_counts_as_absent() -> None:
    same_boot = ClockFacts(
        now_s=NOW_S + YEAR_S, is_synchronized=False, build_time_s=0, boot_elapsed_s=1600, boot_id="boot"
    )
    assert current_time(same_boot, FLOOR) == NOW_S + 600
    later_boot = replace(same_boot, boot_id="another", boot_elapsed_s=30)
    assert current_time(later_boot, FLOOR) == NOW_S + 30
    first_start = replace(same_boot, build_time_s=NOW_S)
    assert current_time(first_start, TimeFloor()) == NOW_S


@settings(max_examples=200)
@given(
    clock=st.builds(
        ClockFacts, st.integers(-(2**40), 2**60), st.booleans(), st.integers(0, 2**33), st.integers(0, 2**33)
    ),
    floor=st.builds(TimeFloor, st.integers(0, 2**33), st.just(""), st.integers(0, 2**33)),
)
def test_time_never_runs_behind_what_is_proven(clock: ClockFacts, floor: TimeFloor) -> None:
    now = current_time(clock, floor)
    assert min(max(clock.build_time_s, floor.time_s), MAX_TIME_S) <= now <= MAX_TIME_S
    datetime.fromtimestamp(now)


def test_the_floor_follows_signed_time_but_not_past_an_expiry() -> None:
    clock = ClockFacts(0, True, 0, 5, "b")
    assert raise_floor(TimeFloor(), NOW_S, [NOW_S + 1, NOW_S + 2], clock).time_s == NOW_S
    assert raise_floor(TimeFloor(), NOW_S, [NOW_S, NOW_S + 2], clock) == TimeFloor()
    assert raise_floor(FLOOR, NOW_S - 1, [NOW_S + 9], clock) == FLOOR
    assert raise_floor(FLOOR, None, [NOW_S + 9], clock) == FLOOR


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00", "yesterday", "", None, 5, "2026-13-01T00:00:00Z"])
def test_what_is_not_a_time_is_none(text: object) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize("now_s", [0, 1, 2**31 - 1, 2**31, 2082758400, 4102444800, 2**40, 2**62])
def test_a_wrong_clock_harms_only_while_it_is_wrong(
    publisher: MetadataPublisher, device: CheckClient, now_s: int
) -> None:
    device.check(publisher.published)
    wrong = device.with_time(now_s)
    if now_s < NOW_S:
        wrong.check(publisher.published)
    else:
        with pytest.raises(MetadataExpired):
            wrong.check(publisher.published)
    publisher.release("1.1.0", 2)
    assert device.check(publisher.published).manifest.version == "1.1.0"


@pytest.mark.parametrize("now_s", [0, pytest.param(NOW_S, id="now"), 2**31, 4102444800])
def test_an_unset_clock_does_not_make_stale_metadata_fresh(
    publisher: MetadataPublisher, device: CheckClient, now_s: int
) -> None:
    device.check(publisher.published)
    days_later = replace(device, clock=ClockFacts(now_s, False, 0, 1000 + 3 * DAY_S, "boot"))
    with pytest.raises(MetadataExpired):
        days_later.check(publisher.published)


def test_a_clock_of_1970_is_helped_by_the_build_time(publisher: MetadataPublisher, device: CheckClient) -> None:
    built_late = replace(device, clock=ClockFacts(0, True, NOW_S + 30 * DAY_S, 5, "boot"))
    with pytest.raises(MetadataExpired):
        built_late.check(publisher.published)


def test_tuf_still_has_the_clock_that_we_set(publisher: MetadataPublisher, device: CheckClient) -> None:
    made = updater.TrustedUpdater(
        device.folder / "cache", device.root, "file:///m", "file:///t", lambda _url, _max: b"", lambda _root: NOW_S
    )
    assert isinstance(made._trusted_set.reference_time, datetime)
    updater.set_reference_time(made, NOW_S)
    assert made._trusted_set.reference_time.timestamp() == NOW_S
    for step in ("_load_root", "_load_timestamp", "_load_snapshot", "_load_targets", "_load_local_metadata"):
        assert callable(getattr(Updater, step)), f"tuf renamed {step}"
    del made._trusted_set.reference_time
    with pytest.raises(AttributeError):
        updater.set_reference_time(made, NOW_S)
