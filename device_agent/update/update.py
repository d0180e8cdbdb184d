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
    ChildDied,
    FloorUnprovenUnavailable,
    JournalUnavailable,
    NotEligibleUnavailable,
    PatcherDiedUnfit,
    QuarantinedRefused,
    StoreDamagedRefused,
    system_error,
)
from device_agent.policy.attempt import DOWNTIME, Attempt, Ended, Outcome, Verdict
from device_agent.policy.error_outcomes import ending_of
from device_agent.policy.journal_records import Holding, Witness
from device_agent.policy.planner import DeviceFacts, Edge, Plan, choose_variant
from device_agent.policy.state_machine import MAX_KILLS, Event, State
from device_agent.update.candidate import Trial
from device_agent.update.context import Agent, collect, plan_to, with_damaged, without_damaged
from device_agent.workers.worker_pool import Errands

logger = logging.getLogger(__name__)

REPLANS: Final = 4


def run_update(agent: Agent, trigger: str) -> Ended:
    """One attempt from its check on.

    Raises:
        Bug.
        Unavailable: nothing was begun, or the journal failed in the middle (JournalUnavailable); every other error
            becomes the outcome.
    """
    facts = _facts(agent)
    with agent.errands() as errands:
        update = _Update(agent, errands, facts, agent.journal.begin(trigger))
        return update.guarded(update.from_check)


def run_armed(agent: Agent) -> Ended | None:
    """Go on with a candidate that was armed while no daemon served; None where there is none."""
    attempt = agent.journal.attempt
    if agent.journal.state is not State.ARMED or attempt is None:
        return None
    facts = _facts(agent)
    with agent.errands() as errands:
        update = _Update(agent, errands, facts, attempt)
        return update.guarded(update.from_armed)


def _facts(agent: Agent) -> DeviceFacts:
    try:
        return agent.facts()
    except OSError as error:
        raise system_error(error) from error


