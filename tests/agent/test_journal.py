"""The journal reads its vectors, commits whole transactions, and keeps history and quarantine."""

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.files import BundleDigest
from device_agent.errors import IllegalTransition, JournalUnreadable
from device_agent.policy.attempt import Attempt, Outcome, Rejection
from device_agent.policy.followed_rollout import FollowedRollout
from device_agent.policy.journal_records import BundlePointers, BundleRecord, PersistentState, TpmCounterRecord
from device_agent.policy.state_machine import MAX_CRASHES, Event, State
from device_agent.storage.journal import Journal
from device_agent.storage.journal_reader import MAX_HISTORY_ROWS
from device_agent.storage.journal_schema import SCHEMA_VERSION
from tests.vectors.journal.generate import DIGEST, FOLDER

VECTORS = {
    "schema-1.db": None,
    "schema-2.db": None,
    "schema-99.db": "schema 99, this agent reads schemas up to",
    "record-flipped.db": "record machine/pointers does not match its checksum",
    "not-a-database.db": "file is not a database",
}
OTHER = BundleDigest("7a" * 32)
FOLLOWED = FollowedRollout("d" * 64, "kws", "stable", 0, "e" * 64)


def make_bundle_record(digest: str = DIGEST, version: str = "1.0.0", counter: int = 1) -> BundleRecord:
    return BundleRecord(BundleDigest(digest), "kws", version, counter, 1, "fp32", "{}")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "state.db", now_ms=lambda: 1000)
    yield journal
    journal.close()


def test_every_vector_is_named_here() -> None:
    assert {path.name for path in FOLDER.glob("*.db")} == set(VECTORS)


@pytest.mark.parametrize("name", [name for name, words in VECTORS.items() if words])
def test_a_file_that_is_not_ours_to_read_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    path = shutil.copy(FOLDER / name, tmp_path / "state.db")
    before = Path(path).read_bytes()
    with pytest.raises(JournalUnreadable, match=VECTORS[name]):
        _ = Journal(Path(path)).pointers
    assert Path(path).read_bytes() == before


def test_a_file_of_schema_1_is_migrated_with_all_that_it_says(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "schema-1.db", tmp_path / "state.db"))
    journal = Journal(path)
    assert journal.pointers == BundlePointers(active=BundleDigest(DIGEST))
    assert journal.state is State.IDLE
    assert journal.crashes(BundleDigest(DIGEST), State.PROBING) == 2
    journal.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert Journal(path).pointers.active == DIGEST


def test_a_file_of_schema_2_is_migrated_with_all_that_it_says(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "schema-2.db", tmp_path / "state.db"))
    journal = Journal(path)
    oldest, active, unfit, staged = (BundleDigest(digest * 32) for digest in ("5e", "7a", "9c", "b1"))
    assert journal.pointers == BundlePointers(active=active, previous=oldest, candidate=staged)
    assert journal.state is State.STAGED
    attempt = journal.attempt
    assert attempt is not None
    assert attempt.states == ("checking", "fetching", "patching", "probing", "staged")
    assert attempt.rejection == Rejection(
        Outcome.INCONCLUSIVE, "probe-inconclusive", "busy: 20% of a processor", quarantines=False
    )
    assert journal.persistent_state == PersistentState(
        is_paused=True,
        floor_epoch=1,
        floor_counter=2,
        checked_ms=1_760_000_000_000,
        metadata_expires_ms=1_761_000_000_000,
        offered_release="1.3.0",
        damaged_bundles=(oldest,),
        last_error="fetch",
    )
    assert journal.tpm_counter == TpmCounterRecord(5, is_unproven=True)
    assert journal.crashes(staged, State.PROBING) == 1
    assert [(q.digest, q.reason) for q in journal.quarantine_records()] == [(unfit, "too-fat")]
    assert [(row.outcome.value, row.reason) for row in journal.history()] == [
        ("interrupted", "interrupted"),
        ("unavailable", "fetch"),
        ("unfit", "too-fat"),
        ("updated", ""),
        ("updated", ""),
    ]
    rejected, first = journal.history()[2].attempt, journal.history()[4].attempt
    assert rejected.states[-2:] == ("rejecting", "idle")
    assert rejected.rejection is not None
    assert rejected.rejection.quarantines
    assert first.states == ("checking", "fetching", "patching", "probing", "staged", "swapping", "committing", "idle")
    assert [bundle.version for bundle in journal.bundles()] == ["1.0.0", "1.1.0", "1.2.0", "1.3.0"]
    journal.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert Journal(path).state is State.STAGED


