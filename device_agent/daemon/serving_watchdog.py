"""Keeps one family's model serving: at the start, after a death, beside a damaged bundle.

Rules:
1. A process that dies is started again from the store; as long as nothing serves that could, it is tried again and
   again, with growing pauses.
2. A damaged active bundle is not the end: the previous one serves (`is_degraded`), and the next update heals it.
3. A standby is held only where the memory budget of all families has room for it.
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

RESTART_PAUSE_S: Final = 1.0
MAX_FAST_RESTARTS: Final = 5  # in a row and at once, of a model process that dies soon after its start
MAX_START_PAUSE_S: Final = 300.0
STABLE_AFTER_S: Final = 60.0


class ServingWatchdog:
    """Made by a line (device_agent.daemon.family_service), and called by the supervisor's main thread.

    Args:
        config, journal, serving: of the family.
        switchboard: of the device.
        errands: children to unseal with.
        held_bytes: by the model processes of all families.
        is_stopping: whether the daemon is about to end.

    Attributes:
        is_degraded: rule 2.
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
        self._restarts = 0
        self._started_at_s = 0.0

    def serve_active(self) -> None:
        """What the journal names, the previous release where the active one is damaged. Raises JournalUnavailable."""
        pointers, damaged = self._journal.pointers, self._journal.persistent_state.damaged_bundles
        for digest in (pointers.active, pointers.previous):
            holding = self.record_of_this_family(digest)
            if holding is not None and digest not in damaged and self.serve(holding):
                self._serving.stop_replaced()
                self.is_degraded = digest != pointers.active
                return
        logger.warning("nothing to serve yet", extra={"family": self._family})

    def record_of_this_family(self, digest: BundleDigest | None) -> BundleRecord | None:
        """What is known of a bundle, if it is of this family. Raises JournalUnavailable."""
        # the configuration may have given this place to another family: its model would answer under a wrong name
        holding = self._journal.bundle(digest)
        return holding if holding is not None and holding.family == self._family else None

    def retry_serving(self) -> None:
        """What is down, after its pause. Raises JournalUnavailable."""
        self._restarts += 1
        self._next_restart_at = None
        self.serve_active()

    def next_restart_at(self) -> float | None:
        """When to try `serve_again`, by the monotonic clock; None where something serves, or nothing is to."""
        if not self._is_down():
            self._next_restart_at = None
        elif self._next_restart_at is None:
            pause_s = min(RESTART_PAUSE_S * 2.0 ** min(self._restarts, 10), MAX_START_PAUSE_S)
            self._next_restart_at = time.monotonic() + pause_s
        return self._next_restart_at

    def _is_down(self) -> bool:
        current = self._serving.current
        if current is not None and current.process.is_alive():
            return False
        try:
            return self.record_of_this_family(self._journal.pointers.active) is not None
        except JournalUnreadable:
            return False

    def restart(self, generation: int) -> None:
        """A process that served has died: the standby takes over, or another is started. Raises JournalUnavailable."""
        current = self._serving.current
        if current is None or current.number != generation or self._is_stopping():
            return
        self._restarts = 0 if time.monotonic() - self._started_at_s > STABLE_AFTER_S else self._restarts + 1
        fields = {"family": self._family, "release": current.bundle.version, "restarts": self._restarts}
        logger.error("the model process died", extra=fields)
        spare = self._serving.take_standby(current.digest)
        if spare is not None:
            self._serving.publish(spare)
            self._serving.stop_replaced()
            return
        if self._restarts > MAX_FAST_RESTARTS:
            return
        if self._restarts > 1:
            time.sleep(RESTART_PAUSE_S)
        if self.serve(current.bundle):
            self._serving.stop_replaced()

    def ensure_standby(self) -> None:
        """Hold a standby, where the settings ask for one (rule 3). Raises Unfit, Refused, Unavailable."""
        current = self._serving.current
        if not self._config.serve.standby or current is None:
            return
        if self._serving.needs_standby() and self._fits_memory_budget(current):
            self._serving.set_standby(self.load(current.bundle))

    def _fits_memory_budget(self, current: Generation) -> bool:
        budget_bytes = self._config.serve.memory_bytes
        return budget_bytes is None or self._resident_bytes() + current.process.resident_bytes() <= budget_bytes

    def load(self, bundle: BundleRecord) -> Generation:
        """A process for a bundle; it serves nothing yet. Raises Unfit, Refused, Unavailable."""
        with self._open_workers() as errands:
            fds = errands.unseal_to_serve(bundle)
        try:
            return self._serving.start_generation(bundle, fds)
        finally:
            fds.close()

    def serve(self, bundle: BundleRecord) -> bool:
        """A bundle serves from now on, beside what served before it; or why not is in the log."""
        self._runtime.prestart()
        try:
            served = self.load(bundle)
        except StoreDamaged as error:
            logger.error("a bundle is damaged: %s", error.message, extra={"family": self._family})
            self._journal.update_persistent_state(mark_damaged(bundle.digest))
            return False
        except (Refused, Unavailable, Unfit) as error:
            of = {"family": self._family}
            logger.error("release %s does not start: %s", bundle.version, error.message, extra=of)
            return False
        finally:
            self._runtime.discard_prestarted()
        self._started_at_s = time.monotonic()
        self._serving.publish(served)
        fields = {"release": bundle.version, "variant": bundle.variant, "pid": served.process.pid}
        logger.info("serving", extra={"family": self._family, **fields})
        return True
