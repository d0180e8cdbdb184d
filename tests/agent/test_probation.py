"""The decision of probation depends on counts, latency and time as documented."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from bundle.contract import Health
from device_agent.config.config import ProbationSettings
from device_agent.policy.probation import (
    LATENCY_ALLOWANCE_US,
    MAX_EXTENSIONS,
    ProbationAction,
    ProbationLimits,
    ServingObservation,
    judge_probation,
)
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.update.candidate import Candidate

LIMITS = ProbationLimits.from_health(replace(Health(), probation_window_s=100, probation_min_requests=50), None, None)
BEFORE = ServingObservation(requests=1000, p50_us=1000)


def _decide(
    observation: ServingObservation,
    elapsed_s: float = 50,
    limits: ProbationLimits = LIMITS,
    before: ServingObservation = BEFORE,
) -> ProbationAction:
    return judge_probation(limits, observation, before, elapsed_s).action


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        (ServingObservation(), ProbationAction.WATCH),
        (ServingObservation(requests=1, crashes=1), ProbationAction.ROLL_BACK),
        (ServingObservation(requests=1, nan=1), ProbationAction.ROLL_BACK),
        (ServingObservation(requests=49, errors=49), ProbationAction.WATCH),
        (ServingObservation(requests=50, errors=1), ProbationAction.ROLL_BACK),
        (ServingObservation(requests=100, errors=1), ProbationAction.WATCH),
        (ServingObservation(requests=100, errors=2), ProbationAction.ROLL_BACK),
        (ServingObservation(requests=50, p50_us=4001 + LATENCY_ALLOWANCE_US), ProbationAction.ROLL_BACK),
        (ServingObservation(requests=50, p50_us=4000 + LATENCY_ALLOWANCE_US), ProbationAction.WATCH),
        (ServingObservation(requests=49, p50_us=90_000), ProbationAction.WATCH),
    ],
)
def test_within_the_window(observation: ServingObservation, expected: ProbationAction) -> None:
    assert _decide(observation) is expected


def test_a_window_with_enough_good_requests_ends_in_a_commit() -> None:
    assert _decide(ServingObservation(requests=50, p50_us=900), 100) is ProbationAction.COMMIT


@pytest.mark.parametrize(
    ("inconclusive_action", "elapsed_s", "expected"),
    [
        ("commit", 100, ProbationAction.COMMIT),
        ("rollback", 100, ProbationAction.INCONCLUSIVE),
        ("extend", 100, ProbationAction.WATCH),
        ("extend", 100 * MAX_EXTENSIONS, ProbationAction.INCONCLUSIVE),
    ],
)
def test_too_few_requests_become_what_the_contract_says(
    inconclusive_action: str, elapsed_s: float, expected: ProbationAction
) -> None:
    assert (
        _decide(ServingObservation(requests=49), elapsed_s, replace(LIMITS, inconclusive=inconclusive_action))
        is expected
    )


def test_a_failure_counts_after_the_window_too() -> None:
    assert _decide(ServingObservation(requests=60, errors=30), 1000) is ProbationAction.ROLL_BACK


def test_latency_is_compared_only_where_both_sides_have_requests() -> None:
    assert (
        _decide(ServingObservation(requests=50, p50_us=90_000), before=ServingObservation(requests=3, p50_us=10))
        is ProbationAction.WATCH
    )


def test_the_operator_of_a_device_sets_the_window_and_nothing_else() -> None:
    limits = ProbationLimits.from_health(Health(), 1, 2)
    assert (limits.window_s, limits.min_requests) == (1, 2)
    assert limits.error_ppm == Health().probation_error_ppm


def test_a_window_of_nothing_ends_at_once() -> None:
    assert _decide(ServingObservation(), 0, replace(LIMITS, window_s=0, min_requests=0)) is ProbationAction.COMMIT


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("run_shadow", "shadow mode inconclusive, swapping"),
        ("run_probation", "probation inconclusive, committed"),
    ],
)
def test_the_log_says_what_an_inconclusive_phase_leads_to(
    phase: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = SimpleNamespace(probation=ProbationSettings(window_s=0, min_requests=5))
    generation = MagicMock(variant=SimpleNamespace(health=replace(Health(), shadow_ppm=1)))
    serving = MagicMock(previous=None)
    serving.shadow_observation.return_value = ShadowObservation()
    serving.observation.return_value = ServingObservation()
    candidate = Candidate(cast(Any, SimpleNamespace(config=config)), cast(Any, None))
    with caplog.at_level(logging.INFO, "device_agent"):
        getattr(candidate, phase)(serving, generation)
    assert [record.getMessage() for record in caplog.records] == [message]
