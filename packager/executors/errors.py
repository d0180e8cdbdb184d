"""Errors of executors, which run jobs in other processes."""

from bundle.errors import Invalid, Refused, Unavailable


class ExecutorInvalid(Invalid):
    """The value of `--executor` names no executor. Use `processes:N` or `dask://HOST:PORT`."""

    reason = "executor-invalid"


class WorkerLost(Unavailable):
    """A process that ran a job ended again and again.
    Look for the cause, such as the kernel's log of killed processes.
    """

    reason = "worker-lost"


class WorkerOutOfMemory(Unavailable):
    """A job needs more memory than a worker may use. Use fewer workers, or a machine with more memory."""

    reason = "worker-out-of-memory"


class WorkerIncompatible(Refused):
    """A worker has other versions than this machine, so it could create other bytes.
    Install the same versions.
    """

    reason = "worker-incompatible"
