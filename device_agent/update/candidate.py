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
    AdapterUnfit,
    ChildTimeout,
    NoMemoryUnavailable,
    OperatorUnfit,
    ProbationInconclusiveUnfit,
    ProbationUnfit,
    ShadowUnfit,
    StoppedUnavailable,
    StoreDamagedRefused,
)
from device_agent.policy.journal_records import Holding
from device_agent.policy.probation import Judgement, Limits, Observed, Verdict, judge
from device_agent.policy.shadow_judge import judge_shadow
from device_agent.runtime.admission import Admission, admit
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.serving.family_serving import Served, Serving
from device_agent.update.context import Agent, with_damaged
from device_agent.workers.adapter_check import AdapterShelf, check_adapter, with_adapter
from device_agent.workers.worker_pool import Errands

logger = logging.getLogger(__name__)

WATCH_INTERVAL_S: Final = 0.25  # of the front's counters; asking costs the front about 0.1 ms


class Trial:
    """One candidate.

    Args:
        agent: whose it is.
        errands: to unseal with.

    Attributes:
        candidate: what was published, until it is withdrawn.
        downtime_ms: how long nothing served because of rule 2, since the caller last set it to 0.
    """

    def __init__(self, agent: Agent, errands: Errands) -> None:
        self._agent, self._errands = agent, errands
        self._peak_bytes = 0  # in its probe
        self._stopped: Holding | None = None  # by rule 2
        self._down_since: float | None = None  # monotonic clock
        self.candidate: Served | None = None
        self.downtime_ms = 0

    def probe(self, holding: Holding) -> None:
        """Raises Unfit, Refused, Unavailable."""
        try:
            fds = self._errands.unseal(holding)
        except StoreDamagedRefused:
            self._agent.journal.remember(with_damaged(holding.digest))
            raise
        try:
            serving = self._agent.serving
            running = None if serving is None else serving.current
            _, variant = holding.parsed()
            self._peak_bytes = self._agent.prober.probe(fds, variant, running, self._errands).peak_bytes
            self._check_adapter(fds, holding)
        finally:
            fds.close()

    def make_room(self, serving: Serving, holding: Holding) -> None:
        """Rule 2. Raises NoMemoryUnavailable: nothing has changed."""
        running, neighbours = serving.current, self._agent.neighbours
        if running is None and self._agent.config.serve.memory_bytes is None and not neighbours.are_serving():
            return  # there is nobody to protect
        needed_bytes = self._peak_bytes or holding.parsed()[1].requires.memory_bytes
        admission = self._admission(serving, running, needed_bytes)
        if admission.way != "beside" and serving.spare is not None:
            serving.drop_spare()
            admission = self._admission(serving, running, needed_bytes)
        if admission.way != "beside" and neighbours.drop_spares():
            admission = self._admission(serving, running, needed_bytes)
        if admission.way == "refuse":
            raise NoMemoryUnavailable(f"release {holding.version} {admission.detail}")
        if admission.way == "stop-first" and running is not None:
            logger.warning("the running model is stopped first: the candidate %s", admission.detail)
            self._stopped, self._down_since = running.holding, time.monotonic()
            serving.stop_current()

    def load(self, serving: Serving, holding: Holding) -> Served:
        """A process for a bundle; it serves nothing yet. Raises Unfit, Refused, Unavailable."""
        fds = self._errands.unseal_to_serve(holding)
        try:
            return serving.start(holding, fds)
        finally:
            fds.close()

    def shadow(self, serving: Serving, candidate: Served) -> None:
        """Rule 3. Raises ShadowUnfit, ProbationInconclusiveUnfit, OperatorUnfit, StoppedUnavailable."""
        health, limits = candidate.variant.health, self._limits(candidate)
        try:
            serving.shadow(candidate, health.shadow_ppm, health.shadow_relative_rms_ppm)

            def judged(elapsed_s: float) -> Verdict:
                return judge_shadow(health, limits, serving.heard(candidate), elapsed_s)

            self._until_judged("shadow", candidate, limits, judged, ShadowUnfit)
            serving.shadow(candidate, 0, 0)
        except BaseException:
            serving.abandon(candidate)
            raise

    def publish(self, serving: Serving, candidate: Served) -> int:
        """The switch; microseconds that it took."""
        took_us = serving.publish(candidate)
        self.candidate = candidate
        self._is_up()
        return took_us

    def watch(self, serving: Serving, candidate: Served) -> None:
        """Rule 5. Raises ProbationUnfit, ProbationInconclusiveUnfit, OperatorUnfit, StoppedUnavailable."""
        limits = self._limits(candidate)
        baseline = Observed() if serving.previous is None else serving.observe(serving.previous)

        def judged(elapsed_s: float) -> Verdict:
            return judge(limits, observe(serving, candidate), baseline, elapsed_s)

        self._until_judged("probation", candidate, limits, judged, ProbationUnfit)

    def withdraw(self, serving: Serving) -> None:
        """What served before the candidate serves again; where it has to be loaded and that fails, the daemon goes on
        trying."""
        if self.candidate is not None and serving.current is self.candidate:
            self._down_since = time.monotonic() if serving.previous is None else None
            serving.restore()
        self.candidate = None
        if self._stopped is None or serving.current is not None:
            return
        try:
            serving.publish(self.load(serving, self._stopped))
        except (AirweightsError, OSError) as error:
            logger.error("release %s does not come back: %s", self._stopped.version, error)
        self._is_up()

    def _check_adapter(self, fds: BundleFds, holding: Holding) -> None:
        """Rule 4: only if it still answers as it did (device_agent.workers.adapter_check rule 1)."""
        shelf = AdapterShelf(self._agent.device)
        adapter = shelf.read()
        if adapter is None or not adapter.is_wanted:
            return
        fits = False
        try:
            adapter_fd, golden_fd = self._errands.unseal_adapter(adapter)
            try:
                both, variant = with_adapter(fds, adapter_fd), holding.parsed()[1]
                unjailed = self._agent.config.allow_unjailed
                check_adapter(both, golden_fd, adapter.tolerance_ppm, variant, allow_unjailed=unjailed)
                fits = True
            finally:
                os.close(adapter_fd)
                os.close(golden_fd)
        except (AdapterUnfit, StoreDamagedRefused, ChildTimeout) as error:
            logger.warning("release %s serves without the adapter: %s", holding.version, error.message)
        shelf.write(adapter.checked(holding.digest, fits=fits))

    def _limits(self, candidate: Served) -> Limits:
        settings = self._agent.config.probation
        return Limits.of(candidate.variant.health, settings.window_s, settings.min_requests)

    def _admission(self, serving: Serving, running: Served | None, needed_bytes: int) -> Admission:
        available_bytes = self._agent.facts().memory_bytes
        budget_bytes = self._agent.config.serve.memory_bytes
        if budget_bytes is not None:
            held_bytes = serving.resident_bytes() + self._agent.neighbours.resident_bytes()
            available_bytes = min(available_bytes, max(0, budget_bytes - held_bytes))
        return admit(available_bytes, needed_bytes, 0 if running is None else running.process.resident_bytes())

    def _is_up(self) -> None:
        if self._down_since is not None:
            self.downtime_ms += round((time.monotonic() - self._down_since) * 1000)
            self._down_since = None

    def _until_judged(
        self,
        what: str,
        candidate: Served,
        limits: Limits,
        judged: Callable[[float], Verdict],
        failure: type[Unfit],
    ) -> None:
        version, started = candidate.holding.version, time.monotonic()
        while True:
            elapsed_s = time.monotonic() - started
            verdict = judged(elapsed_s)
            match verdict.judgement:
                case Judgement.COMMIT:
                    logger.info("%s passed", what, extra={"detail": verdict.detail})
                    return
                case Judgement.ROLL_BACK:
                    raise failure(f"release {version}: {verdict.detail}")
                case Judgement.INCONCLUSIVE:
                    raise ProbationInconclusiveUnfit(f"release {version}: {verdict.detail}")
                case Judgement.WATCH:
                    left_s = max(0.0, limits.window_s - elapsed_s)
                    signal = self._agent.signals.wait(min(WATCH_INTERVAL_S, left_s) or WATCH_INTERVAL_S)
            if signal == "rollback":
                raise OperatorUnfit(f"release {version}: an operator ended its {what}")
            if signal == "stop":
                raise StoppedUnavailable(f"the agent was stopped in the {what} of {version}")


def observe(serving: Serving, served: Served) -> Observed:
    """What was seen of a generation; its process's end counts even before the front has noticed."""
    seen = serving.observe(served)
    return seen if served.process.alive() else replace(seen, crashes=max(1, seen.crashes))
