"""Fault injection at every point of an update: `python -m torture`. A sample runs in `make test`.

Words: a row is one class of faults, a point is one place at which the fault is injected, a case is one run of an update
with the fault at one point, followed by a check of what a restarted agent finds.

Reading order:
    __main__.py        the rows, run in parallel; the table and docs/torture.md
    fault_classes.py   rows of kills, failing system calls, power cuts, full disks, bit rot
    worker_kills.py    rows in which one worker is killed; network_faults.py, swap_rows.py, trust_cache.py
    fuzz/              changed bytes for each parser of untrusted bytes
    case.py            one case: fork, trace, inject, check after the restart
    in_process.py      the agent with its workers' handlers in one process, so that a tracer sees every call
"""
