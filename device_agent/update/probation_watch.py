"""The watch over a candidate in probation: repeats, golden checks, restarts of its process.

Theory of operation. The front keeps the requests with bad responses (device_agent.front.repeats). `step` is called
every quarter of a second and does what the counters ask for:

    the candidate's process ended   start it again, after a pause if it ends repeatedly; its counters continue
    it hangs                        end it
    a repeat is due                 start a process of the previous bundle for repeats, in the same jail; if the memory
                                    has no room for it, stop the candidate's process meanwhile
    a bad response, no repeats      run the candidate's golden inputs in its serving process

Rules:
1. Requests are repeated only in a separate process, never in the one that a rollback would publish.
2. Requests cannot be repeated if the contract of the previous release is another one, if clients send a state back
   (policy.probation.returns_state), or if its process does not start. Then a bad response counts only if the golden
   inputs fail right after it; they run at most once in GOLDEN_INTERVAL_S.
3. The candidate is stopped for repeats at most once in ALTERNATION_INTERVAL_S, and for ALTERNATION_S. Requests wait
   meanwhile.
4. A candidate whose process cannot be started again has failed.
"""

import logging
import time
from typing import Final

from bundle.errors import AirweightsError, Refused, Unfit
from device_agent.errors import ProbationFailed, WorkerTimeout
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import ProbationLimits, returns_state, slow_limit_us
from device_agent.policy.serving_counts import MIN_INPUTS, RepeatObservation, ServingObservation
from device_agent.runtime.admission import BARE_PROCESS_BYTES, decide_admission
from device_agent.serving.family_serving import FamilyServing, Generation
from device_agent.storage.adapter_store import AdapterStore
from device_agent.update.context import UpdateContext, memory_left, wait_in_phase
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

RESTART_PAUSE_S: Final = 1.0  # the first restart is at once
MAX_FAST_RESTARTS: Final = 10  # each further pause is twice as long
MAX_RESTART_PAUSE_S: Final = 30.0
FRONT_DELAY_S: Final = 2.0  # the front notices the end of a process on its own
GOLDEN_INTERVAL_S: Final = 6.0
ALTERNATION_INTERVAL_S: Final = 60.0
ALTERNATION_S: Final = 8.0  # below the time that requests may wait for a process
ALTERNATION_REQUESTS: Final = MIN_INPUTS  # the candidate is not stopped for fewer
POLL_INTERVAL_S: Final = 0.02


