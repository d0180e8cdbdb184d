"""The journal: what the agent knows and what it is about to do, durable before it acts.

Rules:
1. One change of state is one transaction with all that belongs to it: state, attempt, pointers, quarantine, history. A
   reader sees the world before it or after it.
2. Intent is recorded before acting; a verdict against a candidate is recorded before anything is undone.
3. One writer: whoever holds the directory's lock. Readers (`status` while the daemon runs) change nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundle.device_report import DeviceReport
from bundle.files import BundleDigest
from device_agent.errors import CrashLoop, system_error
from device_agent.host.device_facts import runtime_version
from device_agent.policy.attempt import Attempt, Outcome, Rejection, UpdateResult, one_line
from device_agent.policy.journal_records import (
    BundlePointers,
    BundleRecord,
    PersistentState,
    QuarantineRecord,
    TpmCounterRecord,
)
from device_agent.policy.outcome_report import MAX_REPORTS, next_report
from device_agent.policy.state_machine import CRASH_SUSPECT_STATES, Event, State, next_state, recovery_state
from device_agent.storage.database import RecordDatabase
from device_agent.storage.device_directory import DeviceDirectory

MAX_HISTORY_ROWS: Final = 200


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Journal:
    """The open journal.

    Args:
        path: the database file; made when missing, unless `read_only`.
        now_ms: Unix milliseconds.

    Raises:
        JournalUnavailable: it does not open, is damaged, or was written by a newer agent. From any method.
    """

    def __init__(self, path: Path, *, read_only: bool = False, now_ms: Callable[[], int] = _now_ms) -> None:
        self._now_ms = now_ms
        self._records = RecordDatabase(path, read_only=read_only)

    def close(self) -> None:
        """Release the file."""
        self._records.close()

    def check(self) -> None:
        """Read every record. Raises JournalDamaged."""
        self._records.check()

    # what is

    @property
    def state(self) -> State:
        """The current state."""
        row = self._records.get("machine", "state")
        return State.IDLE if row is None else State(row.choice("state", tuple(State)))

    @property
    def attempt(self) -> Attempt | None:
        """The attempt under way."""
        row = self._records.get("machine", "attempt")
        return None if row is None else Attempt.parse(row)

    @property
    def pointers(self) -> BundlePointers:
        """Which bundles are active, previous and candidate."""
        row = self._records.get("machine", "pointers")
        return BundlePointers() if row is None else BundlePointers.parse(row)

    @property
    def persistent_state(self) -> PersistentState:
        """What is remembered besides."""
        row = self._records.get("machine", "persistent-state")
        return PersistentState() if row is None else PersistentState.parse(row)

    @property
    def tpm_counter(self) -> TpmCounterRecord:
        """What the TPM's counter had to be."""
        row = self._records.get("machine", "tpm-counter")
        return TpmCounterRecord() if row is None else TpmCounterRecord.parse(row)

    def bundle(self, digest: BundleDigest | None) -> BundleRecord | None:
        """What is known of a bundle, or None."""
        row = None if digest is None else self._records.get("bundle", digest)
        return None if row is None else BundleRecord.parse(row)

    def bundles(self) -> tuple[BundleRecord, ...]:
        """Every bundle whose release this device has verified and still remembers."""
        return tuple(BundleRecord.parse(row) for row in self._records.all("bundle"))

    def quarantine_records(self) -> tuple[QuarantineRecord, ...]:
        """What is in quarantine."""
        return tuple(QuarantineRecord.parse(row) for row in self._records.all("quarantine"))

    def quarantine_record(self, digest: BundleDigest, runtime: str) -> QuarantineRecord | None:
        """The quarantine of a bundle under a runtime version, or None."""
        row = self._records.get("quarantine", f"{digest}:{runtime}")
        return None if row is None else QuarantineRecord.parse(row)

    def crashes(self, digest: BundleDigest, state: State) -> int:
        """How often the agent was killed in `state` with this candidate."""
        row = self._records.get("crashes", f"{digest}:{state}")
        return 0 if row is None else row.integer("count")

    def history(self, limit: int = MAX_HISTORY_ROWS) -> tuple[UpdateResult, ...]:
        """Finished attempts, newest first."""
        return tuple(UpdateResult.parse(row) for row in self._records.last("history", limit))

    def reports(self) -> tuple[DeviceReport, ...]:
        """What is kept of the device's reports, oldest first."""
        return tuple(DeviceReport.parse(row) for row in self._records.all("report"))

    # what changes

    def begin_attempt(self, trigger: str) -> Attempt:
        """A new attempt: CHECKING."""
        with self._records.transaction():
            number = (self._last_attempt_number() or 0) + 1
            attempt = Attempt(number, trigger, self._now_ms())
            return self._move(attempt, Event.CHECK)

    def begin_rollback(self, bundle: BundleRecord, rejection: Rejection) -> Attempt:
        """An operator sends the device back from `holding`, which is active, to the previous bundle."""
        with self._records.transaction():
            number = (self._last_attempt_number() or 0) + 1
            attempt = Attempt(
                number,
                "rollback",
                self._now_ms(),
                target=bundle.digest,
                release=bundle.version,
                counter=bundle.counter,
                variant=bundle.variant,
                rejection=rejection,
            )
            return self._move(attempt, Event.ROLLBACK_REQUESTED)

    def advance(self, event: Event, attempt: Attempt) -> Attempt:
        """The next state, with the attempt as it now stands."""
        with self._records.transaction():
            return self._move(attempt, event)

    def set_target(self, attempt: Attempt, bundle: BundleRecord) -> Attempt:
        """FOUND: the attempt has a target, and its release is remembered."""
        with self._records.transaction():
            self._records.put("bundle", bundle.digest, bundle.as_json())
            self._set_candidate(candidate=bundle.digest)
            aimed = replace(
                attempt,
                target=bundle.digest,
                release=bundle.version,
                counter=bundle.counter,
                variant=bundle.variant,
            )
            return self._move(aimed, Event.FOUND)

    def record_attempt(self, attempt: Attempt) -> Attempt:
        """The attempt as it now stands, in the same state."""
        with self._records.transaction():
            self._records.put("machine", "attempt", attempt.as_json())
        return attempt

    def record_rejection(self, event: Event, attempt: Attempt, rejection: Rejection) -> Attempt:
        """A decision against the candidate: recorded before anything is undone."""
        with self._records.transaction():
            return self._move(replace(attempt, rejection=rejection), event)

    def store_bundle(self, bundle: BundleRecord) -> None:
        """Remember a release anew: patches were added to its manifest, or the same bundle got a higher counter."""
        if self.bundle(bundle.digest) != bundle:
            with self._records.transaction():
                self._records.put("bundle", bundle.digest, bundle.as_json())

    def stage(self, attempt: Attempt) -> UpdateResult:
        """PARKED: the attempt stays open for the next start; what can be said of it so far."""
        with self._records.transaction():
            armed = self._move(attempt, Event.STAGED)
        return UpdateResult(armed, Outcome.STAGED, "", "it is swapped in when the daemon starts", self._now_ms())

    def count_crash(self, digest: BundleDigest, state: State) -> int:
        """Count one more death over a candidate; how many there are."""
        with self._records.transaction():
            count = self.crashes(digest, state) + 1
            self._records.put("crashes", f"{digest}:{state}", {"count": count})
        return count

    def commit(self, attempt: Attempt) -> UpdateResult:
        """COMMITTING is done: the candidate is active, what was active is previous."""
        with self._records.transaction():
            pointers = self.pointers
            if pointers.candidate is not None:
                before = pointers.active if pointers.active != pointers.candidate else pointers.previous
                self._records.put("machine", "pointers", BundlePointers(pointers.candidate, before, None).as_json())
                self._delete_crash_counts(pointers.candidate)
                self._clear_older_quarantine(attempt.counter)
            return self._finish_attempt(attempt, Event.DONE, Outcome.UPDATED)

    def finish_rejection(self, attempt: Attempt, runtime: str) -> UpdateResult:
        """ROLLING_BACK or REFUSING is done: the verdict becomes the outcome, the candidate is dropped."""
        verdict = attempt.rejection
        with self._records.transaction():
            pointers = self.pointers
            if attempt.trigger == "rollback":
                pointers = BundlePointers(pointers.previous, None, None)
            if attempt.target is not None and verdict is not None and verdict.quarantines:
                row = QuarantineRecord(attempt.target, runtime, attempt.counter, verdict.reason, self._now_ms())
                self._records.put("quarantine", f"{attempt.target}:{runtime}", row.as_json())
                self._delete_crash_counts(attempt.target)
                pointers = replace(pointers, candidate=None)
            self._records.put("machine", "pointers", pointers.as_json())
            if verdict is None:
                return self._finish_attempt(
                    attempt, Event.DONE, Outcome.INTERRUPTED, "interrupted", "the agent was restarted"
                )
            return self._finish_attempt(attempt, Event.DONE, verdict.outcome, verdict.reason, verdict.detail)

    def end_attempt(
        self, attempt: Attempt, event: Event, outcome: Outcome, reason: str = "", detail: str = ""
    ) -> UpdateResult:
        """An attempt ends without a decision against its candidate; what was staged stays for the next."""
        with self._records.transaction():
            return self._finish_attempt(attempt, event, outcome, reason, detail)

    def recover(self) -> tuple[State, State]:
        """Apply RECOVERY after a start.

        Returns:
            the state that was found, and the one that the agent is in now.
        """
        with self._records.transaction():
            found, attempt = self.state, self.attempt
            kills = 0
            if found in CRASH_SUSPECT_STATES and attempt is not None and attempt.target is not None:
                kills = self.crashes(attempt.target, found) + 1
                self._records.put("crashes", f"{attempt.target}:{found}", {"count": kills})
            now = recovery_state(found, kills)
            if now is State.REJECTING and found is not now and attempt is not None:
                verdict = Rejection(
                    Outcome.REFUSED, CrashLoop.reason, f"the agent was killed {kills} times while {found.value}", True
                )
                self._records.put("machine", "attempt", replace(attempt, rejection=verdict).as_json())
            if now is State.IDLE and attempt is not None:
                if found is not State.CHECKING:
                    detail = f"the agent was stopped while {found.value}"
                    self._append_history(attempt, Outcome.INTERRUPTED, "interrupted", detail)
                self._records.delete("machine", "attempt")
            if found is not now:
                self._records.put("machine", "state", {"state": now.value})
            return found, now

    def update_persistent_state(self, change: Callable[[PersistentState], PersistentState]) -> PersistentState:
        """Change what is remembered besides; no write where it stays the same."""
        before = self.persistent_state
        after = change(before)
        if after != before:
            with self._records.transaction():
                self._records.put("machine", "persistent-state", after.as_json())
        return after

    def record_tpm_counter(self, tpm_counter: TpmCounterRecord) -> None:
        """Remember what the TPM's counter has to be; no write where it stays the same."""
        if tpm_counter != self.tpm_counter:
            with self._records.transaction():
                self._records.put("machine", "tpm-counter", tpm_counter.as_json())

    def rebuild(self, bundles: Iterable[BundleRecord], pointers: BundlePointers) -> None:
        """Fill an empty journal with what other stores still know."""
        with self._records.transaction():
            for holding in bundles:
                self._records.put("bundle", holding.digest, holding.as_json())
            self._records.put("machine", "pointers", pointers.as_json())

    def clear_quarantine(self, digest: BundleDigest | None = None) -> int:
        """Clear the quarantine of one bundle, or all of it; how many rows went."""
        with self._records.transaction():
            rows = [q for q in self.quarantine_records() if digest in (None, q.digest)]
            for row in rows:
                self._records.delete("quarantine", f"{row.digest}:{row.runtime}")
                self._delete_crash_counts(row.digest)
            return len(rows)

    def delete_unreferenced(self, keep: frozenset[BundleDigest]) -> None:
        """Drop what is known of bundles that nothing points to."""
        with self._records.transaction():
            for holding in self.bundles():
                if holding.digest not in keep:
                    self._records.delete("bundle", holding.digest)

    # inside a transaction

    def _move(self, attempt: Attempt, event: Event) -> Attempt:
        after = next_state(self.state, event)
        self._records.put("machine", "state", {"state": after.value})
        moved = replace(attempt, states=(*attempt.states, after.value))
        self._records.put("machine", "attempt", moved.as_json())
        return moved

    def _finish_attempt(
        self, attempt: Attempt, event: Event, outcome: Outcome, reason: str = "", detail: str = ""
    ) -> UpdateResult:
        after = next_state(self.state, event)
        self._records.put("machine", "state", {"state": after.value})
        ended = self._append_history(replace(attempt, states=(*attempt.states, after.value)), outcome, reason, detail)
        self._records.delete("machine", "attempt")
        return ended

    def _append_history(self, attempt: Attempt, outcome: Outcome, reason: str, detail: str) -> UpdateResult:
        ended = UpdateResult(attempt, outcome, reason, one_line(detail), self._now_ms())
        if outcome is not Outcome.NOTHING_NEW and not self._is_repeated(ended):
            self._records.put("history", f"{attempt.number:012d}", ended.as_record())
            self._records.keep_last("history", MAX_HISTORY_ROWS)
            self._append_report(ended)
        return ended

    def _append_report(self, result: UpdateResult) -> None:
        target = self.bundle(result.attempt.target)
        newest = self._records.last("report", 1)
        before = DeviceReport.parse(newest[0]) if newest else None
        report = next_report(result, None if target is None else target.family, before, runtime_version())
        if report is not None:
            self._records.put("report", f"{report.sequence:012d}", report.as_json())
            self._records.keep_last("report", MAX_REPORTS)

    def _is_repeated(self, result: UpdateResult) -> bool:
        """A poll that meets the same obstacle every hour would push everything else out of the history."""
        last = self.history(1)
        return bool(last) and result.is_same_as(last[0])

    def _last_attempt_number(self) -> int | None:
        key = self._records.last_key("history")
        return None if key is None else int(key)

    def _set_candidate(self, *, candidate: BundleDigest) -> None:
        self._records.put("machine", "pointers", replace(self.pointers, candidate=candidate).as_json())

    def _clear_older_quarantine(self, counter: int) -> None:
        for row in self.quarantine_records():
            if row.counter < counter:
                self._records.delete("quarantine", f"{row.digest}:{row.runtime}")

    def _delete_crash_counts(self, digest: BundleDigest) -> None:
        self._records.delete_prefix("crashes", f"{digest}:")


@contextmanager
def open_for_reading(device: DeviceDirectory) -> Iterator[Journal]:
    """The journal to read, also while a daemon writes. Raises JournalUnavailable."""
    if not device.journal_path.exists():
        try:
            device.create_family_directory()
        except OSError as error:
            raise system_error(error) from error
    journal = Journal(device.journal_path, read_only=device.journal_path.exists())
    try:
        yield journal
    finally:
        journal.close()
