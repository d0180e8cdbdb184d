"""The generations of each family, the switch between them, and the processes behind them.

Reading order:
    family_serving.py   the current, previous and standby generation of one family, and the switch
    serving_runtime.py  the backend of that: the front's process and the model processes
"""
