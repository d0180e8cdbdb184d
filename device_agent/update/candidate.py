"""A candidate on its way into service: probed, given room, loaded, heard in the shadow, published, watched, withdrawn.

Rules:
1. Nothing here is recorded: the attempt (device_agent.update.update) writes down what is intended before it asks for
   it.
2. Where two generations do not fit into memory, beside what other families hold, the running one is stopped before the
   candidate is loaded, and loaded again if the candidate fails; the outage is measured. Standbys of all families go
   before that; another family's running model never does.
3. Where the signed contract asks for it, the candidate hears a share of the live requests before the swap.
4. A personal adapter goes along with a candidate where it fits.
5. A probation follows the swap. In both an operator's word, or the agent's own end, comes first.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from bundle.errors import AirweightsError, Unfit
from device_agent.errors import (
    AdapterIncompatible,
    AgentStopping,
    OperatorRollback,
    OutOfMemory,
    ProbationFailed,
    ProbationInconclusive,
    ShadowFailed,
    StoreDamaged,
    WorkerTimeout,
)
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import (
    ProbationAction,
    ProbationDecision,
    ProbationLimits,
    ServingObservation,
    judge_probation,
)
from device_agent.policy.shadow_judge import judge_shadow
from device_agent.runtime.admission import Admission, decide_admission
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.serving.family_serving import FamilyServing, Generation
from device_agent.storage.adapter_store import AdapterStore
from device_agent.update.context import UpdateContext, mark_damaged
from device_agent.workers.adapter_check import check_adapter, with_adapter
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S: Final = 0.25  # of the front's counters; asking costs the front about 0.1 ms


class Candidate:
    """One candidate.

    Args:
        agent: whose it is.
        errands: to unseal with.

    Attributes:
        candidate: what was published, until it is withdrawn.
        downtime_ms: how long nothing served because of rule 2, since the caller last set it to 0.
    """

    def __init__(self, context: UpdateContext, workers: WorkerPool) -> None:
        self._context, self._workers = context, workers
        self._peak_bytes = 0  # in its probe
        self._stopped_bundle: BundleRecord | None = None  # by rule 2
        self._down_since_s: float | None = None  # monotonic clock
        self.published: Generation | None = None
        self.downtime_ms = 0

    def probe(self, bundle: BundleRecord) -> None:
        """Raises Unfit, Refused, Unavailable."""
        try:
            fds = self._workers.unseal(bundle)
        except StoreDamaged:
            self._context.journal.update_persistent_state(mark_damaged(bundle.digest))
            raise
        try:
            serving = self._context.serving
            running = None if serving is None else serving.current
            _, variant = bundle.parse_manifest()
            self._peak_bytes = self._context.probe_client.probe(fds, variant, running, self._workers).peak_bytes
            self._check_adapter(fds, bundle)
        finally:
            fds.close()

    def make_memory_available(self, serving: FamilyServing, bundle: BundleRecord) -> None:
        """Rule 2. Raises NoMemoryUnavailable: nothing has changed."""
        running, neighbors = serving.current, self._context.neighbors
        if running is None and self._context.config.serve.memory_bytes is None and not neighbors.are_serving():
            return  # there is nobody to protect
        needed_bytes = self._peak_bytes or bundle.parse_manifest()[1].requires.memory_bytes
        admission = self._admission(serving, running, needed_bytes)
        if admission.strategy != "side-by-side" and serving.standby is not None:
            serving.drop_standby()
            admission = self._admission(serving, running, needed_bytes)
        if admission.strategy != "side-by-side" and neighbors.drop_spares():
            admission = self._admission(serving, running, needed_bytes)
        if admission.strategy == "refuse":
            raise OutOfMemory(f"release {bundle.version} {admission.detail}")
        if admission.strategy == "stop-first" and running is not None:
            logger.warning("the running model is stopped first: the candidate %s", admission.detail)
            self._stopped_bundle, self._down_since_s = running.bundle, time.monotonic()
            serving.stop_current()

    def load(self, serving: FamilyServing, bundle: BundleRecord) -> Generation:
        """A process for a bundle; it serves nothing yet. Raises Unfit, Refused, Unavailable."""
        fds = self._workers.unseal_to_serve(bundle)
        try:
            return serving.start_generation(bundle, fds)
        finally:
            fds.close()

    def run_shadow(self, serving: FamilyServing, candidate: Generation) -> None:
        """Rule 3. Raises ShadowUnfit, ProbationInconclusiveUnfit, OperatorUnfit, StoppedUnavailable."""
        health, limits = candidate.variant.health, self._limits(candidate)
        try:
            serving.set_shadow(candidate, health.shadow_ppm, health.shadow_relative_rms_ppm)

            def judged(elapsed_s: float) -> ProbationDecision:
                return judge_shadow(health, limits, serving.shadow_observation(candidate), elapsed_s)

            self._watch_until_decided("shadow", candidate, limits, judged, ShadowFailed)
            serving.set_shadow(candidate, 0, 0)
        except BaseException:
            serving.stop_unpublished(candidate)
            raise

    def publish(self, serving: FamilyServing, candidate: Generation) -> int:
        """The switch; microseconds that it took."""
        took_us = serving.publish(candidate)
        self.published = candidate
        self._end_downtime()
        return took_us

    def run_probation(self, serving: FamilyServing, candidate: Generation) -> None:
        """Rule 5. Raises ProbationUnfit, ProbationInconclusiveUnfit, OperatorUnfit, StoppedUnavailable."""
        limits = self._limits(candidate)
        baseline = ServingObservation() if serving.previous is None else serving.observation(serving.previous)

        def judged(elapsed_s: float) -> ProbationDecision:
            return judge_probation(limits, observe_generation(serving, candidate), baseline, elapsed_s)

        self._watch_until_decided("probation", candidate, limits, judged, ProbationFailed)

    def revert(self, serving: FamilyServing) -> None:
        """What served before the candidate serves again; where it has to be loaded and that fails, the daemon goes on
        trying."""
        if self.published is not None and serving.current is self.published:
            self._down_since_s = time.monotonic() if serving.previous is None else None
            serving.revert()
        self.published = None
        if self._stopped_bundle is None or serving.current is not None:
            return
        try:
            serving.publish(self.load(serving, self._stopped_bundle))
        except (AirweightsError, OSError) as error:
            logger.error("release %s does not come back: %s", self._stopped_bundle.version, error)
        self._end_downtime()

    def _check_adapter(self, fds: BundleFds, bundle: BundleRecord) -> None:
        """Rule 4: only if it still answers as it did (device_agent.workers.adapter_check rule 1)."""
        shelf = AdapterStore(self._context.device)
        adapter = shelf.read()
        if adapter is None or not adapter.is_enabled:
            return
        fits = False
        try:
            adapter_fd, golden_fd = self._workers.unseal_adapter(adapter)
            try:
                both, variant = with_adapter(fds, adapter_fd), bundle.parse_manifest()[1]
                unjailed = self._context.config.allow_unjailed
                check_adapter(both, golden_fd, adapter.tolerance_ppm, variant, allow_unjailed=unjailed)
                fits = True
            finally:
                os.close(adapter_fd)
                os.close(golden_fd)
        except (AdapterIncompatible, StoreDamaged, WorkerTimeout) as error:
            logger.warning("release %s serves without the adapter: %s", bundle.version, error.message)
        shelf.write(adapter.with_check_result(bundle.digest, is_compatible=fits))

    def _limits(self, candidate: Generation) -> ProbationLimits:
        settings = self._context.config.probation
        return ProbationLimits.from_health(candidate.variant.health, settings.window_s, settings.min_requests)

    def _admission(self, serving: FamilyServing, running: Generation | None, needed_bytes: int) -> Admission:
        available_bytes = self._context.read_facts().memory_bytes
        budget_bytes = self._context.config.serve.memory_bytes
        if budget_bytes is not None:
            held_bytes = serving.resident_bytes() + self._context.neighbors.resident_bytes()
            available_bytes = min(available_bytes, max(0, budget_bytes - held_bytes))
        return decide_admission(
            available_bytes, needed_bytes, 0 if running is None else running.process.resident_bytes()
        )

    def _end_downtime(self) -> None:
        if self._down_since_s is not None:
            self.downtime_ms += round((time.monotonic() - self._down_since_s) * 1000)
            self._down_since_s = None

    def _watch_until_decided(
        self,
        phase: str,
        candidate: Generation,
        limits: ProbationLimits,
        decide: Callable[[float], ProbationDecision],
        failure: type[Unfit],
    ) -> None:
        version, started = candidate.bundle.version, time.monotonic()
        while True:
            elapsed_s = time.monotonic() - started
            verdict = decide(elapsed_s)
            match verdict.action:
                case ProbationAction.COMMIT:
                    logger.info("%s passed", phase, extra={"detail": verdict.detail})
                    return
                case ProbationAction.ROLL_BACK:
                    raise failure(f"release {version}: {verdict.detail}")
                case ProbationAction.INCONCLUSIVE:
                    raise ProbationInconclusive(f"release {version}: {verdict.detail}")
                case ProbationAction.WATCH:
                    left_s = max(0.0, limits.window_s - elapsed_s)
                    signal = self._context.signals.wait(min(WATCH_INTERVAL_S, left_s) or WATCH_INTERVAL_S)
            if signal == "rollback":
                raise OperatorRollback(f"release {version}: an operator ended its {phase}")
            if signal == "stop":
                raise AgentStopping(f"the agent was stopped in the {phase} of {version}")


def observe_generation(serving: FamilyServing, generation: Generation) -> ServingObservation:
    """What was seen of a generation; its process's end counts even before the front has noticed."""
    seen = serving.observation(generation)
    return seen if generation.process.is_alive() else replace(seen, crashes=max(1, seen.crashes))
