"""After a start: what the journal says was under way is finished or undone, as RECOVERY decides.

Every step here can be cut off and run again: each is one transaction of the journal, and removing what nobody names.
"""

import logging

from bundle.errors import Bug
from device_agent.journal import Journal
from device_agent.machine import State

logger = logging.getLogger(__name__)


def recover(journal: Journal, runtime: str) -> State:
    """Bring the journal to IDLE, or leave it ARMED.

    Args:
        journal: open for writing.
        runtime: onnxruntime's version; a quarantine is for that version.

    Returns:
        the state that was found.
    """
    found, now = journal.recover()
    attempt = journal.attempt
    if now in (State.COMMITTING, State.ROLLING_BACK, State.REFUSING):
        if attempt is None:
            raise Bug(f"the journal is {now.value} without an attempt")
        ended = journal.commit(attempt) if now is State.COMMITTING else journal.give_back(attempt, runtime)
        logger.info("recovered", extra={"from": found.value, "outcome": ended.outcome.value, "reason": ended.reason})
    elif found is not State.IDLE:
        logger.info("recovered", extra={"from": found.value, "to": now.value})
    return found
