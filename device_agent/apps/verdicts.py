"""The health verdicts of applications on the serving release.

Rules:
- Only a judge's verdict counts, and only on the bundle that serves now.
- The first verdict of a judge on a generation counts; later ones change nothing.
- Any unhealthy verdict ends a probation. A probation passes when every judge of the configuration has answered.
- Without a judge, or before all have answered, there is no verdict: the probation is inconclusive at its end.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AppVerdict:
    """The verdict of one judge on a generation.

    Attributes:
        judge: principal of the configuration that gave it.
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
