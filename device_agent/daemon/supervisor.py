"""The supervisor: the daemon's main thread, which owns all state of all families.

Rules:
1. Other threads only enqueue messages (device_agent.daemon.messages); the main thread decides and acts. It sleeps until
   a message arrives or a poll or restart is due, so that an idle daemon needs no CPU time.
2. Start: recover the journals, serve the active bundles, activate staged ones, then poll. Serving comes first, because
   it needs no network.
3. During an update, some messages are handled at once and the others are deferred (`Supervisor.handle_during_update`).
   The work on the families is in device_agent.daemon.family_work.
4. Polls are jittered, so that a fleet does not poll all at once, and back off after failures.
5. The records of the whole device (pause flag, TPM counter) are in the first family's journal.
"""

import logging
import os
import queue
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import assert_never

from device_agent.apps.app_socket import AppServer
from device_agent.config.config import Config
from device_agent.daemon.config_reload import reload_config
from device_agent.daemon.control_socket import ControlServer
from device_agent.daemon.error_log import log_errors
from device_agent.daemon.family_service import FamilyService
from device_agent.daemon.family_work import FamilyWork
from device_agent.daemon.messages import (
    AdapterRequest,
    BundleDamaged,
    DaemonMessage,
    FrontCrashed,
    ModelCrashed,
    PauseChanged,
    PlanRequest,
    Reload,
    ReportProbation,
    RollbackRequest,
    SendReportsRequest,
    Stop,
    UpdateRequest,
    cancel_replies,
)
from device_agent.daemon.request_handler import RequestHandler
from device_agent.daemon.service_registry import ServiceRegistry
from device_agent.daemon.worker_pools import WorkerPools
from device_agent.errors import AgentStopping, JournalUnreadable, OperatorRollback
from device_agent.host.idle_memory import release_memory
from device_agent.host.systemd import SystemdNotifier
from device_agent.serving.family_serving import call_on_exit
from device_agent.serving.serving_runtime import ServingRuntime
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.update.context import Interrupt

logger = logging.getLogger(__name__)


