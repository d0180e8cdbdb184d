"""The objects of `status` and `history`: typed, with their JSON form.

The daemon or the offline command creates them, the control socket transmits their JSON, and the command line parses it
once and formats it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bundle.errors import AirweightsError
from bundle.files import BundleDigest
from bundle.strict_json import SHA256_HEX_PATTERN, StrictObject
from device_agent.errors import error_from_dict
from device_agent.policy.attempt import UpdateResult
from device_agent.policy.export_status import ExportStatus
from device_agent.policy.journal_records import QuarantineRecord
from device_agent.policy.probation_progress import ProbationProgress

RESTRICTION_PATTERN: Final = re.compile(r"[a-z-]{1,40}")
CONFIG_KEY_PATTERN: Final = re.compile(r"[a-z0-9_.-]{1,200}")
MAX_ROWS: Final = 1000  # limit on the rows of quarantine, history and damaged bundles; the journal keeps fewer


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """The release and the bundle of one pointer of the journal.

    Attributes:
        release: version of the release.
        counter: release counter.
        variant: name of the variant.
        bundle: digest of the bundle.
    """

    release: str
    counter: int
    variant: str
    bundle: BundleDigest

    def as_json(self) -> dict[str, Any]:
        """Return the object in `status --json`."""
        return {"release": self.release, "counter": self.counter, "variant": self.variant, "bundle": self.bundle}

    @classmethod
    def parse(cls, fields: StrictObject) -> "BundleStatus":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            fields.text("release"),
            fields.integer("counter"),
            fields.text("variant"),
            BundleDigest(fields.text("bundle", SHA256_HEX_PATTERN)),
        )
        fields.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """The generation that serves a family.

    Attributes:
        release: version of the release.
        variant: name of the variant.
        bundle: digest of the bundle.
        generation: number of the generation; grows with every load.
        pid: process id of the model process; 0 if applications run the release.
        is_alive: whether that process is running.
        resident_bytes: resident memory of that process.
        provider: execution provider that its session is on; "" if applications run the release.
    """

    release: str
    variant: str
    bundle: BundleDigest
    generation: int
    pid: int
    is_alive: bool
    resident_bytes: int
    provider: str

    def as_json(self) -> dict[str, Any]:
        """Return the object `serving` of `status --json`."""
        return {
            "release": self.release,
            "variant": self.variant,
            "bundle": self.bundle,
            "generation": self.generation,
            "pid": self.pid,
            "alive": self.is_alive,
            "resident_bytes": self.resident_bytes,
            "provider": self.provider or None,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "ServingStatus":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            fields.text("release"),
            fields.text("variant"),
            BundleDigest(fields.text("bundle", SHA256_HEX_PATTERN)),
            fields.integer("generation"),
            fields.integer("pid"),
            fields.flag("alive"),
            fields.integer("resident_bytes"),
            fields.optional_text("provider") or "",
        )
        fields.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class FamilyStatus:
    """Status of one family.

    Without a daemon, the attributes from `is_daemon_running` on have their defaults.

    Attributes:
        device_id: id of the device.
        label: name of the device for people.
        family: name of the family.
        channel: channel that the device follows.
        cohort: cohort of the device.
        directory: path of the device directory.
        key_storage: "file", "tpm" or "pkcs11".
        is_rollback_floor_unproven: whether the TPM counter is ahead of the journal.
        state: state of the update state machine.
        active: the active bundle, or None.
        previous: the bundle before it, or None.
        candidate: the bundle being tried or staged, or None.
        is_paused: whether updates are paused.
        floor_epoch: epoch of the rollback floor.
        floor_counter: counter of the rollback floor.
        offered_release: version that the channel ran at the last check, or None.
        checked_ms: time of the last successful check in Unix milliseconds, or None.
        metadata_expires_ms: expiry of its metadata in Unix milliseconds, or None.
        stale_since_ms: the same if the metadata has expired, else None.
        last_error: reason of the last check's error, or None.
        is_clock_synchronized: whether the system reports a synchronized clock.
        is_clock_suspect: whether the clock is not synchronized, or is behind `checked_ms`.
        damaged_bundles: digests of stored bundles that did not verify.
        quarantine: the quarantined bundles.
        last_update: the newest row of the history, or None.
        is_daemon_running: whether a daemon reported this status.
        address: address of the endpoint, or None.
        serving: the serving generation, or None.
        next_restart_s: seconds until the watchdog restarts a crashed model process, or None.
        is_degraded: whether the previous bundle serves because the active one is damaged.
        is_unjailed: whether the model process runs without a jail.
        is_memory_swappable: whether the model's memory can be swapped out.
        missing_restrictions: (worker, restrictions that its jail lacks), of the last worker of each kind.
        is_identity_copied: whether the identity was created on another machine.
        no_update_reason: why the agent takes no updates although it runs, or None.
        probation: progress of the running probation, or None.
        needs_restart: keys of the configuration that changed in the file and need a restart of the daemon.
        export: the exported files, or None if `serve.export` is not set.
    """

    device_id: str
    label: str
    family: str
    channel: str
    cohort: str
    directory: str
    key_storage: str
    is_rollback_floor_unproven: bool
    state: str
    active: BundleStatus | None
    previous: BundleStatus | None
    candidate: BundleStatus | None
    is_paused: bool
    floor_epoch: int
    floor_counter: int
    offered_release: str | None
    checked_ms: int | None
    metadata_expires_ms: int | None
    stale_since_ms: int | None
    last_error: str | None
    is_clock_synchronized: bool
    is_clock_suspect: bool
    damaged_bundles: tuple[str, ...]
    quarantine: tuple[QuarantineRecord, ...]
    last_update: UpdateResult | None
    is_daemon_running: bool = False
    address: str | None = None
    serving: ServingStatus | None = None
    next_restart_s: int | None = None
    is_degraded: bool = False
    is_unjailed: bool = False
    is_memory_swappable: bool = False
    missing_restrictions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    is_identity_copied: bool = False
    no_update_reason: str | None = None
    probation: ProbationProgress | None = None
    needs_restart: tuple[str, ...] = ()
    export: ExportStatus | None = None

    @property
    def is_ready(self) -> bool:
        """True if a running model process serves the family."""
        return self.serving is not None and self.serving.is_alive

    def as_json(self) -> dict[str, Any]:
        """Return the object of `status --json` for one family."""
        return {
            "daemon": self.is_daemon_running,
            "device_id": self.device_id,
            "label": self.label,
            "family": self.family,
            "channel": self.channel,
            "cohort": self.cohort,
            "directory": self.directory,
            "key_storage": self.key_storage,
            "rollback_floor_unproven": self.is_rollback_floor_unproven,
            "state": self.state,
            "active": None if self.active is None else self.active.as_json(),
            "previous": None if self.previous is None else self.previous.as_json(),
            "candidate": None if self.candidate is None else self.candidate.as_json(),
            "paused": self.is_paused,
            "rollback_floor": {"epoch": self.floor_epoch, "counter": self.floor_counter},
            "offered_release": self.offered_release,
            "checked_ms": self.checked_ms,
            "metadata_expires_ms": self.metadata_expires_ms,
            "stale_since_ms": self.stale_since_ms,
            "last_error": self.last_error,
            "clock_synchronized": self.is_clock_synchronized,
            "clock_suspect": self.is_clock_suspect,
            "damaged_bundles": list(self.damaged_bundles),
            "quarantine": [row.as_json() for row in self.quarantine],
            "last_update": None if self.last_update is None else self.last_update.as_json(),
            "address": self.address,
            "serving": None if self.serving is None else self.serving.as_json(),
            "next_restart_s": self.next_restart_s,
            "ready": self.is_ready,
            "degraded": self.is_degraded,
            "unjailed": self.is_unjailed,
            "memory_swappable": self.is_memory_swappable,
            "missing_restrictions": [
                {"worker": worker, "restrictions": list(names)} for worker, names in self.missing_restrictions
            ],
            "identity_copied": self.is_identity_copied,
            "no_update_reason": self.no_update_reason,
            "probation": None if self.probation is None else self.probation.as_json(),
            "needs_restart": list(self.needs_restart),
            "export": None if self.export is None else self.export.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "FamilyStatus":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        floor = fields.object("rollback_floor")
        last_update, serving = _optional_object(fields, "last_update"), _optional_object(fields, "serving")
        probation, export = _optional_object(fields, "probation"), _optional_object(fields, "export")
        fields.flag("ready")  # follows from `serving`
        found = cls(
            device_id=fields.text("device_id"),
            label=fields.text("label"),
            family=fields.text("family"),
            channel=fields.text("channel"),
            cohort=fields.text("cohort"),
            directory=fields.text("directory", max_length=4096),
            key_storage=fields.text("key_storage"),
            is_rollback_floor_unproven=fields.flag("rollback_floor_unproven"),
            state=fields.text("state"),
            active=_parse_bundle(fields, "active"),
            previous=_parse_bundle(fields, "previous"),
            candidate=_parse_bundle(fields, "candidate"),
            is_paused=fields.flag("paused"),
            floor_epoch=floor.integer("epoch"),
            floor_counter=floor.integer("counter"),
            offered_release=fields.optional_text("offered_release"),
            checked_ms=fields.optional_integer("checked_ms"),
            metadata_expires_ms=fields.optional_integer("metadata_expires_ms"),
            stale_since_ms=fields.optional_integer("stale_since_ms"),
            last_error=fields.optional_text("last_error"),
            is_clock_synchronized=fields.flag("clock_synchronized"),
            is_clock_suspect=fields.flag("clock_suspect"),
            damaged_bundles=fields.texts("damaged_bundles", SHA256_HEX_PATTERN, max_items=MAX_ROWS),
            quarantine=tuple(QuarantineRecord.parse(row) for row in fields.objects("quarantine", max_items=MAX_ROWS)),
            last_update=None if last_update is None else UpdateResult.from_json(last_update),
            is_daemon_running=fields.flag("daemon"),
            address=fields.optional_text("address"),
            serving=None if serving is None else ServingStatus.parse(serving),
            next_restart_s=fields.optional_integer("next_restart_s"),
            is_degraded=fields.flag("degraded"),
            is_unjailed=fields.flag("unjailed"),
            is_memory_swappable=fields.flag("memory_swappable"),
            missing_restrictions=tuple(
                (row.text("worker"), row.texts("restrictions", RESTRICTION_PATTERN, max_items=MAX_ROWS))
                for row in fields.objects("missing_restrictions", max_items=MAX_ROWS)
            ),
            is_identity_copied=fields.flag("identity_copied"),
            no_update_reason=fields.optional_text("no_update_reason"),
            probation=None if probation is None else ProbationProgress.parse(probation),
            needs_restart=fields.texts("needs_restart", CONFIG_KEY_PATTERN, max_items=MAX_ROWS),
            export=None if export is None else ExportStatus.parse(export),
        )
        fields.reject_unknown()
        floor.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Status of the device.

    Attributes:
        first: status of the first family.
        further: name and status, or error, of each further family, in the order of the configuration.
    """

    first: FamilyStatus
    further: tuple[tuple[str, FamilyStatus | AirweightsError], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the object of `status --json`.

        If there are several families, the object has the fields of the first family, `ready` is true if all families
        are ready, and `families` has a row for each family.
        """
        if not self.further:
            return self.first.as_json()
        rows = [
            {"family": family, "error": status.as_dict()} if isinstance(status, AirweightsError) else status.as_json()
            for family, status in ((self.first.family, self.first), *self.further)
        ]
        return {**self.first.as_json(), "ready": all(row.get("ready", False) for row in rows), "families": rows}

    @classmethod
    def parse(cls, value: dict[str, Any]) -> "StatusReport":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        fields = StrictObject(value, "status")
        if not fields.has("families"):
            return cls(FamilyStatus.parse(fields))
        first, *rows = fields.objects("families", max_items=MAX_ROWS)
        return cls(FamilyStatus.parse(first), tuple(_parse_row(row) for row in rows))


def quarantine_json(rows: Sequence[QuarantineRecord]) -> dict[str, Any]:
    """Return the object of `quarantine list --json` for one family."""
    return {"quarantine": [row.as_json() for row in rows]}


def _parse_row(row: StrictObject) -> tuple[str, FamilyStatus | AirweightsError]:
    if row.has("error"):
        return row.text("family"), error_from_dict(row.value("error"))
    status = FamilyStatus.parse(row)
    return status.family, status


def _parse_bundle(fields: StrictObject, name: str) -> BundleStatus | None:
    found = _optional_object(fields, name)
    return None if found is None else BundleStatus.parse(found)


def _optional_object(fields: StrictObject, name: str) -> StrictObject | None:
    value = fields.value(name)
    return None if value is None else StrictObject(value, f"{fields.where}.{name}")
