"""What `status` and `history` tell, from the journal alone; a daemon adds what it knows besides."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from device_agent.clock import clock_facts
from device_agent.config import Config
from device_agent.device import DeviceDirectory, PublicIdentity
from device_agent.holdings import Holding
from device_agent.journal import Journal


def status_of(config: Config, identity: PublicIdentity, journal: Journal) -> dict[str, Any]:
    """The object of `status --json`, without the daemon's part."""
    pointers, remembered, clock = journal.pointers, journal.remembered, clock_facts()
    now_ms = int(clock["now_s"]) * 1000
    last = journal.history(1)
    is_stale = 0 < remembered.fresh_until_ms < now_ms
    return {
        "daemon": False,
        "device_id": identity.device_id,
        "label": identity.label,
        "family": config.family,
        "channel": config.channel,
        "cohort": config.cohort,
        "directory": str(config.directory),
        "identity": config.identity.partition(":")[0],
        "floor_unproven": journal.witness.is_unproven,
        "state": journal.state.value,
        "active": _row(journal.holding(pointers.active)),
        "previous": _row(journal.holding(pointers.previous)),
        "candidate": _row(journal.holding(pointers.candidate)),
        "paused": remembered.paused,
        "floor": {"epoch": remembered.floor_epoch, "counter": remembered.floor_counter},
        "offered": remembered.offered,
        "checked_ms": remembered.checked_ms or None,
        "fresh_until_ms": remembered.fresh_until_ms or None,
        "stale_since_ms": remembered.fresh_until_ms if is_stale else None,
        "last_error": remembered.last_error or None,
        "clock_synchronised": bool(clock["synchronised"]),
        # a clock that has been turned back behind what was seen to be true
        "clock_suspect": not clock["synchronised"] or now_ms < remembered.checked_ms,
        "damaged": list(remembered.damaged),
        "quarantine": [row.as_json() for row in journal.quarantined()],
        "last_update": last[0].summary() if last else None,
    }


def read_status(config: Config) -> dict[str, Any]:
    """`status` without a daemon."""
    device = DeviceDirectory(config.directory)
    with journal_of(device) as journal:
        status = status_of(config, device.public_identity(), journal)
    nothing_runs = dict.fromkeys(("ready", "degraded", "unjailed", "swappable"), False)
    return {**status, "address": None, "serving": None, **nothing_runs}


def read_history(config: Config) -> dict[str, Any]:
    """`history` without a daemon."""
    with journal_of(DeviceDirectory(config.directory)) as journal:
        return {"history": [row.summary() for row in journal.history()]}


def status_text(status: dict[str, Any]) -> str:
    """The same for a person."""
    active = status["active"]
    lines = [
        f"{status['family']} on channel {status['channel']}: {_name(active)}",
        f"previous: {_name(status['previous'])}",
        f"state: {status['state']}" + (", paused" if status["paused"] else ""),
    ]
    serving = status.get("serving")
    if serving:
        lines.append(f"serving {serving['release']} at {status['address']} (process {serving['pid']})")
    else:
        lines.append("serving nothing" if status["daemon"] else "the daemon is not running")
    if status.get("degraded"):
        lines.append("degraded: the previous release serves, since the active one is damaged")
    if status["stale_since_ms"]:
        since = datetime.fromtimestamp(status["stale_since_ms"] / 1000, UTC)
        lines.append(f"stale since {since:%Y-%m-%dT%H:%M:%SZ}: the metadata has expired, nothing new is activated")
    if status["identity"] != "file":
        lines.append(f"identity: sealed, {status['identity']}")
    if status["floor_unproven"]:
        lines.append("floor unproven: the TPM has seen a higher one; packs are refused until a check over the network")
    if not status["clock_synchronised"]:
        lines.append("clock suspect: it is not synchronised")
    elif status["clock_suspect"]:
        lines.append("clock suspect: it is behind the time of the last check")
    if status.get("unjailed"):
        lines.append("unjailed: the kernel does not confine the agent's children")
    if status.get("swappable"):
        lines.append("swappable: the kernel does not let the agent keep models out of swap")
    last = status["last_update"]
    if last:
        lines.append(f"last update: {last['outcome']} {last['release'] or ''} {last['reason'] or ''}".rstrip())
    lines += [f"quarantined: {row['digest'][:16]} ({row['reason']})" for row in status["quarantine"]]
    return "\n".join(lines)


def _row(holding: Holding | None) -> dict[str, Any] | None:
    if holding is None:
        return None
    return {
        "release": holding.version,
        "counter": holding.counter,
        "variant": holding.variant,
        "bundle": holding.digest,
    }


def _name(row: dict[str, Any] | None) -> str:
    return "none" if row is None else f"{row['release']} ({row['variant']})"


@contextmanager
def journal_of(device: DeviceDirectory) -> Iterator[Journal]:
    """The journal to read, also while a daemon writes. Raises JournalUnavailable."""
    journal = Journal(device.journal, read_only=device.journal.exists())
    try:
        yield journal
    finally:
        journal.close()
