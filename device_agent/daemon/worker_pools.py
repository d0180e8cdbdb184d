"""The worker pools of a daemon, which end together.

Rules:
- Any thread opens a pool: the main thread for an update, and the threads of applications' connections to unseal files.
- `interrupt` ends all open pools. One that is opened afterwards is interrupted at once, so that none outlives a stop.
- A pool that is no longer used is forgotten.
- Only the pools of one round share what they checked: a check outside of a round asks for the timestamp anew.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import ref

from device_agent.config.config import Config
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.workers.worker_pool import WorkerPool


class WorkerPools:
    """Opens worker pools, and interrupts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[ref[WorkerPool]] = []
        self._is_interrupted = False
        self._checked_sources: dict[str, float] | None = None  # of the current round (device_agent.workers.worker_pool)

    def open(
        self, config: Config, device: DeviceDirectory, store: BundleStore, on_idle: Callable[[], None] | None = None
    ) -> WorkerPool:
        """Create a pool of workers that `interrupt` interrupts. Any thread may call it.

        Args:
            config: configuration of the family.
            device: the family's part of the device directory.
            store: the family's bundle store.
            on_idle: called again and again while the pool waits for a worker.
        """
        workers = WorkerPool(config, device, store, on_idle, checked_sources=self._checked_sources)
        with self._lock:
            self._open = [*(known for known in self._open if known() is not None), ref(workers)]
            is_interrupted = self._is_interrupted
        if is_interrupted:
            workers.interrupt()
        return workers

    @contextmanager
    def share_checks(self) -> Iterator[None]:
        """Let the families that are checked in the block share one request for the timestamp."""
        self._checked_sources = {}
        try:
            yield
        finally:
            self._checked_sources = None

    def interrupt(self) -> None:
        """Interrupt all pools, also later ones. Any thread may call it, but no signal handler."""
        with self._lock:
            self._is_interrupted = True
            found = list(self._open)
        for known in found:
            if (workers := known()) is not None:
                workers.interrupt()
