"""What the command line does itself where no daemon runs: under the directory's lock, and serving nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bundle.files import BundleDigest
from device_agent.config.config import Config
from device_agent.config.families import check_family, per_family, require_one_family, total_cleared
from device_agent.errors import UpdatesPaused, system_error
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.state_machine import State
from device_agent.storage.adapter_store import AdapterStore
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.adapter_change import change_adapter
from device_agent.update.context import UpdateContext
from device_agent.update.preview import preview_update
from device_agent.update.probe_client import ProbeClient
from device_agent.update.recovery import open_journal, recover_journal
from device_agent.update.rollback import prepare_rollback
from device_agent.update.update import run_update
from device_agent.workers.worker_pool import WorkerPool

Progress = Callable[[int, int], None]


def update_offline(config: Config, family: str | None, progress_bar: Callable[[str], Progress]) -> dict[str, Any]:
    """One update of a family, or of each; a new release is armed for the next start. Raises BusyUnavailable,
    PausedUnavailable, UsageInvalid, Bug; with one family what its update raises."""

    def update(agent: UpdateContext) -> dict[str, Any]:
        bars = {"fetch": progress_bar("fetch")}
        telling = replace(agent, on_progress=lambda phase, done, total: bars[phase](done, total))
        return run_update(telling, "operator").as_json()

    with _open_locked_device(config) as device_journal:
        if device_journal.persistent_state.is_paused:
            raise UpdatesPaused("updates are paused", hint="`device-agent resume`")
        return _run_per_family(config, family, device_journal, update)


def plan_offline(config: Config, family: str | None) -> dict[str, Any]:
    """What an update would do. Raises BusyUnavailable, Refused, Unavailable, UsageInvalid."""
    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, family, device_journal, preview_update)


def roll_back_offline(config: Config, family: str | None) -> dict[str, Any]:
    """Move the pointers; the next start serves the previous release. Raises NothingToRollBack, BelowFloorRefused,
    UsageInvalid."""

    def roll_back(agent: UpdateContext) -> dict[str, Any]:
        active, _, verdict = prepare_rollback(agent.journal)
        return agent.journal.finish_rejection(
            agent.journal.begin_rollback(active, verdict), runtime_version()
        ).as_json()

    chosen = require_one_family(config.families, family)
    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, chosen, device_journal, roll_back)


def adapter_offline(config: Config, family: str | None, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Attach, detach or list; the next start serves with it. Raises AdapterUnfit, NoAdapter, ConfigInvalid,
    UsageInvalid."""

    def change(agent: UpdateContext) -> dict[str, Any]:
        if command != "adapter-list":
            change_adapter(agent, command, fields)
        return AdapterStore(agent.device).as_listing(agent.journal.pointers.active)

    chosen = require_one_family(config.families, family)
    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, chosen, device_journal, change)


def set_paused_offline(config: Config, *, is_paused: bool) -> dict[str, Any]:
    """Remember it for the next start; for all families."""
    with _open_locked_device(config) as device_journal:
        device_journal.update_persistent_state(lambda before: replace(before, is_paused=is_paused))
    return {"paused": is_paused}


def clear_quarantine_offline(config: Config, family: str | None, digest: str | None) -> dict[str, Any]:
    """Clear the quarantine of one bundle, or all of it. Raises UsageInvalid."""

    def forgive(agent: UpdateContext) -> dict[str, Any]:
        return {"forgiven": agent.journal.clear_quarantine(None if digest is None else BundleDigest(digest))}

    with _open_locked_device(config) as device_journal:
        return total_cleared(_run_per_family(config, family, device_journal, forgive))


def _run_per_family(
    config: Config, family: str | None, device_journal: Journal, act: Callable[[UpdateContext], dict[str, Any]]
) -> dict[str, Any]:
    check_family(config.families, family)
    by_family = {one.family: one for one in config.family_configs() if family in (None, one.family)}

    def of_family(family: str) -> dict[str, Any]:
        one = by_family[family]
        if one.family_directory is None:
            return act(_create_context(one, device_journal, None))
        with _open_journal(one) as journal:
            return act(_create_context(one, journal, device_journal))

    return per_family(by_family, of_family)


def _create_context(config: Config, journal: Journal, first_journal: Journal | None) -> UpdateContext:
    device = DeviceDirectory.for_family(config)
    store = BundleStore(device.family_directory)
    return UpdateContext(
        config=config,
        device=device,
        identity=device.read_public_identity(),
        store=store,
        journal=journal,
        probe_client=ProbeClient(config.serve.threads, allow_unjailed=config.allow_unjailed),
        read_facts=device_facts,
        open_workers=lambda: WorkerPool(config, device, store),
        first_journal=first_journal,
    )


@contextmanager
def _open_locked_device(config: Config) -> Iterator[Journal]:
    """The device's lock, and the first family's journal for writing, recovered. Raises BusyUnavailable."""
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    with device.acquire_lock(), _open_journal(config.family_configs()[0]) as journal:
        yield journal


@contextmanager
def _open_journal(config: Config) -> Iterator[Journal]:
    """A family's journal for writing, recovered."""
    device = DeviceDirectory.for_family(config)
    try:
        device.create_family_directory()
        store = BundleStore(device.family_directory)
    except OSError as error:
        raise system_error(error) from error
    journal = open_journal(device, store, lambda: WorkerPool(config, device, store))
    try:
        if journal.state is not State.IDLE:
            recover_journal(journal, runtime_version())
        yield journal
    finally:
        journal.close()
