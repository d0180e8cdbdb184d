"""What the command line does itself where no daemon runs: under the directory's lock, and serving nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bundle.files import BundleDigest
from device_agent.adapter import AdapterShelf
from device_agent.adapter_change import change_adapter
from device_agent.agent import Agent
from device_agent.config import Config
from device_agent.device import DeviceDirectory
from device_agent.errands import Errands
from device_agent.errors import PausedUnavailable
from device_agent.explanation import explain
from device_agent.facts import device_facts, runtime_version
from device_agent.journal import Journal
from device_agent.machine import State
from device_agent.prober import Prober
from device_agent.recovery import open_journal, recover
from device_agent.rollback import check_rollback
from device_agent.store import Store
from device_agent.update import run_update

Progress = Callable[[int, int], None]


def update_once(config: Config, progress_bar: Callable[[str], Progress]) -> dict[str, Any]:
    """One update; a new release is armed for the next start. Raises BusyUnavailable, PausedUnavailable, Bug."""
    with _journal(config) as journal:
        if journal.remembered.paused:
            raise PausedUnavailable("updates are paused", remedy="`device-agent resume`")
        bars = {"fetch": progress_bar("fetch")}
        agent = _agent(config, journal, lambda phase, done, total: bars[phase](done, total))
        return run_update(agent, "operator").summary()


def explain_once(config: Config) -> dict[str, Any]:
    """What an update would do. Raises BusyUnavailable, Refused, Unavailable."""
    with _journal(config) as journal:
        return explain(_agent(config, journal))


def roll_back_once(config: Config) -> dict[str, Any]:
    """Move the pointers; the next start serves the previous release. Raises NothingToRollBack, BelowFloorRefused."""
    with _journal(config) as journal:
        pointers, remembered = journal.pointers, journal.remembered
        active = journal.holding(pointers.active)
        floor = (remembered.floor_epoch, remembered.floor_counter)
        verdict = check_rollback(active, journal.holding(pointers.previous), floor)
        assert active is not None
        return journal.give_back(journal.begin_rollback(active, verdict), runtime_version()).summary()


def adapter_once(config: Config, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Attach, detach or list; the next start serves with it. Raises AdapterUnfit, NoAdapter, ConfigInvalid."""
    with _journal(config) as journal:
        if command != "adapter-list":
            change_adapter(_agent(config, journal), command, fields)
        return AdapterShelf(DeviceDirectory(config.directory)).listed(journal.pointers.active)


def set_paused(config: Config, *, is_paused: bool) -> dict[str, Any]:
    """Remember it for the next start."""
    with _journal(config) as journal:
        journal.remember(lambda before: replace(before, paused=is_paused))
    return {"paused": is_paused}


def forgive_once(config: Config, digest: str | None) -> dict[str, Any]:
    """Clear the quarantine of one bundle, or all of it."""
    with _journal(config) as journal:
        return {"forgiven": journal.forgive(None if digest is None else BundleDigest(digest))}


def _agent(
    config: Config, journal: Journal, progress: Callable[[str, int, int], None] = lambda _phase, _done, _total: None
) -> Agent:
    device = DeviceDirectory(config.directory)
    store = Store(device.root)
    return Agent(
        config=config,
        device=device,
        identity=device.public_identity(),
        store=store,
        journal=journal,
        prober=Prober(config.serve.threads, allow_unjailed=config.allow_unjailed),
        facts=device_facts,
        errands=lambda: Errands(config, device, store),
        progress=progress,
    )


@contextmanager
def _journal(config: Config) -> Iterator[Journal]:
    """The journal for writing, recovered."""
    device = DeviceDirectory(config.directory)
    device.check_initialised()
    with device.locked():
        store = Store(device.root)
        journal = open_journal(device, store, lambda: Errands(config, device, store))
        try:
            if journal.state is not State.IDLE:
                recover(journal, runtime_version())
            yield journal
        finally:
            journal.close()
