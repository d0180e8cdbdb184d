"""The daemon: serves what is active, polls, updates, obeys the control socket.

Rules:
1. One main thread decides and acts, for all families; other threads only put words into its queue. It sleeps until one
   comes or the next poll is due: at rest it costs no wake-up.
2. Start: recover, serve what is active, go on with what was armed, then poll. Serving comes first: no network is needed
   to serve what is here.
3. Families take turns, and what fails for one keeps no other from its turn (device_agent.daemon.family_service). While
   one is fetched,
   patched or watched, a process of another that dies is started again at once, and so is the front, and an operator can
   send another back; all else waits.
4. Polls are jittered, so that a fleet does not come at once; after failures they back off.
5. What is remembered for the whole device (paused, the TPM's counter) is in the first family's journal.
"""

import contextlib
import ctypes
import gc
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final
from weakref import ref

from bundle.errors import AirweightsError, Bug, Unavailable
from device_agent.config.config import Config
from device_agent.config.families import check_family, per_family, require_one_family, total_cleared
from device_agent.daemon.control_socket import QUEUED_COMMANDS, ControlServer, DaemonMessage
from device_agent.daemon.family_service import FamilyService, log_errors
from device_agent.daemon.status import device_status
from device_agent.daemon.update_metrics import render_update_metrics
from device_agent.errors import AgentStopping, JournalUnreadable, UpdatesPaused, system_error
from device_agent.host.systemd import SystemdNotifier
from device_agent.serving.family_serving import call_on_exit
from device_agent.serving.serving_runtime import ServingRuntime
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.update.context import Interrupt
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

SINGLE_FAMILY_COMMANDS: Final = ("rollback", "adapter-attach", "adapter-detach", "adapter-list")


