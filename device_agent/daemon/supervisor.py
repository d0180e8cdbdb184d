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
from device_agent.config.families import check_family, of_each, one_family, total_forgiven
from device_agent.daemon.control_socket import COMMANDS, ControlServer, Word
from device_agent.daemon.family_service import Line, guarded
from device_agent.daemon.status import device_status
from device_agent.daemon.update_metrics import render
from device_agent.errors import JournalUnavailable, PausedUnavailable, StoppedUnavailable, system_error
from device_agent.host.systemd import Notifier
from device_agent.serving.family_serving import when_ended
from device_agent.serving.serving_runtime import Switchboard
from device_agent.storage.bundle_store import Store
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.workers.worker_pool import Errands

logger = logging.getLogger(__name__)

FOR_ONE_FAMILY: Final = ("rollback", "adapter-attach", "adapter-detach", "adapter-list")


class Supervisor:
    """Made by `run_daemon`.

    Args:
        config: of the device.
        device: its directory, locked by the caller.
        announce: told (event, address): "serving" when the endpoint listens, "started" when what is here serves.
    """

    def __init__(self, config: Config, device: DeviceDirectory, announce: Callable[[str, str], None]) -> None:
        self._config, self._announce = config, announce
        self._words: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._deferred: list[Word] = []
        self._out: tuple[ref[Errands], ...] = ()
        self.is_stopping = False
        self.identity = device.public_identity()
        self._notifier = Notifier()
        self.switchboard = Switchboard(config)
        self._watch_front()
        self._lines: dict[str, Line] = {}
        self._closed = {one.family: one for one in config.by_family()}
        try:
            self._open(config.family)
            for family in tuple(self._closed):
                guarded(partial(self._open, family))
            self._tell_metrics()
            self._control = ControlServer(device.control, self._answer)
        except BaseException:
            self.switchboard.stop()
            raise

    def run(self) -> None:
        """Until `stop`. Raises Bug."""
        try:
            self._announce("serving", self.switchboard.address)
            self._begin()
            self._tell_metrics()
            self._announce("started", self.switchboard.address)
            self._notifier.tell("READY=1", f"STATUS=serving at {self.switchboard.address}")
            self._notifier.watch(self.switchboard.is_answering)
            self._stock()
            while not self.is_stopping:
                word = self._next()
                if word is not None:
                    self._obey(word)
                elif not self._start_what_is_down():
                    self._poll()
                self._stock()
        finally:
            self.is_stopping = True
            self._notifier.end()
            self._control.close()
            self._dismiss()
            self.switchboard.stop()
            for line in self.lines:
                line.close()

    def stop(self) -> None:
        """Ask the main thread to end; from any thread or a signal handler."""
        self._words.put(Word("stop"))
        # in a thread: a signal handler may have come in the middle of a call to just these children
        threading.Thread(target=self._interrupt, name="stop", daemon=True).start()

    # for the lines

    @property
    def lines(self) -> tuple[Line, ...]:
        """Those that are open, in the configuration's order."""
        return tuple(self._lines.values())

    def put(self, word: Word) -> None:
        """Into the main thread's queue; from any thread."""
        self._words.put(word)

    def errands(
        self, config: Config, device: DeviceDirectory, store: Store, on_idle: Callable[[], None] | None = None
    ) -> Errands:
        """Children that end when the daemon is asked to."""
        errands = Errands(config, device, store, on_idle)
        # replaced as a whole: `stop` reads it from another thread
        self._out = (*(known for known in self._out if known() is not None), ref(errands))
        return errands

    def attend(self, busy: Line | None = None) -> None:
        """What can not wait for the end of an update of `busy` (rule 3); the rest is kept for later."""
        while not self._words.empty():
            self._hear(self._words.get_nowait(), busy)
        self._start_what_is_down(busy)

    def wait(self, line: Line, timeout_s: float) -> str | None:
        """Signals of an update in its probation: "stop", or "rollback" of its family, end it."""
        if self.is_stopping:
            return "stop"
        try:
            return self._hear(self._words.get(timeout=timeout_s), line, is_on_trial=True)
        except queue.Empty:
            self._start_what_is_down(line)
            return None

    def _hear(self, word: Word, busy: Line | None, *, is_on_trial: bool = False) -> str | None:
        is_own = busy is not None and word.family == busy.name
        match word.command:
            case "stop":
                self.is_stopping = True
                return "stop"
            case "front-died":
                self._obey(word)
            case "died" if busy is not None and is_own and is_on_trial and busy.is_on_probation():
                # the candidate's verdict; in a shadow it is still the old release that serves
                self._deferred.append(word)
            case "died":
                self._obey(word)
            case "rollback" if is_own and is_on_trial:
                self._deferred.append(Word("told", word.family, fields={"rollback": word}))
                return "rollback"
            case "rollback" if not is_own:
                self._obey(word)
            case _:
                self._deferred.append(word)
        return None

    # the loop

    def _open(self, family: str) -> None:
        config = self._closed[family]
        first = None if config.place is None else self._lines[self._config.family].journal
        try:
            self._lines[family] = Line(config, self, first)
        except OSError as error:
            raise system_error(error) from error
        del self._closed[family]
        order = self._config.families
        self._lines = dict(sorted(self._lines.items(), key=lambda item: order.index(item[0])))

    def _open_line(self, family: str) -> Line:
        """A further family whose journal did not open before is tried again. Raises JournalUnavailable."""
        if family in self._closed:
            self._open(family)
            guarded(self._lines[family].begin)
            guarded(self._lines[family].go_on)
        return self._lines[family]

    def _begin(self) -> None:
        """Rule 2. Raises what the only family raises."""
        for line in self.lines:
            if len(self._config.families) == 1:
                line.begin()
            else:
                guarded(line.begin)
        for line in self.lines:
            if not self.is_stopping:
                guarded(line.go_on)
                self.attend()

    def _interrupt(self) -> None:
        for known in self._out:
            if (errands := known()) is not None:
                errands.interrupt()

    def _dismiss(self) -> None:
        words = list(self._deferred)
        while not self._words.empty():
            words.append(self._words.get_nowait())
        for word in words:
            word.answered.set()

    def _next(self) -> Word | None:
        """The next word, or None where something is due before one comes."""
        if self._deferred:
            return self._deferred.pop(0)
        release_memory()
        due = [at for line in self.lines if (at := line.upkeep.look()) is not None]
        if self._config.update.automatic and not self._is_paused():
            due += [line.next_poll for line in self.lines]
        try:
            return self._words.get(timeout=max(0.0, min(due) - time.monotonic()) if due else None)
        except queue.Empty:
            return None

    def _start_what_is_down(self, busy: Line | None = None) -> bool:
        """After its pause; of `busy` its own update decides. Was anything due?"""
        is_any = False
        for line in self.lines:
            at = None if line is busy or self.is_stopping else line.upkeep.look()
            if at is not None and at <= time.monotonic():
                is_any = True
                guarded(line.upkeep.serve_again)
        return is_any

    def _obey(self, word: Word) -> None:
        try:
            match word.command:
                case "stop":
                    self.is_stopping = True
                case "died":
                    assert word.family is not None
                    self._lines[word.family].upkeep.revive(word.generation)
                case "front-died":
                    self._revive_front()
                case "told":
                    # the rollback that ended a probation is answered with how that attempt ended
                    line, word = self._line(word), word.fields["rollback"]
                    word.answer = line.last_ended()
                case "update":
                    word.answer = self._update_at_once(word)
                case "rollback":
                    word.answer = self._line(word).roll_back()
                    self._tell_metrics()
                case "pause" | "resume":
                    is_paused = word.command == "pause"
                    self._first.journal.remember(lambda before: replace(before, paused=is_paused))
                    word.answer = {"paused": is_paused}
                case "adapter-attach" | "adapter-detach":
                    word.answer = self._line(word).change_adapter(word.command, word.fields)
                case "plan":
                    word.answer = of_each(self._asked(word), lambda family: self._open_line(family).explain())
                case "forgive":
                    digest = word.fields.get("bundle")
                    word.answer = total_forgiven(
                        of_each(self._asked(word), lambda family: self._open_line(family).forgive(digest))
                    )
                case other:
                    raise Bug(f"unknown word {other!r}")
        except (Bug, SystemExit):
            raise
        except AirweightsError as error:
            word.error = error
            if word.command in ("died", "front-died"):
                logger.error("%s: %s", error.reason, error.message)
        finally:
            word.answered.set()

    @property
    def _first(self) -> Line:
        return self._lines[self._config.family]

    def _line(self, word: Word) -> Line:
        return self._open_line(one_family(self._config.families, word.family))

    def _asked(self, word: Word) -> tuple[str, ...]:
        return self._config.families if word.family is None else (word.family,)

    def _tell_metrics(self) -> None:
        with contextlib.suppress(Unavailable):  # a front that has died is told when it is back
            self.switchboard.front.tell_metrics(render(line.tally for line in self.lines))

    def _poll(self) -> None:
        for family in tuple(self._closed):
            guarded(partial(self._open_line, family))
        now, is_paused = time.monotonic(), self._is_paused()
        for line in self.lines:
            if line.next_poll <= now and not is_paused and not self.is_stopping:
                guarded(partial(self._update, line, "poll"))
                self.attend()

    def _update_at_once(self, word: Word) -> dict[str, Any]:
        if self._is_paused():
            raise PausedUnavailable("updates are paused", remedy="`device-agent resume`")

        def act(family: str) -> dict[str, Any]:
            if self.is_stopping:
                raise StoppedUnavailable("the agent is stopping")
            self.attend()
            return self._update(self._open_line(family), "operator")

        return of_each(self._asked(word), act)

    def _update(self, line: Line, trigger: str) -> dict[str, Any]:
        try:
            return line.update(trigger)
        finally:
            line.rest()
            self._tell_metrics()

    # serving

    def _stock(self) -> None:
        for line in self.lines:
            if not self.is_stopping:
                guarded(line.upkeep.stock)

    def _watch_front(self) -> None:
        pidfd = os.dup(self.switchboard.front.fileno())
        when_ended(pidfd, lambda: self._words.put(Word("front-died")))

    def _revive_front(self) -> None:
        if self.is_stopping:
            return
        logger.error("the front died, its requests are lost; it is started again")
        self.switchboard.revive()
        self._watch_front()
        self._tell_metrics()

    # from other threads

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        command, named = request.get("command"), request.get("family")
        family = None if named is None else str(named)
        check_family(self._config.families, family)
        if command in FOR_ONE_FAMILY:
            family = one_family(self._config.families, family)
        asked = self._config.families if family is None else (family,)
        if command == "status":
            return self._status()
        if command == "history":
            return of_each(asked, lambda family: self._told(family).history())
        if command == "adapter-list":
            return of_each(asked, lambda family: self._told(family).adapters())
        if command not in COMMANDS:
            raise Bug(f"unknown command {command!r}")
        word = Word(str(command), family, fields=request)
        self._words.put(word)
        word.answered.wait()
        if word.error is not None:
            raise word.error
        if word.answer is None:
            raise StoppedUnavailable("the agent is stopping")
        return word.answer

    def _told(self, family: str) -> Line:
        line = self._lines.get(family)
        if line is None:
            raise JournalUnavailable(
                f"the journal of {family!r} does not open", remedy="see the log; it is tried again"
            )
        return line

    def _status(self) -> dict[str, Any]:
        found = of_each(self._config.families, lambda family: self._told(family).status())
        if "families" not in found:
            return found
        return device_status(self._told(self._config.family).status(), found["families"])

    # facts

    def _is_paused(self) -> bool:
        try:
            return self._first.journal.remembered.paused
        except JournalUnavailable as error:
            logger.error("%s", error.message)
            return False


def release_memory() -> None:
    """Give back to the system what an update took: this process then sleeps for an hour."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
