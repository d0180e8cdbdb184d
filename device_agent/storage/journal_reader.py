"""The journal for reading: state, attempt, pointers, records, history and reports.

Each property reads the record anew. device_agent.storage.journal lists the records and the rules.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle.files import BundleDigest
from bundle.signed_line import LOG_ID_PATTERN
from device_agent.policy.attempt import Attempt, UpdateResult
from device_agent.policy.journal_records import (
    BundlePointers,
    BundleRecord,
    MeteredRecord,
    PersistentState,
    QuarantineRecord,
    TpmCounterRecord,
)
from device_agent.policy.state_machine import State
from device_agent.policy.variant_choice import NO_MEASUREMENTS, VariantMeasurements
from device_agent.storage.database import RecordDatabase

if TYPE_CHECKING:
    from bundle.device_report import DeviceReport  # these are not in memory at rest
    from bundle.vital import Vital
    from device_agent.policy.sent_position import SentPosition
    from device_agent.policy.served_time import ServedTime

MAX_HISTORY_ROWS: Final = 200


class JournalReader:
    """The open journal of one family.

    Args:
        path: the database file; created if missing, unless `read_only`.
        read_only: refuse a file of an older schema instead of migrating it.

    Raises:
        JournalDamaged: a record or the file is damaged. Any method can raise it.
        JournalUnreadable: the file cannot be opened, or has another schema. Any method can raise it.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._records = RecordDatabase(path, read_only=read_only)

    def close(self) -> None:
        """Close the journal's file."""
        self._records.close()

    def check(self) -> None:
        """Read every record and compare its checksum.

        Raises:
            JournalDamaged: a record does not match its checksum.
        """
        self._records.check()

    @property
    def state(self) -> State:
        """Return the current state; IDLE in a new journal."""
        row = self._records.get("machine", "state")
        return State.IDLE if row is None else State(row.choice("state", tuple(State)))

    @property
    def attempt(self) -> Attempt | None:
        """Return the unfinished attempt, or None."""
        row = self._records.get("machine", "attempt")
        return None if row is None else Attempt.parse(row)

    @property
    def pointers(self) -> BundlePointers:
        """Return the digests of the active, previous and candidate bundle."""
        row = self._records.get("machine", "pointers")
        return BundlePointers() if row is None else BundlePointers.parse(row)

    @property
    def persistent_state(self) -> PersistentState:
        """Return the persistent state: pause flag, rollback floor, last check."""
        row = self._records.get("machine", "persistent-state")
        return PersistentState() if row is None else PersistentState.parse(row)

    @property
    def tpm_counter(self) -> TpmCounterRecord:
        """Return the expected TPM counter; 0 without a TPM."""
        row = self._records.get("machine", "tpm-counter")
        return TpmCounterRecord() if row is None else TpmCounterRecord.parse(row)

    @property
    def metered(self) -> MeteredRecord:
        """Return the bytes that attempts received for the newest candidate."""
        row = self._records.get("machine", "metered")
        return MeteredRecord() if row is None else MeteredRecord.parse(row)

    @property
    def variant_measurements(self) -> VariantMeasurements:
        """Return what the device measured of the family's variants."""
        row = self._records.get("machine", "variant-measurements")
        return NO_MEASUREMENTS if row is None else VariantMeasurements.parse(row)

    @property
    def served_time(self) -> "ServedTime":
        """Return for how long the active bundle has served, as last recorded."""
        from device_agent.policy.served_time import ServedTime  # not in memory at rest

        row = self._records.get("machine", "served-time")
        return ServedTime() if row is None else ServedTime.parse(row)

    @property
    def newest_vital(self) -> "tuple[Vital, int] | None":
        """Return the newest vital and the Unix milliseconds at which it was made, or None."""
        from bundle.vital import Vital  # not in memory at rest

        row = self._records.get("machine", "vital")
        return None if row is None else (Vital.parse(row.object("vital")), row.integer("made_ms"))

    @property
    def sent_position(self) -> "SentPosition | None":
        """Return what the collector has, as its last answer said, or None before the first answer."""
        from device_agent.policy.sent_position import SentPosition  # not in memory at rest

        row = self._records.get("machine", "sent")
        return None if row is None else SentPosition.parse(row)

    def log_id(self) -> str | None:
        """Return the log of reports and vitals, or None before the first of them."""
        row = self._records.get("machine", "log")
        return None if row is None else row.text("log", LOG_ID_PATTERN)

    def unsent_lines(self) -> "tuple[SentPosition, list[DeviceReport], Vital | None]":
        """Return what the collector has, and the reports and the vital that it does not have."""
        from device_agent.policy.sent_position import SentPosition  # not in memory at rest

        log, position, newest = self.log_id(), self.sent_position, self.newest_vital
        if log is None:
            return SentPosition("0" * 32), [], None
        if position is None or position.log != log:
            position = SentPosition(log)
        vital = None if newest is None or not position.is_vital_unsent(newest[0]) else newest[0]
        return position, position.unsent_reports(self.reports()), vital

    def bundle(self, digest: BundleDigest | None) -> BundleRecord | None:
        """Return the record of a bundle, or None if there is none."""
        row = None if digest is None else self._records.get("bundle", digest)
        return None if row is None else BundleRecord.parse(row)

    def bundles(self) -> tuple[BundleRecord, ...]:
        """Return the records of all bundles whose releases were verified and not deleted since."""
        return tuple(BundleRecord.parse(row) for row in self._records.all("bundle"))

    def quarantine_records(self) -> tuple[QuarantineRecord, ...]:
        """Return all bundles that are in quarantine."""
        return tuple(QuarantineRecord.parse(row) for row in self._records.all("quarantine"))

    def quarantine_record(self, digest: BundleDigest, runtime: str) -> QuarantineRecord | None:
        """Return the quarantine of a bundle with a version of the runtime, or None.

        Args:
            digest: digest of the bundle.
            runtime: version of onnxruntime.
        """
        row = self._records.get("quarantine", f"{digest}:{runtime}")
        return None if row is None else QuarantineRecord.parse(row)

    def crashes(self, digest: BundleDigest, state: State) -> int:
        """Return how often the agent ended unexpectedly in a state with a candidate. A power cut counts too.

        Args:
            digest: digest of the candidate.
            state: one of CRASH_SUSPECT_STATES.
        """
        row = self._records.get("crashes", f"{digest}:{state}")
        return 0 if row is None else row.integer("count")

    def history(self, limit: int = MAX_HISTORY_ROWS) -> tuple[UpdateResult, ...]:
        """Return up to `limit` finished attempts, the newest first."""
        return tuple(UpdateResult.parse(row) for row in self._records.last("history", limit))

    def reports(self) -> "tuple[DeviceReport, ...]":
        """Return the stored reports of the device, the oldest first."""
        from bundle.device_report import DeviceReport  # not in memory at rest

        return tuple(DeviceReport.parse(row) for row in self._records.all("report"))
