"""One family of a device: what it holds, what serves of it, and its updates.

Rules:
1. Called by the supervisor's main thread; `status` and `read` by any.
2. Whatever fails in an update, what serves goes on serving (device_agent.daemon.serving_watchdog).
3. Nothing here stops what another family serves: only their standbys make room (device_agent.update.candidate).
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bundle.errors import AirweightsError, Bug
from bundle.files import BundleDigest
from device_agent.config.config import Config
from device_agent.daemon.control_socket import DaemonMessage
from device_agent.daemon.serving_watchdog import ServingWatchdog
from device_agent.daemon.status import family_status
from device_agent.daemon.update_metrics import UpdateMetrics
from device_agent.errors import JournalUnreadable
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.policy.poll_schedule import next_poll_delay_s
from device_agent.policy.state_machine import State
from device_agent.serving.family_serving import FamilyServing
from device_agent.storage.adapter_store import AdapterStore
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.context import UpdateContext, collect_garbage
from device_agent.update.probe_client import ProbeClient
from device_agent.update.recovery import open_journal, recover_journal
from device_agent.update.rollback import prepare_rollback
from device_agent.update.update import run_staged, run_update
from device_agent.workers.worker_pool import WorkerPool

if TYPE_CHECKING:
    from device_agent.daemon.supervisor import Supervisor

logger = logging.getLogger(__name__)


class FamilyService:
    """Made by the supervisor.

    Args:
        config: of the family.
        host: the supervisor.
        first_journal: of the device's first family; None for that one itself.

    Attributes:
        name: of the family.
        next_poll: when it is due, by the monotonic clock.
        upkeep: keeps it serving.

    Raises:
        JournalUnavailable, SystemUnavailable.
    """

    def __init__(self, config: Config, supervisor: "Supervisor", first_journal: Journal | None) -> None:
        self.name, self.config, self._supervisor = config.family, config, supervisor
        self.device = DeviceDirectory.for_family(config)
        self.device.create_family_directory()
        self._store = BundleStore(self.device.family_directory)
        self.journal = open_journal(self.device, self._store, self._open_workers)
        self._runtime = supervisor.runtime.family_runtime(self.name)
        self.serving = FamilyServing(
            self._runtime, lambda number: supervisor.enqueue(DaemonMessage("died", generation=number, family=self.name))
        )
        self.context = UpdateContext(
            config=config,
            device=self.device,
            identity=supervisor.identity,
            store=self._store,
            journal=self.journal,
            probe_client=ProbeClient(config.serve.threads, allow_unjailed=config.allow_unjailed),
            read_facts=device_facts,
            open_workers=lambda: supervisor.open_workers(
                config, self.device, self._store, lambda: supervisor.handle_pending(self)
            ),
            serving=self.serving,
            wait=lambda timeout_s: supervisor.wait_for_interrupt(self, timeout_s),
            first_journal=first_journal,
            other_families=lambda: [each.serving for each in supervisor.services if each is not self],
        )
        self.watchdog = ServingWatchdog(
            config,
            self.journal,
            self.serving,
            supervisor.runtime,
            open_workers=self._open_workers,
            resident_bytes=lambda: sum(line.serving.resident_bytes() for line in supervisor.services),
            is_stopping=lambda: supervisor.is_stopping,
        )
        self.update_metrics = UpdateMetrics(self.name)
        self.next_poll_at_s = time.monotonic()
        self._needs_recovery = True
        self._failed_polls = 0

    def _open_workers(self) -> WorkerPool:
        return self._supervisor.open_workers(self.config, self.device, self._store)

    def start(self) -> None:
        """Recover, and serve what is here. Raises JournalUnavailable."""
        self._recover()
        self.watchdog.serve_active()

    def close(self) -> None:
        """Stop what serves, release the journal."""
        self.serving.stop_all()
        self.journal.close()

    # updates

    def activate_staged(self) -> None:
        """With what was armed while no daemon ran. Raises as `update`."""
        ended = run_staged(self.context)
        if ended is not None:
            self._record_result(ended)

    def update(self, trigger: str) -> dict[str, Any]:
        """One update; how it ended. Raises Unavailable, Bug."""
        if self._needs_recovery:
            self._recover()
        try:
            ended = run_update(self.context, trigger)
        except AirweightsError:
            # nothing was decided that is not recorded: what serves goes on, and the next update begins with recovery
            self._needs_recovery = True
            raise
        finally:
            if self.serving.previous is not None and self._needs_recovery:
                self.serving.revert()
            if self.serving.current is None and not self._supervisor.is_stopping:
                # it was stopped to make room, and did not come back
                log_errors(self.watchdog.serve_active)
        self._record_result(ended)
        failed = ended.outcome is Outcome.UNAVAILABLE
        self._failed_polls = self._failed_polls + 1 if failed else 0
        if ended.outcome is Outcome.UPDATED:
            self.watchdog.is_degraded = False
        return ended.as_json()

    def schedule_next_poll(self) -> None:
        """Until the next poll is due: jittered, and backed off after failures."""
        self.next_poll_at_s = time.monotonic() + next_poll_delay_s(
            self.config.update.poll_interval_s, self._failed_polls
        )

    def roll_back(self) -> dict[str, Any]:
        """To the previous release. Raises NothingToRollBack, BelowFloorRefused, Unfit, Refused, Unavailable."""
        active, previous, verdict = prepare_rollback(self.journal)
        served = self.watchdog.load(previous)
        attempt = self.journal.begin_rollback(active, verdict)
        self.serving.publish(served)
        ended = self.journal.finish_rejection(attempt, runtime_version())
        self.serving.stop_replaced()
        self._record_result(ended)
        collect_garbage(self.context)
        return ended.as_json()

    def plan(self) -> dict[str, Any]:
        """What an update would do. Raises Refused, Unavailable."""
        from device_agent.update.preview import preview_update  # seldom asked for: no memory at rest

        return preview_update(self.context)

    def clear_quarantine(self, digest: str | None) -> dict[str, Any]:
        """Clear the quarantine of one bundle, or all of it. Raises JournalUnavailable."""
        return {"cleared": self.journal.clear_quarantine(None if digest is None else BundleDigest(digest))}

    def last_result(self) -> dict[str, Any]:
        """How the newest attempt ended. Raises JournalUnavailable."""
        return self.journal.history(1)[0].as_json()

    def change_adapter(self, command: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Attach or detach; what serves is loaded anew then, beside the old one, as in a swap."""
        from device_agent.update.adapter_change import change_adapter  # as `explain` above

        change_adapter(self.context, command, fields)
        active, current = self.journal.bundle(self.journal.pointers.active), self.serving.current
        self.serving.drop_standby()  # it was loaded as it was before
        if (
            active is not None
            and current is not None
            and current.digest == active.digest
            and self.watchdog.serve(active)
        ):
            self.serving.stop_replaced()
        return AdapterStore(self.device).as_listing(self.journal.pointers.active)

    def _record_result(self, result: UpdateResult) -> None:
        self.update_metrics.record(result)
        self.update_metrics.record_probe(self.context.probe_client.last_report)

    def _recover(self) -> None:
        recover_journal(self.journal, runtime_version())
        self._needs_recovery = False
        collect_garbage(self.context)
        self._serve_committed()

    def _serve_committed(self) -> None:
        """After a recovery in mid-life: what was committed by it is what serves."""
        active, current = self.watchdog.record_of_this_family(self.journal.pointers.active), self.serving.current
        if (
            current is not None
            and active is not None
            and current.digest != active.digest
            and self.watchdog.serve(active)
        ):
            self.serving.stop_replaced()

    def is_on_probation(self) -> bool:
        """Is a candidate that serves being watched? So it is taken to be where the journal does not tell."""
        try:
            return self.journal.state is State.PROBATION
        except JournalUnreadable:
            return True

    # from other threads

    def read_journal(self, query: Callable[[Journal], Any]) -> Any:
        """Something of the journal: SQLite connections are not shared between threads. Raises JournalUnavailable."""
        return _read_journal(self.device, query)

    def list_adapters(self) -> dict[str, Any]:
        """For `adapter list`. Raises JournalUnavailable."""
        return AdapterStore(self.device).as_listing(self.read_journal(lambda journal: journal.pointers.active))

    def history(self) -> dict[str, Any]:
        """For `history`. Raises JournalUnavailable."""
        return {"history": [row.as_json() for row in self.read_journal(lambda journal: journal.history())]}

    def status(self) -> dict[str, Any]:
        """For `status`. Raises JournalUnavailable."""
        of_device = None
        if self.context.first_journal is not None:
            first = DeviceDirectory(self.config.directory)
            of_device = _read_journal(first, lambda journal: (journal.persistent_state, journal.tpm_counter))
        told: dict[str, Any] = self.read_journal(
            lambda journal: family_status(self.config, self._supervisor.identity, journal, device_records=of_device)
        )
        current = self.serving.current
        serving = None
        if current is not None:
            serving = {
                "release": current.bundle.version,
                "variant": current.bundle.variant,
                "bundle": current.digest,
                "generation": current.number,
                "pid": current.process.pid,
                "alive": current.process.is_alive(),
                "resident_bytes": current.process.resident_bytes(),
            }
        return {
            **told,
            "daemon": True,
            "address": self._supervisor.runtime.address,
            "serving": serving,
            "ready": serving is not None and serving["alive"],
            "degraded": self.watchdog.is_degraded,
            "unjailed": not self._runtime.is_jailed,
            "memory_swappable": self._runtime.is_swappable,
        }


def log_errors(action: Callable[[], object]) -> None:
    """Do something whose failure is told in the log, and stops nothing else. Raises Bug."""
    try:
        action()
    except Bug:
        raise
    except AirweightsError as error:
        logger.error("%s: %s", error.reason, error.message)


def _read_journal(device: DeviceDirectory, query: Callable[[Journal], Any]) -> Any:
    journal = Journal(device.journal_path, read_only=True)
    try:
        return query(journal)
    finally:
        journal.close()
