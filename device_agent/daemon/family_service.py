"""One family of a device: its stores, its serving model and its updates.

Rules:
1. Only the supervisor's main thread calls a family service, except for the methods of FamilyQueries.
2. A failed update never stops the serving model (device_agent.daemon.serving_watchdog).
3. If a newer agent wrote the journal, what is active serves, and nothing else is done
   (device_agent.storage.newer_journal).
4. An update of one family never stops the serving model of another; it may only stop the others' standbys to free
   memory (device_agent.update.candidate).
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bundle.errors import AirweightsError
from bundle.files import BundleDigest
from device_agent.apps.access import FamilyAccess
from device_agent.apps.app_socket import AppFamily
from device_agent.apps.lender import FileLender
from device_agent.config.config import Config
from device_agent.daemon.error_log import log_errors
from device_agent.daemon.family_queries import FamilyQueries
from device_agent.daemon.messages import BundleDamaged, ModelCrashed
from device_agent.daemon.report_schedule import ReportSchedule
from device_agent.daemon.serving_watchdog import ServingWatchdog
from device_agent.daemon.update_metrics import UpdateMetrics
from device_agent.errors import JournalTooNew, JournalUnreadable, StoreDamaged
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.poll_schedule import next_poll_delay_s
from device_agent.policy.state_machine import State
from device_agent.serving.family_serving import FamilyServing
from device_agent.storage.adapter_store import AdapterStore
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.context import UpdateContext, collect_garbage, mark_damaged
from device_agent.update.probe_client import ProbeClient
from device_agent.update.recovery import open_journal, recover_journal
from device_agent.update.rollback import prepare_rollback
from device_agent.update.update import run_staged, run_update
from device_agent.workers.worker_pool import WorkerPool

if TYPE_CHECKING:
    from device_agent.apps.export_folder import FamilyExport
    from device_agent.daemon.supervisor import Supervisor
    from device_agent.policy.probation_progress import ProbationProgress
    from device_agent.update.preview import Plan

logger = logging.getLogger(__name__)

T = TypeVar("T")


class FamilyService(FamilyQueries):
    """The stores, the serving model and the updates of one family.

    Args:
        config: configuration of the family.
        supervisor: the supervisor that owns this service.
        first_journal: journal of the device's first family; None if this is the first family.

    Attributes:
        name: name of the family.
        app_family: the family as applications see it.
        export: the exported files of the family, or None.
        config: configuration of the family.
        device: the family's part of the device directory.
        journal: the family's journal, open for writing.
        serving: the generations of the family.
        context: the parts that an update needs.
        watchdog: keeps the active bundle serving.
        update_metrics: counters of the family's updates.
        reports: sends reports and vitals.
        next_poll_at_s: time of the next poll, in seconds of the monotonic clock.
        failed_polls: number of failed checks in a row.

    Raises:
        JournalUnreadable: the journal cannot be opened.
        OsFailure: the family's folder cannot be created.
    """

    def __init__(self, config: Config, supervisor: "Supervisor", first_journal: Journal | None) -> None:
        self.name, self.config, self.supervisor = config.family, config, supervisor
        self.device = DeviceDirectory.for_family(config)
        self.device.create_family_directory()
        self._store = BundleStore(self.device.family_directory)
        self.too_new: JournalTooNew | None = None
        try:
            self.journal = open_journal(self.device, self._store, self._open_workers)
        except JournalTooNew as error:
            from device_agent.storage.newer_journal import copy_newer_journal  # not in memory otherwise

            logger.error("only what is active is served: %s", error.message)
            self.too_new, self.journal = error, copy_newer_journal(self.device)
        self.runtime = supervisor.runtime.family_runtime(self.name)
        self.runtime.on_idle = lambda: supervisor.handle_pending(self)
        self.serving = FamilyServing(self.runtime, lambda number: supervisor.enqueue(ModelCrashed(self.name, number)))
        lender = FileLender(self._unseal_files, self._store.is_plain)
        self.app_family = AppFamily(self.name, _family_access(config), lender, self._serving_bundle)
        self.export = self._open_export()
        self.serving.on_change = self._serving_changed
        self.context = UpdateContext(
            config=config,
            device=self.device,
            identity=supervisor.identity,
            store=self._store,
            journal=self.journal,
            probe_client=ProbeClient(
                config.serve,
                allow_unjailed=config.allow_unjailed,
                on_idle=lambda: supervisor.handle_pending(self),
            ),
            read_facts=device_facts,
            open_workers=lambda: supervisor.worker_pools.open(
                self.config, self.device, self._store, lambda: supervisor.handle_pending(self)
            ),
            serving=self.serving,
            app_verdicts=self.app_family.verdicts,
            wait=lambda timeout_s: supervisor.wait_for_interrupt(self, timeout_s),
            on_probation=self._set_probation,
            first_journal=first_journal,
            other_families=lambda: [each.serving for each in supervisor.services if each is not self],
        )
        self.watchdog = ServingWatchdog(
            config,
            self.journal,
            self.serving,
            supervisor.runtime,
            open_workers=self._open_workers,
            resident_bytes=lambda: sum(service.serving.resident_bytes() for service in supervisor.services),
            is_stopping=lambda: supervisor.is_stopping,
        )
        self.update_metrics = UpdateMetrics(self.name)
        self.reports = ReportSchedule(
            config,
            lambda: self.context,
            self.serving,
            lambda: self.watchdog.crashes,
            supervisor.is_paused,
            can_send=self.too_new is None,  # else the journal is a copy, whose numbers another agent uses, too
        )
        self.next_poll_at_s = time.monotonic()
        self._needs_recovery = True
        self.failed_polls = 0
        self.probation: ProbationProgress | None = None

    def _unseal_files(self, bundle: BundleRecord, paths: Sequence[str]) -> dict[str, int]:
        """Unseal files in a thread of an application's connection, with workers of their own."""
        try:
            with self._open_workers() as workers:
                return workers.patcher.unseal_files(bundle, paths)
        except StoreDamaged:
            self.supervisor.enqueue(BundleDamaged(self.name, bundle.digest))
            raise

    def _open_export(self) -> "FamilyExport | None":
        if self.config.serve.export is None:
            return None
        from device_agent.apps.export_folder import FamilyExport  # not in memory otherwise

        return FamilyExport(self.config.serve.export, self.name, self._unseal_files, self._serving_bundle)

    def _serving_changed(self) -> None:
        self.app_family.changed()
        if self.export is not None:
            self.export.changed()

    def _serving_bundle(self) -> tuple[BundleRecord, int] | None:
        current = self.serving.current  # assigned as a whole by the main thread
        return None if current is None else (current.bundle, current.number)

    def _set_probation(self, progress: "ProbationProgress | None") -> None:
        self.probation = progress

    def _open_workers(self) -> WorkerPool:
        return self.supervisor.worker_pools.open(self.config, self.device, self._store)

    def reconfigure(self, config: Config) -> None:
        """Use another configuration of the same family, between two updates (device_agent.config.reload)."""
        self.config = config
        self.context = replace(self.context, config=config)
        self.context.probe_client.serve = config.serve
        self.watchdog.reconfigure(config)
        self.reports.reconfigure(config)
        self.app_family.set_access(_family_access(config))
        soonest_s = time.monotonic() + next_poll_delay_s(config.update.poll_interval_s, self.failed_polls)
        self.next_poll_at_s = min(self.next_poll_at_s, soonest_s)

    def start(self) -> None:
        """Recover the journal and serve the active bundle.

        Raises:
            JournalUnreadable: the journal cannot be read or written.
        """
        self._recover()
        self.watchdog.serve_active()

    def close(self) -> None:
        """Stop the model processes, remove exported files, and close the journal."""
        if self.export is not None:
            self.export.close()
        self.serving.stop_all()
        self.journal.close()

    # updates

    def activate_staged(self) -> None:
        """Activate the bundle that was staged while no daemon ran, if any.

        Raises:
            Unavailable, Bug: as `update`.
        """
        result = run_staged(self.context) if self.too_new is None else None
        if result is not None:
            self._record_result(result)

    def update(self, trigger: str) -> UpdateResult:
        """Run one update and return its result; the model keeps serving if the update fails.

        Args:
            trigger: "poll" or "operator".

        Raises:
            Unavailable: the journal cannot be written; the next update begins with a recovery.
            Bug: a defect of the agent.
        """
        self.check_not_too_new()
        if self._needs_recovery:
            self._recover()
        try:
            result = run_update(self.context, trigger)
        except AirweightsError:
            # every decision is in the journal, so that the next update can recover from it
            self._needs_recovery = True
            raise
        finally:
            if self.serving.previous is not None and self._needs_recovery:
                self.serving.revert()
            if self.serving.current is None and not self.supervisor.is_stopping:
                # the running model was stopped to free memory, and its restart failed
                log_errors(self.watchdog.serve_active)
        self._record_result(result)
        has_failed = result.outcome is Outcome.UNAVAILABLE
        self.failed_polls = self.failed_polls + 1 if has_failed else 0
        if result.outcome is Outcome.UPDATED:
            self.watchdog.is_degraded = False
        return result

    def schedule_next_poll(self) -> None:
        """Set the time of the next poll: jittered, and later after each failed poll."""
        self.next_poll_at_s = time.monotonic() + next_poll_delay_s(
            self.config.update.poll_interval_s, self.failed_polls
        )

    def roll_back(self) -> UpdateResult:
        """Serve the previous release, make it active and quarantine the bundle that was active.

        Raises:
            NothingToRollBack: no previous release is stored.
            BelowRollbackFloor: the previous release is below the rollback floor.
            Unfit, Refused, Unavailable: the previous bundle cannot be loaded; the active one keeps serving.
        """
        self.check_not_too_new()
        active, previous, rejection = prepare_rollback(self.journal)
        generation = self.watchdog.load(previous)
        attempt = self.journal.begin_rollback(active, rejection)
        self.serving.publish(generation)
        result = self.journal.finish_rejection(attempt, runtime_version())
        self.serving.stop_replaced()
        self._record_result(result)
        collect_garbage(self.context)
        return result

    def plan(self) -> "Plan":
        """Return what an update would do now.

        Raises:
            Refused, Unavailable: the check of the channel failed.
        """
        from device_agent.update.preview import preview_update  # not in memory at rest

        self.check_not_too_new()
        return preview_update(self.context)

    def last_result(self) -> UpdateResult:
        """Return the result of the newest attempt. The history must not be empty.

        Raises:
            JournalUnreadable: the journal cannot be read.
        """
        return self.journal.history(1)[0]

    def change_adapter(self, command: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Attach or detach the adapter, and load the active bundle again beside the serving generation.

        Args:
            command: "adapter-attach" or "adapter-detach".
            fields: arguments of "adapter-attach" (device_agent.update.adapter_change).

        Returns:
            The object of `adapter list --json`.

        Raises:
            AirweightsError: as device_agent.update.adapter_change.change_adapter.
        """
        from device_agent.update.adapter_change import change_adapter  # not in memory at rest

        self.check_not_too_new()
        change_adapter(self.context, command, fields)
        active, current = self.journal.bundle(self.journal.pointers.active), self.serving.current
        self.serving.drop_standby()  # it was loaded with the previous adapter
        if (
            active is not None
            and current is not None
            and current.digest == active.digest
            and self.watchdog.serve(active)
        ):
            self.serving.stop_replaced()
        return AdapterStore(self.device).as_listing(self.journal.pointers.active)

    def _record_result(self, result: UpdateResult) -> None:
        if result.outcome is not Outcome.NOTHING_NEW:
            self.reports.schedule_soon()
        self.update_metrics.record(result)
        self.update_metrics.record_probe(self.context.probe_client.last_report)

    def _recover(self) -> None:
        recover_journal(self.journal, runtime_version())
        self._needs_recovery = False
        if self.too_new is None:
            collect_garbage(self.context)
            log_errors(self._seal_unallowed)
        self._serve_committed()

    def _seal_unallowed(self) -> None:
        """Seal the plain bundles if the owner does not allow them any more."""
        if self.config.allows_plain:
            return
        for bundle in self.journal.bundles():
            if self._store.is_plain(bundle.digest):
                with self._open_workers() as workers:
                    workers.patcher.store_as_signed(bundle)

    def mark_damaged(self, digest: BundleDigest) -> None:
        """Record that a stored bundle is damaged, so that the next update downloads it again."""
        self.journal.update_persistent_state(mark_damaged(digest))

    def _serve_committed(self) -> None:
        """Serve the active bundle if a recovery has changed it while another one served."""
        active, current = self.watchdog.record_of_this_family(self.journal.pointers.active), self.serving.current
        if (
            current is not None
            and active is not None
            and current.digest != active.digest
            and self.watchdog.serve(active)
        ):
            self.serving.stop_replaced()

    def is_on_probation(self) -> bool:
        """Return whether a serving candidate is in probation; True if the journal cannot be read."""
        try:
            return self.journal.state is State.PROBATION
        except JournalUnreadable:
            return True


def _family_access(config: Config) -> FamilyAccess:
    settings = dict(config.apps).get(config.family)
    if settings is None:
        return FamilyAccess()
    return FamilyAccess(settings.readers, settings.judges, bool(settings.health_command))
