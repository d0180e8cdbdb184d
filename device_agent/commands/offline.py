"""Commands that run while no daemon runs: they hold the device directory's lock and serve nothing.

A bundle that they make active is served when the daemon starts next.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from bundle.files import BundleDigest
from device_agent.apps.client import BorrowedBundle, ServingRelease
from device_agent.config.config import Config
from device_agent.config.families import FamilyResults, check_family, per_family, require_one_family
from device_agent.errors import NothingServed, UpdatesPaused, system_error
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.attempt import UpdateResult
from device_agent.policy.next_vital import ServedCounts
from device_agent.policy.state_machine import State
from device_agent.storage.adapter_store import AdapterStore
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.adapter_change import change_adapter
from device_agent.update.context import UpdateContext
from device_agent.update.preview import Plan, preview_update
from device_agent.update.probe_client import ProbeClient
from device_agent.update.recovery import open_journal, recover_journal
from device_agent.update.report_sender import make_vital, send_lines
from device_agent.update.rollback import prepare_rollback
from device_agent.update.update import run_update
from device_agent.workers.worker_pool import WorkerPool

Progress = Callable[[int, int], None]
T = TypeVar("T")


def update_offline(
    config: Config, family: str | None, progress_bar: Callable[[str], Progress]
) -> FamilyResults[UpdateResult]:
    """Run one update of a family, or of each family.

    A new release is staged; it becomes active when the daemon starts next.

    Args:
        config: the device's configuration.
        family: name of a family, or None for all.
        progress_bar: returns a function of (done bytes, total bytes) that draws a progress bar with a label.

    Raises:
        DeviceLocked: another process uses the device directory.
        UpdatesPaused: updates are paused.
        InvalidUsage: the device does not follow `family`.
        AirweightsError: the update's error, if the command is for one family.
    """

    def update(context: UpdateContext) -> UpdateResult:
        bars = {"fetch": progress_bar("fetch")}
        with_bars = replace(context, on_progress=lambda phase, done, total: bars[phase](done, total))
        return run_update(with_bars, "operator")

    with _open_locked_device(config) as device_journal:
        if device_journal.persistent_state.is_paused:
            raise UpdatesPaused("updates are paused", hint="run `device-agent resume`")
        return _run_per_family(config, family, device_journal, update)


def plan_offline(config: Config, family: str | None) -> FamilyResults[Plan]:
    """Return what an update of a family, or of each family, would do.

    Args:
        config: the device's configuration.
        family: name of a family, or None for all.

    Raises:
        DeviceLocked: another process uses the device directory.
        InvalidUsage: the device does not follow `family`.
        AirweightsError: the check's error, if the command is for one family.
    """
    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, family, device_journal, preview_update)


def send_reports_offline(config: Config, family: str | None) -> FamilyResults[int]:
    """Send the reports and a vital of a family, or of each family; return the number of sent lines.

    Args:
        config: the device's configuration.
        family: name of a family, or None for all.

    Raises:
        DeviceLocked: another process uses the device directory.
        InvalidUsage: the device does not follow `family`.
        AirweightsError: the error, if the command is for one family.
    """
    with _open_locked_device(config) as device_journal:
        is_paused = device_journal.persistent_state.is_paused

        def send(context: UpdateContext) -> int:
            settings = config.reports
            if settings.vital_interval_s:
                make_vital(context, settings.vital_interval_s, ServedCounts(), is_forced=True, is_paused=is_paused)
            with context.open_workers() as workers:
                return send_lines(context.journal, workers, settings.url, context.identity.device_id)

        return _run_per_family(config, family, device_journal, send)


def roll_back_offline(config: Config, family: str | None) -> UpdateResult:
    """Make the previous release active; the daemon serves it when it starts next.

    Args:
        config: the device's configuration.
        family: name of the family; None if the device follows only one.

    Raises:
        DeviceLocked: another process uses the device directory.
        InvalidUsage: `family` is not followed, or is None although the device follows several.
        NothingToRollBack: no previous release is stored.
        BelowRollbackFloor: the previous release is below the rollback floor.
    """

    def roll_back(context: UpdateContext) -> UpdateResult:
        active, _, rejection = prepare_rollback(context.journal)
        attempt = context.journal.begin_rollback(active, rejection)
        return context.journal.finish_rejection(attempt, runtime_version())

    chosen = require_one_family(config.families, family)
    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, chosen, device_journal, roll_back).values()[0]


def adapter_offline(config: Config, family: str | None, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Attach, detach or list the adapter of a family; return the listing.

    Args:
        config: the device's configuration.
        family: name of the family; None if the device follows only one.
        command: "adapter-attach", "adapter-detach" or "adapter-list".
        fields: arguments of "adapter-attach" (device_agent.update.adapter_change).

    Raises:
        DeviceLocked: another process uses the device directory.
        InvalidUsage: `family` is not followed, or is None although the device follows several.
        ConfigInvalid: the adapter file cannot be read.
        AdapterMissing: no adapter is stored, or no release is active.
        AdapterIncompatible: the adapter does not fit the active release.
    """

    def change(context: UpdateContext) -> dict[str, Any]:
        if command != "adapter-list":
            change_adapter(context, command, fields)
        return AdapterStore(context.device).as_listing(context.journal.pointers.active)

    chosen = require_one_family(config.families, family)
    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, chosen, device_journal, change).values()[0]


