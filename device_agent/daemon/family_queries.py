"""The requests of the control socket that only read or write the journal of a family.

Any thread may call them, whatever the main thread does: each opens a connection of its own to the journal, because
threads must not share SQLite connections. What the main thread assigns as a whole is read from memory.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bundle.files import BundleDigest
from device_agent.config.config import Config
from device_agent.daemon.serving_watchdog import ServingWatchdog
from device_agent.errors import JournalTooNew
from device_agent.process.worker_process import missing_restrictions
from device_agent.serving.family_serving import FamilyServing
from device_agent.serving.serving_runtime import FamilyRuntime
from device_agent.storage.adapter_store import AdapterStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal, open_for_reading
from device_agent.update.context import UpdateContext

if TYPE_CHECKING:
    from device_agent.apps.export_folder import FamilyExport
    from device_agent.daemon.supervisor import Supervisor
    from device_agent.policy.probation_progress import ProbationProgress
    from device_agent.policy.status_report import FamilyStatus
    from device_agent.policy.update_history import UpdateHistory

T = TypeVar("T")


class FamilyQueries:
    """The part of a family service that any thread may call.

    Attributes:
        config, device, context, serving, watchdog, runtime, supervisor: parts of the service.
        too_new: the error of a journal that a newer agent wrote, or None.
        probation: progress of the running probation, or None.
        export: the exported files of the family, or None.
    """

    config: Config
    device: DeviceDirectory
    context: UpdateContext
    serving: FamilyServing
    watchdog: ServingWatchdog
    runtime: FamilyRuntime
    supervisor: "Supervisor"
    too_new: JournalTooNew | None
    probation: "ProbationProgress | None"
    export: "FamilyExport | None"

    def check_not_too_new(self) -> None:
        """Check that no newer agent wrote the journal.

        Raises:
            JournalTooNew: a newer one wrote it.
        """
        if self.too_new is not None:
            raise JournalTooNew(self.too_new.message, hint=self.too_new.hint)

    def read_journal(self, query: Callable[[Journal], T]) -> T:
        """Call `query` with a connection of its own to the journal: threads must not share SQLite connections.

        Raises:
            JournalUnreadable: the journal cannot be read.
        """
        with open_for_reading(self.device) as journal:
            return query(journal)

    def set_paused(self, *, is_paused: bool) -> None:
        """Record that the updates of the device are paused or not; this is the service of the first family.

        Raises:
            JournalUnreadable: the journal cannot be read or written.
        """
        self.check_not_too_new()
        with closing(Journal(self.device.journal_path)) as journal:
            journal.update_persistent_state(lambda before: replace(before, is_paused=is_paused))

    def clear_quarantine(self, digest: str | None) -> int:
        """Remove one bundle from quarantine, or all if `digest` is None; return the number of removed rows.

        Raises:
            JournalUnreadable: the journal cannot be read or written.
        """
        self.check_not_too_new()
        with closing(Journal(self.device.journal_path)) as journal:
            return journal.clear_quarantine(None if digest is None else BundleDigest(digest))

    def list_adapters(self) -> dict[str, Any]:
        """Return the object of `adapter list --json`.

        Raises:
            JournalUnreadable: the journal cannot be read.
        """
        return AdapterStore(self.device).as_listing(self.read_journal(lambda journal: journal.pointers.active))

    def history(self) -> "UpdateHistory":
        """Return the past attempts.

        Raises:
            JournalUnreadable: the journal cannot be read.
        """
        from device_agent.policy.update_history import UpdateHistory  # not in memory at rest

        return UpdateHistory(self.read_journal(lambda journal: tuple(journal.history())))

    def status(self) -> "FamilyStatus":
        """Return the family's status with the daemon's part.

        Raises:
            JournalUnreadable: this journal or that of the first family cannot be read.
        """
        from device_agent.daemon.status import family_status  # not in memory at rest
        from device_agent.policy.state_machine import State
        from device_agent.policy.status_report import ServingStatus

        progress = self.probation  # assigned as a whole by the main thread, before the state and after it
        device_records = None
        if self.context.first_journal is not None:
            first = DeviceDirectory(self.config.directory)
            with open_for_reading(first) as journal:
                device_records = journal.persistent_state, journal.tpm_counter
        status = self.read_journal(
            lambda journal: family_status(self.config, self.supervisor.identity, journal, device_records=device_records)
        )
        current = self.serving.current
        serving = None
        if current is not None:
            serving = ServingStatus(
                release=current.bundle.version,
                variant=current.bundle.variant,
                bundle=current.digest,
                generation=current.number,
                pid=current.process.pid,
                is_alive=current.process.is_alive(),
                resident_bytes=current.process.resident_bytes(),
                provider=current.process.provider,
            )
        return replace(
            status,
            is_daemon_running=True,
            address=self.supervisor.runtime.address,
            serving=serving,
            next_restart_s=self.watchdog.restart_delay_s(),
            is_degraded=self.watchdog.is_degraded,
            is_unjailed=not self.runtime.is_jailed,
            is_memory_swappable=self.runtime.is_swappable,
            missing_restrictions=missing_restrictions(),
            no_update_reason=None if self.too_new is None else self.too_new.message,
            probation=(self.probation or progress) if status.state == State.PROBATION else None,
            needs_restart=self.supervisor.needs_restart,
            export=None if self.export is None else self.export.status(),
        )
