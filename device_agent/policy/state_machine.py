"""The state machine of an update: which states there are, what leads from one to the next, and where a restart goes on.

Rules:
1. TRANSITIONS is the whole truth: a missing key is an illegal transition, which is a bug and stops the agent loudly.
2. RECOVERY is total: for each state that a power cut can leave in the journal it names the state that the restarted
   agent is in. Until COMMITTING is recorded, `active` is the release that served before; so recovery from any earlier
   state has nothing to undo, and from COMMITTING on it has only to finish.
3. TRIALS are the states in which the candidate itself may be what killed the agent. Being killed MAX_KILLS times in the
   same one refuses the release: any sequence of crashes ends.
4. Nothing here does anything: no clock, no file, no process.
"""

from enum import StrEnum
from typing import Final

from device_agent.errors import IllegalTransition

MAX_CRASHES: Final = 3  # twice may be the neighbor's power cut; a third time is the candidate


class State(StrEnum):
    """What the agent is doing about an update. The journal holds the name."""

    IDLE = "idle"
    CHECKING = "checking"
    FETCHING = "fetching"
    PATCHING = "patching"
    PROBING = "probing"
    STAGED = "armed"
    SWAPPING = "swapping"
    PROBATION = "probation"
    COMMITTING = "committing"
    ROLLING_BACK = "rolling-back"
    REJECTING = "refusing"


class Event(StrEnum):
    """What happened."""

    CHECK = "check"
    UP_TO_DATE = "nothing"
    FOUND = "found"
    FETCHED = "fetched"
    PATCHED = "staged"
    REPLAN = "replan"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    ABORTED = "given-up"
    STAGED = "parked"
    DAEMON_STARTED = "boot"
    SWAPPED = "swapped"
    FIRST_INSTALL = "adopted"
    ROLLBACK_REQUESTED = "operator"
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
    State.CHECKING: State.IDLE,  # a check leaves nothing behind but a cache
    State.FETCHING: State.IDLE,  # the spool keeps what came; the next cycle goes on from there
    State.PATCHING: State.IDLE,  # an unfinished store file has no name that anybody reads
    State.PROBING: State.IDLE,  # the bundle is in the store; the next cycle probes it again
    State.STAGED: State.STAGED,  # it waits for just this restart
    State.SWAPPING: State.IDLE,  # `active` still names the release that served before
    State.PROBATION: State.ROLLING_BACK,  # a candidate that did not live through its probation has not passed it
    State.COMMITTING: State.COMMITTING,  # decided: only the pointers are left to move
    State.ROLLING_BACK: State.ROLLING_BACK,
    State.REJECTING: State.REJECTING,
}
assert RECOVERY.keys() == set(State)

CRASH_SUSPECT_STATES: Final = frozenset({State.PATCHING, State.PROBING, State.SWAPPING, State.PROBATION})


def next_state(state: State, event: Event) -> State:
    """Where `event` leads. Raises IllegalTransitionBug (rule 1)."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise IllegalTransition(f"event {event.value!r} in state {state.value!r} has no transition")
    return after


def allowed_events(state: State) -> tuple[Event, ...]:
    """The events that `state` knows, in the order of the table."""
    return tuple(event for before, event in TRANSITIONS if before is state)


def recovery_state(state: State, crashes: int) -> State:
    """Where a restart goes on.

    Args:
        state: found in the journal.
        kills: how often the agent was killed in this state with this candidate, this time included.
    """
    if state in CRASH_SUSPECT_STATES and crashes >= MAX_CRASHES:
        return State.REJECTING
    return RECOVERY[state]
