"""The stopping rule halts bad rollouts, spares good ones, and never takes silence for success."""

from dataclasses import replace
from fractions import Fraction
from math import comb, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.errors import Malformed
from bundle.plan import Plan, PlannedRelease
from bundle.stopping.control import innocent_silence, silence_p_value
from bundle.stopping.counts import Counts, Group, checkpoint_number, checkpoint_s, parse_counts
from bundle.stopping.decide import E_VALUE_SHARE, FAILURE_SHARE, MIN_BAD, decide, silence_level
from bundle.stopping.decisions import Ask, Go, Grow, Halt, Wait
from bundle.stopping.e_values import fewest_devices, go_with, halt_at, halt_log_e
from bundle.strict_json import StrictObject
from tests.support.simulated_fleet import SimulatedFleet, Truth

PLAN = Plan("sounds", "stable", PlannedRelease("1.1.0", 3, "a" * 64), salt="sounds-3")
DAY = 86_400


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw counts that do not contradict each other."""
    exposed, control = draw(st.integers(0, 3_000)), draw(st.integers(0, 3_000))
    bad = draw(st.integers(0, min(exposed, 60)))
    complete = draw(st.integers(0, exposed - bad))
    silent = draw(st.integers(0, exposed - complete))
    return Group(exposed, bad, complete, silent, control, draw(st.integers(0, control)))


looks = st.builds(Counts, st.sampled_from((100, 300, 500, 2_500, 10_000)), st.integers(0, 5 * DAY), groups())


def test_thresholds_are_the_documented_ones() -> None:
    sizes = (10, 20, 50, 100, 200, 500, 1_000, 5_000, 20_000, 100_000)
    assert [halt_at(n, 0.01, 0.01) for n in sizes] == [3, 4, 5, 7, 9, 15, 24, 80, 265, 1_252]
    assert [go_with(n, 0.05, 0.05) for n in (50, 100, 200, 500, 1_000, 5_000)] == [-1, 0, 2, 11, 29, 185]
    assert fewest_devices(0.05, 0.05) == 67


@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_comparisons_with_the_control_group_are_exact(exposed: int, control: int, data: st.DataObject) -> None:
    silent, control_silent = data.draw(st.integers(0, exposed)), data.draw(st.integers(0, control))

    def tail(low: int, high: int, total: int) -> Fraction:
        ways = sum(comb(exposed, x) * comb(control, total - x) for x in range(low, high + 1) if total - x >= 0)
        return Fraction(ways, comb(exposed + control, total))

    found = silence_p_value(silent, exposed, control_silent, control)
    exact = tail(silent, exposed, silent + control_silent)
    assert found == pytest.approx(float(exact), rel=1e-9) or (
        found == 1.0 and silent * control <= control_silent * exposed
    )
    explained = innocent_silence(exposed, control_silent, control, 0.01)
    assert explained * control <= control_silent * exposed
    if explained:
        assert tail(0, explained - 1, explained - 1 + control_silent) <= Fraction(1, 100)


@given(st.integers(1, 10**6), st.integers(0, 10**8))
def test_checkpoints_are_a_fixed_series(soak_s: int, age_s: int) -> None:
    point = checkpoint_s(soak_s, age_s)
    assert (point is None) == (age_s < soak_s) == (checkpoint_number(soak_s, age_s) == 0)
    if point is not None:
        assert soak_s <= point <= age_s
        assert checkpoint_s(soak_s, point) == point
        assert checkpoint_number(soak_s, point) == checkpoint_number(soak_s, age_s)


def test_the_shares_of_the_silence_budget_add_up_to_at_most_1() -> None:
    steps = range(PLAN.stages_bp[0], 10_001, 10)
    by_step = {PLAN.step_number(bp): bp for bp in steps}
    looks = [Counts(bp, DAY + j * DAY // 4, Group(0)) for bp in by_step.values() for j in range(400)]
    assert 0.9 < sum(silence_level(PLAN, look) for look in looks) < 1


@given(looks)
def test_counts_survive_json(counts: Counts) -> None:
    assert parse_counts(StrictObject(counts.as_json(), "counts")) == counts


@pytest.mark.parametrize(
    "numbers", [{"exposed": 3, "bad": 2, "complete": 2}, {"exposed": 1, "bad": -1}, {"exposed": 0, "control_silent": 1}]
)
def test_counts_that_contradict_each_other_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(Malformed, match="counts"):
        Group(**numbers)


@given(looks, st.integers(1, 50))
def test_more_failures_never_lift_a_halt(counts: Counts, more: int) -> None:
    whole = counts.whole
    more = min(more, whole.complete)
    worse = replace(counts, whole=replace(whole, bad=whole.bad + more, complete=whole.complete - more))
    if isinstance(decide(PLAN, counts), Halt):
        assert isinstance(decide(PLAN, worse), Halt)


@given(looks, st.integers(1, 2_000), st.integers(0, 60))
def test_lines_that_are_lost_never_make_a_go(counts: Counts, completes: int, bads: int) -> None:
    whole = counts.whole
    fewer = replace(whole, complete=max(0, whole.complete - completes), bad=max(0, whole.bad - bads))
    if isinstance(decide(PLAN, replace(counts, whole=fewer)), Go):
        assert isinstance(decide(PLAN, counts), Go | Halt)


@given(looks)
def test_every_step_stays_inside_the_plan(counts: Counts) -> None:
    found = decide(PLAN, counts)
    following = PLAN.next_stage_bp(counts.percent_bp)
    if isinstance(found, Go):
        assert found.percent_bp == following
        assert counts.age_s >= PLAN.soak_s
    if isinstance(found, Grow):
        assert following is not None
        assert counts.percent_bp < found.percent_bp < following
    if following is None:
        assert isinstance(found, Halt | Wait | Ask)


GOOD = Group(exposed=1_000, bad=5, complete=985, silent=8, control=19_000, control_silent=150)


@pytest.mark.parametrize(
    ("changes", "percent_bp", "age_s", "kind", "reason"),
    [
        ({}, 500, DAY, Go, "evidence"),
        ({}, 500, DAY - 1, Wait, "soak"),
        ({}, 10_000, DAY, Wait, "last-stage"),
        ({"complete": 500}, 10_000, 3 * DAY, Ask, "last-stage"),
        ({"bad": 40, "complete": 950}, 500, 60, Halt, "failures"),
        ({"silent": 60, "complete": 930}, 500, DAY, Halt, "silence"),
        ({"complete": 600, "silent": 8}, 500, DAY, Wait, "evidence"),
        ({"complete": 600, "silent": 8}, 500, 3 * DAY, Ask, "undecided"),
        ({"exposed": 60, "complete": 59, "bad": 0, "silent": 0}, 500, 3 * DAY, Grow, "too-few"),
        ({"exposed": 60, "complete": 59, "bad": 0, "silent": 0}, 2_499, 3 * DAY, Ask, "undecided"),
        ({"control": 199, "control_silent": 1}, 500, DAY, Ask, "control-too-small"),
        ({"control": 0, "control_silent": 0}, 500, DAY, Ask, "control-too-small"),
        ({"control_silent": 19_000}, 500, DAY, Ask, "no-vitals"),
        ({"control_silent": 1_901}, 500, DAY, Ask, "base-above-ceiling"),
        ({"control_silent": 1_900}, 500, DAY, Go, "evidence"),
    ],
)
def test_each_result_has_its_case(
    changes: dict[str, int], percent_bp: int, age_s: int, kind: type, reason: str
) -> None:
    found = decide(PLAN, Counts(percent_bp, age_s, replace(GOOD, **changes)))
    assert isinstance(found, kind), found
    assert found.reason == reason
    assert found.text


def test_a_stratum_halts_the_whole_and_is_named() -> None:
    part = Group(exposed=50, bad=10, complete=40, control=950)
    counts = Counts(500, 3600, replace(GOOD, bad=12, complete=980), {"cpu:cortex-a53": part})
    found = decide(PLAN, counts)
    assert isinstance(found, Halt)
    assert found.stratum == "cpu:cortex-a53"
    assert "10 of 50 devices of cpu:cortex-a53" in found.text


@pytest.mark.parametrize(("bad", "kind"), [(9, Wait), (10, Halt)])
def test_the_fewest_failures_of_200_devices_that_halt_are_the_documented_ones(bad: int, kind: type) -> None:
    assert isinstance(decide(PLAN, Counts(500, 0, Group(exposed=200, bad=bad, control=1_000))), kind)


@pytest.mark.parametrize(
    ("bad", "exposed", "strata", "kind"),
    [(2, 2, 32, Wait), (3, 4, 32, Halt), (3, 5, 32, Wait), (3, 8, 4, Halt), (3, 9, 4, Wait)],
)
def test_the_fewest_failures_of_a_stratum_that_halt_are_the_documented_ones(
    bad: int, exposed: int, strata: int, kind: type
) -> None:
    part = Group(exposed=exposed, bad=bad, control=20)
    whole = Group(exposed=200, bad=bad, control=1_000)
    others = {f"cohort:{number}": Group(0) for number in range(strata - 1)}
    assert isinstance(decide(PLAN, Counts(500, 0, whole, {"variant:int8": part, **others})), kind)


@pytest.mark.parametrize(
    ("bad", "complete", "control", "percent_bp", "kind"),
    [
        (0, 10, 960, 100, Grow),  # nothing rules out that a third of the class fails
        (0, 11, 960, 100, Go),
        (1, 18, 1_880, 100, Grow),
        (1, 19, 1_880, 100, Go),
        (0, 3, 600, 100, Go),  # at most 30 devices of the class
        (0, 10, 960, 250, Go),  # twice the share, as a growth would be
    ],
)
def test_a_stratum_is_tested_before_a_stage_exposes_many_of_its_devices(
    bad: int, complete: int, control: int, percent_bp: int, kind: type
) -> None:
    part = Group(exposed=bad + complete, bad=bad, complete=complete, control=control)
    whole = replace(GOOD, bad=bad, complete=990)
    found = decide(PLAN, Counts(percent_bp, DAY, whole, {"cpu:b": part}))
    assert isinstance(found, kind), found
    if isinstance(found, Grow):
        assert (found.reason, found.percent_bp) == ("untested-stratum", 2 * percent_bp)


@given(looks, st.data())
def test_lines_of_a_stratum_that_are_lost_never_make_a_go(counts: Counts, data: st.DataObject) -> None:
    whole = counts.whole
    bad, complete = data.draw(st.integers(0, whole.bad)), data.draw(st.integers(0, whole.complete))
    part = Group(bad + complete, bad, complete, 0, whole.control, min(whole.control_silent, whole.control))
    fewer = replace(part, bad=data.draw(st.integers(0, bad)), complete=data.draw(st.integers(0, complete)))
    if isinstance(decide(PLAN, replace(counts, strata={"cpu:b": fewer})), Go):
        assert isinstance(decide(PLAN, replace(counts, strata={"cpu:b": part})), Go | Halt)


def test_the_fewest_devices_that_allow_an_advance_are_the_documented_ones() -> None:
    assert fewest_devices(0.05, E_VALUE_SHARE * 0.05) == 73


def test_a_stratum_whose_devices_are_missing_holds_back_the_advance() -> None:
    part = Group(exposed=20, bad=0, complete=8, silent=0, control=400, control_silent=0)
    found = decide(PLAN, Counts(500, DAY, GOOD, {"variant:int8": part}))
    assert isinstance(found, Wait)
    assert "variant:int8" in found.text


def test_alternatives_begin_above_the_boundary() -> None:
    assert halt_log_e(10, 1_000, 0.01) < 0 < halt_log_e(40, 1_000, 0.01)
    assert halt_log_e(0, 0, 0.01) == pytest.approx(log(1))


def _run(truth: Truth, seeds: range, devices: int = 20_000) -> list[tuple[str, bool, int, float]]:
    """Return the last word, whether there was a go, the devices hit and the hours of each run."""
    out = []
    for seed in seeds:
        fleet = SimulatedFleet(PLAN, truth, devices, np.random.default_rng(seed))
        found, hours = fleet.run()
        out.append(
            (found[-1].word if found else "wait", any(isinstance(f, Go) for f in found), fleet.hit(hours), hours)
        )
    return out


@pytest.mark.parametrize(
    ("truth", "words", "most_hit"),
    [
        (Truth(0.005), {"go"}, 200),
        (Truth(0.05), {"halt"}, 60),
        (Truth(0.4), {"halt"}, 110),
        (Truth(0.05, late_h=20), {"halt", "ask"}, 60),
        (Truth(0.05, late_h=60), {"halt", "ask"}, 60),
        (Truth(0.005, bricked=0.08), {"halt"}, 60),
        (Truth(0.005, class_b=0.4), {"halt"}, 20),
    ],
    ids=["good", "bad", "very-bad", "late", "later-than-successes", "silent-bricks", "one-class"],
)
def test_rollouts_on_a_simulated_fleet_end_as_they_should(truth: Truth, words: set[str], most_hit: int) -> None:
    for word, _, hit, _ in _run(truth, range(4)):
        assert word in words
        assert hit <= most_hit


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_failures_that_report_after_successes_never_advance(first: int) -> None:
    runs = _run(Truth(0.05, late_h=60), range(first, first + 10))
    assert not any(was_advanced for _, was_advanced, _, _ in runs)
    assert {word for word, _, _, _ in runs} <= {"halt", "ask"}


@pytest.mark.parametrize("first", range(5_000, 5_100, 10))
def test_a_small_class_that_fails_costs_at_most_20_devices(first: int) -> None:
    runs = _run(Truth(0.005, class_b=0.4), range(first, first + 10))
    assert {word for word, _, _, _ in runs} == {"halt"}
    assert max(hit for _, _, hit, _ in runs) <= 20


def _false_halts(rate: float, runs: int) -> float:
    """Return the share of runs that ever halt, looked at after each 50 devices; two strata."""
    rng = np.random.default_rng(7)
    sizes = np.arange(50, 20_001, 50)
    part = FAILURE_SHARE * PLAN.alpha_ppm / 1e6 / 2
    limits = [halt_at(int(n), 0.01, part) for n in sizes]
    small, large = ([halt_at(int(n), 0.01, part / 2) for n in of] for of in (sizes // 10, sizes * 9 // 10))
    halted = np.zeros(runs, bool)
    bad_of_b, bad = np.zeros(runs, int), np.zeros(runs, int)
    for limit, small_limit, large_limit in zip(limits, small, large, strict=True):
        fresh = rng.binomial(5, rate, runs)  # a tenth of the devices are of class B
        bad_of_b += fresh
        bad += fresh + rng.binomial(45, rate, runs)
        halted |= (bad >= max(limit, MIN_BAD)) | (bad_of_b >= max(small_limit, MIN_BAD))
        halted |= bad - bad_of_b >= max(large_limit, MIN_BAD)
    return float(halted.mean())


def _false_goes(rate: float, runs: int) -> float:
    """Return the share of runs that ever pass the go test, looked at after each 10 devices up to 2,000."""
    rng = np.random.default_rng(8)
    sizes = np.arange(10, 2_001, 10)
    limits = np.array([go_with(int(n), 0.05, E_VALUE_SHARE * PLAN.beta_ppm / 1e6) for n in sizes])
    bad, passed = np.zeros(runs, int), np.zeros(runs, bool)
    for limit in limits:
        bad += rng.binomial(10, rate, runs)
        passed |= bad <= limit
    return float(passed.mean())


@pytest.mark.parametrize("runs", [500, 20_000])
def test_the_error_bounds_hold(runs: int) -> None:
    assert _false_halts(0.01, runs) <= FAILURE_SHARE * 0.01
    assert _false_halts(0.05, runs) > 0.99
    assert _false_goes(0.05, runs) <= 0.05
    assert _false_goes(0.005, runs) > 0.99


@pytest.mark.parametrize("runs", [2_000, 20_000])
def test_silence_halts_falsely_within_its_bound(runs: int) -> None:
    """Ten checkpoints of one share; outages are sites that go dark together."""
    rng = np.random.default_rng(9)
    halts = 0
    for _ in range(runs):
        site = rng.binomial(500, 0.05)  # exposed devices of a dark site; the draw is independent of the site
        silent = [int(site + rng.binomial(495, share)) for share in (0.02, 0.015, 0.01)]
        control = [int(500 - site + rng.binomial(9_500, share)) for share in (0.02, 0.015, 0.01)]
        levels = [0.0025 / 2 / (2 * (j + 1) * (j + 2)) for j in range(3)]
        halts += any(
            silence_p_value(s, 1_000, c, 19_000) <= level for s, c, level in zip(silent, control, levels, strict=True)
        )
    assert halts / runs <= 0.0025
