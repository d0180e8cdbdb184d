"""The schedule by which a family makes its vitals, and sends them and its reports.

Rules:
- Nothing is made or sent without `reports.url`.
- A vital is made once in `reports.vital_interval_s`, also over restarts: the journal has the time of the last one. Its
  counts are those since the vital before, or since the daemon started. One more is made when the soak time of a plan
  ends, since the rollout waits for it.
- Reports are sent soon after an update, with jitter, so that a fleet that updates together does not send together.
- After a failure the next try comes soon, then later with each further failure (policy.poll_schedule).
- What a send needs is imported when it is needed, and is not in memory at rest before.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bundle.errors import AirweightsError, Unavailable
from device_agent.config.config import Config
from device_agent.errors import system_error
from device_agent.policy.poll_schedule import next_poll_delay_s
from device_agent.serving.family_serving import FamilyServing
from device_agent.update.context import UpdateContext

if TYPE_CHECKING:
    from device_agent.policy.next_vital import ServedCounts

logger = logging.getLogger(__name__)

SOON_S: Final = 60.0  # reports are sent within this time after an update
RETRY_INTERVAL_S: Final = 3600  # mean time between tries after many failures, a quarter of the longest


class ReportSchedule:
    """The sending of one family.

    Args:
        config: configuration of the family.
        context: returns journal and workers of the family.
        serving: the generations of the family.
        crashes: returns the unexpected ends of the model process since the daemon started.
        is_paused: returns whether updates of the device are paused.
        can_send: whether the journal is the device's own.

    Attributes:
        next_at_s: time of the next send, in seconds of the monotonic clock; None if there is nothing to send.
    """

    def __init__(
        self,
        config: Config,
        context: Callable[[], UpdateContext],
        serving: FamilyServing,
        crashes: Callable[[], int],
        is_paused: Callable[[], bool],
        *,
        can_send: bool,
    ) -> None:
        self._config, self._context, self._serving = config, context, serving
        self._crashes, self._is_paused, self._can_send = crashes, is_paused, can_send
        self._failures = 0
        self._base = (0, 0, 0, 0)  # generation, requests, failed, crashes at the last vital
        self.next_at_s: float | None = None
        self.schedule_soon()

    def reconfigure(self, config: Config) -> None:
        """Use another configuration of the family from now on."""
        self._config = config
        self.schedule_soon()

    def schedule_soon(self) -> None:
        """Send within SOON_S, or a tenth of the interval if that is shorter."""
        settings = self._config.reports
        if not settings.url or not self._can_send:
            self.next_at_s = None
            return
        window_s = min(SOON_S, settings.vital_interval_s / 10) if settings.vital_interval_s else SOON_S
        at = time.monotonic() + window_s * _draw()
        self.next_at_s = at if self.next_at_s is None else min(self.next_at_s, at)

    def run(self) -> None:
        """Make the vital that is due, send what the collector does not have, and schedule the next send."""
        settings = self._config.reports
        self.next_at_s = None
        if not settings.url or not self._can_send:
            return
        try:
            self.send()
        except AirweightsError as error:
            self._failures += 1
            self.next_at_s = time.monotonic() + next_poll_delay_s(RETRY_INTERVAL_S, self._failures)
            logger.warning("reports were not sent: %s", error.message, extra={"reason": error.reason})
            return
        self._failures = 0
        if settings.vital_interval_s:
            self.next_at_s = time.monotonic() + self._delay_s(settings.vital_interval_s)

    def _delay_s(self, interval_s: int) -> float:
        """Return the seconds until the next vital: the interval, or less if the soak time ends sooner."""
        from device_agent.host.system_clock import read_boot_clock  # not in memory at rest

        delay_s = next_poll_delay_s(interval_s, 0)
        left_s = self._context().journal.record_served_time(*read_boot_clock()).soak_left_s
        return delay_s if left_s is None else min(delay_s, left_s + SOON_S * _draw())

    def send(self, *, is_forced: bool = False) -> int:
        """Make the vital that is due, and send what the collector does not have; return the number of lines.

        Args:
            is_forced: make a vital even if none is due.

        Raises:
            Unavailable: the collector cannot be reached, the journal cannot be used, or the system refuses a file.
        """
        from device_agent.update.report_sender import make_vital, send_lines  # not in memory at rest

        context, settings = self._context(), self._config.reports
        if not settings.url or not self._can_send:
            return 0
        if settings.vital_interval_s:
            counts, base = self._count()
            is_paused = self._is_paused()
            try:
                is_made = make_vital(
                    context, settings.vital_interval_s, counts, is_forced=is_forced, is_paused=is_paused
                )
            except OSError as error:
                raise system_error(error) from error
            self._base = base if is_made else self._base
        with context.open_workers() as workers:
            return send_lines(context.journal, workers, settings.url, context.identity.device_id)

    def _count(self) -> "tuple[ServedCounts, tuple[int, int, int, int]]":
        from device_agent.policy.next_vital import ServedCounts  # not in memory at rest

        generation, requests, failed, crashes = self._base
        current, ends = self._serving.current, self._crashes()
        if current is None:
            return ServedCounts(ends - crashes, is_down=True), (0, 0, 0, ends)
        now = (current.number, 0, 0, ends)
        if current.bundle.is_run_by_agent():
            with contextlib.suppress(Unavailable):  # the front is starting again
                found = self._serving.observation(current)
                now = (current.number, found.requests, found.errors, ends)
        before = (requests, failed) if generation == current.number else (0, 0)
        counts = ServedCounts(
            restarts=max(0, ends - crashes),
            requests=max(0, now[1] - before[0]),
            failed=max(0, now[2] - before[1]),
            is_down=not current.process.is_alive(),
        )
        return counts, now


def _draw() -> float:
    """Return a random number from 0 to 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
