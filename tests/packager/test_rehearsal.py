"""Rehearsals select devices as devices do, decide as the follower does, and tell good releases from bad ones."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bundle.plan import Plan, PlannedRelease
from bundle.stopping.counts import Counts
from packager.rehearsal.devices import FleetIds, SimulatedDevices
from packager.rehearsal.rehearse import Rehearsal, count_differing, rehearse
from packager.rehearsal.rules import RULES, STOPPING_RULE
from packager.rehearsal.truths import TRUTHS
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import assert_refused, run_packager

PLAN = Plan("kws", "stable", PlannedRelease("1.1.0", 3, "a" * 64), salt="kws-3")


def rehearse_one(name: str, rule: str = STOPPING_RULE, devices: int = 20_000) -> Rehearsal:
    return rehearse(PLAN, [TRUTHS[name]], [rule], devices=devices, days=4, runs=1, seed=5)


def test_the_simulation_selects_the_devices_that_select_themselves() -> None:
    fleet = SimulatedDevices(FleetIds.create(10_000, PLAN.salt, 1), TRUTHS["good"], PLAN.soak_s, 1)
    for percent_bp in (0, 1, 100, 2_500, 9_999, 10_000):
        assert count_differing(PLAN, fleet, percent_bp, halted=False, sample=10_000) == 0
    assert count_differing(PLAN, fleet, 2_500, halted=True, sample=10_000) == 0
    fleet.buckets = np.roll(fleet.buckets, 1)
    assert count_differing(PLAN, fleet, 2_500, halted=False, sample=10_000) > 1_000


@pytest.mark.parametrize(
    ("name", "most_hit"), [("very-bad", 120), ("bricks", 60), ("class-b", 20), ("late", 60), ("hidden-control", 60)]
)
def test_bad_releases_are_halted_or_a_person_is_called(name: str, most_hit: int) -> None:
    run = rehearse_one(name).runs[0]
    assert run.end in ("halted", "asked", "undecided")
    assert run.percent_bp < 10_000
    assert run.hit <= most_hit


@pytest.mark.parametrize("name", ["good", "dark-site"])
def test_good_releases_are_not_halted(name: str) -> None:
    run = rehearse_one(name).runs[0]
    assert run.end != "halted"
    assert run.percent_bp > 100


def test_time_alone_damages_far_more_devices() -> None:
    simple, own = rehearse_one("bricks", "time").runs[0], rehearse_one("bricks").runs[0]
    assert simple.hit > 10 * own.hit


def test_a_control_group_that_is_hidden_advances_nothing() -> None:
    run = rehearse_one("hidden-control").runs[0]
    assert run.asked_h is not None
    assert run.percent_bp == 100


def test_the_command_prints_a_table_and_draws_a_plot(tmp_path: Path) -> None:
    plan, plot = tmp_path / "plan.json", tmp_path / "plot.svg"
    plan.write_bytes(PLAN.as_bytes())
    words = ("--devices", "2000", "--days", "1", "--truth", "good", "--truth", "very-bad", "--svg", plot)
    found = run_packager("fleet", "rehearse", plan, *words, "--json").json
    check_schema("fleet-rehearse", found)
    assert found["ok"]
    assert len(found["runs"]) == 2 * len(RULES)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")  # our own file
    text = run_packager("fleet", "rehearse", plan, *words).stdout
    assert "very-bad" in text
    assert "0 of 4000 compared devices differ" in text
    wrapped = tmp_path / "output.json"
    wrapped.write_text(json.dumps({"plan": PLAN.as_json(), "digest": PLAN.digest(), "published": None}))
    few = ("--devices", "200", "--days", "1", "--truth", "good", "--rule", "time", "--json")
    assert run_packager("fleet", "rehearse", wrapped, *few).json["plan"] == PLAN.as_json()


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(PLAN.as_bytes())
    for words in ((plan, "--truth", "nice"), (plan, "--rule", "hope"), (tmp_path / "none",)):
        assert_refused(run_packager("fleet", "rehearse", *words, "--json"), code=2, reason="invalid-usage")
    plan.write_text("{}")
    assert_refused(run_packager("fleet", "rehearse", plan, "--json"), code=2, reason="invalid-usage")


def test_counts_between_checkpoints_follow_the_definition() -> None:
    fleet = SimulatedDevices(FleetIds.create(2_000, PLAN.salt, 1), TRUTHS["very-bad"], 3_600, 1)
    fleet.select(5_000)
    for minute in range(1, 200):
        fleet.step(minute)
    first = fleet.counts(5_000, 60, 0, None)
    for minute in range(200, 400):
        fleet.step(minute)
    later = fleet.counts(5_000, 120, 0, first)
    assert isinstance(later, Counts)
    assert later.whole.bad > first.whole.bad
    assert later.whole.silent == first.whole.silent
