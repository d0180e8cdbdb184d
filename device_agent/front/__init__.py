"""The inference endpoint's process: it passes HTTP bodies to the serving model processes.

Words:
    generation: one loaded model of a family, with a process behind it.
    lease: a request that a generation's process has; the generation is not unloaded before the response.
    window: counters of a generation since it became the current one.

Reading order:
    generations.py      leases, the switch and the queue; front_generation.py, requests.py: their parts; no I/O
    fair_queue.py       the order of waiting requests; no I/O
    connections.py      limits, and what gives way at one; no I/O
    access.py           requests of web pages are refused
    app.py              the HTTP routes as an ASGI app
    request_channel.py  frames to a model process and back
    shadow.py           mirrors requests to a candidate
    repeats.py          repeats a candidate's bad responses on the previous release
    peers.py            the user at the other end of a connection
    protocol.py         one HTTP connection
    server.py           uvicorn without its timer
    metrics.py          `/metrics`; model_info.py: statistics and the repository index
    __main__.py         the process: the supervisor's calls
"""
