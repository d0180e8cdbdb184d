"""Worker processes: how the supervisor starts and calls them, and how they are confined.

Words:
    supervisor: the process that starts workers: the daemon, a command, or an app that uses ModelRuntime.
    worker: a process that the supervisor starts, either for one task or to run one model.
    channel: the Unix socket between the two; it carries JSON messages and file descriptors.
    jail: the restrictions that a worker puts on itself before it reads untrusted bytes.

Reading order:
    channel.py         the messages and their framing
    worker_process.py  the supervisor's side: start, call, stop
    worker.py          the worker's side: import, enter the jail, serve calls
    jail.py            the restrictions; syscalls.py has the kernel's numbers
    landlock.py        the files that a worker can open
    namespaces.py, user_ids.py  a network, a view of the files and a user id of the worker's own
    system_call_filter.py  the seccomp filter, from the table system_calls.txt
    memory_lock.py     keeps keys and plain models out of swap
    throttle.py        pauses between the steps of background work
"""
