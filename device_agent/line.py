"""One family of a device: what it holds, what serves of it, and its updates.

Rules:
1. Called by the supervisor's main thread; `status` and `read` by any.
2. Whatever fails in an update, what serves goes on serving. A process that dies is started again from the store; as
   long as nothing serves that could, it is tried again and again, with growing pauses.
3. A damaged active bundle is not the end: the previous one serves (`degraded`), and the next update heals it.
4. Nothing here stops what another family serves: only their standbys make room (device_agent.trial).
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from bundle.errors import AirweightsError, Bug, Refused, Unavailable, Unfit
from bundle.files import BundleDigest
from device_agent.adapter import AdapterShelf
from device_agent.agent import Agent, collect, with_damaged
from device_agent.attempt import Ended, Outcome
from device_agent.config import Config
from device_agent.control import Word
from device_agent.device import DeviceDirectory, PublicIdentity
from device_agent.errands import Errands
from device_agent.errors import JournalUnavailable, StoreDamagedRefused
from device_agent.facts import device_facts, runtime_version
from device_agent.holdings import Holding
from device_agent.journal import Journal
from device_agent.machine import State
from device_agent.polling import pause_s
from device_agent.prober import Prober
from device_agent.recovery import open_journal, recover
from device_agent.rollback import check_rollback
from device_agent.serving import Served, Serving
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


class Host(Protocol):
    """What a line needs of the supervisor."""

    identity: PublicIdentity
    switchboard: Switchboard
    is_stopping: bool

    @property
    def lines(self) -> "Iterable[Line]":
        """All that are open."""
        ...

    def put(self, word: Word) -> None:
        """Into the main thread's queue; from any thread."""
        ...

    def errands(
        self, config: Config, device: DeviceDirectory, store: Store, on_idle: Callable[[], None] | None = None
    ) -> Errands:
        """Children that end when the daemon is asked to."""
        ...

    def attend(self, busy: "Line | None" = None) -> None:
        """What can not wait for the end of an update of `busy`: processes that died, a rollback of another family."""
        ...

    def wait(self, line: "Line", timeout_s: float) -> str | None:
        """Signals of an update of `line` in its probation (device_agent.agent.Signals)."""
        ...


