"""The state machine of an update: its states, its transitions, and the state after a restart.

Theory of operation:

    The journal contains one state. An update is a path through TRANSITIONS that starts and ends in IDLE:

        IDLE > CHECKING > FETCHING > PATCHING > PROBING > SWAPPING > PROBATION > COMMITTING > IDLE

    Each step first records the next state, then acts. So after a crash or power cut the recorded state names the step
    that may be half done, and RECOVERY names the state in which the restarted agent continues:

    - Up to SWAPPING, the pointer `active` still names the release that served before. Nothing has to be undone: the
      agent is IDLE again, and the next update reuses what is in the spool and the bundle store.
    - In PROBATION the candidate served but did not pass: ROLLING_BACK.
    - COMMITTING, ROLLING_BACK and REJECTING are recorded decisions. The restarted agent finishes them.
    - STAGED waits for exactly this restart.

    In the CRASH_SUSPECT_STATES the candidate itself may have caused the crash: its patch, its model or its requests.
    After MAX_CRASHES crashes in the same of these states with the same candidate, recovery rejects the candidate. So
    no candidate can keep the agent in a crash loop.

Rules:
- A pair of state and event that is missing in TRANSITIONS is a bug, and stops the agent.
- RECOVERY has a row for every state.
- This module uses no clock, no file and no process.
"""

from enum import StrEnum
from typing import Final

from device_agent.errors import IllegalTransition

MAX_CRASHES: Final = 3  # two crashes can be unrelated power cuts; a third is blamed on the candidate


class State(StrEnum):
    """A state of the agent; the journal stores its value."""

    IDLE = "idle"
    CHECKING = "checking"
    FETCHING = "fetching"
    PATCHING = "patching"
    PROBING = "probing"
    STAGED = "staged"
    SWAPPING = "swapping"
    PROBATION = "probation"
    COMMITTING = "committing"
    ROLLING_BACK = "rolling-back"
    REJECTING = "rejecting"


class Event(StrEnum):
    """An event in a state."""

    CHECK = "check"
    UP_TO_DATE = "up-to-date"
    FOUND = "found"
    FETCHED = "fetched"
    PATCHED = "patched"
    REPLAN = "replan"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    ABORTED = "aborted"
    STAGED = "staged"
    DAEMON_STARTED = "daemon-started"
    SWAPPED = "swapped"
    FIRST_INSTALL = "first-install"
    NOT_RUN = "not-run"
    ROLLBACK_REQUESTED = "rollback-requested"
    DONE = "done"


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE, Event.CHECK): State.CHECKING,
    (State.CHECKING, Event.UP_TO_DATE): State.IDLE,
    (State.CHECKING, Event.ABORTED): State.IDLE,
    (State.CHECKING, Event.FOUND): State.FETCHING,
    (State.FETCHING, Event.FETCHED): State.PATCHING,
    (State.FETCHING, Event.ABORTED): State.IDLE,
    (State.PATCHING, Event.PATCHED): State.PROBING,
    (State.PATCHING, Event.REPLAN): State.FETCHING,
    (State.PATCHING, Event.ABORTED): State.IDLE,
    (State.PATCHING, Event.UNHEALTHY): State.REJECTING,
    (State.PROBING, Event.HEALTHY): State.SWAPPING,
    (State.PROBING, Event.STAGED): State.STAGED,
    (State.PROBING, Event.UNHEALTHY): State.REJECTING,
    (State.PROBING, Event.ABORTED): State.IDLE,
    (State.STAGED, Event.DAEMON_STARTED): State.SWAPPING,
    (State.STAGED, Event.CHECK): State.CHECKING,
    (State.STAGED, Event.ABORTED): State.IDLE,
    (State.SWAPPING, Event.SWAPPED): State.PROBATION,
    (State.SWAPPING, Event.FIRST_INSTALL): State.COMMITTING,
    (State.SWAPPING, Event.NOT_RUN): State.COMMITTING,
    (State.SWAPPING, Event.UNHEALTHY): State.ROLLING_BACK,
    (State.SWAPPING, Event.ABORTED): State.IDLE,
    (State.PROBATION, Event.HEALTHY): State.COMMITTING,
    (State.PROBATION, Event.UNHEALTHY): State.ROLLING_BACK,
    (State.PROBATION, Event.ROLLBACK_REQUESTED): State.ROLLING_BACK,
    (State.PROBATION, Event.ABORTED): State.ROLLING_BACK,
    (State.COMMITTING, Event.DONE): State.IDLE,
    (State.IDLE, Event.ROLLBACK_REQUESTED): State.ROLLING_BACK,
    (State.ROLLING_BACK, Event.DONE): State.IDLE,
    (State.REJECTING, Event.DONE): State.IDLE,
}

RECOVERY: Final[dict[State, State]] = {
    State.IDLE: State.IDLE,
    State.CHECKING: State.IDLE,  # a check leaves nothing but the metadata cache
    State.FETCHING: State.IDLE,  # the spool keeps the partial downloads; the next update resumes them
    State.PATCHING: State.IDLE,  # an unfinished store file has a name that no reader opens
    State.PROBING: State.IDLE,  # the bundle is in the store; the next update probes it again
    State.STAGED: State.STAGED,  # the daemon activates it after this start
    State.SWAPPING: State.IDLE,  # `active` still names the release that served before
    State.PROBATION: State.ROLLING_BACK,  # an interrupted probation is not passed
    State.COMMITTING: State.COMMITTING,  # decided: only the pointers have to change
    State.ROLLING_BACK: State.ROLLING_BACK,
    State.REJECTING: State.REJECTING,
}
assert RECOVERY.keys() == set(State)

CRASH_SUSPECT_STATES: Final = frozenset({State.PATCHING, State.PROBING, State.SWAPPING, State.PROBATION})


def next_state(state: State, event: Event) -> State:
    """Return the state that `event` leads to.

    Args:
        state: the state before the event.
        event: the event that happened in it.

    Raises:
        IllegalTransition: TRANSITIONS has no such pair.
    """
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise IllegalTransition(f"event {event.value!r} has no transition in state {state.value!r}")
    return after


def allowed_events(state: State) -> tuple[Event, ...]:
    """Return the events that have a transition from `state`, in the order of the table."""
    return tuple(event for before, event in TRANSITIONS if before is state)


def recovery_state(state: State, crashes: int) -> State:
    """Return the state in which a restarted agent continues.

    Args:
        state: the state found in the journal.
        crashes: how often the agent ended unexpectedly in this state with this candidate, this time included. A power
            cut counts too.
    """
    if state in CRASH_SUSPECT_STATES and crashes >= MAX_CRASHES:
        return State.REJECTING
    return RECOVERY[state]
