"""How an error ends an attempt: by the state that it happened in, and by its kind.

Bytes that nothing signed (envelopes, a mirror's blob) are refused without blaming the release; what is wrong with
signed bytes, or with the model, puts the bundle into quarantine. A pair that is not in the table is a bug.
"""

from dataclasses import dataclass
from typing import Final

from bundle.errors import AirweightsError, Bug, Invalid, Refused, Unavailable, Unfit
from device_agent.errors import (
    NotEligibleUnavailable,
    OperatorUnfit,
    ProbationInconclusiveUnfit,
    ProbeInconclusiveUnfit,
)
from device_agent.policy.attempt import Outcome
from device_agent.policy.state_machine import Event, State


@dataclass(frozen=True, slots=True)
class End:
    """How an error ends an attempt."""

    event: Event
    outcome: Outcome
    quarantines: bool = False


_REFUSED: Final = End(Event.GIVEN_UP, Outcome.REFUSED)
_UNAVAILABLE: Final = End(Event.GIVEN_UP, Outcome.UNAVAILABLE)
_BLAMED: Final = End(Event.UNHEALTHY, Outcome.REFUSED, quarantines=True)
_UNFIT: Final = End(Event.UNHEALTHY, Outcome.UNFIT, quarantines=True)
_BACK: Final = End(Event.UNHEALTHY, Outcome.ROLLED_BACK, quarantines=True)

ON_ERROR: Final[dict[tuple[State, type[AirweightsError]], End]] = {
    **{(state, Invalid): _UNAVAILABLE for state in (State.CHECKING, State.FETCHING, State.PATCHING, State.PROBING)},
    (State.SWAPPING, Invalid): _UNAVAILABLE,
    (State.CHECKING, Refused): _REFUSED,
    (State.CHECKING, Unavailable): _UNAVAILABLE,
    (State.FETCHING, Refused): _REFUSED,
    (State.FETCHING, Unavailable): _UNAVAILABLE,
    (State.PATCHING, Refused): _BLAMED,
    (State.PATCHING, Unavailable): _UNAVAILABLE,
    (State.PATCHING, Unfit): _UNFIT,
    (State.PROBING, Refused): _REFUSED,
    (State.PROBING, Unavailable): _UNAVAILABLE,
    (State.PROBING, Unfit): _UNFIT,
    (State.PROBING, ProbeInconclusiveUnfit): End(Event.GIVEN_UP, Outcome.INCONCLUSIVE),
    (State.SWAPPING, Refused): _REFUSED,
    (State.SWAPPING, Unavailable): _UNAVAILABLE,
    (State.SWAPPING, Unfit): _BACK,
    (State.SWAPPING, ProbationInconclusiveUnfit): End(Event.UNHEALTHY, Outcome.INCONCLUSIVE),
    (State.PROBATION, Unfit): _BACK,
    (State.PROBATION, ProbationInconclusiveUnfit): End(Event.UNHEALTHY, Outcome.INCONCLUSIVE),
    (State.PROBATION, OperatorUnfit): End(Event.OPERATOR, Outcome.ROLLED_BACK, quarantines=True),
    (State.PROBATION, Unavailable): End(Event.GIVEN_UP, Outcome.INTERRUPTED),
}


def ending_of(state: State, error: AirweightsError) -> End:
    """The row of ON_ERROR for the nearest class of `error`. Raises Bug where there is none."""
    if isinstance(error, NotEligibleUnavailable):
        return End(Event.GIVEN_UP, Outcome.WAITING)
    for kind in type(error).__mro__:
        if (state, kind) in ON_ERROR:
            return ON_ERROR[state, kind]
    raise Bug(f"{error.reason!r} in state {state.value!r}: {error.message}") from error