class Line:
    """Made by the supervisor.

    Args:
        config: of the family.
        host: the supervisor.
        first_journal: of the device's first family; None for that one itself.

    Attributes:
        name: of the family.
        next_poll: when it is due, by the monotonic clock.
        next_start: when what is down is tried again, or None.

    Raises:
        JournalUnavailable, SystemUnavailable.
    """

    def __init__(self, config: Config, host: Host, first_journal: Journal | None) -> None:
        self.name, self.config, self._host = config.family, config, host
        self.device = DeviceDirectory.of(config)
        self.device.make_place()
        self._store = Store(self.device.place)
        self.journal = open_journal(self.device, self._store, self._errands)
        self._outlet = host.switchboard.outlet(self.name)
        self.serving = Serving(self._outlet, lambda number: host.put(Word("died", generation=number, family=self.name)))
        self.agent = Agent(
            config=config,
            device=self.device,
            identity=host.identity,
            store=self._store,
            journal=self.journal,
            prober=Prober(config.serve.threads, allow_unjailed=config.allow_unjailed),
            facts=device_facts,
            errands=lambda: host.errands(config, self.device, self._store, lambda: host.attend(self)),
            serving=self.serving,
            signals=_Signals(host, self),
            first_journal=first_journal,
            neighbours=_Neighbours(host, self),
        )
        self.tally = Tally(self.name)
        self.next_poll = time.monotonic()
        self.next_start: float | None = None
        self._is_degraded = False
        self._needs_recovery = True
        self._failures = self._restarts = 0
        self._started_s = 0.0

    def _errands(self) -> Errands:
        return self._host.errands(self.config, self.device, self._store)

    def begin(self) -> None:
        """Recover, and serve what is here. Raises JournalUnavailable."""
        self._recover()
        self.serve_active()

    def close(self) -> None:
        """Stop what serves, release the journal."""
        self.serving.stop()
        self.journal.close()

    # updates

    def go_on(self) -> None:
        """With what was armed while no daemon ran. Raises as `update`."""
        ended = run_armed(self.agent)
        if ended is not None:
            self._count(ended)

    def update(self, trigger: str) -> dict[str, Any]:
        """One update; how it ended. Raises Unavailable, Bug."""
        if self._needs_recovery:
            self._recover()
        try:
            ended = run_update(self.agent, trigger)
        except AirweightsError:
            # nothing was decided that is not recorded: what serves goes on, and the next update begins with recovery
            self._needs_recovery = True
            raise
        finally:
            if self.serving.previous is not None and self._needs_recovery:
                self.serving.restore()
            if self.serving.current is None and not self._host.is_stopping:
                # it was stopped to make room, and did not come back
                guarded(self.serve_active)
        self._count(ended)
        failed = ended.outcome is Outcome.UNAVAILABLE
        self._failures = self._failures + 1 if failed else 0
        if ended.outcome is Outcome.UPDATED:
            self._is_degraded = False
        return ended.summary()

    def rest(self) -> None:
        """Until the next poll is due: jittered, and backed off after failures."""
        self.next_poll = time.monotonic() + pause_s(self.config.update.poll_interval_s, self._failures)

    def roll_back(self) -> dict[str, Any]:
        """To the previous release. Raises NothingToRollBack, BelowFloorRefused, Unfit, Refused, Unavailable."""
        pointers, remembered = self.journal.pointers, self.journal.remembered
        active, previous = self.journal.holding(pointers.active), self.journal.holding(pointers.previous)
        verdict = check_rollback(active, previous, (remembered.floor_epoch, remembered.floor_counter))
        assert active is not None
        assert previous is not None
        served = self._load(previous)
        attempt = self.journal.begin_rollback(active, verdict)
        self.serving.publish(served)
        ended = self.journal.give_back(attempt, runtime_version())
        self.serving.settle()
        self._count(ended)
        collect(self.agent)
        return ended.summary()

    def explain(self) -> dict[str, Any]:
        """What an update would do. Raises Refused, Unavailable."""
        from device_agent.explanation import explain  # seldom asked for: no memory at rest

        return explain(self.agent)

    def forgive(self, digest: str | None) -> dict[str, Any]:
        """Clear the quarantine of one bundle, or all of it. Raises JournalUnavailable."""
        return {"forgiven": self.journal.forgive(None if digest is None else BundleDigest(digest))}

    def last_ended(self) -> dict[str, Any]:
        """How the newest attempt ended. Raises JournalUnavailable."""
        return self.journal.history(1)[0].summary()

    def change_adapter(self, command: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Attach or detach; what serves is loaded anew then, beside the old one, as in a swap."""
        from device_agent.adapter_change import change_adapter  # as `explain` above

        change_adapter(self.agent, command, fields)
        active, current = self.journal.holding(self.journal.pointers.active), self.serving.current
        self.serving.drop_spare()  # it was loaded as it was before
        if active is not None and current is not None and current.digest == active.digest and self._start(active):
            self.serving.settle()
        return AdapterShelf(self.device).listed(self.journal.pointers.active)

    def _count(self, ended: Ended) -> None:
        self.tally.count(ended)
        self.tally.count_probe(self.agent.prober.last)

    def _recover(self) -> None:
        recover(self.journal, runtime_version())
        self._needs_recovery = False
        collect(self.agent)
        self._align()

    def _align(self) -> None:
        """After a recovery in mid-life: what was committed by it is what serves."""
        active, current = self._own(self.journal.pointers.active), self.serving.current
        if current is not None and active is not None and current.digest != active.digest and self._start(active):
            self.serving.settle()

    def is_on_probation(self) -> bool:
        """Is a candidate that serves being watched? Raises JournalUnavailable."""
        return self.journal.state is State.PROBATION

    # serving

    def serve_active(self) -> None:
        """What the journal names, the previous release where the active one is damaged. Raises JournalUnavailable."""
        pointers, damaged = self.journal.pointers, self.journal.remembered.damaged
        for digest in (pointers.active, pointers.previous):
            holding = self._own(digest)
            if holding is not None and digest not in damaged and self._start(holding):
                self.serving.settle()
                self._is_degraded = digest != pointers.active
                return
        logger.warning("nothing to serve yet", extra={"family": self.name})

    def _own(self, digest: BundleDigest | None) -> Holding | None:
        # the configuration may have given this place to another family: its model would answer under a wrong name
        holding = self.journal.holding(digest)
        return holding if holding is not None and holding.family == self.name else None

    def serve_again(self) -> None:
        """What is down, after its pause. Raises JournalUnavailable."""
        self._restarts += 1
        self.next_start = None
        self.serve_active()

    def look(self) -> None:
        """Set `next_start` where something should serve and does not."""
        if not self._is_down():
            self.next_start = None
        elif self.next_start is None:
            self.next_start = time.monotonic() + min(
                RESTART_PAUSE_S * 2.0 ** min(self._restarts, 10), MAX_START_PAUSE_S
            )

    def _is_down(self) -> bool:
        current = self.serving.current
        try:
            return (current is None or not current.process.alive()) and self._own(
                self.journal.pointers.active
            ) is not None
        except JournalUnavailable:
            return False

    def revive(self, generation: int) -> None:
        """A process that served has died: the standby takes over, or another is started. Raises JournalUnavailable."""
        current = self.serving.current
        if current is None or current.generation != generation or self._host.is_stopping:
            return
        self._restarts = 0 if time.monotonic() - self._started_s > STEADY_S else self._restarts + 1
        fields = {"family": self.name, "release": current.holding.version, "restarts": self._restarts}
        logger.error("the model process died", extra=fields)
        spare = self.serving.take_spare(current.digest)
        if spare is not None:
            self.serving.publish(spare)
            self.serving.settle()
            return
        if self._restarts > MAX_RESTARTS:
            return
        if self._restarts > 1:
            time.sleep(RESTART_PAUSE_S)
        if self._start(current.holding):
            self.serving.settle()

    def stock(self) -> None:
        """Hold a standby, where the settings ask for one and the budget has room for it."""
        current = self.serving.current
        if self.config.serve.standby and current is not None and self.serving.needs_spare() and self._has_room(current):
            self.serving.keep_spare(self._load(current.holding))

    def _has_room(self, current: Served) -> bool:
        budget_bytes = self.config.serve.memory_bytes
        held_bytes = sum(line.serving.resident_bytes() for line in self._host.lines)
        return budget_bytes is None or held_bytes + current.process.resident_bytes() <= budget_bytes

    def _load(self, holding: Holding) -> Served:
        with self._errands() as errands:
            fds = errands.unseal_to_serve(holding)
        try:
            return self.serving.start(holding, fds)
        finally:
            fds.close()

    def _start(self, holding: Holding) -> bool:
        switchboard = self._host.switchboard
        switchboard.warm_up()
        try:
            served = self._load(holding)
        except StoreDamagedRefused as error:
            logger.error("a bundle is damaged: %s", error.message, extra={"family": self.name})
            self.journal.remember(with_damaged(holding.digest))
            return False
        except (Refused, Unavailable, Unfit) as error:
            logger.error("release %s does not start: %s", holding.version, error.message, extra={"family": self.name})
            return False
        finally:
            switchboard.cool_down()
        self._started_s = time.monotonic()
        self.serving.publish(served)
        fields = {"release": holding.version, "variant": holding.variant, "pid": served.process.pid}
        logger.info("serving", extra={"family": self.name, **fields})
        return True

    # from other threads

    def read(self, look: Callable[[Journal], Any]) -> Any:
        """Something of the journal: SQLite connections are not shared between threads. Raises JournalUnavailable."""
        return _read(self.device, look)

    def adapters(self) -> dict[str, Any]:
        """For `adapter list`. Raises JournalUnavailable."""
        return AdapterShelf(self.device).listed(self.read(lambda journal: journal.pointers.active))

    def history(self) -> dict[str, Any]:
        """For `history`. Raises JournalUnavailable."""
        return {"history": [row.summary() for row in self.read(lambda journal: journal.history())]}

    def status(self) -> dict[str, Any]:
        """For `status`. Raises JournalUnavailable."""
        of_device = None
        if self.agent.first_journal is not None:
            first = DeviceDirectory(self.config.directory)
            of_device = _read(first, lambda journal: (journal.remembered, journal.witness))
        told: dict[str, Any] = self.read(
            lambda journal: status_of(self.config, self._host.identity, journal, of_device=of_device)
        )
        current = self.serving.current
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
            **told,
            "daemon": True,
            "address": self._host.switchboard.address,
            "serving": serving,
            "ready": serving is not None and serving["alive"],
            "degraded": self._is_degraded,
            "unjailed": not self._outlet.is_jailed,
            "swappable": self._outlet.is_swappable,
        }


class _Signals:
    def __init__(self, host: Host, line: Line) -> None:
        self._host, self._line = host, line

    def wait(self, timeout_s: float) -> str | None:
        return self._host.wait(self._line, timeout_s)


class _Neighbours:
    """The other lines (device_agent.agent.Neighbours)."""

    def __init__(self, host: Host, line: Line) -> None:
        self._host, self._line = host, line

    def resident_bytes(self) -> int:
        return sum(serving.resident_bytes() for serving in self._others())

    def are_serving(self) -> bool:
        return any(serving.current is not None for serving in self._others())

    def drop_spares(self) -> bool:
        held = [serving for serving in self._others() if serving.spare is not None]
        for serving in held:
            serving.drop_spare()
        return bool(held)

    def _others(self) -> list[Serving]:
        return [line.serving for line in self._host.lines if line is not self._line]


def guarded(act: Callable[[], object]) -> None:
    """Do something whose failure is told in the log, and stops nothing else. Raises Bug."""
    try:
        act()
    except Bug:
        raise
    except AirweightsError as error:
        logger.error("%s: %s", error.reason, error.message)


def _read(device: DeviceDirectory, look: Callable[[Journal], Any]) -> Any:
    journal = Journal(device.journal, read_only=True)
    try:
        return look(journal)
    finally:
        journal.close()
