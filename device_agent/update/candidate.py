"""The candidate of an attempt: probe, load, shadow mode, switch, probation, and revert.

Theory of operation:

    Once the candidate's bundle is in the store, `update` calls these methods in this order:

        probe()                  run it in a jailed process, and check the personal adapter with it
        make_memory_available()  stop standbys, or the running model, if both models do not fit into memory
        load()                   start its model process; it gets no requests yet
        run_shadow()             mirror live requests to it, if its signed health contract asks for that
        publish()                redirect the requests to it; the previous generation stays loaded
        run_probation()          watch it serve; run_app_probation() if applications run it

    `revert()` returns to the generation that served before, from any point of this sequence. If the running model was
    stopped to free memory, it is loaded again, and the time without a model is measured.

Rules:
- This module writes no state and no attempt to the journal: `update` records the intent before it calls a method.
- To free memory, the standbys of all families are stopped first, then the running model of this family. The running
  model of another family is never stopped.
- A stop of the agent or an operator's rollback ends shadow mode and probation at once.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Final

from bundle.errors import AirweightsError, Unfit
from device_agent.errors import (
    OperatorRollback,
    OutOfMemory,
    ProbationFailed,
    ProbationInconclusive,
    ShadowFailed,
    StoreDamaged,
)
from device_agent.policy.app_verdicts import HEALTH_COMMAND, judge_verdicts, summarize_verdicts
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import (
    ProbationAction,
    ProbationDecision,
    ProbationLimits,
    judge_probation,
    summarize_probation,
)
from device_agent.policy.serving_counts import ProbationSummary, ServingObservation
from device_agent.policy.shadow_judge import judge_shadow
from device_agent.runtime.admission import Admission, decide_admission
from device_agent.serving.family_serving import FamilyServing, Generation
from device_agent.storage.adapter_store import AdapterStore
from device_agent.update.context import UpdateContext, mark_damaged, memory_left, wait_in_phase
from device_agent.update.probation_watch import ProbationWatch, usual_latency_us
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S: Final = 0.25  # between two readings of the front's counters; a reading costs the front about 0.1 ms


class Candidate:
    """One candidate on its way into service; `close` it at the end of the attempt.

    Args:
        context: configuration, stores and workers of the family.
        workers: unseals bundles.

    Attributes:
        published: the generation that serves since `publish`, or None before it and after `revert`.
        downtime_ms: milliseconds without a model since the caller last set this to 0.
        summary: the result of the probation, or None before its end.
    """

    def __init__(self, context: UpdateContext, workers: WorkerPool) -> None:
        self._context, self._workers = context, workers
        self._peak_bytes = 0  # measured by the probe
        self._stopped_bundle: BundleRecord | None = None  # served before it was stopped to free memory
        self._down_since_s: float | None = None  # monotonic clock
        self._watch: ProbationWatch | None = None
        self.published: Generation | None = None
        self.downtime_ms = 0
        self.summary: ProbationSummary | None = None

    def probe(self, bundle: BundleRecord, *, measures_ratio: bool = False) -> int | None:
        """Probe the candidate, and check the enabled personal adapter with it.

        The files of a release that the agent does not run are only checked in the store.

        Args:
            bundle: the candidate.
            measures_ratio: also measure its ratio to the reference graph.

        Returns:
            The ratio in parts per million, or None if it was not measured.

        Raises:
            Unfit: the candidate fails, or the probe is inconclusive (ProbeInconclusive).
            StoreDamaged: the sealed bundle does not open; it is marked as damaged.
            Unavailable: a worker process crashed or timed out.
        """
        try:
            if not bundle.is_run_by_agent():
                self._workers.patcher.read_sealed_header(bundle.digest)
                return None
            fds = self._workers.patcher.unseal(bundle)
        except StoreDamaged:
            self._context.journal.update_persistent_state(mark_damaged(bundle.digest))
            raise
        try:
            serving = self._context.serving
            running = None if serving is None else serving.current
            _, variant = bundle.parse_manifest()
            report = self._context.probe_client.probe(
                fds, variant, running, self._workers, measures_ratio=measures_ratio
            )
            self._peak_bytes = report.peak_bytes
            adapter = AdapterStore(self._context.device).read()
            if adapter is not None and adapter.is_enabled:
                from device_agent.update.adapter_change import check_with_candidate  # not in memory at rest

                check_with_candidate(self._context, self._workers, adapter, fds, bundle)
            return report.reference_ratio_ppm
        finally:
            fds.close()

    def make_memory_available(self, serving: FamilyServing, bundle: BundleRecord) -> None:
        """Stop standbys, then the running model, until the candidate fits into memory.

        Args:
            serving: generations of the family.
            bundle: the candidate.

        Raises:
            OutOfMemory: the candidate does not fit, even if the running model is stopped. The running model stays.
        """
        running, others = serving.current, self._context.other_families()
        has_running_model = running is not None or any(other.current is not None for other in others)
        if not has_running_model and self._context.config.serve.memory_bytes is None:
            return
        needed_bytes = self._peak_bytes or bundle.parse_manifest()[1].requires.memory_bytes
        admission = self._admission(serving, needed_bytes)
        if admission.strategy != "side-by-side" and serving.standby is not None:
            serving.drop_standby()
            admission = self._admission(serving, needed_bytes)
        standbys = [other for other in others if other.standby is not None]
        if admission.strategy != "side-by-side" and standbys:
            for other in standbys:
                other.drop_standby()
            admission = self._admission(serving, needed_bytes)
        if admission.strategy == "refuse":
            raise OutOfMemory(f"release {bundle.version} {admission.detail}")
        if admission.strategy == "stop-first" and running is not None:
            logger.warning("stopping the running model before loading the candidate: it %s", admission.detail)
            self._stopped_bundle, self._down_since_s = running.bundle, time.monotonic()
            serving.stop_current()

    def load(self, serving: FamilyServing, bundle: BundleRecord) -> Generation:
        """Start a model process for a bundle; it gets no requests yet.

        Args:
            serving: generations of the family.
            bundle: a bundle in the store.

        Raises:
            Unfit: the model does not load.
            StoreDamaged: the sealed bundle does not open.
            Unavailable: the process could not be started.
        """
        if not bundle.is_run_by_agent():
            return serving.create_generation(bundle)
        fds = self._workers.patcher.unseal_to_serve(bundle)
        try:
            return serving.start_generation(bundle, fds)
        finally:
            fds.close()

    def run_shadow(self, serving: FamilyServing, candidate: Generation) -> None:
        """Mirror a share of the live requests to the candidate until shadow mode is decided.

        On an error the candidate's process is stopped.

        Args:
            serving: generations of the family.
            candidate: a generation that is loaded but does not serve.

        Raises:
            ShadowFailed: it crashed, failed, produced NaN, or disagrees with the running model.
            ProbationInconclusive: too few requests, and the health contract asks for the old release then.
            OperatorRollback: an operator ended it.
            AgentStopping: the agent stops.
        """
        health, limits = candidate.variant.health, self._limits(candidate)
        try:
            serving.set_shadow(candidate, health.shadow_ppm, health.shadow_relative_rms_ppm)

            def decide(elapsed_s: float) -> ProbationDecision:
                return judge_shadow(health, limits, serving.shadow_observation(candidate), elapsed_s)

            self._watch_until_decided("shadow mode", "swapping", candidate, limits, decide, ShadowFailed)
            serving.set_shadow(candidate, 0, 0)
        except BaseException:
            serving.stop_unpublished(candidate)
            raise

    def publish(self, serving: FamilyServing, candidate: Generation, *, is_watched: bool) -> int:
        """Redirect the requests to the candidate.

        Args:
            serving: generations of the family.
            candidate: a generation that is loaded but does not serve.
            is_watched: whether a probation follows.

        Returns:
            Duration of the switch, in microseconds.
        """
        if is_watched:
            # before the switch, so that no request is missed
            limits = self._limits(candidate)
            previous = self._stopped_bundle if serving.current is None else serving.current.bundle
            probed_us = None if previous is None else self._context.probe_client.latency_us(previous.digest)
            usual_us = usual_latency_us(serving, probed_us)
            self._watch = ProbationWatch(self._context, self._workers, serving, candidate, limits, previous, usual_us)
        took_us = serving.publish(candidate)
        self.published = candidate
        self._end_downtime()
        return took_us

    def announce_probation(self, candidate: Generation, judges: int | None) -> None:
        """Report the progress of a probation that is about to start, so that its state is never without one.

        Args:
            candidate: the serving generation.
            judges: number of applications that judge it, or None if requests do.
        """
        self._report_progress(candidate, 0.0, 0, judges)

    def run_probation(self, serving: FamilyServing, candidate: Generation) -> ProbationSummary:
        """Watch the serving candidate until its probation is decided, and return the summary.

        After an error, the caller calls `revert`.

        Args:
            serving: generations of the family; `serving.previous` is the baseline.
            candidate: the serving generation, as `publish` got it.

        Raises:
            ProbationFailed: its bad responses are not those of the previous release, or it does not start again.
            ProbationInconclusive: too few requests, and the health contract asks for the old release then.
            OperatorRollback: an operator ended it.
            AgentStopping: the agent stops.
        """
        watch, limits = self._watch, self._limits(candidate)
        assert watch is not None
        baseline = ServingObservation() if serving.previous is None else serving.observation(serving.previous)
        observation, elapsed = ServingObservation(), 0.0

        def decide(elapsed_s: float) -> ProbationDecision:
            nonlocal observation, elapsed
            elapsed = elapsed_s
            repeats = watch.step()
            current = serving.current
            is_alive = current is not None and current.process.is_alive()
            observation = replace(serving.observation(candidate), repeats=repeats, is_alive=is_alive)
            self._report_progress(candidate, elapsed_s, observation.requests, None)
            return judge_probation(limits, observation, baseline, elapsed_s)

        try:
            self._watch_until_decided("probation", "committed", candidate, limits, decide, ProbationFailed)
        except (ProbationFailed, ProbationInconclusive, OperatorRollback) as error:
            has_failed = isinstance(error, ProbationFailed)
            self.summary = summarize_probation(limits, observation, baseline, elapsed, has_failed=has_failed)
            raise  # `revert` ends the watch
        self.close()
        self.summary = summarize_probation(limits, observation, baseline, elapsed)
        return self.summary

    def run_app_probation(self, candidate: Generation) -> ProbationSummary:
        """Wait for the verdicts on a release that applications run, and return the summary.

        Args:
            candidate: the serving generation.

        Raises:
            ProbationFailed: a judge's verdict is unhealthy.
            ProbationInconclusive: not all judges answered, and the health contract asks for the old release then.
            OperatorRollback: an operator ended it.
            AgentStopping: the agent stops.
        """
        verdicts, limits, elapsed = self._context.app_verdicts, self._limits(candidate), 0.0
        command = None
        if HEALTH_COMMAND in verdicts.judges:
            from device_agent.update.health_command import HealthCommand  # not in memory at rest

            config = self._context.config
            words = dict(config.apps)[config.family].health_command
            command = HealthCommand(words, candidate.bundle, config.serve.apps_socket or self._context.device.apps_path)

        def decide(elapsed_s: float) -> ProbationDecision:
            nonlocal elapsed
            elapsed = elapsed_s
            if command is not None:
                command.poll(verdicts, candidate.number)
            answered = len({verdict.judge for verdict in verdicts.all()})
            self._report_progress(candidate, elapsed_s, answered, len(verdicts.judges))
            return judge_verdicts(limits, verdicts, elapsed_s)

        try:
            self._watch_until_decided("probation", "committed", candidate, limits, decide, ProbationFailed)
        finally:
            if command is not None:
                command.close()
            self.summary = summarize_verdicts(verdicts, elapsed)
        return self.summary

    def revert(self, serving: FamilyServing) -> None:
        """Let the generation that served before the candidate serve again.

        If it has to be loaded again and that fails, the error is logged; the daemon keeps trying to load it.
        """
        current = serving.current
        try:
            # compared by number: a probation may have started its process again
            if self.published is not None and current is not None and current.number == self.published.number:
                self._down_since_s = time.monotonic() if serving.previous is None else None
                serving.revert()
        finally:
            # after the candidate is retired: until then, a request that ends its process must not get to another one
            self.close()
        self.published = None
        if self._stopped_bundle is None or serving.current is not None:
            return
        try:
            serving.publish(self.load(serving, self._stopped_bundle))
        except (AirweightsError, OSError) as error:
            logger.error("cannot reload release %s: %s", self._stopped_bundle.version, error)
        self._end_downtime()

    def close(self) -> None:
        """End the watch over the probation, if it has not ended."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            self.downtime_ms += round(watch.downtime_s * 1000)

    def _report_progress(self, candidate: Generation, elapsed_s: float, found: int, judges: int | None) -> None:
        from device_agent.policy.probation_progress import ProbationProgress  # not in memory at rest

        limits = self._limits(candidate)
        left_s = max(0, ceil(limits.window_s - elapsed_s))
        needed, unit = (limits.min_requests, "requests") if judges is None else (judges, "verdicts")
        self._context.on_probation(ProbationProgress(candidate.bundle.version, found, needed, left_s, unit))

    def _limits(self, candidate: Generation) -> ProbationLimits:
        settings = self._context.config.probation
        return ProbationLimits.from_health(candidate.variant.health, settings.window_s, settings.min_requests)

    def _admission(self, serving: FamilyServing, needed_bytes: int) -> Admission:
        running_bytes = 0 if serving.current is None else serving.current.process.resident_bytes()
        return decide_admission(memory_left(self._context, serving), needed_bytes, running_bytes)

    def _end_downtime(self) -> None:
        if self._down_since_s is not None:
            self.downtime_ms += round((time.monotonic() - self._down_since_s) * 1000)
            self._down_since_s = None

    def _watch_until_decided(
        self,
        phase: str,
        next_step: str,
        candidate: Generation,
        limits: ProbationLimits,
        decide: Callable[[float], ProbationDecision],
        failure: type[Unfit],
    ) -> None:
        version, started = candidate.bundle.version, time.monotonic()
        while True:
            elapsed_s = time.monotonic() - started
            decision = decide(elapsed_s)
            match decision.action:
                case ProbationAction.COMMIT:
                    verdict = f"inconclusive, {next_step}" if decision.is_inconclusive else "passed"
                    logger.info("%s %s", phase, verdict, extra={"detail": decision.detail})
                    return
                case ProbationAction.ROLL_BACK:
                    raise failure(f"release {version}: {decision.detail}")
                case ProbationAction.INCONCLUSIVE:
                    raise ProbationInconclusive(f"release {version}: {decision.detail}")
                case ProbationAction.WATCH:
                    remaining_s = max(0.0, limits.window_s - elapsed_s)
                    timeout_s = min(WATCH_INTERVAL_S, remaining_s) or WATCH_INTERVAL_S
                    wait_in_phase(self._context, timeout_s, version, phase)
