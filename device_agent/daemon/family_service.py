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
from device_agent.daemon.control_socket import Word
from device_agent.daemon.serving_watchdog import Upkeep
from device_agent.daemon.status import status_of
from device_agent.daemon.update_metrics import Tally
from device_agent.errors import JournalUnavailable
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.attempt import Ended, Outcome
from device_agent.policy.poll_schedule import pause_s
from device_agent.policy.state_machine import State
from device_agent.serving.family_serving import Serving
from device_agent.storage.bundle_store import Store
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.context import Agent, collect
from device_agent.update.probe_client import Prober
from device_agent.update.recovery import open_journal, recover
from device_agent.update.rollback import way_back
from device_agent.update.update import run_armed, run_update
from device_agent.workers.adapter_check import AdapterShelf
from device_agent.workers.worker_pool import Errands

if TYPE_CHECKING:
    from device_agent.daemon.supervisor import Supervisor

logger = logging.getLogger(__name__)


class Line:
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

    def __init__(self, config: Config, host: "Supervisor", first_journal: Journal | None) -> None:
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
        self.upkeep = Upkeep(
            config,
            self.journal,
            self.serving,
            host.switchboard,
            errands=self._errands,
            held_bytes=lambda: sum(line.serving.resident_bytes() for line in host.lines),
            is_stopping=lambda: host.is_stopping,
        )
        self.tally = Tally(self.name)
        self.next_poll = time.monotonic()
        self._needs_recovery = True
        self._failures = 0

    def _errands(self) -> Errands:
        return self._host.errands(self.config, self.device, self._store)

    def begin(self) -> None:
        """Recover, and serve what is here. Raises JournalUnavailable."""
        self._recover()
        self.upkeep.serve_active()

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
                guarded(self.upkeep.serve_active)
        self._count(ended)
        failed = ended.outcome is Outcome.UNAVAILABLE
        self._failures = self._failures + 1 if failed else 0
        if ended.outcome is Outcome.UPDATED:
            self.upkeep.is_degraded = False
        return ended.summary()

    def rest(self) -> None:
        """Until the next poll is due: jittered, and backed off after failures."""
        self.next_poll = time.monotonic() + pause_s(self.config.update.poll_interval_s, self._failures)

    def roll_back(self) -> dict[str, Any]:
        """To the previous release. Raises NothingToRollBack, BelowFloorRefused, Unfit, Refused, Unavailable."""
        active, previous, verdict = way_back(self.journal)
        served = self.upkeep.load(previous)
        attempt = self.journal.begin_rollback(active, verdict)
        self.serving.publish(served)
        ended = self.journal.give_back(attempt, runtime_version())
        self.serving.settle()
        self._count(ended)
        collect(self.agent)
        return ended.summary()

    def explain(self) -> dict[str, Any]:
        """What an update would do. Raises Refused, Unavailable."""
        from device_agent.update.preview import explain  # seldom asked for: no memory at rest

        return explain(self.agent)

    def forgive(self, digest: str | None) -> dict[str, Any]:
        """Clear the quarantine of one bundle, or all of it. Raises JournalUnavailable."""
        return {"forgiven": self.journal.forgive(None if digest is None else BundleDigest(digest))}

    def last_ended(self) -> dict[str, Any]:
        """How the newest attempt ended. Raises JournalUnavailable."""
        return self.journal.history(1)[0].summary()

    def change_adapter(self, command: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Attach or detach; what serves is loaded anew then, beside the old one, as in a swap."""
        from device_agent.update.adapter_change import change_adapter  # as `explain` above

        change_adapter(self.agent, command, fields)
        active, current = self.journal.holding(self.journal.pointers.active), self.serving.current
        self.serving.drop_spare()  # it was loaded as it was before
        if active is not None and current is not None and current.digest == active.digest and self.upkeep.start(active):
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
        active, current = self.upkeep.own(self.journal.pointers.active), self.serving.current
        if current is not None and active is not None and current.digest != active.digest and self.upkeep.start(active):
            self.serving.settle()

    def is_on_probation(self) -> bool:
        """Is a candidate that serves being watched? So it is taken to be where the journal does not tell."""
        try:
            return self.journal.state is State.PROBATION
        except JournalUnavailable:
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
            "degraded": self.upkeep.is_degraded,
            "unjailed": not self._outlet.is_jailed,
            "swappable": self._outlet.is_swappable,
        }


class _Signals:
    def __init__(self, host: "Supervisor", line: Line) -> None:
        self._host, self._line = host, line

    def wait(self, timeout_s: float) -> str | None:
        return self._host.wait(self._line, timeout_s)


class _Neighbours:
    """The other lines (device_agent.update.context.Neighbours)."""

    def __init__(self, host: "Supervisor", line: Line) -> None:
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
