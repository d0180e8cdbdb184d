"""The work of the main thread on families: polls, updates, rollbacks, plans, adapters and reports.

Rules:
1. Families are updated one after the other, and an error of one does not stop the others. Between two of them, messages
   are handled (`Supervisor.handle_pending`).
2. A poll needs `update.automatic`, and no pause. Reports are sent without them.
3. The families of one round share the request for the timestamp (device_agent.daemon.worker_pools). A plan or an update
   after the round asks for it anew.
"""

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING

from bundle.errors import Unavailable
from device_agent.config.families import FamilyResults, per_family
from device_agent.daemon.error_log import log_errors
from device_agent.daemon.poll_round import join_polls, services_to_poll
from device_agent.daemon.service_registry import ServiceRegistry
from device_agent.daemon.update_metrics import render_update_metrics
from device_agent.errors import AgentStopping, UpdatesPaused
from device_agent.policy.attempt import Outcome, UpdateResult

if TYPE_CHECKING:
    from device_agent.daemon.family_service import FamilyService
    from device_agent.daemon.supervisor import Supervisor
    from device_agent.update.preview import Plan


class FamilyWork:
    """The work on the families of a supervisor. Only its main thread calls this.

    Args:
        supervisor: handles the messages that arrive meanwhile.
        registry: the family services.
    """

    def __init__(self, supervisor: "Supervisor", registry: ServiceRegistry) -> None:
        self._supervisor, self._registry = supervisor, registry

    def next_at_s(self) -> float | None:
        """Return when the next restart, poll or send is due (monotonic clock, seconds); None for never."""
        services = self._registry.services
        due = [at for service in services if (at := service.watchdog.next_restart_at()) is not None]
        due += [at for service in services if (at := service.reports.next_at_s) is not None]
        if self._supervisor.is_polling:
            due += [service.next_poll_at_s for service in services]
        return min(due, default=None)

    def restart_due(self, busy: "FamilyService | None" = None) -> bool:
        """Restart model processes whose pause is over, and return whether there was any.

        Args:
            busy: the family that updates, which restarts its own.
        """
        is_any = False
        for service in self._registry.services:
            at = None if service is busy or self._supervisor.is_stopping else service.watchdog.next_restart_at()
            if at is not None and at <= time.monotonic():
                is_any = True
                log_errors(service.watchdog.retry_serving)
        return is_any

    def run_due_polls(self) -> None:
        """Poll the families that are due."""
        supervisor = self._supervisor
        if not supervisor.is_polling:
            return
        for family in self._registry.unopened_families():
            log_errors(partial(self._registry.open_and_start, family))
        polled = services_to_poll(self._registry.services, time.monotonic())
        with supervisor.worker_pools.share_checks():
            for service in polled:
                if not supervisor.is_stopping and not supervisor.is_paused():
                    log_errors(partial(self._update_service, service, "poll"))
                    supervisor.handle_pending()
        join_polls(polled)

    def send_due_reports(self) -> None:
        """Send the reports and vitals of the families that are due."""
        for service in self._registry.services:
            at = service.reports.next_at_s
            if at is not None and at <= time.monotonic() and not self._supervisor.is_stopping:
                log_errors(service.reports.run)
                self._supervisor.handle_pending()

    def send_reports(self, families: tuple[str, ...]) -> FamilyResults[int]:
        """Send the reports and a vital of each family now, and return the numbers of lines."""
        return per_family(families, lambda one: self._registry.open_and_start(one).reports.send(is_forced=True))

    def update(self, families: tuple[str, ...]) -> FamilyResults[UpdateResult]:
        """Update families at the request of an operator.

        Raises:
            UpdatesPaused: the updates of the device are paused.
        """
        self._check_not_paused()

        def update(family: str) -> UpdateResult:
            self._supervisor.handle_pending()
            if self._supervisor.is_stopping:
                raise AgentStopping("the agent is stopping")
            self._check_not_paused()
            return self._update_service(self._registry.open_and_start(family), "operator")

        with self._supervisor.worker_pools.share_checks():
            return per_family(families, update)

    def plan(self, families: tuple[str, ...]) -> "FamilyResults[Plan]":
        """Return what an update of each family would do now."""
        return per_family(families, lambda family: self._registry.open_and_start(family).plan())

    def roll_back(self, family: str) -> UpdateResult:
        """Return a family to its previous release.

        Raises:
            Refused, Unavailable, Unfit: as `FamilyService.roll_back`.
        """
        result = self._registry.open_and_start(family).roll_back()
        self.push_metrics()
        return result

    def end_probation(self, family: str) -> UpdateResult:
        """Return the result of an attempt whose probation a rollback has ended.

        Raises:
            Refused, Unavailable, Unfit: as `roll_back`.
        """
        result = self._registry.open_and_start(family).last_result()
        # the probation may have passed in the moment of the request
        return self.roll_back(family) if result.outcome is Outcome.UPDATED else result

    def push_metrics(self) -> None:
        """Send the counters of all updates to the front."""
        with contextlib.suppress(Unavailable):  # a front that has crashed gets them after its restart
            text = render_update_metrics(service.update_metrics for service in self._registry.services)
            self._supervisor.runtime.front.push_metrics(text)

    def _update_service(self, service: "FamilyService", trigger: str) -> UpdateResult:
        try:
            return service.update(trigger)
        finally:
            service.schedule_next_poll()
            self.push_metrics()

    def _check_not_paused(self) -> None:
        if self._supervisor.is_paused():
            raise UpdatesPaused("updates are paused", hint="run `device-agent resume`")
