"""Render docs/state-machine.md from the tables of `device_agent.policy.state_machine`."""

from typing import Final

from device_agent.policy.state_machine import CRASH_SUSPECT_STATES, MAX_CRASHES, RECOVERY, TRANSITIONS, State

STATE_MEANINGS: Final[dict[State, str]] = {
    State.IDLE: "No update runs; the active release serves.",
    State.CHECKING: "The verifier reads the signed metadata and determines the release of the channel.",
    State.FETCHING: "The fetcher downloads blobs and envelopes into the spool.",
    State.PATCHING: "The patcher decrypts the blobs, applies the patches and seals the bundle into the store.",
    State.PROBING: "A jailed process loads the candidate, runs its golden vectors and measures it.",
    State.STAGED: "The candidate passed its probe while no daemon ran; the daemon activates it when it starts.",
    State.SWAPPING: "The candidate's model process starts, runs in shadow mode if required, and gets the requests.",
    State.PROBATION: "The candidate serves under watch; the previous generation stays loaded.",
    State.COMMITTING: "The candidate passed; it becomes the active release.",
    State.ROLLING_BACK: "The candidate failed or an operator requested a rollback; the previous release serves again.",
    State.REJECTING: "The candidate failed before it served; its bundle is put into quarantine.",
}
assert STATE_MEANINGS.keys() == set(State)


def render_page() -> str:
    """Return the page as Markdown."""
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
            "# State machine of an update",
            "",
            "Generated from `device_agent/policy/state_machine.py` by `make docs`.",
            "",
            "The journal records a state before the agent acts in it. The arrows are the events that lead from one "
            "state to the next.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {_mermaid_id(State.IDLE)}",
            *states,
            *edges,
            "```",
            "",
            "After a crash or power cut, the restarted agent continues in the state of the third column. In a state",
            f"marked in the last column, the candidate may have caused the crash: after {MAX_CRASHES} crashes in the "
            "same state",
            f"with the same candidate, the agent continues in `{State.REJECTING.value}` instead, which puts the bundle "
            "into",
            "quarantine.",
            "",
            "| state | meaning | after a restart | crashes are counted |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _mermaid_id(state: State) -> str:
    return state.name.lower()