def borrow_offline(config: Config, family: str, paths: Sequence[str] | None) -> BorrowedBundle:
    """Return files of the active release of a family, unsealed from the store.

    Args:
        config: the device's configuration.
        family: name of the family.
        paths: paths of the wanted files, all if empty; None lists the files without unsealing any.

    Raises:
        DeviceLocked: another process uses the device directory.
        NothingServed: no release is active.
        StoreDamaged: the sealed bundle is missing or damaged.
    """

    def borrow(context: UpdateContext) -> BorrowedBundle:
        bundle = context.journal.bundle(context.journal.pointers.active)
        if bundle is None:
            raise NothingServed(f"family {family!r} has no active release", hint="run `device-agent update` first")
        found = bundle.parse_manifest()[1].files
        release = ServingRelease(bundle.family, bundle.version, bundle.variant, bundle.digest, 0)
        if paths is None:
            return BorrowedBundle(release, found, {})
        wanted = [file for file in found if not paths or file.path in paths]
        with context.open_workers() as workers:
            return BorrowedBundle(release, wanted, workers.patcher.unseal_files(bundle, [file.path for file in wanted]))

    with _open_locked_device(config) as device_journal:
        return _run_per_family(config, family, device_journal, borrow).values()[0]


def set_paused_offline(config: Config, *, is_paused: bool) -> dict[str, Any]:
    """Store in the first family's journal whether updates of all families are paused.

    Args:
        config: the device's configuration.
        is_paused: True to pause, False to resume.

    Raises:
        DeviceLocked: another process uses the device directory.
    """
    with _open_locked_device(config) as device_journal:
        device_journal.update_persistent_state(lambda before: replace(before, is_paused=is_paused))
    return {"paused": is_paused}


def clear_quarantine_offline(config: Config, family: str | None, digest: str | None) -> dict[str, Any]:
    """Remove one bundle or all bundles from quarantine; return {"cleared": number of removed rows}.

    Args:
        config: the device's configuration.
        family: name of a family, or None for all.
        digest: digest of one bundle, or None for all bundles.

    Raises:
        DeviceLocked: another process uses the device directory.
        InvalidUsage: the device does not follow `family`.
    """

    def clear(context: UpdateContext) -> int:
        return context.journal.clear_quarantine(None if digest is None else BundleDigest(digest))

    with _open_locked_device(config) as device_journal:
        return {"cleared": sum(_run_per_family(config, family, device_journal, clear).values())}


def _run_per_family(
    config: Config, family: str | None, device_journal: Journal, action: Callable[[UpdateContext], T]
) -> FamilyResults[T]:
    check_family(config.families, family)
    checked_sources: dict[str, float] = {}
    by_family = {one.family: one for one in config.family_configs() if family in (None, one.family)}

    def run_one(family: str) -> T:
        one = by_family[family]
        if one.family_directory is None:
            return action(_create_context(one, device_journal, None, checked_sources))
        with _open_journal(one) as journal:
            return action(_create_context(one, journal, device_journal, checked_sources))

    return per_family(by_family, run_one)


def _create_context(
    config: Config, journal: Journal, first_journal: Journal | None, checked_sources: dict[str, float]
) -> UpdateContext:
    device = DeviceDirectory.for_family(config)
    store = BundleStore(device.family_directory)
    return UpdateContext(
        config=config,
        device=device,
        identity=device.read_public_identity(),
        store=store,
        journal=journal,
        probe_client=ProbeClient(config.serve, allow_unjailed=config.allow_unjailed),
        read_facts=device_facts,
        open_workers=lambda: WorkerPool(config, device, store, checked_sources=checked_sources),
        first_journal=first_journal,
    )


@contextmanager
def _open_locked_device(config: Config) -> Iterator[Journal]:
    """Lock the device and open the first family's journal for writing, recovered. Raises DeviceLocked."""
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    with device.acquire_lock(), _open_journal(config.family_configs()[0]) as journal:
        yield journal


@contextmanager
def _open_journal(config: Config) -> Iterator[Journal]:
    """Open a family's journal for writing, recovered."""
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