class ProbationWatch:
    """Watches one candidate. Create it before the candidate is published, and `close` it in any case.

    Args:
        context: configuration, stores and workers of the family.
        workers: unseals bundles.
        serving: generations of the family.
        candidate: the generation that will serve.
        limits: limits of its probation.
        previous: bundle of the release that served before, also if it was stopped to free memory.
        usual_us: usual latency of that release in microseconds, or None.

    Attributes:
        downtime_s: time without a model because of repeats (rule 3).
    """

    def __init__(
        self,
        context: UpdateContext,
        workers: WorkerPool,
        serving: FamilyServing,
        candidate: Generation,
        limits: ProbationLimits,
        previous: BundleRecord | None,
        usual_us: int | None,
    ) -> None:
        self._context, self._workers, self._serving = context, workers, serving
        self._number, self._version, self._limits = candidate.number, candidate.bundle.version, limits
        self._previous = previous
        interfaces = [(model.name, model.contract) for model in candidate.variant.models]
        self._can_repeat = (
            previous is not None
            and [(model.name, model.contract) for model in previous.parse_manifest()[1].models] == interfaces
            and not any(returns_state(contract) for _, contract in interfaces)
        )
        self._suspended_at_s: float | None = None
        self._alternated_at_s = -ALTERNATION_INTERVAL_S
        self.downtime_s = 0.0
        self._slow_us = slow_limit_us(limits, usual_us) if self._can_repeat else None
        self._restarts = self._losses = 0
        self._restart_at_s = 0.0
        self._ended_at_s: float | None = None
        self._golden_at_s = 0.0
        self._golden_seen = 0
        self._begin(candidate)

    def close(self) -> None:
        """End the repeats and their process."""
        self._serving.end_repeats()
        self._end_suspension()

    def step(self) -> RepeatObservation:
        """Do what is due, and return the counters.

        Raises:
            ProbationFailed: the candidate fails its golden inputs after a bad response, or does not start again; or
                another generation serves, whose counters say nothing about the candidate.
            OperatorRollback, AgentStopping: an interrupt arrived while the candidate was stopped for repeats.
            Unavailable: no process can be started.
        """
        candidate = self._serving.current
        observation = self._serving.repeat_observation()
        if candidate is None or candidate.number != self._number:
            raise ProbationFailed(f"release {self._version} does not serve any more")
        if observation is None:  # the front was restarted, and its counters are lost
            self._begin(candidate)
            return RepeatObservation()
        if observation.crashes_without_request:
            return observation
        if observation.is_hung and candidate.process.is_alive():
            logger.warning("the candidate's process hangs, restarting it")
            candidate.process.kill()
        if not candidate.process.is_alive():
            self._restart(candidate, observation)
        elif not self._can_repeat:
            self._check_golden(candidate, observation)
        # also after a restart in this step: a candidate that crashes on each request would not live until the next one
        return self._repeat(observation) if observation.needs_process and self._can_repeat else observation

    def _end_suspension(self) -> None:
        if self._suspended_at_s is not None:
            self.downtime_s += time.monotonic() - self._suspended_at_s
            self._suspended_at_s = None

    def _begin(self, candidate: Generation) -> None:
        self._serving.begin_repeats(candidate, self._slow_us, self._limits.latency_percent)
        self._golden_seen = 0

    def _restart(self, candidate: Generation, observation: RepeatObservation) -> None:
        now = time.monotonic()
        self._ended_at_s = now if self._ended_at_s is None else self._ended_at_s
        is_noticed = observation.losses > self._losses or now - self._ended_at_s > FRONT_DELAY_S
        is_suspended = self._suspended_at_s is not None
        if not is_suspended and (not is_noticed or now < self._restart_at_s):
            return
        if not is_suspended:
            logger.warning("the candidate's process ended, starting it again", extra={"restarts": self._restarts})
        try:
            fds = self._workers.patcher.unseal_to_serve(candidate.bundle)
            try:
                self._serving.restart_current(fds)
            finally:
                fds.close()
        except (Refused, Unfit) as error:
            raise ProbationFailed(
                f"release {candidate.bundle.version} does not start again: {error.message}"
            ) from error
        self._ended_at_s = None
        self._losses = observation.losses
        if is_suspended:
            self._end_suspension()
            return
        pause_s = RESTART_PAUSE_S * 2.0 ** min(max(0, self._restarts - MAX_FAST_RESTARTS), 8)
        self._restart_at_s = time.monotonic() + min(pause_s, MAX_RESTART_PAUSE_S)
        self._restarts += 1

    def _repeat(self, observation: RepeatObservation) -> RepeatObservation:
        """Start a process for repeats, beside the candidate or in its place, and return the counters."""
        assert self._previous is not None
        self._serving.end_repeater()  # the one before hangs, or has crashed
        if self._has_memory_for_third():
            self._start_repeater(self._previous)
            return observation
        now, current = time.monotonic(), self._serving.current
        is_running = current is not None and current.process.is_alive()
        is_due = now - self._alternated_at_s > ALTERNATION_INTERVAL_S and observation.waiting >= ALTERNATION_REQUESTS
        if is_running and not is_due:
            return observation
        self._start_repeater(self._previous, suspends=is_running)
        while self._can_repeat and time.monotonic() - now < ALTERNATION_S:
            found = self._serving.repeat_observation()
            if found is None or not found.waiting or found.is_evident or found.needs_process:
                break
            wait_in_phase(self._context, POLL_INTERVAL_S, self._version, "probation")
        self._serving.end_repeater()
        return self._serving.repeat_observation() or observation

    def _start_repeater(self, previous: BundleRecord, *, suspends: bool = False) -> None:
        try:
            fds = self._workers.patcher.unseal_to_serve(previous)
            try:
                if suspends:
                    logger.warning("stopping the candidate for repeats: the memory has no room for a third process")
                    self._alternated_at_s = self._suspended_at_s = time.monotonic()
                    self._serving.suspend_current()
                self._serving.set_repeater(self._serving.start_generation(previous, fds))
            finally:
                fds.close()
        except AirweightsError as error:
            logger.warning("requests cannot be repeated, the golden inputs decide: %s", error.message)
            self._can_repeat = False

    def _has_memory_for_third(self) -> bool:
        previous = self._serving.previous
        if previous is None:
            return False  # it was stopped, because two models do not fit
        needed = max(0, previous.process.resident_bytes() - BARE_PROCESS_BYTES)
        return decide_admission(memory_left(self._context, self._serving), needed).strategy == "side-by-side"

    def _check_golden(self, candidate: Generation, observation: RepeatObservation) -> None:
        now = time.monotonic()
        if observation.failures.seen == self._golden_seen or now - self._golden_at_s < GOLDEN_INTERVAL_S:
            return
        self._golden_at_s, self._golden_seen = now, observation.failures.seen
        try:
            fds = self._workers.patcher.unseal_to_serve(candidate.bundle)
            try:
                tolerance_ppm = candidate.variant.health.golden_relative_rms_ppm
                adapter = AdapterStore(self._context.device).find_attached(candidate.digest)
                for number, part in enumerate(fds.each_model() if adapter is None else ()):
                    if part.golden is not None:
                        candidate.process.check_golden(part.files[part.golden], tolerance_ppm, number)
            finally:
                fds.close()
        except (Refused, Unfit) as error:
            raise ProbationFailed(
                f"release {candidate.bundle.version}: its golden inputs fail after a bad response: {error.message}"
            ) from error
        except WorkerTimeout as error:
            logger.warning("the golden inputs got no response: %s", error.message)
        # the requests that were kept for repeats are of no use
        self._serving.discard_repeats()


def usual_latency_us(serving: FamilyServing, probed_us: int | None) -> int | None:
    """Return the usual latency of the running release in microseconds, or None if nothing is known.

    Args:
        serving: generations of the family, before the candidate is published.
        probed_us: median latency of its golden inputs, or None.
    """
    if serving.current is None:
        return probed_us
    observed: ServingObservation = serving.observation(serving.current)
    return observed.p50_us or probed_us
