"""What `status` and `history` tell, from the journal alone; a daemon adds what it knows besides."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from device_agent.config.config import Config
from device_agent.config.families import check_family, per_family
from device_agent.host.system_clock import clock_facts
from device_agent.policy.journal_records import BundleRecord, PersistentState, TpmCounterRecord
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal, open_for_reading


def family_status(
    config: Config,
    identity: PublicIdentity,
    journal: Journal,
    *,
    device_records: tuple[PersistentState, TpmCounterRecord] | None = None,
) -> dict[str, Any]:
    """The object of `status --json`, without the daemon's part.

    Args:
        config: of one family.
        journal: the family's.
        of_device: what the device's first family remembers for all; None where `journal` is that one's.
    """
    pointers, remembered, clock = journal.pointers, journal.persistent_state, clock_facts()
    first, witness = device_records or (remembered, journal.tpm_counter)
    now_ms = int(clock["now_s"]) * 1000
    last = journal.history(1)
    is_stale = 0 < remembered.metadata_expires_ms < now_ms
    return {
        "daemon": False,
        "device_id": identity.device_id,
        "label": identity.label,
        "family": config.family,
        "channel": config.channel,
        "cohort": config.cohort,
        "directory": str(config.directory),
        "key_storage": config.key_storage.partition(":")[0],
        "rollback_floor_unproven": witness.is_unproven,
        "state": journal.state.value,
        "active": _bundle_row(journal.bundle(pointers.active)),
        "previous": _bundle_row(journal.bundle(pointers.previous)),
        "candidate": _bundle_row(journal.bundle(pointers.candidate)),
        "paused": first.is_paused,
        "rollback_floor": {"epoch": remembered.floor_epoch, "counter": remembered.floor_counter},
        "offered_release": remembered.offered_release,
        "checked_ms": remembered.checked_ms or None,
        "metadata_expires_ms": remembered.metadata_expires_ms or None,
        "stale_since_ms": remembered.metadata_expires_ms if is_stale else None,
        "last_error": remembered.last_error or None,
        "clock_synchronized": bool(clock["is_synchronized"]),
        # a clock that has been turned back behind what was seen to be true
        "clock_suspect": not clock["is_synchronized"] or now_ms < remembered.checked_ms,
        "damaged_bundles": list(remembered.damaged_bundles),
        "quarantine": [row.as_json() for row in journal.quarantine_records()],
        "last_update": last[0].as_json() if last else None,
    }


def device_status(first_family: dict[str, Any], family_rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`status` of a device from that of its families: what stands for the first one stays where it stands with one
    family, `ready` speaks of all, and `families` has a row for each where there are several.

    Args:
        first: of the first family.
        rows: of each, or of the one that was asked for.
    """
    if len(family_rows) == 1:
        return family_rows[0]
    return {**first_family, "ready": all(row.get("ready", False) for row in family_rows), "families": list(family_rows)}


def read_status(config: Config) -> dict[str, Any]:
    """`status` without a daemon."""
    device = DeviceDirectory(config.directory)
    identity = device.read_public_identity()
    with open_for_reading(device) as journal:
        shared = journal.persistent_state, journal.tpm_counter

    def of_family(one: Config) -> dict[str, Any]:
        with open_for_reading(DeviceDirectory.for_family(one)) as journal:
            status = family_status(one, identity, journal, device_records=shared)
        nothing_runs = dict.fromkeys(("ready", "degraded", "unjailed", "memory_swappable"), False)
        return {**status, "address": None, "serving": None, **nothing_runs}

    by_family = {one.family: one for one in config.family_configs()}
    found = per_family(by_family, lambda family: of_family(by_family[family]))
    if "families" not in found:
        return found
    return device_status(of_family(by_family[config.family]), found["families"])


def read_history(config: Config, family: str | None = None) -> dict[str, Any]:
    """`history` without a daemon. Raises UsageInvalid."""
    check_family(config.families, family)
    by_family = {one.family: one for one in config.family_configs() if family in (None, one.family)}

    def of_family(family: str) -> dict[str, Any]:
        with open_for_reading(DeviceDirectory.for_family(by_family[family])) as journal:
            return {"history": [row.as_json() for row in journal.history()]}

    return per_family(by_family, of_family)


def status_text(status: dict[str, Any]) -> str:
    """The same for a person."""
    if "families" in status:
        return "\n\n".join(
            f"{row['family']}: {row['error']['reason']}: {row['error']['message']}"
            if "error" in row
            else status_text(row)
            for row in status["families"]
        )
    active = status["active"]
    lines = [
        f"{status['family']} on channel {status['channel']}: {_bundle_name(active)}",
        f"previous: {_bundle_name(status['previous'])}",
        f"state: {status['state']}" + (", paused" if status["paused"] else ""),
    ]
    serving = status.get("serving")
    if serving and not serving["alive"]:
        lines.append(f"not serving: the process of {serving['release']} has died again and again, and is started later")
    elif serving:
        lines.append(f"serving {serving['release']} at {status['address']} (process {serving['pid']})")
    else:
        lines.append("serving nothing" if status["daemon"] else "the daemon is not running")
    if status.get("degraded"):
        lines.append("degraded: the previous release serves, since the active one is damaged")
    if status["stale_since_ms"]:
        since = datetime.fromtimestamp(status["stale_since_ms"] / 1000, UTC)
        lines.append(f"stale since {since:%Y-%m-%dT%H:%M:%SZ}: the metadata has expired, nothing new is activated")
    if status["key_storage"] != "file":
        lines.append(f"key storage: {status['key_storage']}")
    if status["rollback_floor_unproven"]:
        lines.append("floor unproven: the TPM has seen a higher one; packs are refused until a check over the network")
    if not status["clock_synchronized"]:
        lines.append("clock suspect: it is not synchronized")
    elif status["clock_suspect"]:
        lines.append("clock suspect: it is behind the time of the last check")
    if status.get("unjailed"):
        lines.append("unjailed: the kernel does not confine the agent's children")
    if status.get("memory_swappable"):
        lines.append("memory swappable: the kernel does not let the agent keep models out of swap")
    last = status["last_update"]
    if last:
        lines.append(f"last update: {last['outcome']} {last['release'] or ''} {last['reason'] or ''}".rstrip())
    lines += [f"quarantined: {row['digest'][:16]} ({row['reason']})" for row in status["quarantine"]]
    return "\n".join(lines)


def _bundle_row(bundle: BundleRecord | None) -> dict[str, Any] | None:
    if bundle is None:
        return None
    return {
        "release": bundle.version,
        "counter": bundle.counter,
        "variant": bundle.variant,
        "bundle": bundle.digest,
    }


def _bundle_name(row: dict[str, Any] | None) -> str:
    return "none" if row is None else f"{row['release']} ({row['variant']})"
