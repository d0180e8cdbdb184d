"""The daemon: one process with one main thread for all families of a device.

Words: message (queued for the main thread), request (a message whose sender waits for a reply), family service,
watchdog.

Reading order:
    run.py               the program: logging, signals, exit code
    supervisor.py        the main thread
    messages.py          the messages that other threads queue for it
    family_service.py    one family: its stores, its updates, its serving model
    service_registry.py  the family services of all families
    worker_pools.py      the worker pools of all families, which a stop interrupts
    serving_watchdog.py  keeps one family's model serving
    control_socket.py    the socket of the command line, and its client
    request_handler.py   handles its requests
    status.py            status and history, read from the journals
    update_metrics.py    counters of the updates
"""
