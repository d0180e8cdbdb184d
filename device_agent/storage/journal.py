"""The journal: the durable state of updates.

Rules:
- Each method that changes the state is one transaction over everything that changes with it: state, attempt, pointers,
  quarantine, history, report. A reader sees all of it or nothing.
- The intent is recorded before the action, and a rejection before anything is undone. If a record cannot be written,
  the decision was not made: recovery continues from the last durable state.
- The process that has the lock of the device directory is the only writer: its main thread, and threads of the control
  socket, which write the pause flag and clear the quarantine. Other processes open the journal for reading, also while
  the daemon runs.
- device_agent.storage.device_records writes the records that belong to no attempt.

Records: `machine/state`, `machine/attempt`, `machine/pointers`, `machine/persistent-state`, `machine/tpm-counter`,
`machine/metered`, `machine/variant-measurements`, `machine/log`, `machine/vital`, `machine/served-time`,
`machine/sent`, `bundle/DIGEST`, `quarantine/DIGEST:RUNTIME`, `crashes/DIGEST:STATE`, `history/NUMBER`,
`report/SEQUENCE`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bundle.files import BundleDigest
from device_agent.errors import CrashLoop, system_error
from device_agent.host.device_facts import runtime_version
from device_agent.policy.attempt import Attempt, Outcome, Rejection, UpdateResult, one_line
from device_agent.policy.followed_rollout import FollowedRollout
from device_agent.policy.journal_records import BundlePointers, BundleRecord, QuarantineRecord
from device_agent.policy.state_machine import CRASH_SUSPECT_STATES, Event, State, next_state, recovery_state
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.device_records import DeviceRecords
from device_agent.storage.journal_reader import MAX_HISTORY_ROWS


class Journal(DeviceRecords):
    """The open journal of one family.

    Args:
        path: the database file; created if missing, unless `read_only`.
        read_only: refuse a file of an older schema instead of migrating it.
        now_ms: returns the time in Unix milliseconds.

    Raises:
        JournalDamaged: a record or the file is damaged. Any method can raise it.
        JournalUnreadable: the file cannot be opened or written, or has another schema. Any method can raise it.
    """

    def begin_attempt(self, trigger: str) -> Attempt:
        """Start an attempt in CHECKING; `trigger` is "poll", "operator" or "start"."""
        with self._records.transaction():
            number = (self._last_attempt_number() or 0) + 1
            active = self.bundle(self.pointers.active)
            version = None if active is None else active.version
            attempt = Attempt(number, trigger, self._now_ms(), from_release=version)
            return self._move(attempt, Event.CHECK)

    def begin_rollback(self, bundle: BundleRecord, rejection: Rejection) -> Attempt:
        """Start an operator's rollback to the previous bundle, in ROLLING_BACK.

        Args:
            bundle: the active bundle, which is left.
            rejection: the decision against it.
        """
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
                followed=self._rollout_of(bundle),
                from_release=bundle.version,
                rejection=rejection,
            )
            return self._move(attempt, Event.ROLLBACK_REQUESTED)

    def advance(self, event: Event, attempt: Attempt) -> Attempt:
        """Record the attempt in the state that `event` leads to, and return it.

        Args:
            event: an event that the current state allows.
            attempt: the attempt as it is now.

        Raises:
            IllegalTransition: the state machine has no such transition.
        """
        with self._records.transaction():
            return self._move(attempt, event)

    def set_target(self, attempt: Attempt, bundle: BundleRecord) -> Attempt:
        """Record the target of an attempt and its bundle, in FETCHING.

        Args:
            attempt: an attempt in the state CHECKING.
            bundle: the candidate.
        """
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

    def record_rejection(self, event: Event, attempt: Attempt, rejection: Rejection) -> Attempt:
        """Record the decision against the candidate, before anything is undone.

        Args:
            event: the event that leads to ROLLING_BACK or REJECTING.
            attempt: the attempt as it is now.
            rejection: the decision.
        """
        with self._records.transaction():
            return self._move(replace(attempt, rejection=rejection), event)

    def stage(self, attempt: Attempt) -> UpdateResult:
        """Record the probed candidate as STAGED; the attempt stays open until the daemon starts."""
        with self._records.transaction():
            staged = self._move(attempt, Event.STAGED)
        return UpdateResult(staged, Outcome.STAGED, "", "the daemon activates it when it starts", self._now_ms())

    def count_crash(self, digest: BundleDigest, state: State) -> int:
        """Count one more crash with a candidate, and return the number of crashes.

        Args:
            digest: digest of the candidate.
            state: the state in which a process crashed.
        """
        with self._records.transaction():
            count = self.crashes(digest, state) + 1
            self._records.put("crashes", f"{digest}:{state}", {"count": count})
        return count

    def commit(self, attempt: Attempt) -> UpdateResult:
        """Finish COMMITTING: the candidate becomes active, and the active bundle becomes the previous one.

        If its probation had too few requests, the result's reason is the verdict ("untried" or "inconclusive").
        """
        with self._records.transaction():
            pointers = self.pointers
            if pointers.candidate is not None:
                before = pointers.active if pointers.active != pointers.candidate else pointers.previous
                self._records.put("machine", "pointers", BundlePointers(pointers.candidate, before, None).as_json())
                self.delete_crash_counts(pointers.candidate)
                self._clear_older_quarantine(attempt.counter)
            probation = attempt.probation
            reason = "" if probation is None or probation.is_passed else probation.verdict.value
            detail = "" if probation is None else probation.text
            return self._finish_attempt(attempt, Event.DONE, Outcome.UPDATED, reason, detail)

    def finish_rejection(self, attempt: Attempt, runtime: str) -> UpdateResult:
        """Finish ROLLING_BACK or REJECTING with the outcome of the recorded rejection.

        A rejection that quarantines also removes the candidate's pointer. Without a rejection (the agent ended during
        probation) the outcome is INTERRUPTED, and the next update tries the candidate again.

        Args:
            attempt: the attempt with its rejection.
            runtime: version of onnxruntime; the quarantine is for this version.
        """
        rejection = attempt.rejection
        with self._records.transaction():
            pointers = self.pointers
            if attempt.trigger == "rollback":
                pointers = BundlePointers(pointers.previous, None, None)
            if attempt.target is not None and rejection is not None and rejection.quarantines:
                row = QuarantineRecord(attempt.target, runtime, attempt.counter, rejection.reason, self._now_ms())
                self._records.put("quarantine", f"{attempt.target}:{runtime}", row.as_json())
                self.delete_crash_counts(attempt.target)
                pointers = replace(pointers, candidate=None)
            self._records.put("machine", "pointers", pointers.as_json())
            if rejection is None:
                return self._finish_attempt(
                    attempt, Event.DONE, Outcome.INTERRUPTED, "interrupted", "the agent was restarted"
                )
            return self._finish_attempt(attempt, Event.DONE, rejection.outcome, rejection.reason, rejection.detail)

    def end_attempt(
        self, attempt: Attempt, event: Event, outcome: Outcome, reason: str = "", detail: str = ""
    ) -> UpdateResult:
        """Finish an attempt without a decision against its candidate; the next one can reuse its downloads.

        Args:
            attempt: the attempt as it is now.
            event: the event that leads to IDLE.
            outcome: the outcome of the attempt.
            reason: stable reason of the error, or "".
            detail: one line for a person, or "".
        """
        with self._records.transaction():
            return self._finish_attempt(attempt, event, outcome, reason, detail)

    def recover(self) -> tuple[State, State]:
        """Apply RECOVERY after a start, and count the crash if the candidate may have caused it.

        Returns:
            The state found in the journal, and the state in which the agent continues.
        """
        with self._records.transaction():
            found, attempt = self.state, self.attempt
            crashes = 0
            if found in CRASH_SUSPECT_STATES and attempt is not None and attempt.target is not None:
                crashes = self.crashes(attempt.target, found) + 1
                self._records.put("crashes", f"{attempt.target}:{found}", {"count": crashes})
            now = recovery_state(found, crashes)
            if now is State.REJECTING and found is not now and attempt is not None:
                detail = f"the agent crashed {crashes} times while {found.value}"
                rejection = Rejection(Outcome.REFUSED, CrashLoop.reason, detail, quarantines=True)
                self._records.put("machine", "attempt", replace(attempt, rejection=rejection).as_json())
            if now is State.IDLE and attempt is not None:
                if found is not State.CHECKING:
                    detail = f"the agent was stopped while {found.value}"
                    self._append_history(attempt, Outcome.INTERRUPTED, "interrupted", detail)
                self._records.delete("machine", "attempt")
            if found is not now:
                self._records.put("machine", "state", {"state": now.value})
            return found, now

    # parts of a transaction

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
        result = self._append_history(replace(attempt, states=(*attempt.states, after.value)), outcome, reason, detail)
        self._records.delete("machine", "attempt")
        return result

    def _append_history(self, attempt: Attempt, outcome: Outcome, reason: str, detail: str) -> UpdateResult:
        result = UpdateResult(attempt, outcome, reason, one_line(detail), self._now_ms())
        if outcome is Outcome.NOTHING_NEW:
            return result
        before = self._find_same_kind(result)
        if before is not None and before.detail == result.detail:
            return result
        if before is not None:
            self._records.delete("history", f"{before.attempt.number:012d}")
        self._records.put("history", f"{attempt.number:012d}", result.as_record())
        self._records.keep_last("history", MAX_HISTORY_ROWS)
        if before is None:
            self._append_report(result)
        return result

    def _append_report(self, result: UpdateResult) -> None:
        from bundle.device_report import DeviceReport  # not in memory at rest
        from device_agent.policy.outcome_report import MAX_REPORTS, next_report

        newest = self._records.last("report", 1)
        before = DeviceReport.parse(newest[0]) if newest else None
        report = next_report(result, before, runtime_version(), lambda: self.log_id() or self.begin_log())
        if report is not None:
            self._records.put("report", f"{report.sequence:012d}", report.as_json())
            self._records.keep_last("report", MAX_REPORTS)

    def _find_same_kind(self, result: UpdateResult) -> UpdateResult | None:
        """Find the row that failed in the same way since the last change of what serves.

        One row of a kind is kept: obstacles that alternate hourly would push all else out of history and reports.
        """
        for row in self.history():
            if row.is_change:
                return None
            if result.is_of_kind(row):
                return row
        return None

    def _rollout_of(self, bundle: BundleRecord) -> FollowedRollout | None:
        """Return the rollout that led to a bundle, as far as it is known."""
        state = self.persistent_state
        if state.followed is None or state.offered_release == bundle.version:
            return state.followed
        return replace(state.followed, counter_epoch=bundle.counter_epoch, rollout=None)

    def _last_attempt_number(self) -> int | None:
        key = self._records.last_key("history")
        return None if key is None else int(key)

    def _set_candidate(self, *, candidate: BundleDigest) -> None:
        self._records.put("machine", "pointers", replace(self.pointers, candidate=candidate).as_json())

    def _clear_older_quarantine(self, counter: int) -> None:
        for row in self.quarantine_records():
            if row.counter < counter:
                self._records.delete("quarantine", f"{row.digest}:{row.runtime}")


@contextmanager
def open_for_reading(device: DeviceDirectory) -> Iterator[Journal]:
    """Open a family's journal for reading, also while the daemon writes to it.

    Raises:
        JournalUnreadable: it cannot be opened.
    """
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
