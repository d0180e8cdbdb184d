"""A rollout outside the signed plan is refused, and no online key spreads a release faster than its ramp."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.acceptance import VerifiedRelease, check_eligibility
from bundle.errors import OutsidePlan
from bundle.manifest import Manifest
from bundle.plan import Plan, PlannedRelease
from bundle.ramp import RampStep
from bundle.rollout import Rollout
from bundle.trust.clock import ClockFacts
from bundle.trust.sightings import SAVE_INTERVAL_S, Sighting, advance_sighting, update_sightings
from tests.support.attacker import Attacker
from tests.support.metadata_publisher import CHANNEL, FAMILY, NOW_S, CheckClient, MetadataPublisher, make_rollout

DAY_S = 86_400
RAMP = (RampStep(0, 100), RampStep(DAY_S, 1_000), RampStep(3 * DAY_S, 10_000))
DEVICES = [hashlib.sha256(n.to_bytes(4, "big")).hexdigest() for n in range(3_000)]
ONLINE = ("rollout", "snapshot", "timestamp")


def planned(manifest: Manifest) -> PlannedRelease:
    return PlannedRelease(manifest.version, manifest.counter, manifest.digest_without_patches())


@pytest.fixture
def releases(publisher: MetadataPublisher) -> tuple[Manifest, Manifest, Plan]:
    """Publish 1.1.0, which the channel runs, 1.2.0, and a plan that goes from the one to the other."""
    before = publisher.release("1.1.0", 2)
    manifest = publisher.make_manifest("1.2.0", 3)
    publisher.repository.stage_manifest(manifest)
    plan = Plan(FAMILY, CHANNEL, planned(manifest), (planned(before),), salt="vision-3", stages_bp=(100, 2_500))
    publisher.repository.stage_plan(plan)
    publisher.publish()
    return before, manifest, plan


def inside(manifest: Manifest, plan: Plan) -> Rollout:
    return replace(make_rollout(manifest), plan=plan.digest(), salt=plan.salt, percent_bp=100)


def test_a_rollout_inside_the_plan_is_accepted(
    publisher: MetadataPublisher, device: CheckClient, releases: tuple[Manifest, Manifest, Plan]
) -> None:
    before, manifest, plan = releases
    assert device.check(publisher.published).manifest == before
    publisher.repository.publish_rollout(inside(manifest, plan), make_rollout(before), publisher.signers)
    found = device.check(publisher.published)
    assert found.manifest == manifest
    assert found.plan == plan
    assert VerifiedRelease.from_verifier(found.as_json()) == found
    publisher.repository.publish_rollout(make_rollout(before), inside(manifest, plan), publisher.signers)
    assert device.check(publisher.published).manifest == before


CHANGES: dict[str, dict[str, Any]] = {
    "without-the-plan": {"plan": None},
    "another-plan": {"plan": "e" * 64},
    "another-salt": {"salt": "mine"},
    "beyond-the-last-stage": {"percent_bp": 2_501},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_rollout_outside_the_plan_is_refused(
    name: str, publisher: MetadataPublisher, device: CheckClient, releases: tuple[Manifest, Manifest, Plan]
) -> None:
    before, manifest, plan = releases
    changed = replace(inside(manifest, plan), **CHANGES[name])
    attacker = Attacker.from_publisher(publisher, *ONLINE)
    attacker.roll_out(changed)
    with pytest.raises(OutsidePlan) as refused:
        device.check(attacker.publish())
    assert refused.value.reason == "outside-plan"
    with pytest.raises(OutsidePlan):
        publisher.repository.publish_rollout(changed, make_rollout(before), publisher.signers)


def test_the_channel_goes_back_only_to_a_release_that_the_plan_names(
    publisher: MetadataPublisher, device: CheckClient, releases: tuple[Manifest, Manifest, Plan]
) -> None:
    first = publisher.make_manifest("1.0.0", 1)
    attacker = Attacker.from_publisher(publisher, *ONLINE, "release")
    attacker.release(first)
    attacker.roll_out(make_rollout(first))
    with pytest.raises(OutsidePlan, match=r"1\.0\.0 .*does not name, expected 1\.2\.0, 1\.1\.0"):
        device.check(attacker.publish())


def test_without_the_plan_every_rollout_is_free_again(
    publisher: MetadataPublisher, device: CheckClient, releases: tuple[Manifest, Manifest, Plan]
) -> None:
    before, manifest, _ = releases
    publisher.repository.remove_plan(FAMILY, CHANNEL)
    publisher.publish()
    publisher.repository.publish_rollout(make_rollout(manifest), make_rollout(before), publisher.signers)
    found = device.check(publisher.published)
    assert (found.manifest, found.plan) == (manifest, None)


# ramp


@pytest.fixture
def ramped(publisher: MetadataPublisher) -> Manifest:
    """Publish 1.1.0 with a ramp, for all devices of the channel."""
    manifest = replace(publisher.make_manifest("1.1.0", 2), ramp=RAMP)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))
    publisher.publish()
    return manifest


def at(device: CheckClient, elapsed_s: int, boot_id: str = "boot") -> CheckClient:
    """Return the device with another reading of its boot clock; its system clock stays."""
    return replace(device, clock=replace(device.clock, boot_elapsed_s=elapsed_s, boot_id=boot_id))


def reached(release: VerifiedRelease) -> set[str]:
    """Return the devices that may take a release."""
    return {one for one in DEVICES if check_eligibility(release, one, "default", release.checked_at_s).is_eligible}


def test_the_share_of_a_ramp_grows_with_the_time_of_operation(
    publisher: MetadataPublisher, device: CheckClient, ramped: Manifest
) -> None:
    first = reached(at(device, 10).check(publisher.published))
    assert 10 < len(first) < 55  # 1 % of 3,000
    assert reached(at(device, 10 + DAY_S - 1).check(publisher.published)) == first
    second = reached(at(device, 10 + DAY_S).check(publisher.published))
    assert first < second
    assert 240 < len(second) < 360
    # after a boot, only the time since that boot counts
    later = at(device, 2 * DAY_S - 1, "second").check(publisher.published)
    assert (later.context.seen_s, reached(later)) == (3 * DAY_S - 2, second)
    assert reached(at(device, 2 * DAY_S + 1, "second").check(publisher.published)) == set(DEVICES)


def test_a_device_that_waits_is_told_why(publisher: MetadataPublisher, device: CheckClient, ramped: Manifest) -> None:
    release = at(device, 10).check(publisher.published)
    waiting = next(one for one in DEVICES if one not in reached(release))
    found = check_eligibility(release, waiting, "default", release.checked_at_s)
    assert found.reason == "ramp"
    assert "of the ramp, which covers 1 % now" in found.detail
    assert "more hours of operation" in found.detail


def _rollouts_of_a_thief(manifest: Manifest) -> Iterator[Rollout]:
    """One rollout an hour: other salts, halted and resumed, named anew."""
    for hour in range(24):
        yield replace(make_rollout(manifest), salt=f"salt-{hour}", halted=hour % 7 == 3, note=f"{hour}")


def test_stolen_online_keys_that_change_the_salt_every_hour_reach_the_first_share_on_the_first_day(
    publisher: MetadataPublisher, device: CheckClient, ramped: Manifest
) -> None:
    ever: set[str] = set()
    attacker = Attacker.from_publisher(publisher, *ONLINE)
    for hour, rollout in enumerate(_rollouts_of_a_thief(ramped)):
        if hour % 4 in (0, 3):  # signing takes long; the hours between change nothing
            attacker.roll_out(rollout)
            ever |= reached(at(device, 10 + hour * 3600).check(attacker.publish()))
    assert 10 < len(ever) < 55


def test_a_signed_date_a_year_ahead_does_not_advance_the_ramp(
    publisher: MetadataPublisher, device: CheckClient, ramped: Manifest
) -> None:
    device.check(publisher.published)
    attacker = Attacker.from_publisher(publisher, *ONLINE)
    attacker.roll_out(replace(make_rollout(ramped), began_s=1, raised_s=NOW_S + 365 * DAY_S))
    mirror = attacker.publish(signed_at_s={"timestamp": NOW_S + 365 * DAY_S})
    found = at(device, 1_060).check(mirror)
    assert found.context.seen_s == 60
    assert len(reached(found)) < 55


def test_an_old_halted_release_begins_where_it_was_halted(
    publisher: MetadataPublisher, device: CheckClient, ramped: Manifest
) -> None:
    at(device, 0).check(publisher.published)
    at(device, 3600).check(publisher.published)
    halted = replace(make_rollout(ramped), halted=True)
    publisher.repository.publish_rollout(halted, make_rollout(ramped), publisher.signers)
    at(device, 7200).check(publisher.published)
    publisher.release("1.2.0", 3)
    at(device, 60 * DAY_S).check(publisher.published)
    attacker = Attacker.from_publisher(publisher, *ONLINE)
    attacker.roll_out(make_rollout(ramped))
    mirror = attacker.publish()
    found = at(device, 60 * DAY_S + 3600).check(mirror)
    assert found.context.seen_s == 3600
    later = at(device, 60 * DAY_S + 3600 + 22 * 3600).check(mirror)
    assert (later.context.seen_s, reached(later)) == (23 * 3600, reached(found))
    assert len(reached(later)) < 55


def test_the_trust_state_is_written_once_an_hour_at_most(
    publisher: MetadataPublisher, device: CheckClient, ramped: Manifest
) -> None:
    numbers = []
    for elapsed_s in (0, 600, 1_200, 3_599, 3_600, 4_000):
        at(device, elapsed_s).check(publisher.published)
        state = device.trust_states.load()
        assert state is not None
        numbers.append(state.sequence)
    assert numbers[1:4] == [numbers[0]] * 3
    assert numbers[5] == numbers[4] > numbers[3]


clocks = st.builds(
    ClockFacts, st.integers(0, 2**40), st.booleans(), st.just(0), st.integers(0, 10**6), st.sampled_from(("", "a", "b"))
)


@given(st.lists(st.tuples(clocks, st.booleans()), min_size=1, max_size=12))
def test_seen_time_never_exceeds_the_time_of_operation(checks: list[tuple[ClockFacts, bool]]) -> None:
    seen: Sighting | None = None
    operated, last = 0, checks[0][0]
    for clock, is_offered in checks:
        is_this_boot = clock.boot_id == last.boot_id and last.boot_elapsed_s <= clock.boot_elapsed_s
        operated += clock.boot_elapsed_s - (last.boot_elapsed_s if is_this_boot else 0)
        before = 0 if seen is None else seen.elapsed_s
        seen = advance_sighting(seen, clock, is_offered=is_offered)
        assert before <= seen.elapsed_s <= operated
        last = clock


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5_000)), min_size=1, max_size=30))
def test_stored_sightings_lose_less_than_an_hour_when_another_release_is_offered(checks: list[tuple[str, int]]) -> None:
    stored: dict[str, Sighting] = {}
    exact: dict[str, Sighting] = {}
    now_s, interruptions, previous = 0, 0, ""
    for name, passed_s in checks:
        now_s += passed_s
        clock = ClockFacts(0, True, 0, now_s, "boot")
        stored, seen = update_sightings(stored, name * 64, clock, is_offered=True)
        if previous and previous != name:
            exact[previous] = replace(exact[previous], is_offered=False)
            interruptions += 1
        exact[name] = advance_sighting(exact.get(name), clock, is_offered=True)
        assert exact[name].elapsed_s - interruptions * SAVE_INTERVAL_S <= seen.elapsed_s <= exact[name].elapsed_s
        previous = name
