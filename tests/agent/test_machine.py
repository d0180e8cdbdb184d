"""The state machine: its table, its total recovery, and its diagram in the docs."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.errors import IllegalTransition
from device_agent.policy.state_machine import (
    CRASH_SUSPECT_STATES,
    MAX_CRASHES,
    RECOVERY,
    TRANSITIONS,
    Event,
    State,
    allowed_events,
    next_state,
    recovery_state,
)
from tools.generate_docs import state_diagram

PAGE = Path(__file__).parents[2] / "docs" / "state-machine.md"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_random_events_never_leave_the_table(events: list[Event]) -> None:
    state = State.IDLE
    for event in events:
        if event in allowed_events(state):
            state = next_state(state, event)
        else:
            with pytest.raises(IllegalTransition, match=f"{event.value}.*{state.value}"):
                next_state(state, event)
        assert state in State


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_sequence_of_events_and_kills_ends(data: st.DataObject) -> None:
    state, kills = State.IDLE, dict.fromkeys(State, 0)
    for _ in range(data.draw(st.integers(0, 40))):
        if data.draw(st.booleans()):
            kills[state] += 1
            found, state = state, recovery_state(state, kills[state])
            if kills[found] >= MAX_CRASHES and found in CRASH_SUSPECT_STATES:
                assert state is State.REJECTING
        else:
            state = next_state(state, data.draw(st.sampled_from(allowed_events(state))))
    assert _is_reachable(state, State.IDLE)


@pytest.mark.parametrize("state", State)
def test_every_state_recovers_into_a_state_that_leads_home(state: State) -> None:
    assert _is_reachable(RECOVERY[state], State.IDLE)
    assert RECOVERY[RECOVERY[state]] is RECOVERY[state], "recovering twice is recovering once"


@pytest.mark.parametrize("state", [s for s in State if s is not State.IDLE])
def test_every_state_can_be_reached_from_idle(state: State) -> None:
    assert _is_reachable(State.IDLE, state)


def test_nothing_becomes_active_but_through_committing() -> None:
    before_commit = {before for (before, _), after in TRANSITIONS.items() if after is State.COMMITTING}
    assert before_commit == {State.PROBATION, State.SWAPPING}


def test_the_page_is_what_the_table_draws() -> None:
    assert PAGE.read_text() == state_diagram.render_page()


def _is_reachable(start: State, goal: State) -> bool:
    seen, front = {start}, [start]
    while front:
        state = front.pop()
        new = {next_state(state, event) for event in allowed_events(state)} - seen
        seen |= new
        front += new
    return goal in seen
