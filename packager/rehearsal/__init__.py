"""Rehearsals: what a plan would do on a simulated fleet, before it is signed.

    truths.py       what a release does to devices
    devices.py      the simulated devices: polls, installs, vitals and reports, in steps of a minute
    rules.py        the stopping rule, and three simpler rules to compare it with
    rehearse.py     runs of each rule on each truth, and their summary
    plot.py         the shares and the damaged devices over time, as SVG

The devices are selected by the same buckets as real ones, and the stopping rule is the one that decides for real.
"""
