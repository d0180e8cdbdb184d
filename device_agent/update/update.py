"""One update of a family, from its check to its result.

Sequence (the state that the journal contains during a step is on the left; `_Update.from_check` is this sequence):

    CHECKING     release = check the channel; bundle = its variant for this device
                 if bundle is active: end as nothing-new
                 require that the bundle is not in quarantine and that the rollout includes this device
    FETCHING     path = cheapest patch path to the bundle; download its blobs and envelopes
    PATCHING     apply the patches into the store; if one is bad, exclude it and return to FETCHING
    PROBING      probe the candidate; check the channel again
                 without a daemon: end as staged; the daemon continues with SWAPPING when it starts
    SWAPPING     make memory available, load the candidate, run shadow mode, switch the requests to it
    PROBATION    watch it serve (not on a first install: there is no release to return to; not if the agent does not
                 run the release's models)
    COMMITTING   make it active; stop the previous generation

Rules:
- The state is recorded before the step acts, and every step can run twice.
- An error ends the attempt as policy.error_outcomes says, by state and kind of error: directly, or after a recorded
  rejection in REJECTING or ROLLING_BACK. A failed update never stops the serving model, except to free memory for a
  candidate that does not fit beside it; then the model is loaded again.
- A bad blob or a damaged base does not end the attempt while another path exists, for at most MAX_REPLANS new paths.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from bundle.acceptance import VerifiedRelease
from bundle.errors import AirweightsError, Invalid, PatchRefused, Refused, Unavailable, Unfit
from bundle.files import BundleDigest
from bundle.strict_json import JSON
from device_agent.errors import (
    JournalUnreadable,
    NotFaster,
    PatcherCrashed,
    StoreDamaged,
    WorkerCrashed,
    system_error,
)
from device_agent.policy.attempt import DOWNTIME, Attempt, Outcome, Rejection, UpdateResult
from device_agent.policy.error_outcomes import error_outcome
from device_agent.policy.followed_rollout import FollowedRollout
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.planner import DeviceFacts, PatchEdge, PatchPath, choose_variant
from device_agent.policy.state_machine import MAX_CRASHES, Event, State
from device_agent.update.candidate import Candidate
from device_agent.update.channel_check import ChannelCheck, is_active
from device_agent.update.context import (
    UpdateContext,
    clear_damaged,
    collect_garbage,
    find_patch_path,
    mark_damaged,
)
from device_agent.update.download_count import DownloadCount
from device_agent.update.variant_trials import VariantTrials, failed_variants, is_measured, read_measurements
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

MAX_VARIANT_TRIALS: Final = 3  # attempts that follow each other because a variant is not faster
MAX_REPLANS: Final = 4  # bounds the blobs that a bad mirror or release can make a device download in one attempt


def run_update(context: UpdateContext, trigger: str) -> UpdateResult:
    """Run one attempt from its check on. An error of the attempt becomes its outcome.

    If the candidate's variant turns out not to be faster than the active one, the next attempt follows at once: it
    updates the active variant, so that a wrong guess never holds back a release.

    Args:
        context: stores and workers of the family; the state in its journal is IDLE or STAGED.
        trigger: "poll", "operator" or "start".

    Raises:
        JournalUnreadable: the journal cannot be read or written; the attempt is recovered later.
        Unavailable: the device facts cannot be read; no attempt was started.
        Bug: an error without a row in the table of outcomes, or an illegal transition.
    """
    facts = _read_facts(context)
    with context.open_workers() as workers:
        for _ in range(MAX_VARIANT_TRIALS):
            update = _Update(context, workers, facts, context.journal.begin_attempt(trigger))
            result = update.run_to_result(update.from_check)
            if result.reason != NotFaster.reason:
                break
        return result


def run_staged(context: UpdateContext) -> UpdateResult | None:
    """Continue with the candidate that was staged while no daemon ran; return None if none is staged.

    Raises:
        JournalUnreadable: the journal cannot be read or written.
        Unavailable: the device facts cannot be read.
    """
    attempt = context.journal.attempt
    if context.journal.state is not State.STAGED or attempt is None:
        return None
    facts = _read_facts(context)
    with context.open_workers() as workers:
        update = _Update(context, workers, facts, attempt)
        return update.run_to_result(update.from_staged)


def _read_facts(context: UpdateContext) -> DeviceFacts:
    try:
        return context.family_facts()
    except OSError as error:
        raise system_error(error) from error


class _Update:
    def __init__(self, context: UpdateContext, workers: WorkerPool, facts: DeviceFacts, attempt: Attempt) -> None:
        self._context, self._workers, self._attempt = context, workers, attempt
        self._journal, self._store = context.journal, context.store
        self._facts = facts
        self._check = ChannelCheck(context, workers, facts)
        self._candidate = Candidate(context, workers)
        self._trials = VariantTrials(context, workers, facts)
        self._applying: PatchEdge | None = None  # the patch being applied
        self._download_count = DownloadCount(context, workers, attempt.downloaded)

    def run_to_result(self, steps: Callable[[], UpdateResult]) -> UpdateResult:
        """Run the steps and return the result; an error becomes the outcome that policy.error_outcomes names."""
        try:
            try:
                with self._context.interruption.allow():
                    result = steps()
            except OSError as error:
                raise system_error(error) from error
        except JournalUnreadable:
            raise  # no decision was recorded: recovery continues from the last durable state
        except (Invalid, Refused, Unavailable, Unfit) as error:
            result = self._end_with_error(error)
        finally:
            self._candidate.close()
            self._context.on_probation(None)
        self._log_result(result)
        collect_garbage(self._context)
        return result

    def from_check(self) -> UpdateResult:
        """Run the whole sequence, from CHECKING on."""
        with self._time_phase("check"):
            release = self._check.check_channel()
            self._attempt = replace(
                self._attempt,
                release=release.manifest.version,
                counter=release.manifest.counter,
                followed=FollowedRollout.from_release(release),
            )
            name, variant = choose_variant(
                release.manifest,
                self._context.config.update.variant,
                self._facts,
                self._active_variant(),
                read_measurements(self._context, self._facts),
                failed_variants(self._context, release.manifest, self._facts),
            )
        bundle = BundleRecord.from_manifest(release.manifest, name, release.counter_epoch)
        if is_active(self._journal, bundle.digest):
            self._journal.store_bundle(bundle)
            self._store_as_signed(bundle)
            return self._journal.end_attempt(self._attempt, Event.UP_TO_DATE, Outcome.NOTHING_NEW)
        self._attempt = replace(self._attempt, target=bundle.digest, variant=name)
        self._check.check_quarantine(bundle)
        self._check.check_eligible(release)
        self._attempt = self._journal.set_target(self._attempt, bundle)
        self._download_count.start(bundle.digest)
        self._prepare_bundle(release, bundle)
        with self._time_phase("probe"):
            is_measured_here = is_measured(self._context, self._facts, name, variant)
            ratio_ppm = self._candidate.probe(bundle, measures_ratio=not is_measured_here)
            is_first = self._journal.pointers.active is None
            self._trials.judge_candidate(bundle, ratio_ppm, is_first=is_first)
            self._trials.confirm_choice(release, name)
            self._trials.measure_others(release, name, self._attempt.patch_bytes)
            self._trials.record_change(name)
        with self._time_phase("check"):
            self._check.check_again(release)
        if self._context.serving is None:
            return self._end_without_daemon(bundle)
        return self._activate(bundle, Event.HEALTHY)

    def from_staged(self) -> UpdateResult:
        """Run the sequence from SWAPPING on."""
        bundle = self._journal.bundle(self._attempt.target)
        if bundle is None or not self._store.contains(bundle.digest):
            return self._journal.end_attempt(
                self._attempt,
                Event.ABORTED,
                Outcome.INTERRUPTED,
                StoreDamaged.reason,
                "the bundle is no longer in the store",
            )
        return self._activate(bundle, Event.DAEMON_STARTED)

    # fetch and patch

    def _prepare_bundle(self, release: VerifiedRelease, bundle: BundleRecord) -> None:
        """Fetch and patch until the bundle is in the store; the state is PROBING then."""
        excluded_blobs: set[str] = set()
        for is_last in (*(False,) * MAX_REPLANS, True):
            path = self._find_path(release, bundle.digest, excluded_blobs)
            try:
                self._run_path(release, path)
                self._store_as_signed(bundle)
            except StoreDamaged:
                if is_last:
                    raise
                self._mark_damaged_bases(path)
            except PatchRefused as error:
                # a patch with a base can fail because of the base: another path may not need it
                edge = self._applying
                if is_last or edge is None or edge.entry.base is None:
                    raise
                logger.warning("patch refused, looking for another path", extra={"reason": error.reason})
                excluded_blobs.add(edge.entry.blob)
            else:
                break
            self._attempt = self._journal.advance(Event.REPLAN, self._attempt)
        self._download_count.clear()
        self._attempt = self._journal.advance(Event.PATCHED, self._attempt)

    def _find_path(self, release: VerifiedRelease, target: BundleDigest, excluded_blobs: set[str]) -> PatchPath:
        path = find_patch_path(
            self._context, release.manifest, release.counter_epoch, target, self._facts, frozenset(excluded_blobs)
        )
        if path.steps:
            self._store.check_space(path.storage_bytes)
        self._attempt = replace(self._attempt, patch_bytes=path.patch_bytes, full_bytes=path.full_bytes)
        logger.info("update planned", extra={"steps": len(path.steps), "download_bytes": path.fetch_bytes})
        return path

    def _run_path(self, release: VerifiedRelease, path: PatchPath) -> None:
        with self._time_phase("fetch"):
            if path.steps:
                self._workers.check_enrollment(release, self._context.identity.x_wing_public)
            for edge in path.steps:
                self._workers.fetch_blob(edge, self._report_fetched, self._download_count.blob_bytes_left())
                self._workers.load_content_key(release, edge, self._context.identity.x_wing_public)
        self._attempt = self._journal.advance(Event.FETCHED, self._attempt)
        with self._time_phase("patch"):
            for edge in path.steps:
                self._apply_patch(edge)

    def _report_fetched(self, done: int, total: int) -> None:
        self._record_downloaded()
        self._context.on_progress("fetch", done, total)

    def _record_downloaded(self) -> None:
        self._attempt = replace(self._attempt, downloaded=self._download_count.downloaded())
        if self._journal.state is State.FETCHING and self._attempt.target is not None:
            self._download_count.record(self._attempt.target)

    def _apply_patch(self, edge: PatchEdge) -> None:
        self._applying = edge
        try:
            self._workers.patcher.apply_patch(edge)
        except WorkerCrashed as error:
            self._count_patcher_crash(error)
            raise
        self._applying = None
        self._store.delete_partial(edge.entry.blob)
        self._journal.update_persistent_state(clear_damaged(edge.target))

    def _store_as_signed(self, bundle: BundleRecord) -> None:
        try:
            self._workers.patcher.store_as_signed(bundle)
        except StoreDamaged:
            self._journal.update_persistent_state(mark_damaged(bundle.digest))
            raise

    def _mark_damaged_bases(self, path: PatchPath) -> None:
        bases = {edge.entry.base for edge in path.steps if edge.entry.base is not None}
        for base in bases & self._store.digests():
            try:
                self._workers.patcher.read_sealed_header(base)
            except StoreDamaged:
                logger.warning("bundle in the store is damaged", extra={"bundle": base})
                self._journal.update_persistent_state(mark_damaged(base))

    def _count_patcher_crash(self, error: WorkerCrashed) -> None:
        """Raise PatcherCrashed, which quarantines the bundle, after MAX_CRASHES crashes of the patcher on it."""
        if self._attempt.target is None:
            return
        if self._journal.count_crash(self._attempt.target, self._journal.state) >= MAX_CRASHES:
            raise PatcherCrashed(f"{MAX_CRASHES} crashes with this bundle, the last one: {error.message}") from error

    # swap and probation

    def _activate(self, bundle: BundleRecord, event: Event) -> UpdateResult:
        serving, candidate = self._context.serving, self._candidate
        assert serving is not None
        self._attempt = self._journal.advance(event, self._attempt)
        self._context.interruption.candidate_is_activated()
        is_first, runtime = serving.current is None, bundle.runtime()
        with self._time_phase("swap"):
            candidate.make_memory_available(serving, bundle)
            generation = candidate.load(serving, bundle)
        if generation.variant.health.shadow_ppm and serving.current is not None:
            with self._time_phase("shadow"):
                candidate.run_shadow(serving, generation)
        with self._time_phase("swap"):
            took_us = candidate.publish(serving, generation, is_watched=runtime.is_run_by_agent and not is_first)
        self._context.interruption.candidate_serves()
        self._record_downtime()
        self._attempt = replace(self._attempt, swap_us=took_us)
        # a first install has no release to return to: a failed probation could only end the service
        event = Event.FIRST_INSTALL if is_first else Event.SWAPPED if runtime.is_judged else Event.NOT_RUN
        if event is Event.SWAPPED:
            judges = None if runtime.is_run_by_agent else len(self._context.app_verdicts.judges)
            candidate.announce_probation(generation, judges)
        self._attempt = self._journal.advance(event, self._attempt)
        if event is Event.SWAPPED:
            with self._time_phase("probation"):
                if runtime.is_run_by_agent:
                    summary = candidate.run_probation(serving, generation)
                else:
                    summary = candidate.run_app_probation(generation)
            self._attempt = replace(self._attempt, probation=summary)
            self._attempt = self._journal.advance(Event.HEALTHY, self._attempt)
        result = self._journal.commit(self._attempt)
        serving.stop_replaced()
        return result

    def _end_without_daemon(self, bundle: BundleRecord) -> UpdateResult:
        """Stage a bundle, or make it active if nothing has to serve or judge it first."""
        runtime = bundle.runtime()
        if runtime.is_run_by_agent or (runtime.is_judged and self._journal.pointers.active is not None):
            return self._journal.stage(self._attempt)
        self._attempt = self._journal.advance(Event.HEALTHY, self._attempt)
        self._attempt = self._journal.advance(Event.NOT_RUN, self._attempt)
        return self._journal.commit(self._attempt)

    # errors

    def _end_with_error(self, error: AirweightsError) -> UpdateResult:
        state = self._journal.state
        self._attempt = replace(self._attempt, probation=self._candidate.summary)
        row = error_outcome(state, error)
        if row.outcome is Outcome.ROLLED_BACK and self._candidate.published is None:
            row = replace(row, outcome=Outcome.UNFIT)  # it never served
        if row.event is Event.ABORTED and state is not State.PROBATION:
            self._revert_candidate()
            return self._journal.end_attempt(self._attempt, row.event, row.outcome, error.reason, error.message)
        rejection = Rejection.from_error(error, row.outcome, quarantines=row.quarantines)
        self._attempt = self._journal.record_rejection(row.event, self._attempt, rejection)
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

    # helpers

    def _active_variant(self) -> str | None:
        active = self._journal.bundle(self._journal.pointers.active)
        return None if active is None else active.variant

    @contextmanager
    def _time_phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._attempt = self._attempt.with_phase(name, round((time.monotonic() - started) * 1000))
            self._record_downloaded()

    def _log_result(self, result: UpdateResult) -> None:
        fields: dict[str, JSON] = {
            "outcome": result.outcome.value,
            "reason": result.reason,
            "release": result.attempt.release,
            "detail": result.detail,
        }
        logger.info("update ended", extra=fields)
