"""The records of the journal that belong to no attempt.

They are bundles, the persistent state, counters, measurements, the quarantine, the log and the newest vital.
device_agent.storage.journal lists the records and the rules.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.files import BundleDigest
from device_agent.policy.journal_records import (
    BundlePointers,
    BundleRecord,
    MeteredRecord,
    PersistentState,
    TpmCounterRecord,
)
from device_agent.policy.variant_choice import VariantMeasurements
from device_agent.storage.journal_reader import JournalReader

if TYPE_CHECKING:
    from bundle.vital import Vital  # these are not in memory at rest
    from device_agent.policy.sent_position import SentPosition
    from device_agent.policy.served_time import ServedTime


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class DeviceRecords(JournalReader):
    """The journal of one family without its attempts.

    Args:
        path: the database file; created if missing, unless `read_only`.
        read_only: refuse a file of an older schema instead of migrating it.
        now_ms: returns the time in Unix milliseconds.

    Raises:
        JournalDamaged: a record or the file is damaged. Any method can raise it.
        JournalUnreadable: the file cannot be opened or written, or has another schema. Any method can raise it.
    """

    def __init__(self, path: Path, *, read_only: bool = False, now_ms: Callable[[], int] = _now_ms) -> None:
        super().__init__(path, read_only=read_only)
        self._now_ms = now_ms

    def store_bundle(self, bundle: BundleRecord) -> None:
        """Record a bundle if its record changed: patches were added, or a newer release has the same bundle."""
        if self.bundle(bundle.digest) != bundle:
            with self._records.transaction():
                self._records.put("bundle", bundle.digest, bundle.as_json())

    def update_persistent_state(self, change: Callable[[PersistentState], PersistentState]) -> PersistentState:
        """Change the persistent state and return it; an equal state is not written.

        Another thread may change another part of it at the same time, with a connection of its own.
        """
        before = self.persistent_state
        if change(before) == before:
            return before
        with self._records.transaction():
            after = change(self.persistent_state)
            self._records.put("machine", "persistent-state", after.as_json())
        return after

    def record_tpm_counter(self, tpm_counter: TpmCounterRecord) -> None:
        """Record the expected TPM counter; an equal record is not written."""
        if tpm_counter != self.tpm_counter:
            with self._records.transaction():
                self._records.put("machine", "tpm-counter", tpm_counter.as_json())

    def record_metered(self, metered: MeteredRecord) -> None:
        """Record the bytes that attempts received for a candidate; an equal record is not written."""
        if metered != self.metered:
            with self._records.transaction():
                self._records.put("machine", "metered", metered.as_json())

    def record_variant_measurements(self, measured: VariantMeasurements) -> None:
        """Record what the device measured of the family's variants; an equal record is not written."""
        if measured != self.variant_measurements:
            with self._records.transaction():
                self._records.put("machine", "variant-measurements", measured.as_json())

    def record_served_time(self, boot_id: str, boot_elapsed_s: int, soak_s: int | None = None) -> "ServedTime":
        """Return for how long the active bundle has served until now; it is written if that is worth it.

        Args:
            boot_id: id of this boot, or "" if unknown.
            boot_elapsed_s: seconds since this boot.
            soak_s: soak time of the plan of a check, 0 without a plan; None leaves it.
        """
        before = self.served_time
        after = before.advance(self.pointers.active, boot_id, boot_elapsed_s)
        after = after if soak_s is None else replace(after, soak_s=soak_s)
        if before.is_worth_recording(after):
            with self._records.transaction():
                self._records.put("machine", "served-time", after.as_json())
        return after

    def open_log(self) -> str:
        """Return the log of reports and vitals; the first call begins it."""
        found = self.log_id()
        if found is not None:
            return found
        with self._records.transaction():
            return self.begin_log()

    def record_vital(self, vital: "Vital") -> None:
        """Record the newest vital, which is sent until the collector has it or a newer one is made."""
        with self._records.transaction():
            self._records.put("machine", "vital", {"vital": vital.as_json(), "made_ms": self._now_ms()})

    def record_sent(self, position: "SentPosition") -> None:
        """Record what the collector has; an equal record is not written."""
        if position != self.sent_position:
            with self._records.transaction():
                self._records.put("machine", "sent", position.as_json())

    def rebuild(self, bundles: Iterable[BundleRecord], pointers: BundlePointers) -> None:
        """Fill an empty journal with the bundles found in the store.

        Args:
            bundles: records read from the sealed bundles.
            pointers: the pointers to record.
        """
        with self._records.transaction():
            for bundle in bundles:
                self._records.put("bundle", bundle.digest, bundle.as_json())
            self._records.put("machine", "pointers", pointers.as_json())

    def clear_quarantine(self, digest: BundleDigest | None = None) -> int:
        """Clear the quarantine of one bundle, or of all if `digest` is None; return the number of rows."""
        with self._records.transaction():
            rows = [q for q in self.quarantine_records() if digest in (None, q.digest)]
            for row in rows:
                self._records.delete("quarantine", f"{row.digest}:{row.runtime}")
                self.delete_crash_counts(row.digest)
            return len(rows)

    def delete_unreferenced(self, keep: frozenset[BundleDigest]) -> None:
        """Delete the records of all bundles that are not in `keep`."""
        with self._records.transaction():
            for bundle in self.bundles():
                if bundle.digest not in keep:
                    self._records.delete("bundle", bundle.digest)

    def begin_log(self) -> str:
        """Begin a new log of reports and vitals, inside a transaction, and return it."""
        log = os.urandom(16).hex()
        self._records.put("machine", "log", {"log": log})
        return log

    def delete_crash_counts(self, digest: BundleDigest) -> None:
        """Delete the crash counts of a bundle, inside a transaction."""
        self._records.delete_prefix("crashes", f"{digest}:")
