"""Draws the state machine: `python -m tools.generate_docs.state_diagram > docs/state-machine.md`.

Everything on the page comes from the tables of `device_agent.policy.state_machine`; a test keeps the page equal to
this output.
"""

from typing import Final

from device_agent.policy.state_machine import CRASH_SUSPECT_STATES, MAX_CRASHES, RECOVERY, TRANSITIONS, State

STATE_MEANINGS: Final[dict[State, str]] = {
    State.IDLE: "nothing under way; `active` serves",
    State.CHECKING: "the verifier walks the signed metadata and decides what the channel runs now",
    State.FETCHING: "blobs and envelopes come into the spool",
    State.PATCHING: "the patcher decrypts, applies and seals into the store",
    State.PROBING: "the candidate answers golden vectors in a jailed child",
    State.STAGED: "probed while no daemon served; the next start swaps it in",
    State.SWAPPING: "the candidate's model process starts and is published",
    State.PROBATION: "the candidate serves under watch; the previous generation stays resident",
    State.COMMITTING: "decided for the candidate; the pointers move",
    State.ROLLING_BACK: "decided against the candidate, or an operator's rollback; the previous release serves again",
    State.REJECTING: "decided against a candidate that never served; it is put into quarantine",
}
assert STATE_MEANINGS.keys() == set(State)


def render_page() -> str:
    """The Markdown page."""
    edges = [
        f"    {_mermaid_id(before)} --> {_mermaid_id(after)}: {event.value}"
        for (before, event), after in TRANSITIONS.items()
    ]
    states = [f'    state "{state.value}" as {_mermaid_id(state)}' for state in State]
    rows = [
        f"| {state.value} | {STATE_MEANINGS[state]} | {RECOVERY[state].value} | "
        f"{'yes' if state in CRASH_SUSPECT_STATES else ''} |"
        for state in State
    ]
    return "\n".join(
        [
            "# The state machine of an update",
            "",
            "Generated from `device_agent/policy/state_machine.py` by `python -m tools.generate_docs.state_diagram`.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {_mermaid_id(State.IDLE)}",
            *states,
            *edges,
            "```",
            "",
            f"A restart goes on as the third column says. In a trial, being killed {MAX_CRASHES} "
            "times in the same state",
            f"leads to `{State.REJECTING.value}` instead: the release goes into quarantine.",
            "",
            "| state | meaning | after a restart | trial |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _mermaid_id(state: State) -> str:
    return state.name.lower()


if __name__ == "__main__":
    print(render_page(), end="")
