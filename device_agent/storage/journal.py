"""The journal: what the agent knows and what it is about to do, durable before it acts.

Rules:
1. One change of state is one transaction with all that belongs to it: state, attempt, pointers, quarantine, history. A
   reader sees the world before it or after it.
2. Intent is recorded before acting; a verdict against a candidate is recorded before anything is undone.
3. One writer: whoever holds the directory's lock. Readers (`status` while the daemon runs) change nothing.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundle.device_report import DeviceReport
from bundle.files import BundleDigest
from device_agent.commands.report_export import MAX_REPORTS, next_report
from device_agent.host.device_facts import runtime_version
from device_agent.policy.attempt import Attempt, Ended, Outcome, Verdict, line
from device_agent.policy.journal_records import Holding, Pointers, Quarantined, Remembered, Witness
from device_agent.policy.state_machine import TRIALS, Event, State, next_state, recover
from device_agent.storage.database import Records

HISTORY_ROWS: Final = 200


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
        self._records = Records(path, read_only=read_only)

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
    def pointers(self) -> Pointers:
        """Which bundles are active, previous and candidate."""
        row = self._records.get("machine", "pointers")
        return Pointers() if row is None else Pointers.parse(row)

    @property
    def remembered(self) -> Remembered:
        """What is remembered besides."""
        row = self._records.get("machine", "remembered")
        return Remembered() if row is None else Remembered.parse(row)

    @property
    def witness(self) -> Witness:
        """What the TPM's counter had to be."""
        row = self._records.get("machine", "witness")
        return Witness() if row is None else Witness.parse(row)

    def holding(self, digest: BundleDigest | None) -> Holding | None:
        """What is known of a bundle, or None."""
        row = None if digest is None else self._records.get("bundle", digest)
        return None if row is None else Holding.parse(row)

    def holdings(self) -> tuple[Holding, ...]:
        """Every bundle whose release this device has verified and still remembers."""
        return tuple(Holding.parse(row) for row in self._records.all("bundle"))

    def quarantined(self) -> tuple[Quarantined, ...]:
        """What is in quarantine."""
        return tuple(Quarantined.parse(row) for row in self._records.all("quarantine"))

    def in_quarantine(self, digest: BundleDigest, runtime: str) -> Quarantined | None:
        """The quarantine of a bundle under a runtime version, or None."""
        row = self._records.get("quarantine", f"{digest}:{runtime}")
        return None if row is None else Quarantined.parse(row)

    def kills(self, digest: BundleDigest, state: State) -> int:
        """How often the agent was killed in `state` with this candidate."""
        row = self._records.get("kills", f"{digest}:{state}")
        return 0 if row is None else row.integer("count")

    def history(self, limit: int = HISTORY_ROWS) -> tuple[Ended, ...]:
        """Finished attempts, newest first."""
        return tuple(Ended.parse(row) for row in self._records.last("history", limit))

    def reports(self) -> tuple[DeviceReport, ...]:
        """What is kept of the device's reports, oldest first."""
        return tuple(DeviceReport.parse(row) for row in self._records.all("report"))

    # what changes

    def begin(self, trigger: str) -> Attempt:
        """A new attempt: CHECKING."""
        with self._records.transaction():
            number = (self._last_number() or 0) + 1
            attempt = Attempt(number, trigger, self._now_ms())
            return self._move(attempt, Event.CHECK)

    def begin_rollback(self, holding: Holding, verdict: Verdict) -> Attempt:
        """An operator sends the device back from `holding`, which is active, to the previous bundle."""
        with self._records.transaction():
            number = (self._last_number() or 0) + 1
            attempt = Attempt(
                number,
                "rollback",
                self._now_ms(),
                target=holding.digest,
                release=holding.version,
                counter=holding.counter,
                variant=holding.variant,
                verdict=verdict,
            )
            return self._move(attempt, Event.OPERATOR)

    def advance(self, event: Event, attempt: Attempt) -> Attempt:
        """The next state, with the attempt as it now stands."""
        with self._records.transaction():
            return self._move(attempt, event)

    def aim(self, attempt: Attempt, holding: Holding) -> Attempt:
        """FOUND: the attempt has a target, and its release is remembered."""
        with self._records.transaction():
            self._records.put("bundle", holding.digest, holding.as_json())
            self._point(candidate=holding.digest)
            aimed = replace(
                attempt,
                target=holding.digest,
                release=holding.version,
                counter=holding.counter,
                variant=holding.variant,
            )
            return self._move(aimed, Event.FOUND)

    def record(self, attempt: Attempt) -> Attempt:
        """The attempt as it now stands, in the same state."""
        with self._records.transaction():
            self._records.put("machine", "attempt", attempt.as_json())
        return attempt

    def decide(self, event: Event, attempt: Attempt, verdict: Verdict) -> Attempt:
        """A decision against the candidate: recorded before anything is undone."""
        with self._records.transaction():
            return self._move(replace(attempt, verdict=verdict), event)

    def hold(self, holding: Holding) -> None:
        """Remember a release anew: patches were added to its manifest, or the same bundle got a higher counter."""
        if self.holding(holding.digest) != holding:
            with self._records.transaction():
                self._records.put("bundle", holding.digest, holding.as_json())

    def arm(self, attempt: Attempt) -> Ended:
        """PARKED: the attempt stays open for the next start; what can be said of it so far."""
        with self._records.transaction():
            armed = self._move(attempt, Event.PARKED)
        return Ended(armed, Outcome.STAGED, "", "it is swapped in when the daemon starts", self._now_ms())

    def count_kill(self, digest: BundleDigest, state: State) -> int:
        """Count one more death over a candidate; how many there are."""
        with self._records.transaction():
            count = self.kills(digest, state) + 1
            self._records.put("kills", f"{digest}:{state}", {"count": count})
        return count

    def commit(self, attempt: Attempt) -> Ended:
        """COMMITTING is done: the candidate is active, what was active is previous."""
        with self._records.transaction():
            pointers = self.pointers
            if pointers.candidate is not None:
                before = pointers.active if pointers.active != pointers.candidate else pointers.previous
                self._records.put("machine", "pointers", Pointers(pointers.candidate, before, None).as_json())
                self._forget_kills(pointers.candidate)
                self._release_older(attempt.counter)
            return self._end(attempt, Event.DONE, Outcome.UPDATED)

    def give_back(self, attempt: Attempt, runtime: str) -> Ended:
        """ROLLING_BACK or REFUSING is done: the verdict becomes the outcome, the candidate is dropped."""
        verdict = attempt.verdict
        with self._records.transaction():
            pointers = self.pointers
            if attempt.trigger == "rollback":
                pointers = Pointers(pointers.previous, None, None)
            if attempt.target is not None and verdict is not None and verdict.quarantines:
                row = Quarantined(attempt.target, runtime, attempt.counter, verdict.reason, self._now_ms())
                self._records.put("quarantine", f"{attempt.target}:{runtime}", row.as_json())
                self._forget_kills(attempt.target)
                pointers = replace(pointers, candidate=None)
            self._records.put("machine", "pointers", pointers.as_json())
            if verdict is None:
                return self._end(attempt, Event.DONE, Outcome.INTERRUPTED, "interrupted", "the agent was restarted")
            return self._end(attempt, Event.DONE, verdict.outcome, verdict.reason, verdict.detail)

    def end(self, attempt: Attempt, event: Event, outcome: Outcome, reason: str = "", detail: str = "") -> Ended:
        """An attempt ends without a decision against its candidate; what was staged stays for the next."""
        with self._records.transaction():
            return self._end(attempt, event, outcome, reason, detail)

    def recover(self) -> tuple[State, State]:
        """Apply RECOVERY after a start.

        Returns:
            the state that was found, and the one that the agent is in now.
        """
        with self._records.transaction():
            found, attempt = self.state, self.attempt
            kills = 0
            if found in TRIALS and attempt is not None and attempt.target is not None:
                kills = self.kills(attempt.target, found) + 1
                self._records.put("kills", f"{attempt.target}:{found}", {"count": kills})
            now = recover(found, kills)
            if now is State.REFUSING and found is not now and attempt is not None:
                verdict = Verdict(
                    Outcome.REFUSED, "killed-in-trial", f"the agent was killed {kills} times while {found.value}", True
                )
                self._records.put("machine", "attempt", replace(attempt, verdict=verdict).as_json())
            if now is State.IDLE and attempt is not None:
                if found is not State.CHECKING:
                    detail = f"the agent was stopped while {found.value}"
                    self._history(attempt, Outcome.INTERRUPTED, "interrupted", detail)
                self._records.delete("machine", "attempt")
            if found is not now:
                self._records.put("machine", "state", {"state": now.value})
            return found, now

    def remember(self, change: Callable[[Remembered], Remembered]) -> Remembered:
        """Change what is remembered besides; no write where it stays the same."""
        before = self.remembered
        after = change(before)
        if after != before:
            with self._records.transaction():
                self._records.put("machine", "remembered", after.as_json())
        return after

    def witness_floor(self, witness: Witness) -> None:
        """Remember what the TPM's counter has to be; no write where it stays the same."""
        if witness != self.witness:
            with self._records.transaction():
                self._records.put("machine", "witness", witness.as_json())

    def rebuild(self, holdings: Iterable[Holding], pointers: Pointers) -> None:
        """Fill an empty journal with what other stores still know."""
        with self._records.transaction():
            for holding in holdings:
                self._records.put("bundle", holding.digest, holding.as_json())
            self._records.put("machine", "pointers", pointers.as_json())

    def forgive(self, digest: BundleDigest | None = None) -> int:
        """Clear the quarantine of one bundle, or all of it; how many rows went."""
        with self._records.transaction():
            rows = [q for q in self.quarantined() if digest in (None, q.digest)]
            for row in rows:
                self._records.delete("quarantine", f"{row.digest}:{row.runtime}")
                self._forget_kills(row.digest)
            return len(rows)

    def forget(self, keep: frozenset[BundleDigest]) -> None:
        """Drop what is known of bundles that nothing points to."""
        with self._records.transaction():
            for holding in self.holdings():
                if holding.digest not in keep:
                    self._records.delete("bundle", holding.digest)

    # inside a transaction

    def _move(self, attempt: Attempt, event: Event) -> Attempt:
        after = next_state(self.state, event)
        self._records.put("machine", "state", {"state": after.value})
        moved = replace(attempt, states=(*attempt.states, after.value))
        self._records.put("machine", "attempt", moved.as_json())
        return moved

    def _end(self, attempt: Attempt, event: Event, outcome: Outcome, reason: str = "", detail: str = "") -> Ended:
        after = next_state(self.state, event)
        self._records.put("machine", "state", {"state": after.value})
        ended = self._history(replace(attempt, states=(*attempt.states, after.value)), outcome, reason, detail)
        self._records.delete("machine", "attempt")
        return ended

    def _history(self, attempt: Attempt, outcome: Outcome, reason: str, detail: str) -> Ended:
        ended = Ended(attempt, outcome, reason, line(detail), self._now_ms())
        if outcome is not Outcome.NOTHING_NEW and not self._is_told(ended):
            self._records.put("history", f"{attempt.number:012d}", ended.as_json())
            self._records.keep_last("history", HISTORY_ROWS)
            self._report(ended)
        return ended

    def _report(self, ended: Ended) -> None:
        target = self.holding(ended.attempt.target)
        newest = self._records.last("report", 1)
        before = DeviceReport.parse(newest[0]) if newest else None
        report = next_report(ended, None if target is None else target.family, before, runtime_version())
        if report is not None:
            self._records.put("report", f"{report.sequence:012d}", report.as_json())
            self._records.keep_last("report", MAX_REPORTS)

    def _is_told(self, ended: Ended) -> bool:
        """A poll that meets the same obstacle every hour would push everything else out of the history."""
        last = self.history(1)
        return bool(last) and ended.is_same_as(last[0])

    def _last_number(self) -> int | None:
        key = self._records.last_key("history")
        return None if key is None else int(key)

    def _point(self, *, candidate: BundleDigest) -> None:
        self._records.put("machine", "pointers", replace(self.pointers, candidate=candidate).as_json())

    def _release_older(self, counter: int) -> None:
        for row in self.quarantined():
            if row.counter < counter:
                self._records.delete("quarantine", f"{row.digest}:{row.runtime}")

    def _forget_kills(self, digest: BundleDigest) -> None:
        self._records.delete_prefix("kills", f"{digest}:")