class Supervisor:
    """The main loop of the daemon, and the owner of all family services.

    Args:
        config: configuration of the device.
        device: the device directory, locked by the caller.
        announce: called with (event, address): "serving" when the endpoint listens, "started" when the active bundles
            are served.
        messages: the queue of messages, which signal handlers fill, too.
        worker_pools: the worker pools of all families, which a stop signal interrupts.
        read_config: reads the configuration file again.

    Attributes:
        is_stopping: whether the daemon is about to end.
        worker_pools: the worker pools of all families.
        identity: public identity of the device.
        runtime: the front process and the model processes.
        needs_restart: keys of the configuration that changed in the file and need a restart.

    Raises:
        JournalUnreadable: the journal of the first family cannot be opened.
        AddressUnavailable: the address of the endpoint or of a socket cannot be used.
        ExportNotInMemory, ExportFolderForeign: `serve.export` cannot be used.
        OsFailure: the first family's folder cannot be created.
    """

    def __init__(
        self,
        config: Config,
        device: DeviceDirectory,
        announce: Callable[[str, str], None],
        messages: "queue.SimpleQueue[DaemonMessage]",
        worker_pools: WorkerPools,
        read_config: Callable[[], Config],
    ) -> None:
        self._config, self._announce, self._read_config = config, announce, read_config
        self._messages, self.worker_pools = messages, worker_pools
        self._deferred_messages: list[DaemonMessage] = []
        self.is_stopping, self.needs_restart = False, tuple[str, ...]()
        self.identity = device.read_public_identity()
        if config.serve.export is not None:
            from device_agent.apps.export_folder import prepare_export_folder  # not in memory otherwise

            prepare_export_folder(config.serve.export)
        self._notifier = SystemdNotifier()
        self.runtime = ServingRuntime(config)
        self._watch_front()
        self._registry = ServiceRegistry(config, lambda one, journal: FamilyService(one, self, journal))
        self._work = FamilyWork(self, self._registry)
        try:
            self._registry.open(config.family)
            for family in self._registry.unopened_families():
                log_errors(partial(self._registry.open, family))
            self._work.push_metrics()
            self._control = ControlServer(
                device.control_path,
                RequestHandler(self.enqueue, self._registry.open_service, config.families).handle_request,
            )
            self._apps = AppServer(
                config.serve.apps_socket or device.apps_path,
                lambda: {service.name: service.app_family for service in self._registry.services},
            )
        except BaseException:
            self.runtime.stop()
            raise

    def run(self) -> None:
        """Serve and update until the message `Stop`.

        Raises:
            Bug: a defect of the agent.
            AirweightsError: the only family could not start.
        """
        try:
            self._announce("serving", self.runtime.address)
            self._start_services()
            self._work.push_metrics()
            self._announce("started", self.runtime.address)
            self._notifier.send("READY=1", f"STATUS=serving at {self.runtime.address}")
            self._notifier.start_watchdog(self.runtime.is_responding)
            self._ensure_standbys()
            while not self.is_stopping:
                message = self._next_message()
                if message is not None:
                    self.handle(message)
                elif not self._work.restart_due():
                    self._work.run_due_polls()
                    self._work.send_due_reports()
                self._ensure_standbys()
        finally:
            self.is_stopping = True
            self._notifier.stop()
            self._control.close()
            self._apps.close()
            cancel_replies((*self._deferred_messages, *self._pending_messages()))
            self.runtime.stop()
            for service in self.services:
                service.close()

    @property
    def services(self) -> tuple[FamilyService, ...]:
        """The open family services, in the order of the configuration."""
        return self._registry.services

    def enqueue(self, message: DaemonMessage) -> None:
        """Queue a message for the main thread. Any thread may call it."""
        self._messages.put(message)

    def handle_pending(self, busy: FamilyService | None = None) -> None:
        """Handle messages that must not wait until `busy` finishes its update, and defer the others.

        Due restarts of crashed model processes follow.

        Raises:
            UpdateInterrupted: a message asks for the end of the update of `busy`.
            OperatorRollback: an operator rejects its candidate.
            AgentStopping: the agent stops.
        """
        for message in self._pending_messages():
            self.handle_during_update(message, busy)
        self._work.restart_due(busy)
        if busy is not None and self.is_stopping:
            raise AgentStopping("the agent is stopping")
        if busy is not None:
            busy.context.interruption.check()

    def wait_for_interrupt(self, service: FamilyService, timeout_s: float) -> Interrupt | None:
        """Handle messages during the shadow mode or the probation of a family.

        Args:
            service: the family that updates.
            timeout_s: seconds to wait for a message.

        Returns:
            The reason to end the update now, or None.
        """
        if self.is_stopping:
            return Interrupt.STOP
        if isinstance(service.context.interruption.error, OperatorRollback):
            return Interrupt.ROLLBACK
        try:
            return self.handle_during_update(self._messages.get(timeout=timeout_s), service)
        except queue.Empty:
            self._work.restart_due(service)
            return None

    # While family `busy` updates (rows top to bottom, the first that applies wins):
    #   Stop             always                         end the update
    #   FrontCrashed     always                         restart now
    #   ModelCrashed     busy's candidate in probation  defer: the probation judges it
    #   ModelCrashed     any other                      restart now
    #   RollbackRequest  of busy, candidate activated   reject the candidate; reply with the update's result
    #   RollbackRequest  of busy, before that           end the update; then roll back
    #   RollbackRequest  of another family              run now
    #   BundleDamaged    always                         record it now
    #   PauseChanged     to paused                      end the update if its candidate does not serve
    #   all others                                      defer until the update ends
    def handle_during_update(self, message: DaemonMessage, busy: FamilyService | None) -> Interrupt | None:
        """Handle or defer one message during an update, as the table above says.

        Args:
            message: the next message of the queue.
            busy: the family that updates, or None between the updates of two families.

        Returns:
            The reason to end the update now, or None.
        """
        match message:
            case Stop():
                self.is_stopping = True
                return Interrupt.STOP
            case FrontCrashed():
                self.handle(message)
            case ModelCrashed():
                is_own = busy is not None and message.family == busy.name
                if is_own and busy is not None and busy.is_on_probation():
                    self._deferred_messages.append(message)
                else:
                    self.handle(message)
            case RollbackRequest():
                if busy is None or message.family != busy.name:
                    self.handle(message)
                elif busy.context.interruption.request_rollback():
                    self._deferred_messages.append(ReportProbation(message))
                    return Interrupt.ROLLBACK
                else:
                    self._deferred_messages.append(message)
            case BundleDamaged():
                self.handle(message)
            case PauseChanged():
                if message.is_paused and busy is not None:
                    busy.context.interruption.request_pause()
            case (
                Reload() | UpdateRequest() | PlanRequest() | AdapterRequest() | SendReportsRequest() | ReportProbation()
            ):
                self._deferred_messages.append(message)
            case _:
                assert_never(message)
        return None

    # the main loop

    def _start_services(self) -> None:
        """Serve all families, then activate staged bundles. Raises the error of the only family."""
        for service in self.services:
            if len(self._config.families) == 1:
                service.start()
            else:
                log_errors(service.start)
        for service in self.services:
            if not self.is_stopping:
                log_errors(service.activate_staged)
                self.handle_pending()

    def _pending_messages(self) -> Iterator[DaemonMessage]:
        while not self._messages.empty():
            yield self._messages.get_nowait()

    def _next_message(self) -> DaemonMessage | None:
        """Wait for the next message; return None if a restart or a poll is due before."""
        if self._deferred_messages:
            return self._deferred_messages.pop(0)
        release_memory()
        at = self._work.next_at_s()
        try:
            return self._messages.get(timeout=None if at is None else max(0.0, at - time.monotonic()))
        except queue.Empty:
            return None

    def handle(self, message: DaemonMessage) -> None:
        """Handle one message. An error is the reply to a request; without a request it is logged.

        Raises:
            Bug: a defect of the agent.
        """
        match message:
            case Stop():
                self.is_stopping = True
            case Reload():
                status = f"serving at {self.runtime.address}"
                change = reload_config(self._config, self._read_config, self._reconfigure, self._notifier, status)
                self.needs_restart = self.needs_restart if change is None else change.needs_restart
            case FrontCrashed():
                log_errors(self._restart_front)
            case ModelCrashed():
                log_errors(partial(self._registry.open_service(message.family).watchdog.restart, message.generation))
            case BundleDamaged():
                log_errors(partial(self._registry.open_service(message.family).mark_damaged, message.digest))
            case UpdateRequest():
                message.reply.resolve(partial(self._work.update, message.families))
            case RollbackRequest():
                message.reply.resolve(partial(self._work.roll_back, message.family))
            case ReportProbation():
                message.request.reply.resolve(partial(self._work.end_probation, message.request.family))
            case PauseChanged():
                pass  # the main loop looks into the journal
            case PlanRequest():
                message.reply.resolve(partial(self._work.plan, message.families))
            case AdapterRequest():
                message.reply.resolve(
                    lambda: self._registry.open_and_start(message.family).change_adapter(
                        message.command, message.fields
                    )
                )
            case SendReportsRequest():
                message.reply.resolve(partial(self._work.send_reports, message.families))
            case _:
                assert_never(message)

    def _reconfigure(self, config: Config) -> None:
        self._config = config
        self._registry.reconfigure(config)
        self.runtime.reconfigure(config)

    # standbys and the front

    def _ensure_standbys(self) -> None:
        for service in self.services:
            if not self.is_stopping:
                log_errors(service.watchdog.ensure_standby)

    def _watch_front(self) -> None:
        pidfd = os.dup(self.runtime.front.fileno())
        call_on_exit(pidfd, lambda: self._messages.put(FrontCrashed()))

    def _restart_front(self) -> None:
        if self.is_stopping:
            return
        logger.error("front process crashed, restarting it; its open requests are lost")
        self.runtime.restart_front()
        self._watch_front()
        self._work.push_metrics()

    @property
    def is_polling(self) -> bool:
        """Return whether the families poll by themselves: updates are automatic, and not paused."""
        return self._config.update.automatic and not self.is_paused()

    def is_paused(self) -> bool:
        """Return whether an operator paused updates; False if the journal cannot be read."""
        try:
            return self._registry.first.journal.persistent_state.is_paused
        except JournalUnreadable as error:
            logger.error("%s", error.message)
            return False
