"""The daemon: serves what is active, polls, updates, obeys the control socket.

Rules:
1. One main thread decides and acts; other threads only put words into its queue. It sleeps until one comes or the next
   poll is due: at rest it costs no wake-up.
2. Start: recover, serve what is active, go on with what was armed, then poll. Serving comes first: no network is needed
   to serve what is here.
3. Whatever fails in an update, what serves goes on serving. A process that dies is started again from the store; as
   long as nothing serves that could, it is tried again and again, with growing pauses.
4. A damaged active bundle is not the end: the previous one serves (`degraded`), and the next update heals it.
5. Polls are jittered, so that a fleet does not come at once; after failures they back off.
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
from typing import Any, Final

from bundle.errors import AirweightsError, Bug, Refused, Unavailable, Unfit
from bundle.files import BundleDigest
from device_agent.adapter import AdapterShelf
from device_agent.agent import Agent, collect, with_damaged
from device_agent.attempt import Ended, Outcome
from device_agent.config import Config
from device_agent.control import COMMANDS, ControlServer, Word
from device_agent.device import DeviceDirectory
from device_agent.errands import Errands
from device_agent.errors import (
    JournalUnavailable,
    PausedUnavailable,
    StoppedUnavailable,
    StoreDamagedRefused,
)
from device_agent.facts import device_facts, runtime_version
from device_agent.holdings import Holding
from device_agent.journal import Journal
from device_agent.notify import Notifier
from device_agent.polling import pause_s
from device_agent.prober import Prober
from device_agent.recovery import open_journal, recover
from device_agent.rollback import check_rollback
from device_agent.serving import Served, Serving, when_ended
from device_agent.status import status_of
from device_agent.store import Store
from device_agent.switchboard import Switchboard
from device_agent.tally import Tally
from device_agent.update import run_armed, run_update

logger = logging.getLogger(__name__)

RESTART_PAUSE_S: Final = 1.0
MAX_RESTARTS: Final = 5  # in a row and at once, of a model process that dies soon after its start
MAX_START_PAUSE_S: Final = 300.0
STEADY_S: Final = 60.0


class Supervisor:
    """Made by `run_daemon`.

    Args:
        config: of the device.
        device: its directory, locked by the caller.
        announce: told (event, address): "serving" when the endpoint listens, "started" when what is here serves.
    """

    def __init__(self, config: Config, device: DeviceDirectory, announce: Callable[[str, str], None]) -> None:
        self._config, self._device, self._announce = config, device, announce
        self._words: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._deferred: list[Word] = []
        self._identity = device.public_identity()
        self._store = Store(device.root)
        self._journal = open_journal(device, self._store, lambda: Errands(config, device, self._store))
        self._degraded = self._stopping = self._needs_recovery = False
        self._failures = self._restarts = 0
        self._started_s = 0.0
        self._errands = Errands(config, device, self._store)
        self._notifier = Notifier()
        self._switchboard = Switchboard(config)
        self._watch_front()
        self._serving = Serving(self._switchboard, lambda number: self._words.put(Word("died", generation=number)))
        self._agent = Agent(
            config=config,
            device=device,
            identity=self._identity,
            store=self._store,
            journal=self._journal,
            prober=Prober(config.serve.threads, allow_unjailed=config.allow_unjailed),
            facts=device_facts,
            serving=self._serving,
            signals=self,
            errands=self._send,
        )
        self._tally = Tally(config.family)
        self._tell_metrics()
        self._control = ControlServer(device.control, self._answer)

    def _send(self) -> Errands:
        self._errands = Errands(self._config, self._device, self._store)
        return self._errands

    def run(self) -> None:
        """Until `stop`. Raises Bug."""
        try:
            self._announce("serving", self._switchboard.address)
            self._recover()
            self._serve_active()
            self._guarded(self._go_on)
            self._announce("started", self._switchboard.address)
            self._notifier.tell("READY=1", f"STATUS=serving at {self._switchboard.address}")
            self._notifier.watch(self._switchboard.is_answering)
            self._stock()
            next_poll = time.monotonic()
            while not self._stopping:
                word = self._next(next_poll)
                if word is None:
                    self._poll()
                else:
                    self._obey(word)
                self._stock()
                if word is None or word.command == "update":
                    next_poll = time.monotonic() + pause_s(self._config.update.poll_interval_s, self._failures)
        finally:
            self._stopping = True
            self._notifier.end()
            self._control.close()
            self._dismiss()
            self._switchboard.stop()
            self._serving.stop()
            self._journal.close()

    def stop(self) -> None:
        """Ask the main thread to end; from any thread or a signal handler."""
        self._words.put(Word("stop"))
        # in a thread: a signal handler may have come in the middle of a call to just these children
        threading.Thread(target=self._errands.interrupt, name="stop", daemon=True).start()

    def wait(self, timeout_s: float) -> str | None:
        """Signals of an update in its probation: "rollback" or "stop" end it, all else waits for its end."""
        try:
            word = self._words.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if word.command not in ("rollback", "stop"):
            self._deferred.append(word)
            return None
        if word.command == "stop":
            self._stopping = True
        else:
            self._deferred.append(Word("told", fields={"rollback": word}))
        return word.command

    # the loop

    def _dismiss(self) -> None:
        words = list(self._deferred)
        while not self._words.empty():
            words.append(self._words.get_nowait())
        for word in words:
            word.answered.set()

    def _next(self, next_poll: float) -> Word | None:
        if self._deferred:
            return self._deferred.pop(0)
        release_memory()
        timeout = None
        if self._config.update.automatic and not self._journal_paused():
            timeout = max(0.0, next_poll - time.monotonic())
        overdue = None
        pause_s = min(RESTART_PAUSE_S * 2.0 ** min(self._restarts, 10), MAX_START_PAUSE_S)
        if self._is_down() and (timeout is None or pause_s < timeout):
            timeout, overdue = pause_s, Word("serve")
        try:
            return self._words.get(timeout=timeout)
        except queue.Empty:
            return overdue

    def _obey(self, word: Word) -> None:
        try:
            match word.command:
                case "stop":
                    self._stopping = True
                case "died":
                    self._revive(word.generation)
                case "serve":
                    self._restarts += 1
                    self._serve_active()
                case "front-died":
                    self._revive_front()
                case "told":
                    # the rollback that ended a probation is answered with how that attempt ended
                    word = word.fields["rollback"]
                    word.answer = self._journal.history(1)[0].summary()
                case "update":
                    word.answer = self._update("operator")
                case "rollback":
                    word.answer = self._roll_back()
                case "pause" | "resume":
                    is_paused = word.command == "pause"
                    self._journal.remember(lambda before: replace(before, paused=is_paused))
                    word.answer = {"paused": is_paused}
                case "adapter-attach" | "adapter-detach":
                    word.answer = self._adapter(word)
                case "plan":
                    from device_agent.explanation import explain  # seldom asked for: no memory at rest

                    word.answer = explain(self._agent)
                case "forgive":
                    digest = word.fields.get("bundle")
                    word.answer = {"forgiven": self._journal.forgive(None if digest is None else BundleDigest(digest))}
                case other:
                    raise Bug(f"unknown word {other!r}")
        except (Bug, SystemExit):
            raise
        except AirweightsError as error:
            word.error = error
        finally:
            word.answered.set()

    def _go_on(self) -> None:
        ended = run_armed(self._agent)
        if ended is not None:
            self._count(ended)

    def _count(self, ended: Ended) -> None:
        self._tally.count(ended)
        self._tally.count_probe(self._agent.prober.last)
        self._tell_metrics()

    def _tell_metrics(self) -> None:
        with contextlib.suppress(Unavailable):  # a front that has died is told when it is back
            self._switchboard.front.tell_metrics(self._tally.render())

    def _poll(self) -> None:
        if not self._journal_paused():
            self._guarded(lambda: self._update("poll"))

    def _update(self, trigger: str) -> dict[str, Any]:
        if trigger == "operator" and self._journal_paused():
            raise PausedUnavailable("updates are paused", remedy="`device-agent resume`")
        if self._needs_recovery:
            self._recover()
        try:
            ended = run_update(self._agent, trigger)
        except AirweightsError:
            # nothing was decided that is not recorded: what serves goes on, and the next update begins with recovery
            self._needs_recovery = True
            raise
        finally:
            if self._serving.previous is not None and self._needs_recovery:
                self._serving.restore()
            if self._serving.current is None and not self._stopping:
                # it was stopped to make room, and did not come back
                self._guarded(self._serve_active)
        self._count(ended)
        failed = ended.outcome is Outcome.UNAVAILABLE
        self._failures = self._failures + 1 if failed else 0
        if ended.outcome is Outcome.UPDATED:
            self._degraded = False
        return ended.summary()

    def _recover(self) -> None:
        recover(self._journal, runtime_version())
        self._needs_recovery = False
        collect(self._agent)
        self._align()

    def _align(self) -> None:
        """After a recovery in mid-life: what was committed by it is what serves."""
        active, current = self._journal.holding(self._journal.pointers.active), self._serving.current
        if current is not None and active is not None and current.digest != active.digest and self._start(active):
            self._serving.settle()

    # serving

    def _serve_active(self) -> None:
        pointers = self._journal.pointers
        for role in ("active", "previous"):
            digest = getattr(pointers, role)
            holding = self._journal.holding(digest)
            if holding is None or digest in self._journal.remembered.damaged:
                continue
            if self._start(holding):
                self._serving.settle()
                self._degraded = role == "previous"
                return
        logger.warning("nothing to serve yet")

    def _is_down(self) -> bool:
        current = self._serving.current
        try:
            return (current is None or not current.process.alive()) and self._journal.pointers.active is not None
        except JournalUnavailable:
            return False

    def _stock(self) -> None:
        current = self._serving.current
        if self._config.serve.standby and current is not None and self._serving.needs_spare() and not self._stopping:
            self._guarded(lambda: self._serving.keep_spare(self._load(current.holding)))

    def _load(self, holding: Holding) -> Served:
        with self._send() as errands:
            fds = errands.unseal_to_serve(holding)
        try:
            return self._serving.start(holding, fds)
        finally:
            fds.close()

    def _start(self, holding: Holding) -> bool:
        self._switchboard.warm_up()
        try:
            served = self._load(holding)
        except StoreDamagedRefused as error:
            logger.error("a bundle is damaged: %s", error.message)
            self._journal.remember(with_damaged(holding.digest))
            return False
        except (Refused, Unavailable, Unfit) as error:
            logger.error("release %s does not start: %s", holding.version, error.message)
            return False
        finally:
            self._switchboard.cool_down()
        self._started_s = time.monotonic()
        self._serving.publish(served)
        logger.info(
            "serving", extra={"release": holding.version, "variant": holding.variant, "pid": served.process.pid}
        )
        return True

    def _watch_front(self) -> None:
        pidfd = os.dup(self._switchboard.front.fileno())
        when_ended(pidfd, lambda: self._words.put(Word("front-died")))

    def _revive_front(self) -> None:
        if self._stopping:
            return
        logger.error("the front died, its requests are lost; it is started again")
        self._switchboard.revive()
        self._watch_front()
        self._tell_metrics()

    def _revive(self, generation: int) -> None:
        current = self._serving.current
        if current is None or current.generation != generation or self._stopping:
            return
        self._restarts = 0 if time.monotonic() - self._started_s > STEADY_S else self._restarts + 1
        logger.error("the model process died", extra={"release": current.holding.version, "restarts": self._restarts})
        spare = self._serving.take_spare(current.digest)
        if spare is not None:
            self._serving.publish(spare)
            self._serving.settle()
            return
        if self._restarts > MAX_RESTARTS:
            return
        if self._restarts > 1:
            time.sleep(RESTART_PAUSE_S)
        if self._start(current.holding):
            self._serving.settle()

    def _adapter(self, word: Word) -> dict[str, Any]:
        """Attach or detach; what serves is loaded anew then, beside the old one, as in a swap."""
        from device_agent.adapter_change import change_adapter  # as `explain` above

        change_adapter(self._agent, word.command, word.fields)
        active = self._journal.holding(self._journal.pointers.active)
        current = self._serving.current
        self._serving.drop_spare()  # it was loaded as it was before
        if active is not None and current is not None and current.digest == active.digest and self._start(active):
            self._serving.settle()
        return AdapterShelf(self._device).listed(self._journal.pointers.active)

    def _roll_back(self) -> dict[str, Any]:
        pointers, remembered = self._journal.pointers, self._journal.remembered
        active, previous = self._journal.holding(pointers.active), self._journal.holding(pointers.previous)
        verdict = check_rollback(active, previous, (remembered.floor_epoch, remembered.floor_counter))
        assert active is not None
        assert previous is not None
        served = self._load(previous)
        attempt = self._journal.begin_rollback(active, verdict)
        self._serving.publish(served)
        ended = self._journal.give_back(attempt, runtime_version())
        self._serving.settle()
        self._count(ended)
        collect(self._agent)
        return ended.summary()

    # from other threads

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        command = request.get("command")
        if command == "status":
            return self._status()
        if command == "history":
            return {"history": [row.summary() for row in self._reader(lambda journal: journal.history())]}
        if command == "adapter-list":
            return AdapterShelf(self._device).listed(self._reader(lambda journal: journal.pointers.active))
        if command not in COMMANDS:
            raise Bug(f"unknown command {command!r}")
        word = Word(str(command), fields=request)
        self._words.put(word)
        word.answered.wait()
        if word.error is not None:
            raise word.error
        if word.answer is None:
            raise StoppedUnavailable("the agent is stopping")
        return word.answer

    def _reader(self, read: Callable[[Journal], Any]) -> Any:
        # SQLite connections are not shared between threads
        journal = Journal(self._device.journal, read_only=True)
        try:
            return read(journal)
        finally:
            journal.close()

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._reader(lambda journal: status_of(self._config, self._identity, journal))
        current = self._serving.current
        serving = None
        if current is not None:
            serving = {
                "release": current.holding.version,
                "variant": current.holding.variant,
                "bundle": current.digest,
                "generation": current.generation,
                "pid": current.process.pid,
                "alive": current.process.alive(),
                "resident_bytes": current.process.resident_bytes(),
            }
        return {
            **status,
            "daemon": True,
            "address": self._switchboard.address,
            "serving": serving,
            "ready": serving is not None and serving["alive"],
            "degraded": self._degraded,
            "unjailed": not self._switchboard.is_jailed,
            "swappable": self._switchboard.is_swappable,
        }

    # facts

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Bug:
            raise
        except AirweightsError as error:
            logger.error("%s: %s", error.reason, error.message)

    def _journal_paused(self) -> bool:
        try:
            return self._journal.remembered.paused
        except JournalUnavailable as error:
            logger.error("%s", error.message)
            return False


def release_memory() -> None:
    """Give back to the system what an update took: this process then sleeps for an hour."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
