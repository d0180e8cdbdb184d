"""What the command line does itself where no daemon runs: under the directory's lock, and serving nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bundle.files import BundleDigest
from device_agent.config.config import Config
from device_agent.config.families import check_family, of_each, one_family, total_forgiven
from device_agent.errors import PausedUnavailable, system_error
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.state_machine import State
from device_agent.storage.bundle_store import Store
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.adapter_change import change_adapter
from device_agent.update.context import Agent
from device_agent.update.preview import explain
from device_agent.update.probe_client import Prober
from device_agent.update.recovery import open_journal, recover
from device_agent.update.rollback import way_back
from device_agent.update.update import run_update
from device_agent.workers.adapter_check import AdapterShelf
from device_agent.workers.worker_pool import Errands

Progress = Callable[[int, int], None]


def update_once(config: Config, family: str | None, progress_bar: Callable[[str], Progress]) -> dict[str, Any]:
    """One update of a family, or of each; a new release is armed for the next start. Raises BusyUnavailable,
    PausedUnavailable, UsageInvalid, Bug; with one family what its update raises."""

    def update(agent: Agent) -> dict[str, Any]:
        bars = {"fetch": progress_bar("fetch")}
        telling = replace(agent, progress=lambda phase, done, total: bars[phase](done, total))
        return run_update(telling, "operator").summary()

    with _device(config) as device_journal:
        if device_journal.remembered.paused:
            raise PausedUnavailable("updates are paused", remedy="`device-agent resume`")
        return _of_each(config, family, device_journal, update)


def explain_once(config: Config, family: str | None) -> dict[str, Any]:
    """What an update would do. Raises BusyUnavailable, Refused, Unavailable, UsageInvalid."""
    with _device(config) as device_journal:
        return _of_each(config, family, device_journal, explain)


def roll_back_once(config: Config, family: str | None) -> dict[str, Any]:
    """Move the pointers; the next start serves the previous release. Raises NothingToRollBack, BelowFloorRefused,
    UsageInvalid."""

    def roll_back(agent: Agent) -> dict[str, Any]:
        active, _, verdict = way_back(agent.journal)
        return agent.journal.give_back(agent.journal.begin_rollback(active, verdict), runtime_version()).summary()

    chosen = one_family(config.families, family)
    with _device(config) as device_journal:
        return _of_each(config, chosen, device_journal, roll_back)


def adapter_once(config: Config, family: str | None, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Attach, detach or list; the next start serves with it. Raises AdapterUnfit, NoAdapter, ConfigInvalid,
    UsageInvalid."""

    def change(agent: Agent) -> dict[str, Any]:
        if command != "adapter-list":
            change_adapter(agent, command, fields)
        return AdapterShelf(agent.device).listed(agent.journal.pointers.active)

    chosen = one_family(config.families, family)
    with _device(config) as device_journal:
        return _of_each(config, chosen, device_journal, change)


def set_paused(config: Config, *, is_paused: bool) -> dict[str, Any]:
    """Remember it for the next start; for all families."""
    with _device(config) as device_journal:
        device_journal.remember(lambda before: replace(before, paused=is_paused))
    return {"paused": is_paused}


def forgive_once(config: Config, family: str | None, digest: str | None) -> dict[str, Any]:
    """Clear the quarantine of one bundle, or all of it. Raises UsageInvalid."""

    def forgive(agent: Agent) -> dict[str, Any]:
        return {"forgiven": agent.journal.forgive(None if digest is None else BundleDigest(digest))}

    with _device(config) as device_journal:
        return total_forgiven(_of_each(config, family, device_journal, forgive))


def _of_each(
    config: Config, family: str | None, device_journal: Journal, act: Callable[[Agent], dict[str, Any]]
) -> dict[str, Any]:
    check_family(config.families, family)
    by_family = {one.family: one for one in config.by_family() if family in (None, one.family)}

    def of_family(family: str) -> dict[str, Any]:
        one = by_family[family]
        if one.place is None:
            return act(_agent(one, device_journal, None))
        with _journal(one) as journal:
            return act(_agent(one, journal, device_journal))

    return of_each(by_family, of_family)


def _agent(config: Config, journal: Journal, first_journal: Journal | None) -> Agent:
    device = DeviceDirectory.of(config)
    store = Store(device.place)
    return Agent(
        config=config,
        device=device,
        identity=device.public_identity(),
        store=store,
        journal=journal,
        prober=Prober(config.serve.threads, allow_unjailed=config.allow_unjailed),
        facts=device_facts,
        errands=lambda: Errands(config, device, store),
        first_journal=first_journal,
    )


@contextmanager
def _device(config: Config) -> Iterator[Journal]:
    """The device's lock, and the first family's journal for writing, recovered. Raises BusyUnavailable."""
    device = DeviceDirectory(config.directory)
    device.check_initialised()
    with device.locked(), _journal(config.by_family()[0]) as journal:
        yield journal


@contextmanager
def _journal(config: Config) -> Iterator[Journal]:
    """A family's journal for writing, recovered."""
    device = DeviceDirectory.of(config)
    try:
        device.make_place()
        store = Store(device.place)
    except OSError as error:
        raise system_error(error) from error
    journal = open_journal(device, store, lambda: Errands(config, device, store))
    try:
        if journal.state is not State.IDLE:
            recover(journal, runtime_version())
        yield journal
    finally:
        journal.close()
