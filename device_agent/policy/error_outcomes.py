"""The outcome of an attempt that an error ended, by the state and the kind of error.

Envelopes and blobs are not signed, so a Refused about their bytes may be the mirror's fault: the bundle is not
quarantined. A Refused while patching concerns signed bytes, and an Unfit concerns the model: the bundle is quarantined.
A pair of state and error that is missing in the table is a bug.
"""

from dataclasses import dataclass
from typing import Final

from bundle.errors import AirweightsError, Bug, Invalid, Refused, Unavailable, Unfit
from device_agent.errors import (
    AgentStopping,
    NotEligible,
    OperatorRollback,
    ProbationInconclusive,
    ProbeInconclusive,
    UpdateInterrupted,
)
from device_agent.policy.attempt import Outcome
from device_agent.policy.state_machine import Event, State


@dataclass(frozen=True, slots=True)
class ErrorOutcome:
    """The end of an attempt after an error.

    Attributes:
        event: the event that leaves the state.
        outcome: the outcome of the attempt.
        quarantines: whether the bundle is put into quarantine.
    """

    event: Event
    outcome: Outcome
    quarantines: bool = False


_REFUSED: Final = ErrorOutcome(Event.ABORTED, Outcome.REFUSED)
_UNAVAILABLE: Final = ErrorOutcome(Event.ABORTED, Outcome.UNAVAILABLE)
_REFUSED_AND_QUARANTINED: Final = ErrorOutcome(Event.UNHEALTHY, Outcome.REFUSED, quarantines=True)
_UNFIT: Final = ErrorOutcome(Event.UNHEALTHY, Outcome.UNFIT, quarantines=True)
_ROLLED_BACK: Final = ErrorOutcome(Event.UNHEALTHY, Outcome.ROLLED_BACK, quarantines=True)

_INTERRUPTED: Final = ErrorOutcome(Event.ABORTED, Outcome.INTERRUPTED)

BEFORE_SWITCH: Final = (State.CHECKING, State.FETCHING, State.PATCHING, State.PROBING, State.SWAPPING)
OUTCOME_OF_ERROR: Final[dict[tuple[State, type[AirweightsError]], ErrorOutcome]] = {
    **{(state, Invalid): _UNAVAILABLE for state in (State.CHECKING, State.FETCHING, State.PATCHING, State.PROBING)},
    (State.SWAPPING, Invalid): _UNAVAILABLE,
    **{(state, error): _INTERRUPTED for state in BEFORE_SWITCH for error in (AgentStopping, UpdateInterrupted)},
    (State.CHECKING, Refused): _REFUSED,
    (State.CHECKING, Unavailable): _UNAVAILABLE,
    (State.FETCHING, Refused): _REFUSED,
    (State.FETCHING, Unavailable): _UNAVAILABLE,
    (State.PATCHING, Refused): _REFUSED_AND_QUARANTINED,
    (State.PATCHING, Unavailable): _UNAVAILABLE,
    (State.PATCHING, Unfit): _UNFIT,
    (State.PROBING, Refused): _REFUSED,
    (State.PROBING, Unavailable): _UNAVAILABLE,
    (State.PROBING, Unfit): _UNFIT,
    (State.PROBING, ProbeInconclusive): ErrorOutcome(Event.ABORTED, Outcome.INCONCLUSIVE),
    (State.SWAPPING, Refused): _REFUSED,
    (State.SWAPPING, Unavailable): _UNAVAILABLE,
    (State.SWAPPING, Unfit): _ROLLED_BACK,
    (State.SWAPPING, ProbationInconclusive): ErrorOutcome(Event.UNHEALTHY, Outcome.INCONCLUSIVE),
    (State.PROBATION, Unfit): _ROLLED_BACK,
    (State.PROBATION, ProbationInconclusive): ErrorOutcome(Event.UNHEALTHY, Outcome.INCONCLUSIVE),
    (State.PROBATION, OperatorRollback): ErrorOutcome(Event.ROLLBACK_REQUESTED, Outcome.ROLLED_BACK, quarantines=True),
    (State.PROBATION, Unavailable): _INTERRUPTED,
}


def error_outcome(state: State, error: AirweightsError) -> ErrorOutcome:
    """Look up how an error ends an attempt: the row of the error's nearest base class.

    Args:
        state: the state in which the error was raised.
        error: the error that ended the attempt.

    Raises:
        Bug: OUTCOME_OF_ERROR has no row for the pair.
    """
    if isinstance(error, NotEligible):
        return ErrorOutcome(Event.ABORTED, Outcome.WAITING)
    for kind in type(error).__mro__:
        if (state, kind) in OUTCOME_OF_ERROR:
            return OUTCOME_OF_ERROR[state, kind]
    raise Bug(f"no outcome for {error.reason!r} in state {state.value!r}: {error.message}") from error