def test_a_migration_deletes_reports_that_name_no_repository_and_a_new_log_begins(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "schema-2.db", tmp_path / "state.db"))
    journal = Journal(path)
    assert journal.reports() == ()
    assert journal.attempt is not None
    assert journal.attempt.followed is None
    journal.end_attempt(replace(journal.attempt, followed=FOLLOWED), Event.ABORTED, Outcome.REFUSED, "no-variant")
    (report,) = journal.reports()
    assert (report.sequence, report.previous, report.release, report.state) == (1, None, "1.3.0", "staged")
    assert (report.repository, report.channel, report.rollout) == ("d" * 64, "stable", "e" * 64)


def test_a_reader_refuses_an_old_file_and_leaves_it_alone(tmp_path: Path) -> None:
    path = Path(shutil.copy(FOLDER / "schema-2.db", tmp_path / "state.db"))
    before = path.read_bytes()
    with pytest.raises(JournalUnreadable, match=f"schema 2, this agent reads {SCHEMA_VERSION}"):
        Journal(path, read_only=True)
    assert path.read_bytes() == before


def test_a_transition_that_the_table_does_not_know_changes_nothing(journal: Journal) -> None:
    attempt = journal.begin_attempt("poll")
    with pytest.raises(IllegalTransition):
        journal.advance(Event.SWAPPED, attempt)
    assert journal.state is State.CHECKING
    assert journal.attempt == attempt


def _advance_to(journal: Journal, state: State, target: BundleRecord) -> Attempt:
    attempt = journal.set_target(journal.begin_attempt("poll"), target)
    for event in (Event.FETCHED, Event.PATCHED, Event.HEALTHY, Event.SWAPPED, Event.HEALTHY):
        if journal.state is state:
            return attempt
        attempt = journal.advance(event, attempt)
    return attempt


def test_a_commit_moves_the_pointers_and_is_told_in_the_history(journal: Journal) -> None:
    journal.commit(_advance_to(journal, State.COMMITTING, make_bundle_record()))
    result = journal.commit(_advance_to(journal, State.COMMITTING, make_bundle_record(OTHER, "1.1.0", 2)))
    assert journal.pointers == BundlePointers(active=OTHER, previous=BundleDigest(DIGEST))
    assert (result.outcome, result.attempt.states[-1]) == (Outcome.UPDATED, "idle")
    assert [row.attempt.release for row in journal.history()] == ["1.1.0", "1.0.0"]


def test_a_refused_bundle_is_in_quarantine_for_its_runtime_until_a_higher_counter(journal: Journal) -> None:
    attempt = _advance_to(journal, State.PROBING, make_bundle_record())
    verdict = Rejection(Outcome.UNFIT, "golden-mismatch", "off by 1", quarantines=True)
    journal.finish_rejection(journal.record_rejection(Event.UNHEALTHY, attempt, verdict), "1.32.0")
    assert journal.quarantine_record(BundleDigest(DIGEST), "1.32.0") is not None
    assert journal.quarantine_record(BundleDigest(DIGEST), "1.33.0") is None
    assert journal.pointers == BundlePointers()
    journal.commit(_advance_to(journal, State.COMMITTING, make_bundle_record(OTHER, "1.1.0", 2)))
    assert journal.quarantine_records() == ()


def test_forgive_clears_one_bundle_or_all(journal: Journal) -> None:
    verdict = Rejection(Outcome.UNFIT, "nan-output", "", quarantines=True)
    for target in (make_bundle_record(), make_bundle_record(OTHER)):
        journal.finish_rejection(
            journal.record_rejection(Event.UNHEALTHY, _advance_to(journal, State.PROBING, target), verdict), "1.32.0"
        )
    assert journal.clear_quarantine(OTHER) == 1
    assert [row.digest for row in journal.quarantine_records()] == [DIGEST]
    assert journal.clear_quarantine() == 1
    assert journal.clear_quarantine() == 0


def test_three_kills_in_the_same_trial_refuse_and_fewer_do_not(journal: Journal) -> None:
    for kill in range(1, MAX_CRASHES + 1):
        _advance_to(journal, State.PROBING, make_bundle_record())
        expected = State.REJECTING if kill == MAX_CRASHES else State.IDLE
        assert journal.recover() == (State.PROBING, expected)
        assert journal.recover() == (expected, expected), "recovering twice is recovering once"
    attempt = journal.attempt
    assert attempt is not None
    assert attempt.rejection is not None
    assert journal.finish_rejection(attempt, "1.32.0").reason == "crash-loop"


