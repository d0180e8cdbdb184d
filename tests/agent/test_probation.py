"""The decision of probation depends on counts, latency and time as documented."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.contract import Contract, Health, TensorSpec
from bundle.strict_json import StrictObject
from device_agent.config.config import ProbationSettings
from device_agent.policy.probation import (
    MAX_EXTENSIONS,
    REPEAT_GRACE_S,
    ProbationAction,
    ProbationLimits,
    judge_probation,
    returns_state,
    summarize_probation,
)
from device_agent.policy.serving_counts import (
    BadResponse,
    BadResponseCount,
    ProbationSummary,
    ProbationVerdict,
    RepeatObservation,
    ServingObservation,
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


def _observe(requests: int, waiting: int = 0, **kinds: tuple[int, int, int, int]) -> ServingObservation:
    """Return an observation with (seen, repeated, confirmed, inputs) of each kind of bad response."""
    counts = {BadResponse(kind): BadResponseCount(*found) for kind, found in kinds.items()}
    return ServingObservation(requests=requests, repeats=RepeatObservation(counts, waiting))


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        (ServingObservation(), ProbationAction.WATCH),
        # what was not repeated, or not confirmed, proves nothing
        (ServingObservation(requests=60, errors=60, nan=60), ProbationAction.WATCH),
        (_observe(60, error=(60, 10, 0, 0), nan=(60, 10, 0, 0), crash=(9, 9, 0, 0)), ProbationAction.WATCH),
        (ServingObservation(repeats=RepeatObservation(crashes_without_request=1)), ProbationAction.ROLL_BACK),
        # three inputs, or ten responses
        (_observe(2, nan=(2, 2, 2, 2)), ProbationAction.WATCH),
        (_observe(3, nan=(3, 3, 3, 3)), ProbationAction.ROLL_BACK),
        (_observe(9, nan=(9, 9, 9, 1)), ProbationAction.WATCH),
        (_observe(10, nan=(10, 10, 10, 1)), ProbationAction.ROLL_BACK),
        (_observe(3, nan=(1, 1, 1, 1), error=(2, 2, 2, 2)), ProbationAction.ROLL_BACK),
        (_observe(0, crash=(3, 3, 3, 3)), ProbationAction.ROLL_BACK),
        (_observe(0, crash=(4, 4, 4, 2)), ProbationAction.WATCH),
        (_observe(0, hang=(3, 3, 3, 3)), ProbationAction.ROLL_BACK),
        # shares of the health contract: 10,000 in a million errors, no NaN
        (_observe(300, error=(3, 3, 3, 3)), ProbationAction.WATCH),
        (_observe(299, error=(3, 3, 3, 3)), ProbationAction.ROLL_BACK),
        (_observe(10_000, error=(200, 10, 5, 5)), ProbationAction.WATCH),
        (_observe(10_000, error=(201, 10, 5, 5)), ProbationAction.ROLL_BACK),
        (_observe(10, error=(10, 10, 3, 3)), ProbationAction.ROLL_BACK),
        # more than half of the responses are slow
        (_observe(10, slow=(10, 10, 10, 10)), ProbationAction.ROLL_BACK),
        (_observe(10, slow=(10, 10, 9, 9)), ProbationAction.WATCH),
        (_observe(100, slow=(50, 10, 10, 10)), ProbationAction.WATCH),
        (_observe(100, slow=(90, 20, 11, 11)), ProbationAction.WATCH),
        (_observe(100, slow=(90, 20, 12, 12)), ProbationAction.ROLL_BACK),
    ],
)
def test_within_the_window(observation: ServingObservation, expected: ProbationAction) -> None:
    assert _decide(observation) is expected


@pytest.mark.parametrize(
    "observation",
    [
        _observe(60, waiting=1, nan=(1, 0, 0, 0)),
        _observe(60, nan=(1, 1, 1, 1)),
        replace(ServingObservation(requests=60), is_alive=False),
    ],
)
def test_a_window_that_ends_undecided_is_extended_for_a_moment(observation: ServingObservation) -> None:
    assert _decide(observation, 100) is ProbationAction.WATCH
    assert _decide(observation, 100 + REPEAT_GRACE_S) is ProbationAction.COMMIT


@pytest.mark.parametrize(
    ("requests", "verdict"),
    [
        (0, ProbationVerdict.UNTRIED),
        (49, ProbationVerdict.INCONCLUSIVE),
        (50, ProbationVerdict.PASSED),
    ],
)
def test_the_summary_tells_untried_from_proven(requests: int, verdict: ProbationVerdict) -> None:
    summary = summarize_probation(LIMITS, ServingObservation(requests=requests, p50_us=1500), BEFORE, 100)
    assert (summary.verdict, summary.requests, summary.latency_percent) == (verdict, requests, 150)
    assert ProbationSummary.parse(StrictObject(summary.as_json(), "probation")) == summary


@given(
    st.dictionaries(
        st.sampled_from(BadResponse), st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(sorted), max_size=5
    ),
    st.integers(0, 10**6),
    st.floats(0, 99),
)
def test_no_number_of_unconfirmed_bad_responses_ends_a_probation(
    found: dict[BadResponse, list[int]], requests: int, elapsed_s: float
) -> None:
    counts = {kind: BadResponseCount(seen, repeated, 0, 0) for kind, (repeated, seen) in found.items()}
    observation = ServingObservation(
        requests=requests, errors=requests, nan=requests, p50_us=10**9, repeats=RepeatObservation(counts)
    )
    assert _decide(observation, elapsed_s) is ProbationAction.WATCH


@pytest.mark.parametrize(
    ("names", "is_state"),
    [
        (("hidden_state", "next_hidden_state"), True),
        (("h_in", "h_out"), True),
        (("past_key_values.0", "present_key_values.0"), True),
        (("state", "stateN"), True),
        (("x", "y"), False),
        (("image", "image_embedding"), False),
    ],
)
def test_a_model_whose_clients_send_an_output_back_has_state(names: tuple[str, str], is_state: bool) -> None:
    given_tensor, made = (TensorSpec(name, "float32", (1, "n")) for name in names)
    assert returns_state(Contract((given_tensor,), (made,))) is is_state


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
    assert _decide(_observe(60, error=(30, 10, 10, 10)), 1000) is ProbationAction.ROLL_BACK


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
    variant = SimpleNamespace(health=replace(Health(), shadow_ppm=1), models=(MagicMock(contract=Contract((), ())),))
    generation = MagicMock(variant=variant)
    serving = MagicMock(previous=None, current=None)
    serving.shadow_observation.return_value = ShadowObservation()
    serving.observation.return_value = ServingObservation()
    serving.repeat_observation.return_value = RepeatObservation()
    candidate = Candidate(cast(Any, SimpleNamespace(config=config, on_probation=MagicMock())), cast(Any, None))
    candidate.publish(serving, generation, is_watched=True)
    serving.current = generation
    with caplog.at_level(logging.INFO, "device_agent"):
        getattr(candidate, phase)(serving, generation)
    assert [record.getMessage() for record in caplog.records] == [message]
