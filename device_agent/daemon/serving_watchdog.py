"""The watchdog of one family: keeps the active bundle serving after a start, a crash or damage.

Rules:
1. A crashed model process is started again from the bundle store; after MAX_FAST_RESTARTS crashes in a row, the pauses
   between restarts grow.
2. If the active bundle is damaged, the previous one serves (`is_degraded`); the next update downloads the active one
   again.
3. A standby is loaded only if the memory limit of all families has room for it.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from bundle.errors import Refused, Unavailable, Unfit
from bundle.files import BundleDigest
from device_agent.config.config import Config
from device_agent.errors import JournalUnreadable, StoreDamaged
from device_agent.policy.journal_records import BundleRecord
from device_agent.serving.family_serving import FamilyServing, Generation
from device_agent.serving.serving_runtime import ServingRuntime
from device_agent.storage.journal import Journal
from device_agent.update.context import mark_damaged
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

RESTART_PAUSE_S: Final = 1.0  # the first pause; each further one is twice as long
MAX_FAST_RESTARTS: Final = 5  # consecutive restarts with a pause of at most RESTART_PAUSE_S
MAX_START_PAUSE_S: Final = 300.0
STABLE_AFTER_S: Final = 60.0  # a crash after this service time starts a new series of restarts


class ServingWatchdog:
    """Watchdog of one family's model process. Only the supervisor's main thread calls it.

    Args:
        config: configuration of the family.
        journal: journal of the family.
        serving: generations of the family.
        runtime: the front and the model processes of the device.
        open_workers: returns a pool of workers to unseal bundles with.
        resident_bytes: returns the memory of the model processes of all families, in bytes.
        is_stopping: returns whether the daemon is about to end.

    Attributes:
        is_degraded: whether the previous bundle serves because the active one is damaged.
        crashes: unexpected ends of the serving model process since the daemon started.
    """

    def __init__(
        self,
        config: Config,
        journal: Journal,
        serving: FamilyServing,
        runtime: ServingRuntime,
        *,
        open_workers: Callable[[], WorkerPool],
        resident_bytes: Callable[[], int],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._config, self._journal, self._serving, self._runtime = config, journal, serving, runtime
        self._open_workers, self._resident_bytes, self._is_stopping = open_workers, resident_bytes, is_stopping
        self._family = config.family
        self._next_restart_at: float | None = None
        self.is_degraded = False
        self.crashes = 0
        self._restarts = 0
        self._started_at_s = 0.0

    def reconfigure(self, config: Config) -> None:
        """Use another configuration of the family from now on."""
        self._config = config

    def serve_active(self) -> None:
        """Serve the active bundle, or the previous one if the active one is damaged or does not start.

        Raises:
            JournalUnreadable: the journal cannot be read or written.
        """
        pointers, damaged = self._journal.pointers, self._journal.persistent_state.damaged_bundles
        for digest in (pointers.active, pointers.previous):
            bundle = self.record_of_this_family(digest)
            if bundle is not None and digest not in damaged and self.serve(bundle):
                self._serving.stop_replaced()
                self.is_degraded = digest != pointers.active
                return
        logger.warning("no model to serve", extra={"family": self._family})

    def record_of_this_family(self, digest: BundleDigest | None) -> BundleRecord | None:
        """Return the record of a bundle, or None if it is unknown or of another family.

        Raises:
            JournalUnreadable: the journal cannot be read.
        """
        # the configuration may have given this folder to another family: the old model must not serve under its name
        bundle = self._journal.bundle(digest)
        return bundle if bundle is not None and bundle.family == self._family else None

    def retry_serving(self) -> None:
        """Serve again after the pause of `next_restart_at`.

        Raises:
            JournalUnreadable: the journal cannot be read or written.
        """
        self._restarts += 1
        self._next_restart_at = None
        self.serve_active()

    def next_restart_at(self) -> float | None:
        """Return the time of the next `retry_serving`, in seconds of the monotonic clock.

        It is None if a model process serves, or if the family has no active bundle.
        """
        if not self._is_down():
            self._next_restart_at = None
        elif self._next_restart_at is None:
            pause_s = min(RESTART_PAUSE_S * 2.0 ** min(self._restarts, 10), MAX_START_PAUSE_S)
            self._next_restart_at = time.monotonic() + pause_s
        return self._next_restart_at

    def restart_delay_s(self) -> int | None:
        """Return the seconds until the next restart, or None if none is scheduled. Any thread may call it."""
        at = self._next_restart_at
        return None if at is None else max(0, round(at - time.monotonic()))

    def _is_down(self) -> bool:
        current = self._serving.current
        if current is not None and current.process.is_alive():
            return False
        try:
            return self.record_of_this_family(self._journal.pointers.active) is not None
        except JournalUnreadable:
            return False

    def restart(self, generation: int) -> None:
        """Replace a crashed model process by the standby, or start another one.

        After MAX_FAST_RESTARTS crashes in a row nothing is started; `next_restart_at` says when to retry.

        Args:
            generation: number of the crashed generation; nothing is done if another one serves, or it runs again.

        Raises:
            JournalUnreadable: the journal cannot be written.
        """
        current = self._serving.current
        if current is None or current.number != generation or self._is_stopping():
            return
        if current.process.is_alive():
            return  # a probation has started it again
        self.crashes += 1
        self._restarts = 0 if time.monotonic() - self._started_at_s > STABLE_AFTER_S else self._restarts + 1
        fields = {"family": self._family, "release": current.bundle.version, "restarts": self._restarts}
        logger.error("model process crashed", extra=fields)
        standby = self._serving.take_standby(current.digest)
        if standby is not None:
            self._serving.publish(standby)
            self._serving.stop_replaced()
            return
        if self._restarts > MAX_FAST_RESTARTS:
            return
        if self._restarts > 1:
            time.sleep(RESTART_PAUSE_S)
        if self.serve(current.bundle):
            self._serving.stop_replaced()

    def ensure_standby(self) -> None:
        """Load a standby if the configuration requests one and the memory limit has room for it.

        Raises:
            Unfit, Refused, Unavailable: the bundle cannot be loaded.
        """
        current = self._serving.current
        if not self._config.serve.standby or current is None:
            return
        if self._serving.needs_standby() and self._fits_memory_budget(current):
            self._serving.set_standby(self.load(current.bundle))

    def _fits_memory_budget(self, current: Generation) -> bool:
        budget_bytes = self._config.serve.memory_bytes
        return budget_bytes is None or self._resident_bytes() + current.process.resident_bytes() <= budget_bytes

    def load(self, bundle: BundleRecord) -> Generation:
        """Load a bundle into a model process of its own, which does not serve yet.

        Raises:
            Unfit, Refused, Unavailable: the bundle cannot be unsealed or loaded.
        """
        if not bundle.is_run_by_agent():
            with self._open_workers() as workers:
                workers.patcher.check_plain(bundle)
            return self._serving.create_generation(bundle)
        with self._open_workers() as workers:
            fds = workers.patcher.unseal_to_serve(bundle)
        try:
            return self._serving.start_generation(bundle, fds)
        finally:
            fds.close()

    def serve(self, bundle: BundleRecord) -> bool:
        """Load a bundle and switch to it; the generation before it keeps running.

        A failure is logged; a damaged bundle is recorded in the journal.

        Returns:
            Whether the bundle serves now.

        Raises:
            JournalUnreadable: the journal cannot be written.
        """
        if bundle.is_run_by_agent():
            self._runtime.prestart(bundle.runtime())
        try:
            generation = self.load(bundle)
        except StoreDamaged as error:
            logger.error("bundle damaged: %s", error.message, extra={"family": self._family})
            self._journal.update_persistent_state(mark_damaged(bundle.digest))
            return False
        except (Refused, Unavailable, Unfit) as error:
            fields = {"family": self._family}
            logger.error("cannot load release %s: %s", bundle.version, error.message, extra=fields)
            return False
        finally:
            self._runtime.discard_prestarted()
        self._started_at_s = time.monotonic()
        self._serving.publish(generation)
        details = {"release": bundle.version, "variant": bundle.variant, "pid": generation.process.pid}
        logger.info("serving", extra={"family": self._family, **details})
        return True