class _Update:
    def __init__(self, agent: Agent, errands: Errands, facts: DeviceFacts, attempt: Attempt) -> None:
        self._agent, self._errands, self._attempt = agent, errands, attempt
        self._journal, self._store = agent.journal, agent.store
        self._facts = facts
        self._trial = Trial(agent, errands)

    def guarded(self, steps: Callable[[], Ended]) -> Ended:
        """Run the steps; what they raise becomes an outcome (rule 2)."""
        try:
            try:
                ended = steps()
            except OSError as error:
                raise system_error(error) from error
        except JournalUnavailable:
            raise  # what can not be recorded is not decided: recovery goes on from what is recorded
        except (Invalid, Refused, Unavailable, Unfit) as error:
            ended = self._end(error)
        self._log(ended)
        collect(self._agent)
        return ended

    def from_check(self) -> Ended:
        """Everything."""
        with self._phase("check"):
            release = self._check()
            name, _ = choose_variant(
                release.manifest, self._agent.config.update.variant, self._facts, self._active_variant()
            )
        holding = Holding.of(release.manifest, name, release.counter_epoch)
        if self._is_active(holding):
            self._journal.hold(holding)
            return self._journal.end(self._attempt, Event.NOTHING, Outcome.NOTHING_NEW)
        self._attempt = replace(
            self._attempt, target=holding.digest, release=holding.version, counter=holding.counter, variant=name
        )
        self._check_quarantine(holding)
        self._check_eligible(release)
        self._attempt = self._journal.aim(self._attempt, holding)
        self._make(release, holding)
        with self._phase("probe"):
            self._trial.probe(holding)
        with self._phase("check"):
            self._check_again(release)
        if self._agent.serving is None:
            return self._journal.arm(self._attempt)
        return self._activate(holding, Event.HEALTHY)

    def from_armed(self) -> Ended:
        """From the swap on."""
        holding = self._journal.holding(self._attempt.target)
        if holding is None or not self._store.holds(holding.digest):
            return self._journal.end(self._attempt, Event.GIVEN_UP, Outcome.INTERRUPTED, "store-damaged", "it is gone")
        return self._activate(holding, Event.BOOT)

    # check

    def _check(self) -> VerifiedRelease:
        seen = self._counter()
        try:
            release = self._errands.check(self._journal.remembered, self._journal.holdings())
        except (Refused, Unavailable) as error:
            reason = error.reason
            self._journal.remember(lambda before: replace(before, last_error=reason))
            raise
        before = self._journal.remembered
        is_raised = (release.floor.epoch, release.floor.counter) > (before.floor_epoch, before.floor_counter)
        checked = replace(
            before,
            floor_epoch=release.floor.epoch,
            floor_counter=release.floor.counter,
            checked_ms=release.checked_at_s * 1000,
            fresh_until_ms=release.expires_at_s * 1000,
            offered=release.manifest.version,
            last_error="",
        )
        self._journal.remember(lambda _: checked)
        if seen is not None and (is_raised or self._agent.device_journal.witness.is_unproven):
            # recorded before the TPM's is raised: cut off in between, the record is ahead, which accuses nobody
            self._agent.device_journal.witness_floor(Witness(seen + 1))
            self._errands.raise_counter(seen + 1)
        return release

    def _counter(self) -> int | None:
        """The TPM's counter behind the floor, where there is one. Raises FloorUnprovenUnavailable."""
        seen, witness = self._errands.counter(), self._agent.device_journal.witness
        if seen is None or seen <= witness.counter:
            return seen
        self._agent.device_journal.witness_floor(replace(witness, is_unproven=True))
        logger.warning("floor unproven", extra={"tpm_counter": seen, "remembered": witness.counter})
        if self._agent.config.repository_url.startswith("file:"):
            raise FloorUnprovenUnavailable(
                f"the TPM's counter is {seen}, this disk remembers {witness.counter}: an old copy, or damaged",
                remedy="update from the network once, which proves the floor anew; packs are taken again then",
            )
        return seen

    def _check_quarantine(self, holding: Holding) -> None:
        row = self._journal.in_quarantine(holding.digest, self._facts.runtime)
        if row is not None and holding.counter <= row.counter:
            raise QuarantinedRefused(
                f"release {holding.version} ({holding.variant}) failed here before with {row.reason!r}, "
                f"under onnxruntime {row.runtime}",
                remedy="publish a release with a higher counter, or `device-agent forgive`",
            )

    def _check_eligible(self, release: VerifiedRelease) -> None:
        answer = check_eligibility(
            release, self._agent.identity.device_id, self._agent.config.cohort, release.checked_at_s
        )
        if not answer.is_eligible:
            raise NotEligibleUnavailable(f"{answer.reason}: {answer.detail}")

    def _check_again(self, before: VerifiedRelease) -> None:
        release = self._check()
        if release.rollout.manifest_digest != before.rollout.manifest_digest:
            raise NotEligibleUnavailable(
                f"the rollout moved on to {release.manifest.version} while {before.manifest.version} was prepared"
            )
        self._check_eligible(release)

    # fetch and patch

    def _make(self, release: VerifiedRelease, holding: Holding) -> None:
        """The bundle is in the store when this returns; the state is PROBING."""
        avoided: set[str] = set()
        for last in (*(False,) * REPLANS, True):
            plan = self._plan(release, holding.digest, avoided)
            try:
                self._follow(release, plan)
            except StoreDamagedRefused:
                if last:
                    raise
                self._drop_damaged(plan)
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
        self._attempt = self._journal.advance(Event.STAGED, self._attempt)

    _applying: Edge | None = None

    def _plan(self, release: VerifiedRelease, target: BundleDigest, avoided: set[str]) -> Plan:
        plan = plan_to(self._agent, release.manifest, release.counter_epoch, target, self._facts, frozenset(avoided))
        if plan.steps:
            self._store.check_space(plan.storage_bytes)
        self._attempt = replace(self._attempt, patch_bytes=plan.patch_bytes, full_bytes=plan.full_bytes)
        logger.info("planned", extra={"steps": len(plan.steps), "bytes": plan.fetch_bytes})
        return plan

    def _follow(self, release: VerifiedRelease, plan: Plan) -> None:
        with self._phase("fetch"):
            for edge in plan.steps:
                fetched = self._errands.fetch_blob(edge, lambda done, total: self._agent.progress("fetch", done, total))
                self._attempt = replace(
                    self._attempt, download_bytes=self._attempt.download_bytes + fetched.received_bytes
                )
                self._errands.unlock(release, edge, self._agent.identity.x_wing_public)
        self._attempt = self._journal.advance(Event.FETCHED, self._attempt)
        with self._phase("patch"):
            for edge in plan.steps:
                self._apply(edge)

    def _apply(self, edge: Edge) -> None:
        self._applying = edge
        try:
            self._errands.apply(edge)
        except ChildDied as error:
            self._blame(error)
            raise
        self._applying = None
        self._store.drop_part(edge.entry.blob)
        self._journal.remember(without_damaged(edge.target))

    def _drop_damaged(self, plan: Plan) -> None:
        bases = {edge.entry.base for edge in plan.steps if edge.entry.base is not None}
        for base in bases & self._store.held():
            try:
                self._errands.describe(base)
            except StoreDamagedRefused:
                logger.warning("a bundle in the store is damaged", extra={"bundle": base})
                self._journal.remember(with_damaged(base))

    def _blame(self, error: ChildDied) -> None:
        """A child that died over this bundle, again and again, is a verdict on the bundle."""
        if self._attempt.target is None:
            return
        if self._journal.count_kill(self._attempt.target, self._journal.state) >= MAX_KILLS:
            raise PatcherDiedUnfit(f"{MAX_KILLS} times: {error.message}") from error

    # probe, swap, watch

    def _activate(self, holding: Holding, event: Event) -> Ended:
        serving, trial = self._agent.serving, self._trial
        assert serving is not None
        self._attempt = self._journal.advance(event, self._attempt)
        is_first = serving.current is None
        with self._phase("swap"):
            trial.make_room(serving, holding)
            candidate = trial.load(serving, holding)
        if candidate.variant.health.shadow_ppm and serving.current is not None:
            with self._phase("shadow"):
                trial.shadow(serving, candidate)
        with self._phase("swap"):
            took_us = trial.publish(serving, candidate)
        self._note_downtime()
        self._attempt = replace(self._attempt, swap_us=took_us)
        # with nothing to go back to, a probation could only take the service away
        self._attempt = self._journal.advance(Event.ADOPTED if is_first else Event.SWAPPED, self._attempt)
        if not is_first:
            with self._phase("probation"):
                trial.watch(serving, candidate)
            self._attempt = self._journal.advance(Event.HEALTHY, self._attempt)
        ended = self._journal.commit(self._attempt)
        serving.settle()
        return ended

    # the end

    def _end(self, error: AirweightsError) -> Ended:
        state = self._journal.state
        end = ending_of(state, error)
        if end.outcome is Outcome.ROLLED_BACK and self._trial.candidate is None:
            end = replace(end, outcome=Outcome.UNFIT)  # it never served
        if end.event is Event.GIVEN_UP and state is not State.PROBATION:
            self._abandon()
            return self._journal.end(self._attempt, end.event, end.outcome, error.reason, error.message)
        verdict = Verdict.of(error, end.outcome, quarantines=end.quarantines)
        self._attempt = self._journal.decide(end.event, self._attempt, verdict)
        self._abandon()
        return self._journal.give_back(self._attempt, self._facts.runtime)

    def _abandon(self) -> None:
        if self._agent.serving is not None:
            self._trial.withdraw(self._agent.serving)
            self._note_downtime()

    def _note_downtime(self) -> None:
        if self._trial.downtime_ms:
            self._attempt = self._attempt.with_phase(DOWNTIME, self._trial.downtime_ms)
            self._trial.downtime_ms = 0

    # facts

    def _active_variant(self) -> str | None:
        active = self._journal.holding(self._journal.pointers.active)
        return None if active is None else active.variant

    def _is_active(self, holding: Holding) -> bool:
        active = self._journal.pointers.active
        return active == holding.digest and active not in self._journal.remembered.damaged

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._attempt = self._attempt.with_phase(name, round((time.monotonic() - started) * 1000))

    def _log(self, ended: Ended) -> None:
        fields: dict[str, JSON] = {
            "outcome": ended.outcome.value,
            "reason": ended.reason,
            "release": ended.attempt.release,
            "detail": ended.detail,
        }
        logger.info("update ended", extra=fields)
