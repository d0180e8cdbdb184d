"""One update, straight through: check, fetch, patch, probe, swap, watch, commit or go back.

Rules:
1. Intent is recorded before acting: the journal's state says what is under way, and every step can run twice.
2. How an error ends an attempt depends on the state that it happened in, and on its kind:
   device_agent.policy.error_outcomes.
3. A blob whose patch turns out bad, or whose base is damaged, does not end the attempt while another path is there.
4. The rollout is checked again right before the swap.
5. Without a daemon nothing is served: the candidate is probed and armed for the next start.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from bundle.acceptance import VerifiedRelease, check_eligibility
from bundle.errors import AirweightsError, Invalid, PatchRefused, Refused, Unavailable, Unfit
from bundle.files import BundleDigest
from bundle.strict_json import JSON
from device_agent.errors import (
    BundleQuarantined,
    JournalUnreadable,
    NotEligible,
    PatcherCrashed,
    RollbackFloorUnproven,
    StoreDamaged,
    WorkerCrashed,
    system_error,
)
from device_agent.policy.attempt import DOWNTIME, Attempt, Outcome, Rejection, UpdateResult
from device_agent.policy.error_outcomes import error_outcome
from device_agent.policy.journal_records import BundleRecord, TpmCounterRecord
from device_agent.policy.planner import DeviceFacts, PatchEdge, PatchPath, choose_variant
from device_agent.policy.state_machine import MAX_CRASHES, Event, State
from device_agent.update.candidate import Candidate
from device_agent.update.context import UpdateContext, clear_damaged, collect_garbage, find_patch_path, mark_damaged
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

MAX_REPLANS: Final = 4


def run_update(context: UpdateContext, trigger: str) -> UpdateResult:
    """One attempt from its check on.

    Raises:
        Bug.
        Unavailable: nothing was begun, or the journal failed in the middle (JournalUnavailable); every other error
            becomes the outcome.
    """
    facts = _read_facts(context)
    with context.open_workers() as errands:
        update = _Update(context, errands, facts, context.journal.begin_attempt(trigger))
        return update.run_to_result(update.from_check)


def run_staged(context: UpdateContext) -> UpdateResult | None:
    """Go on with a candidate that was armed while no daemon served; None where there is none."""
    attempt = context.journal.attempt
    if context.journal.state is not State.STAGED or attempt is None:
        return None
    facts = _read_facts(context)
    with context.open_workers() as errands:
        update = _Update(context, errands, facts, attempt)
        return update.run_to_result(update.from_staged)


def _read_facts(context: UpdateContext) -> DeviceFacts:
    try:
        return context.read_facts()
    except OSError as error:
        raise system_error(error) from error


class _Update:
    def __init__(self, context: UpdateContext, workers: WorkerPool, facts: DeviceFacts, attempt: Attempt) -> None:
        self._context, self._workers, self._attempt = context, workers, attempt
        self._journal, self._store = context.journal, context.store
        self._facts = facts
        self._candidate = Candidate(context, workers)

    def run_to_result(self, steps: Callable[[], UpdateResult]) -> UpdateResult:
        """Run the steps; what they raise becomes an outcome (rule 2)."""
        try:
            try:
                ended = steps()
            except OSError as error:
                raise system_error(error) from error
        except JournalUnreadable:
            raise  # what cannot be recorded is not decided: recovery goes on from what is recorded
        except (Invalid, Refused, Unavailable, Unfit) as error:
            ended = self._end_with_error(error)
        self._log_result(ended)
        collect_garbage(self._context)
        return ended

    def from_check(self) -> UpdateResult:
        """Everything."""
        with self._time_phase("check"):
            release = self._check_channel()
            name, _ = choose_variant(
                release.manifest, self._context.config.update.variant, self._facts, self._active_variant()
            )
        holding = BundleRecord.from_manifest(release.manifest, name, release.counter_epoch)
        if self._is_active(holding):
            self._journal.store_bundle(holding)
            return self._journal.end_attempt(self._attempt, Event.UP_TO_DATE, Outcome.NOTHING_NEW)
        self._attempt = replace(
            self._attempt, target=holding.digest, release=holding.version, counter=holding.counter, variant=name
        )
        self._check_quarantine(holding)
        self._check_eligible(release)
        self._attempt = self._journal.set_target(self._attempt, holding)
        self._prepare_bundle(release, holding)
        with self._time_phase("probe"):
            self._candidate.probe(holding)
        with self._time_phase("check"):
            self._check_again(release)
        if self._context.serving is None:
            return self._journal.stage(self._attempt)
        return self._activate(holding, Event.HEALTHY)

    def from_staged(self) -> UpdateResult:
        """From the swap on."""
        holding = self._journal.bundle(self._attempt.target)
        if holding is None or not self._store.contains(holding.digest):
            return self._journal.end_attempt(
                self._attempt, Event.ABORTED, Outcome.INTERRUPTED, StoreDamaged.reason, "it is gone"
            )
        return self._activate(holding, Event.DAEMON_STARTED)

    # check

    def _check_channel(self) -> VerifiedRelease:
        seen = self._check_tpm_counter()
        try:
            release = self._workers.check_channel(self._journal.persistent_state, self._journal.bundles())
        except (Refused, Unavailable) as error:
            reason = error.reason
            self._journal.update_persistent_state(lambda before: replace(before, last_error=reason))
            raise
        before = self._journal.persistent_state
        is_raised = (release.floor.epoch, release.floor.counter) > (before.floor_epoch, before.floor_counter)
        checked = replace(
            before,
            floor_epoch=release.floor.epoch,
            floor_counter=release.floor.counter,
            checked_ms=release.checked_at_s * 1000,
            metadata_expires_ms=release.expires_at_s * 1000,
            offered_release=release.manifest.version,
            last_error="",
        )
        self._journal.update_persistent_state(lambda _: checked)
        if seen is not None and (is_raised or self._context.device_journal.tpm_counter.is_unproven):
            # recorded before the TPM's is raised: cut off in between, the record is ahead, which accuses nobody
            self._context.device_journal.record_tpm_counter(TpmCounterRecord(seen + 1))
            self._workers.raise_tpm_counter(seen + 1)
        return release

    def _check_tpm_counter(self) -> int | None:
        """The TPM's counter behind the floor, where there is one. Raises FloorUnprovenUnavailable."""
        seen, witness = self._workers.read_tpm_counter(), self._context.device_journal.tpm_counter
        if seen is None or seen <= witness.counter:
            return seen
        self._context.device_journal.record_tpm_counter(replace(witness, is_unproven=True))
        logger.warning("floor unproven", extra={"tpm_counter": seen, "remembered": witness.counter})
        if self._context.config.repository_url.startswith("file:"):
            raise RollbackFloorUnproven(
                f"the TPM's counter is {seen}, this disk remembers {witness.counter}: an old copy, or damaged",
                hint="update from the network once, which proves the floor anew; packs are taken again then",
            )
        return seen

    def _check_quarantine(self, bundle: BundleRecord) -> None:
        row = self._journal.quarantine_record(bundle.digest, self._facts.runtime)
        if row is not None and bundle.counter <= row.counter:
            raise BundleQuarantined(
                f"release {bundle.version} ({bundle.variant}) failed here before with {row.reason!r}, "
                f"under onnxruntime {row.runtime}",
                hint="publish a release with a higher counter, or `device-agent quarantine clear`",
            )

    def _check_eligible(self, release: VerifiedRelease) -> None:
        answer = check_eligibility(
            release, self._context.identity.device_id, self._context.config.cohort, release.checked_at_s
        )
        if not answer.is_eligible:
            raise NotEligible(f"{answer.reason}: {answer.detail}")

    def _check_again(self, before: VerifiedRelease) -> None:
        release = self._check_channel()
        if release.rollout.manifest_digest != before.rollout.manifest_digest:
            raise NotEligible(
                f"the rollout moved on to {release.manifest.version} while {before.manifest.version} was prepared"
            )
        self._check_eligible(release)

    # fetch and patch

    def _prepare_bundle(self, release: VerifiedRelease, bundle: BundleRecord) -> None:
        """The bundle is in the store when this returns; the state is PROBING."""
        avoided: set[str] = set()
        for last in (*(False,) * MAX_REPLANS, True):
            plan = self._find_path(release, bundle.digest, avoided)
            try:
                self._run_path(release, plan)
            except StoreDamaged:
                if last:
                    raise
                self._mark_damaged_bases(plan)
            except PatchRefused as error:
                # a delta that does not apply is no reason to go without: the patch from nothing needs no base
                step = self._applying
                if last or step is None or step.entry.base is None:
                    raise
                logger.warning("patch refused, looking for another path", extra={"reason": error.reason})
                avoided.add(step.entry.blob)
            else:
                break
            self._attempt = self._journal.advance(Event.REPLAN, self._attempt)
        self._attempt = self._journal.advance(Event.PATCHED, self._attempt)

    _applying: PatchEdge | None = None

    def _find_path(self, release: VerifiedRelease, target: BundleDigest, excluded_blobs: set[str]) -> PatchPath:
        plan = find_patch_path(
            self._context, release.manifest, release.counter_epoch, target, self._facts, frozenset(excluded_blobs)
        )
        if plan.steps:
            self._store.check_space(plan.storage_bytes)
        self._attempt = replace(self._attempt, patch_bytes=plan.patch_bytes, full_bytes=plan.full_bytes)
        logger.info("planned", extra={"steps": len(plan.steps), "bytes": plan.fetch_bytes})
        return plan

    def _run_path(self, release: VerifiedRelease, plan: PatchPath) -> None:
        with self._time_phase("fetch"):
            for edge in plan.steps:
                fetched = self._workers.fetch_blob(
                    edge, lambda done, total: self._context.on_progress("fetch", done, total)
                )
                self._attempt = replace(
                    self._attempt, download_bytes=self._attempt.download_bytes + fetched.received_bytes
                )
                self._workers.load_content_key(release, edge, self._context.identity.x_wing_public)
        self._attempt = self._journal.advance(Event.FETCHED, self._attempt)
        with self._time_phase("patch"):
            for edge in plan.steps:
                self._apply_patch(edge)

    def _apply_patch(self, edge: PatchEdge) -> None:
        self._applying = edge
        try:
            self._workers.apply_patch(edge)
        except WorkerCrashed as error:
            self._count_patcher_crash(error)
            raise
        self._applying = None
        self._store.delete_partial(edge.entry.blob)
        self._journal.update_persistent_state(clear_damaged(edge.target))

    def _mark_damaged_bases(self, plan: PatchPath) -> None:
        bases = {edge.entry.base for edge in plan.steps if edge.entry.base is not None}
        for base in bases & self._store.digests():
            try:
                self._workers.read_sealed_header(base)
            except StoreDamaged:
                logger.warning("a bundle in the store is damaged", extra={"bundle": base})
                self._journal.update_persistent_state(mark_damaged(base))

    def _count_patcher_crash(self, error: WorkerCrashed) -> None:
        """A child that died over this bundle, again and again, is a verdict on the bundle."""
        if self._attempt.target is None:
            return
        if self._journal.count_crash(self._attempt.target, self._journal.state) >= MAX_CRASHES:
            raise PatcherCrashed(f"{MAX_CRASHES} times: {error.message}") from error

    # probe, swap, watch

    def _activate(self, bundle: BundleRecord, event: Event) -> UpdateResult:
        serving, trial = self._context.serving, self._candidate
        assert serving is not None
        self._attempt = self._journal.advance(event, self._attempt)
        is_first = serving.current is None
        with self._time_phase("swap"):
            trial.make_memory_available(serving, bundle)
            candidate = trial.load(serving, bundle)
        if candidate.variant.health.shadow_ppm and serving.current is not None:
            with self._time_phase("shadow"):
                trial.run_shadow(serving, candidate)
        with self._time_phase("swap"):
            took_us = trial.publish(serving, candidate)
        self._record_downtime()
        self._attempt = replace(self._attempt, swap_us=took_us)
        # with nothing to go back to, a probation could only take the service away
        self._attempt = self._journal.advance(Event.FIRST_INSTALL if is_first else Event.SWAPPED, self._attempt)
        if not is_first:
            with self._time_phase("probation"):
                trial.run_probation(serving, candidate)
            self._attempt = self._journal.advance(Event.HEALTHY, self._attempt)
        ended = self._journal.commit(self._attempt)
        serving.stop_replaced()
        return ended

    # the end

    def _end_with_error(self, error: AirweightsError) -> UpdateResult:
        state = self._journal.state
        end = error_outcome(state, error)
        if end.outcome is Outcome.ROLLED_BACK and self._candidate.published is None:
            end = replace(end, outcome=Outcome.UNFIT)  # it never served
        if end.event is Event.ABORTED and state is not State.PROBATION:
            self._revert_candidate()
            return self._journal.end_attempt(self._attempt, end.event, end.outcome, error.reason, error.message)
        verdict = Rejection.from_error(error, end.outcome, quarantines=end.quarantines)
        self._attempt = self._journal.record_rejection(end.event, self._attempt, verdict)
        self._revert_candidate()
        return self._journal.finish_rejection(self._attempt, self._facts.runtime)

    def _revert_candidate(self) -> None:
        if self._context.serving is not None:
            self._candidate.revert(self._context.serving)
            self._record_downtime()

    def _record_downtime(self) -> None:
        if self._candidate.downtime_ms:
            self._attempt = self._attempt.with_phase(DOWNTIME, self._candidate.downtime_ms)
            self._candidate.downtime_ms = 0

    # facts

    def _active_variant(self) -> str | None:
        active = self._journal.bundle(self._journal.pointers.active)
        return None if active is None else active.variant

    def _is_active(self, bundle: BundleRecord) -> bool:
        active = self._journal.pointers.active
        return active == bundle.digest and active not in self._journal.persistent_state.damaged_bundles

    @contextmanager
    def _time_phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._attempt = self._attempt.with_phase(name, round((time.monotonic() - started) * 1000))

    def _log_result(self, result: UpdateResult) -> None:
        fields: dict[str, JSON] = {
            "outcome": result.outcome.value,
            "reason": result.reason,
            "release": result.attempt.release,
            "detail": result.detail,
        }
        logger.info("update ended", extra=fields)
