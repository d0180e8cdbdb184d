"""The generations of ModelRuntime, and the thread that destroys rejected ones.

The theory of operation is in device_agent.runtime.model_runtime.
"""

import queue
import threading
from collections.abc import Callable

from device_agent.runtime.model_runners import Runner


class Generation:
    """One loaded model with its number and the count of its leases.

    Args:
        number: number of the generation.
        runner: runs its model.
        lock: protects the count of leases.
    """

    __slots__ = ("_drained", "_lock", "leases", "number", "runner")

    def __init__(self, number: int, runner: Runner, lock: threading.Lock) -> None:
        self.number = number
        self.runner = runner
        self.leases = 0
        self._lock = lock
        self._drained: threading.Event | None = None

    def release(self) -> None:
        """End a lease; the last one may let the generation be destroyed."""
        with self._lock:
            self.leases -= 1
            if self.leases == 0 and self._drained is not None:
                self._drained.set()

    def wait_until_drained(self) -> None:
        """Wait until the last lease has ended; no new one may begin."""
        with self._lock:
            if self.leases == 0:
                return
            self._drained = threading.Event()
        self._drained.wait()


class DestroyThread:
    """Destroys generations in a thread that already runs.

    Starting a thread would delay the caller by milliseconds.

    Args:
        destroy: destroys a generation.
    """

    def __init__(self, destroy: Callable[[Generation], object]) -> None:
        self._destroy = destroy
        self._queue: queue.SimpleQueue[Generation | threading.Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="destroy-generations", daemon=True).start()

    def enqueue(self, generation: Generation) -> None:
        """Destroy a generation soon."""
        self._queue.put(generation)

    def wait_until_empty(self) -> None:
        """Wait until all enqueued generations are destroyed."""
        reached = threading.Event()
        self._queue.put(reached)
        reached.wait()

    def stop(self) -> None:
        """Destroy all enqueued generations, and end the thread."""
        self.wait_until_empty()
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._destroy(item)
