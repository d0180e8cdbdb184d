"""Read status and history from the journals; the daemon adds the state of its processes."""

from device_agent.config.config import Config
from device_agent.config.families import FamilyResults, check_family, per_family
from device_agent.host.system_clock import clock_facts
from device_agent.policy.journal_records import BundleRecord, PersistentState, TpmCounterRecord
from device_agent.policy.status_report import BundleStatus, FamilyStatus, StatusReport
from device_agent.policy.update_history import UpdateHistory
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal, open_for_reading
from device_agent.storage.machine import is_copied


def family_status(
    config: Config,
    identity: PublicIdentity,
    journal: Journal,
    *,
    device_records: tuple[PersistentState, TpmCounterRecord] | None = None,
) -> FamilyStatus:
    """Return the status of one family, without the daemon's part.

    Args:
        config: configuration of the family.
        identity: public identity of the device.
        journal: the family's journal.
        device_records: the records of the first family's journal that are for the whole device (pause flag, TPM
            counter); None if `journal` is that journal.

    Raises:
        JournalUnreadable: the journal cannot be read.
    """
    pointers, persistent, clock = journal.pointers, journal.persistent_state, clock_facts()
    device_state, tpm_counter = device_records or (persistent, journal.tpm_counter)
    now_ms = int(clock["now_s"]) * 1000
    expires_ms, history = persistent.metadata_expires_ms, journal.history(1)
    return FamilyStatus(
        device_id=identity.device_id,
        label=identity.label,
        family=config.family,
        channel=config.channel,
        cohort=config.cohort,
        directory=str(config.directory),
        key_storage=config.key_storage.partition(":")[0],
        is_rollback_floor_unproven=tpm_counter.is_unproven,
        state=journal.state.value,
        active=_bundle_status(journal.bundle(pointers.active)),
        previous=_bundle_status(journal.bundle(pointers.previous)),
        candidate=_bundle_status(journal.bundle(pointers.candidate)),
        is_paused=device_state.is_paused,
        floor_epoch=persistent.floor_epoch,
        floor_counter=persistent.floor_counter,
        offered_release=persistent.offered_release,
        checked_ms=persistent.checked_ms or None,
        metadata_expires_ms=expires_ms or None,
        stale_since_ms=expires_ms if 0 < expires_ms < now_ms else None,
        last_error=persistent.last_error or None,
        is_identity_copied=is_copied(DeviceDirectory(config.directory), identity.device_id),
        is_clock_synchronized=bool(clock["is_synchronized"]),
        # a clock behind the time of a successful check has been set back
        is_clock_suspect=not clock["is_synchronized"] or now_ms < persistent.checked_ms,
        damaged_bundles=tuple(persistent.damaged_bundles),
        quarantine=journal.quarantine_records(),
        last_update=history[0] if history else None,
    )


def status_report(results: FamilyResults[FamilyStatus]) -> StatusReport:
    """Combine the statuses of all families.

    Raises:
        AirweightsError: the error of the first family, whose journal has the records of the device.
    """
    (_, first), *further = results.rows
    if not isinstance(first, FamilyStatus):
        raise first
    return StatusReport(first, tuple(further))


def read_status(config: Config) -> StatusReport:
    """Read the status of all families without a daemon.

    Raises:
        JournalUnreadable: the journal of the first family cannot be read.
    """
    device = DeviceDirectory(config.directory)
    identity = device.read_public_identity()
    with open_for_reading(device) as journal:
        device_records = journal.persistent_state, journal.tpm_counter
    by_family = {one.family: one for one in config.family_configs()}

    def read_one(family: str) -> FamilyStatus:
        one = by_family[family]
        with open_for_reading(DeviceDirectory.for_family(one)) as journal:
            return family_status(one, identity, journal, device_records=device_records)

    return status_report(per_family(by_family, read_one))


def read_history(config: Config, family: str | None = None) -> FamilyResults[UpdateHistory]:
    """Read the history of one family or of all without a daemon.

    Args:
        config: the device's configuration.
        family: name of a family, or None for all.

    Raises:
        InvalidUsage: the device does not follow `family`.
        JournalUnreadable: the only requested journal cannot be read.
    """
    check_family(config.families, family)
    by_family = {one.family: one for one in config.family_configs() if family in (None, one.family)}

    def read_one(family: str) -> UpdateHistory:
        with open_for_reading(DeviceDirectory.for_family(by_family[family])) as journal:
            return UpdateHistory(tuple(journal.history()))

    return per_family(by_family, read_one)


def _bundle_status(bundle: BundleRecord | None) -> BundleStatus | None:
    return None if bundle is None else BundleStatus(bundle.version, bundle.counter, bundle.variant, bundle.digest)
