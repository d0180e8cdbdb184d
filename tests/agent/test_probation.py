"""Probation: what is seen of a candidate, and what is made of it. Pure values."""

from dataclasses import replace

import pytest

from bundle.contract import Health
from device_agent.policy.probation import LATENCY_ALLOWANCE_US, MAX_EXTENSIONS, Judgement, Limits, Observed, judge

LIMITS = Limits.of(replace(Health(), probation_window_s=100, probation_min_requests=50), None, None)
BEFORE = Observed(requests=1000, p50_us=1000)


def _judged(seen: Observed, elapsed_s: float = 50, limits: Limits = LIMITS, before: Observed = BEFORE) -> Judgement:
    return judge(limits, seen, before, elapsed_s).judgement


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (Observed(), Judgement.WATCH),
        (Observed(requests=1, crashes=1), Judgement.ROLL_BACK),
        (Observed(requests=1, nan=1), Judgement.ROLL_BACK),
        (Observed(requests=49, errors=49), Judgement.WATCH),
        (Observed(requests=50, errors=1), Judgement.ROLL_BACK),
        (Observed(requests=100, errors=1), Judgement.WATCH),
        (Observed(requests=100, errors=2), Judgement.ROLL_BACK),
        (Observed(requests=50, p50_us=4001 + LATENCY_ALLOWANCE_US), Judgement.ROLL_BACK),
        (Observed(requests=50, p50_us=4000 + LATENCY_ALLOWANCE_US), Judgement.WATCH),
        (Observed(requests=49, p50_us=90_000), Judgement.WATCH),
    ],
)
def test_within_the_window(seen: Observed, expected: Judgement) -> None:
    assert _judged(seen) is expected


def test_a_window_with_enough_good_requests_ends_in_a_commit() -> None:
    assert _judged(Observed(requests=50, p50_us=900), 100) is Judgement.COMMIT


@pytest.mark.parametrize(
    ("says", "elapsed_s", "expected"),
    [
        ("commit", 100, Judgement.COMMIT),
        ("rollback", 100, Judgement.INCONCLUSIVE),
        ("extend", 100, Judgement.WATCH),
        ("extend", 100 * MAX_EXTENSIONS, Judgement.INCONCLUSIVE),
    ],
)
def test_too_few_requests_become_what_the_contract_says(says: str, elapsed_s: float, expected: Judgement) -> None:
    assert _judged(Observed(requests=49), elapsed_s, replace(LIMITS, inconclusive=says)) is expected


def test_a_failure_counts_after_the_window_too() -> None:
    assert _judged(Observed(requests=60, errors=30), 1000) is Judgement.ROLL_BACK


def test_latency_is_compared_only_where_both_sides_have_requests() -> None:
    assert _judged(Observed(requests=50, p50_us=90_000), before=Observed(requests=3, p50_us=10)) is Judgement.WATCH


def test_the_operator_of_a_device_sets_the_window_and_nothing_else() -> None:
    limits = Limits.of(Health(), 1, 2)
    assert (limits.window_s, limits.min_requests) == (1, 2)
    assert limits.error_ppm == Health().probation_error_ppm


def test_a_window_of_nothing_ends_at_once() -> None:
    assert _judged(Observed(), 0, replace(LIMITS, window_s=0, min_requests=0)) is Judgement.COMMIT