class Supervisor:
    """Made by `run_daemon`.

    Args:
        config: of the device.
        device: its directory, locked by the caller.
        announce: told (event, address): "serving" when the endpoint listens, "started" when what is here serves.
    """

    def __init__(self, config: Config, device: DeviceDirectory, announce: Callable[[str, str], None]) -> None:
        self._config, self._announce = config, announce
        self._messages: queue.SimpleQueue[DaemonMessage] = queue.SimpleQueue()
        self._deferred_messages: list[DaemonMessage] = []
        self._open_worker_pools: tuple[ref[WorkerPool], ...] = ()
        self.is_stopping = False
        self.identity = device.read_public_identity()
        self._notifier = SystemdNotifier()
        self.runtime = ServingRuntime(config)
        self._watch_front()
        self._services: dict[str, FamilyService] = {}
        self._unopened_configs = {one.family: one for one in config.family_configs()}
        try:
            self._open_service(config.family)
            for family in tuple(self._unopened_configs):
                log_errors(partial(self._open_service, family))
            self._push_metrics()
            self._control = ControlServer(device.control_path, self._answer_request)
        except BaseException:
            self.runtime.stop()
            raise

    def run(self) -> None:
        """Until `stop`. Raises Bug."""
        try:
            self._announce("serving", self.runtime.address)
            self._start_services()
            self._push_metrics()
            self._announce("started", self.runtime.address)
            self._notifier.send("READY=1", f"STATUS=serving at {self.runtime.address}")
            self._notifier.start_watchdog(self.runtime.is_responding)
            self._ensure_standbys()
            while not self.is_stopping:
                word = self._next_message()
                if word is not None:
                    self.handle(word)
                elif not self._restart_due():
                    self._run_due_polls()
                self._ensure_standbys()
        finally:
            self.is_stopping = True
            self._notifier.stop()
            self._control.close()
            self.release_waiters()
            self.runtime.stop()
            for line in self.services:
                line.close()

    def stop(self) -> None:
        """Ask the main thread to end; from any thread or a signal handler."""
        self._messages.put(DaemonMessage("stop"))
        # in a thread: a signal handler may have come in the middle of a call to just these children
        threading.Thread(target=self._interrupt_workers, name="stop", daemon=True).start()

    # for the lines

    @property
    def services(self) -> tuple[FamilyService, ...]:
        """Those that are open, in the configuration's order."""
        return tuple(self._services.values())

    def enqueue(self, message: DaemonMessage) -> None:
        """Into the main thread's queue; from any thread."""
        self._messages.put(message)

    def open_workers(
        self, config: Config, device: DeviceDirectory, store: BundleStore, on_idle: Callable[[], None] | None = None
    ) -> WorkerPool:
        """Children that end when the daemon is asked to."""
        errands = WorkerPool(config, device, store, on_idle)
        # replaced as a whole: `stop` reads it from another thread
        self._open_worker_pools = (*(known for known in self._open_worker_pools if known() is not None), ref(errands))
        return errands

    def handle_pending(self, busy: FamilyService | None = None) -> None:
        """What cannot wait for the end of an update of `busy` (rule 3); the rest is kept for later."""
        while not self._messages.empty():
            self.handle_during_update(self._messages.get_nowait(), busy)
        self._restart_due(busy)

    def wait_for_interrupt(self, service: FamilyService, timeout_s: float) -> Interrupt | None:
        """Signals of an update in its probation: "stop", or "rollback" of its family, end it."""
        if self.is_stopping:
            return Interrupt.STOP
        try:
            return self.handle_during_update(self._messages.get(timeout=timeout_s), service, is_interruptible=True)
        except queue.Empty:
            self._restart_due(service)
            return None

    def handle_during_update(
        self, message: DaemonMessage, busy: FamilyService | None, *, is_interruptible: bool = False
    ) -> Interrupt | None:
        is_own = busy is not None and message.family == busy.name
        match message.command:
            case "stop":
                self.is_stopping = True
                return Interrupt.STOP
            case "front-died":
                self.handle(message)
            case "died" if busy is not None and is_own and is_interruptible and busy.is_on_probation():
                # the candidate's verdict; in a shadow it is still the old release that serves
                self._deferred_messages.append(message)
            case "died":
                self.handle(message)
            case "rollback" if is_own and is_interruptible:
                self._deferred_messages.append(DaemonMessage("told", message.family, fields={"rollback": message}))
                return Interrupt.ROLLBACK
            case "rollback" if not is_own:
                self.handle(message)
            case _:
                self._deferred_messages.append(message)
        return None

    # the loop

    def _open_service(self, family: str) -> None:
        config = self._unopened_configs[family]
        first = None if config.family_directory is None else self._services[self._config.family].journal
        try:
            self._services[family] = FamilyService(config, self, first)
        except OSError as error:
            raise system_error(error) from error
        del self._unopened_configs[family]
        order = self._config.families
        self._services = dict(sorted(self._services.items(), key=lambda item: order.index(item[0])))

    def _ensure_open(self, family: str) -> FamilyService:
        """A further family whose journal did not open before is tried again. Raises JournalUnavailable."""
        if family in self._unopened_configs:
            self._open_service(family)
            log_errors(self._services[family].start)
            log_errors(self._services[family].activate_staged)
        return self._services[family]

    def _start_services(self) -> None:
        """Rule 2. Raises what the only family raises."""
        for line in self.services:
            if len(self._config.families) == 1:
                line.start()
            else:
                log_errors(line.start)
        for line in self.services:
            if not self.is_stopping:
                log_errors(line.activate_staged)
                self.handle_pending()

    def _interrupt_workers(self) -> None:
        for known in self._open_worker_pools:
            if (errands := known()) is not None:
                errands.interrupt()

    def release_waiters(self) -> None:
        words = list(self._deferred_messages)
        while not self._messages.empty():
            words.append(self._messages.get_nowait())
        for word in words:
            word.answered.set()

    def _next_message(self) -> DaemonMessage | None:
        """The next word, or None where something is due before one comes."""
        if self._deferred_messages:
            return self._deferred_messages.pop(0)
        release_memory()
        due = [at for line in self.services if (at := line.watchdog.next_restart_at()) is not None]
        if self._config.update.automatic and not self._is_paused():
            due += [line.next_poll_at_s for line in self.services]
        try:
            return self._messages.get(timeout=max(0.0, min(due) - time.monotonic()) if due else None)
        except queue.Empty:
            return None

    def _restart_due(self, busy: FamilyService | None = None) -> bool:
        """After its pause; of `busy` its own update decides. Was anything due?"""
        is_any = False
        for line in self.services:
            at = None if line is busy or self.is_stopping else line.watchdog.next_restart_at()
            if at is not None and at <= time.monotonic():
                is_any = True
                log_errors(line.watchdog.retry_serving)
        return is_any

    def handle(self, message: DaemonMessage) -> None:
        try:
            match message.command:
                case "stop":
                    self.is_stopping = True
                case "died":
                    assert message.family is not None
                    self._services[message.family].watchdog.restart(message.generation)
                case "front-died":
                    self._restart_front()
                case "told":
                    # the rollback that ended a probation is answered with how that attempt ended
                    line, message = self._service_of_message(message), message.fields["rollback"]
                    message.answer = line.last_result()
                case "update":
                    message.answer = self._update_now(message)
                case "rollback":
                    message.answer = self._service_of_message(message).roll_back()
                    self._push_metrics()
                case "pause" | "resume":
                    is_paused = message.command == "pause"
                    self._first_service.journal.update_persistent_state(
                        lambda before: replace(before, is_paused=is_paused)
                    )
                    message.answer = {"paused": is_paused}
                case "adapter-attach" | "adapter-detach":
                    message.answer = self._service_of_message(message).change_adapter(message.command, message.fields)
                case "plan":
                    message.answer = per_family(
                        self._requested_families(message), lambda family: self._ensure_open(family).plan()
                    )
                case "quarantine-clear":
                    digest = message.fields.get("bundle")
                    message.answer = total_cleared(
                        per_family(
                            self._requested_families(message),
                            lambda family: self._ensure_open(family).clear_quarantine(digest),
                        )
                    )
                case other:
                    raise Bug(f"unknown word {other!r}")
        except (Bug, SystemExit):
            raise
        except AirweightsError as error:
            message.error = error
            if message.command in ("died", "front-died"):
                logger.error("%s: %s", error.reason, error.message)
        finally:
            message.answered.set()

    @property
    def _first_service(self) -> FamilyService:
        return self._services[self._config.family]

    def _service_of_message(self, message: DaemonMessage) -> FamilyService:
        return self._ensure_open(require_one_family(self._config.families, message.family))

    def _requested_families(self, message: DaemonMessage) -> tuple[str, ...]:
        return self._config.families if message.family is None else (message.family,)

    def _push_metrics(self) -> None:
        with contextlib.suppress(Unavailable):  # a front that has died is told when it is back
            self.runtime.front.push_metrics(render_update_metrics(line.update_metrics for line in self.services))

    def _run_due_polls(self) -> None:
        for family in tuple(self._unopened_configs):
            log_errors(partial(self._ensure_open, family))
        now, is_paused = time.monotonic(), self._is_paused()
        for line in self.services:
            if line.next_poll_at_s <= now and not is_paused and not self.is_stopping:
                log_errors(partial(self._update_service, line, "poll"))
                self.handle_pending()

    def _update_now(self, message: DaemonMessage) -> dict[str, Any]:
        if self._is_paused():
            raise UpdatesPaused("updates are paused", hint="`device-agent resume`")

        def act(family: str) -> dict[str, Any]:
            if self.is_stopping:
                raise AgentStopping("the agent is stopping")
            self.handle_pending()
            return self._update_service(self._ensure_open(family), "operator")

        return per_family(self._requested_families(message), act)

    def _update_service(self, service: FamilyService, trigger: str) -> dict[str, Any]:
        try:
            return service.update(trigger)
        finally:
            service.schedule_next_poll()
            self._push_metrics()

    # serving

    def _ensure_standbys(self) -> None:
        for line in self.services:
            if not self.is_stopping:
                log_errors(line.watchdog.ensure_standby)

    def _watch_front(self) -> None:
        pidfd = os.dup(self.runtime.front.fileno())
        call_on_exit(pidfd, lambda: self._messages.put(DaemonMessage("front-died")))

    def _restart_front(self) -> None:
        if self.is_stopping:
            return
        logger.error("the front died, its requests are lost; it is started again")
        self.runtime.restart_front()
        self._watch_front()
        self._push_metrics()

    # from other threads

    def _answer_request(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        command, named = request.get("command"), request.get("family")
        family = None if named is None else str(named)
        check_family(self._config.families, family)
        if command in SINGLE_FAMILY_COMMANDS:
            family = require_one_family(self._config.families, family)
        asked = self._config.families if family is None else (family,)
        if command == "status":
            return self._status()
        if command == "history":
            return per_family(asked, lambda family: self._service_for_reading(family).history())
        if command == "adapter-list":
            return per_family(asked, lambda family: self._service_for_reading(family).list_adapters())
        if command not in QUEUED_COMMANDS:
            raise Bug(f"unknown command {command!r}")
        word = DaemonMessage(str(command), family, fields=request)
        self._messages.put(word)
        word.answered.wait()
        if word.error is not None:
            raise word.error
        if word.answer is None:
            raise AgentStopping("the agent is stopping")
        return word.answer

    def _service_for_reading(self, family: str) -> FamilyService:
        line = self._services.get(family)
        if line is None:
            raise JournalUnreadable(f"the journal of {family!r} does not open", hint="see the log; it is tried again")
        return line

    def _status(self) -> dict[str, Any]:
        found = per_family(self._config.families, lambda family: self._service_for_reading(family).status())
        if "families" not in found:
            return found
        return device_status(self._service_for_reading(self._config.family).status(), found["families"])

    # facts

    def _is_paused(self) -> bool:
        try:
            return self._first_service.journal.persistent_state.is_paused
        except JournalUnreadable as error:
            logger.error("%s", error.message)
            return False


def release_memory() -> None:
    """Give back to the system what an update took: this process then sleeps for an hour."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