def test_a_bundle_that_stays_for_the_next_try_keeps_its_pointer(journal: Journal) -> None:
    _advance_to(journal, State.PROBATION, make_bundle_record())
    found, now = journal.recover()
    assert (found, now) == (State.PROBATION, State.ROLLING_BACK)
    attempt = journal.attempt
    assert attempt is not None
    assert journal.finish_rejection(attempt, "1.32.0").outcome is Outcome.INTERRUPTED
    assert journal.pointers == BundlePointers(candidate=BundleDigest(DIGEST))


def test_the_history_is_bounded_and_a_check_without_news_leaves_no_row(journal: Journal) -> None:
    journal.end_attempt(journal.begin_attempt("poll"), Event.UP_TO_DATE, Outcome.NOTHING_NEW)
    assert journal.history() == ()
    for number in range(MAX_HISTORY_ROWS + 3):
        journal.end_attempt(
            journal.begin_attempt("poll"), Event.ABORTED, Outcome.UNAVAILABLE, f"reason-{number}", f"try {number}"
        )
    rows = journal.history()
    assert len(rows) == MAX_HISTORY_ROWS
    assert rows[0].detail == f"try {MAX_HISTORY_ROWS + 2}"


def test_the_same_complaint_again_is_one_row(journal: Journal) -> None:
    for _ in range(3):
        journal.end_attempt(
            journal.begin_attempt("poll"), Event.ABORTED, Outcome.UNAVAILABLE, "download-failed", "no route"
        )
    assert len(journal.history()) == 1


def test_a_reader_sees_what_was_committed_while_the_writer_is_open(journal: Journal, tmp_path: Path) -> None:
    journal.update_persistent_state(lambda before: replace(before, is_paused=True))
    reader = Journal(tmp_path / "state.db", read_only=True)
    assert reader.persistent_state.is_paused
    reader.close()


def test_a_record_whose_checksum_does_not_hold_is_never_returned(journal: Journal, tmp_path: Path) -> None:
    journal.rebuild([], BundlePointers(active=BundleDigest(DIGEST)))
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("UPDATE record SET body = replace(body, '5e', '5f') WHERE key = 'pointers'")
    with pytest.raises(JournalUnreadable, match="checksum"):
        _ = journal.pointers


def fail(journal: Journal, outcome: Outcome, reason: str, detail: str = "") -> None:
    """Run an attempt that finds release 1.1.0 and fails in FETCHING."""
    found = replace(journal.begin_attempt("poll"), followed=FOLLOWED, release="1.1.0", target=OTHER)
    attempt = journal.advance(Event.FOUND, found)
    journal.end_attempt(attempt, Event.ABORTED, outcome, reason, detail)


def test_obstacles_that_alternate_leave_one_row_each_and_no_report(journal: Journal) -> None:
    for number in range(40):
        fail(journal, Outcome.UNAVAILABLE, "connection-failed", f"port {number}")
        fail(journal, Outcome.REFUSED, "digest-mismatch", f"byte {number}")
    assert [(row.reason, row.detail) for row in journal.history()] == [
        ("digest-mismatch", "byte 39"),
        ("connection-failed", "port 39"),
    ]
    assert journal.reports() == ()


def test_an_obstacle_after_a_change_is_a_new_row(journal: Journal) -> None:
    fail(journal, Outcome.REFUSED, "no-variant")
    fail(journal, Outcome.REFUSED, "bundle-quarantined")
    fail(journal, Outcome.REFUSED, "no-variant")
    assert [report.reason for report in journal.reports()] == ["no-variant", "bundle-quarantined"]
    journal.store_bundle(make_bundle_record())
    rejection = Rejection(Outcome.ROLLED_BACK, "operator-rollback", "by hand", quarantines=True)
    journal.finish_rejection(journal.begin_rollback(make_bundle_record(), rejection), "1.32.0")
    fail(journal, Outcome.REFUSED, "no-variant")
    assert [row.reason for row in journal.history()][:2] == ["no-variant", "operator-rollback"]
    assert [report.reason for report in journal.reports()][2:] == ["no-variant"]


def test_a_rollback_names_the_rollout_only_if_the_channel_still_offers_the_release(journal: Journal) -> None:
    bundle = make_bundle_record()
    rejection = Rejection(Outcome.ROLLED_BACK, "operator-rollback", "by hand", quarantines=True)
    journal.store_bundle(bundle)
    for offered in ("1.0.0", "1.1.0"):
        journal.update_persistent_state(lambda before: replace(before, offered_release=offered, followed=FOLLOWED))  # noqa: B023
        journal.finish_rejection(journal.begin_rollback(bundle, rejection), "1.32.0")
    assert [(report.rollout, report.is_failure) for report in journal.reports()] == [("e" * 64, True), (None, True)]
    assert [report.state for report in journal.reports()] == ["rolling-back"] * 2
