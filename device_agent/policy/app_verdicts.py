"""The health verdicts on the serving release, and a probation's decision from them.

Judges are applications, and the command of the device's owner (device_agent.update.health_command).

Rules:
- Only a judge's verdict counts, and only on the bundle that serves now.
- The first verdict of a judge on a generation counts; later ones change nothing.
- Any unhealthy verdict ends a probation in a rollback. A probation passes as soon as every judge of the configuration
  has answered.
- If the window ends before that, or if there is no judge, the health contract says what follows, as after too few
  requests.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from device_agent.policy.probation import ProbationAction, ProbationDecision, ProbationLimits, decide_inconclusive
from device_agent.policy.serving_counts import ProbationSummary, ProbationVerdict

HEALTH_COMMAND: Final = "health_command"  # as a judge: the command of the configuration


@dataclass(frozen=True, slots=True)
class AppVerdict:
    """The verdict of one judge on a generation.

    Attributes:
        judge: principal of the configuration that gave it, or HEALTH_COMMAND.
        is_healthy: the verdict.
        reason: cause of an unhealthy verdict.
        latency_us: median latency in microseconds, or None.
    """

    judge: str
    is_healthy: bool
    reason: str = ""
    latency_us: int | None = None


class AppVerdicts:
    """The verdicts on one generation of a family. Any thread may call it.

    Args:
        judges: the principals whose verdicts count.
    """

    def __init__(self, judges: Sequence[str]) -> None:
        self.judges, self._lock = tuple(judges), threading.Lock()
        self._generation = 0
        self._verdicts: dict[str, AppVerdict] = {}

    def begin(self, generation: int) -> None:
        """Forget all verdicts: a new generation serves."""
        with self._lock:
            self._generation, self._verdicts = generation, {}

    def add(self, generation: int, verdict: AppVerdict) -> bool:
        """Record a verdict; return False if it is late, or not the judge's first on this generation.

        Args:
            generation: number of the generation that was judged.
            verdict: the verdict.
        """
        with self._lock:
            if generation != self._generation or verdict.judge in self._verdicts:
                return False
            self._verdicts[verdict.judge] = verdict
            return True

    def all(self) -> tuple[AppVerdict, ...]:
        """Return the verdicts on the present generation, in the order of arrival."""
        with self._lock:
            return tuple(self._verdicts.values())

    def unhealthy(self) -> AppVerdict | None:
        """Return the first unhealthy verdict, or None."""
        return next((verdict for verdict in self.all() if not verdict.is_healthy), None)

    def are_complete(self) -> bool:
        """Return whether there is a judge, and every judge has answered."""
        answered = {verdict.judge for verdict in self.all()}
        return bool(self.judges) and answered >= set(self.judges)


def judge_verdicts(limits: ProbationLimits, verdicts: AppVerdicts, elapsed_s: float) -> ProbationDecision:
    """Decide about a candidate that applications run.

    Args:
        limits: duration of the probation, and the action at its end without all verdicts.
        verdicts: the verdicts on the candidate's generation.
        elapsed_s: seconds since the candidate serves.
    """
    unhealthy = verdicts.unhealthy()
    if unhealthy is not None:
        cause = f": {unhealthy.reason}" if unhealthy.reason else ""
        return ProbationDecision(ProbationAction.ROLL_BACK, f"{unhealthy.judge} judges it unhealthy{cause}")
    text = summarize_verdicts(verdicts, elapsed_s).text
    if verdicts.are_complete():
        return ProbationDecision(ProbationAction.COMMIT, text)
    if elapsed_s < limits.window_s:
        return ProbationDecision(ProbationAction.WATCH, text)
    return decide_inconclusive(limits, elapsed_s, text)


def summarize_verdicts(verdicts: AppVerdicts, elapsed_s: float) -> ProbationSummary:
    """Summarize a probation from the verdicts of applications.

    Args:
        verdicts: the verdicts on the candidate's generation.
        elapsed_s: seconds since the candidate serves.
    """
    found = verdicts.all()
    unhealthy = sum(not verdict.is_healthy for verdict in found)
    if unhealthy:
        result = ProbationVerdict.FAILED
    elif verdicts.are_complete():
        result = ProbationVerdict.PASSED
    else:
        result = ProbationVerdict.INCONCLUSIVE if found else ProbationVerdict.UNTRIED
    return ProbationSummary(
        verdict=result,
        seconds=round(elapsed_s),
        requests=len(found),
        needed_requests=len(verdicts.judges),
        errors=unhealthy,
        nan=0,
        repeated=0,
        confirmed=0,
        latency_percent=None,
        unit="verdicts",
    )
