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
from device_agent.errors import JournalUnavailable, StoreDamagedRefused
from device_agent.policy.journal_records import Holding
from device_agent.serving.family_serving import Served, Serving
from device_agent.serving.serving_runtime import Switchboard
from device_agent.storage.journal import Journal
from device_agent.update.context import with_damaged
from device_agent.workers.worker_pool import Errands

logger = logging.getLogger(__name__)

RESTART_PAUSE_S: Final = 1.0
MAX_RESTARTS: Final = 5  # in a row and at once, of a model process that dies soon after its start
MAX_START_PAUSE_S: Final = 300.0
STEADY_S: Final = 60.0


class Upkeep:
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
        serving: Serving,
        switchboard: Switchboard,
        *,
        errands: Callable[[], Errands],
        held_bytes: Callable[[], int],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._config, self._journal, self._serving, self._switchboard = config, journal, serving, switchboard
        self._errands, self._held_bytes, self._is_stopping = errands, held_bytes, is_stopping
        self._family = config.family
        self._next_start: float | None = None
        self.is_degraded = False
        self._restarts = 0
        self._started_s = 0.0

    def serve_active(self) -> None:
        """What the journal names, the previous release where the active one is damaged. Raises JournalUnavailable."""
        pointers, damaged = self._journal.pointers, self._journal.remembered.damaged
        for digest in (pointers.active, pointers.previous):
            holding = self.own(digest)
            if holding is not None and digest not in damaged and self.start(holding):
                self._serving.settle()
                self.is_degraded = digest != pointers.active
                return
        logger.warning("nothing to serve yet", extra={"family": self._family})

    def own(self, digest: BundleDigest | None) -> Holding | None:
        """What is known of a bundle, if it is of this family. Raises JournalUnavailable."""
        # the configuration may have given this place to another family: its model would answer under a wrong name
        holding = self._journal.holding(digest)
        return holding if holding is not None and holding.family == self._family else None

    def serve_again(self) -> None:
        """What is down, after its pause. Raises JournalUnavailable."""
        self._restarts += 1
        self._next_start = None
        self.serve_active()

    def look(self) -> float | None:
        """When to try `serve_again`, by the monotonic clock; None where something serves, or nothing is to."""
        if not self._is_down():
            self._next_start = None
        elif self._next_start is None:
            pause_s = min(RESTART_PAUSE_S * 2.0 ** min(self._restarts, 10), MAX_START_PAUSE_S)
            self._next_start = time.monotonic() + pause_s
        return self._next_start

    def _is_down(self) -> bool:
        current = self._serving.current
        if current is not None and current.process.alive():
            return False
        try:
            return self.own(self._journal.pointers.active) is not None
        except JournalUnavailable:
            return False

    def revive(self, generation: int) -> None:
        """A process that served has died: the standby takes over, or another is started. Raises JournalUnavailable."""
        current = self._serving.current
        if current is None or current.generation != generation or self._is_stopping():
            return
        self._restarts = 0 if time.monotonic() - self._started_s > STEADY_S else self._restarts + 1
        fields = {"family": self._family, "release": current.holding.version, "restarts": self._restarts}
        logger.error("the model process died", extra=fields)
        spare = self._serving.take_spare(current.digest)
        if spare is not None:
            self._serving.publish(spare)
            self._serving.settle()
            return
        if self._restarts > MAX_RESTARTS:
            return
        if self._restarts > 1:
            time.sleep(RESTART_PAUSE_S)
        if self.start(current.holding):
            self._serving.settle()

    def stock(self) -> None:
        """Hold a standby, where the settings ask for one (rule 3). Raises Unfit, Refused, Unavailable."""
        current = self._serving.current
        if not self._config.serve.standby or current is None:
            return
        if self._serving.needs_spare() and self._has_room(current):
            self._serving.keep_spare(self.load(current.holding))

    def _has_room(self, current: Served) -> bool:
        budget_bytes = self._config.serve.memory_bytes
        return budget_bytes is None or self._held_bytes() + current.process.resident_bytes() <= budget_bytes

    def load(self, holding: Holding) -> Served:
        """A process for a bundle; it serves nothing yet. Raises Unfit, Refused, Unavailable."""
        with self._errands() as errands:
            fds = errands.unseal_to_serve(holding)
        try:
            return self._serving.start(holding, fds)
        finally:
            fds.close()

    def start(self, holding: Holding) -> bool:
        """A bundle serves from now on, beside what served before it; or why not is in the log."""
        self._switchboard.warm_up()
        try:
            served = self.load(holding)
        except StoreDamagedRefused as error:
            logger.error("a bundle is damaged: %s", error.message, extra={"family": self._family})
            self._journal.remember(with_damaged(holding.digest))
            return False
        except (Refused, Unavailable, Unfit) as error:
            of = {"family": self._family}
            logger.error("release %s does not start: %s", holding.version, error.message, extra=of)
            return False
        finally:
            self._switchboard.cool_down()
        self._started_s = time.monotonic()
        self._serving.publish(served)
        fields = {"release": holding.version, "variant": holding.variant, "pid": served.process.pid}
        logger.info("serving", extra={"family": self._family, **fields})
        return True
