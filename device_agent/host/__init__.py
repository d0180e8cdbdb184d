"""The machine that the agent runs on.

Reading order:
    device_facts.py   facts for the planner: CPU, memory, runtime version
    system_clock.py   facts about time, for the verifier
    idle_memory.py    unused memory is given back
    meters.py         CPU time, memory and energy counters
    systemd.py        notifications to systemd
"""
