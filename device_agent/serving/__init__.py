"""The generations of each family, the switch between them, and the processes behind them.

Reading order:
    family_serving.py   the current, previous and standby generation of one family, and the switch
    serving_backend.py  what that needs of the processes, as protocols
    serving_runtime.py  the backend: the front's process and the model processes
"""
