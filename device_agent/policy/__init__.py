"""Decisions and records of an update, without I/O; read this package before `update`.

Words: attempt (one run of the state machine), candidate (the release being tried), rejection (the recorded decision
against a candidate), result (how an attempt ended).

Reading order:
    state_machine    states, events, transitions, and the state after a restart
    attempt          one attempt, its rejection and its result
    error_outcomes   how an error ends an attempt, by state and kind of error
    planner          variant and cheapest patch path for this device
    probation        decision about a serving candidate; shadow_judge: about one in shadow mode
    journal_records  records of the journal beside attempts
    outcome_report   the signed report that follows a result; followed_rollout is the rollout that it names
    poll_schedule    time until the next check
    status_report    the object that `device-agent status` prints
    update_history   the object that `device-agent history` prints
"""
