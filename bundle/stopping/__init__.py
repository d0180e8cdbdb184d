"""The stopping rule: when a staged rollout halts, advances, grows, waits, or needs a person.

    counts.py       what is counted: devices of the rollout and of the control group, per stratum
    e_values.py     tests of a failure rate that hold at every look
    control.py      exact comparisons of silent devices with the control group
    decisions.py    the five results, each with its reason and its numbers
    decide.py       the rule itself, and its error bounds

Pure: standard library only, no clock, no files.
"""
