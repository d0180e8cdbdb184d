"""Judges a candidate under live requests against its signed health contract. Pure.

Rules, in this order:
1. A process that died has failed.
2. A limit of zero is passed by the first case: one NaN answer where none is allowed is enough.
3. A ratio is judged once `min_requests` were answered, at any time: a bad candidate does not serve out its window.
4. When the window ends with fewer requests than that, the verdict is inconclusive; the contract says what follows.
5. Latency is compared by median with the previous generation on this device, where both have enough requests.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bundle.contract import PPM, Health

LATENCY_ALLOWANCE_US: Final = 5_000  # a turn of the scheduler: a ratio alone would blame a fast model for a busy core
MAX_EXTENSIONS: Final = 10  # a window that nobody sends requests in does not keep two models resident forever


class ProbationAction(StrEnum):
    """What to do about a candidate now."""

    WATCH = "watch"
    COMMIT = "commit"
    ROLL_BACK = "roll-back"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class ServingObservation:
    """What was seen of one generation.

    Attributes:
        requests: answered, client errors left out.
        errors, nan: of them.
        p50_us: median latency in microseconds; 0 where there were no requests.
        crashes: of its process.
    """

    requests: int = 0
    errors: int = 0
    nan: int = 0
    p50_us: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class ProbationLimits:
    """What to judge by: the health contract, with the window that this device's operator may have set."""

    window_s: int
    min_requests: int
    error_ppm: int
    nan_ppm: int
    latency_percent: int
    inconclusive: str

    @classmethod
    def from_health(cls, health: Health, window_s: int | None, min_requests: int | None) -> "ProbationLimits":
        """From the signed contract and the settings."""
        return cls(
            window_s=health.probation_window_s if window_s is None else window_s,
            min_requests=health.probation_min_requests if min_requests is None else min_requests,
            error_ppm=health.probation_error_ppm,
            nan_ppm=health.probation_nan_ppm,
            latency_percent=health.probation_latency_percent,
            inconclusive=health.inconclusive,
        )


@dataclass(frozen=True, slots=True)
class ProbationDecision:
    """A judgement and why, in one line."""

    action: ProbationAction
    detail: str


def judge_probation(
    limits: ProbationLimits, observation: ServingObservation, baseline: ServingObservation, elapsed_s: float
) -> ProbationDecision:
    """All rules.

    Args:
        seen: of the candidate since it was published.
        baseline: of the previous generation.
        elapsed_s: since it was published.
    """
    failure = _violated_limit(limits, observation, baseline)
    if failure:
        return ProbationDecision(ProbationAction.ROLL_BACK, failure)
    extensions = elapsed_s / limits.window_s if limits.window_s else float(MAX_EXTENSIONS)
    if elapsed_s < limits.window_s:
        return ProbationDecision(ProbationAction.WATCH, f"{observation.requests} requests so far")
    if observation.requests >= limits.min_requests:
        return ProbationDecision(
            ProbationAction.COMMIT,
            f"{observation.requests} requests, {observation.errors} errors, {observation.nan} with NaN",
        )
    few = f"{observation.requests} requests in {elapsed_s:.0f} s, {limits.min_requests} are needed to tell"
    match limits.inconclusive:
        case "commit":
            return ProbationDecision(ProbationAction.COMMIT, f"inconclusive, committed as the contract says: {few}")
        case "extend" if extensions < MAX_EXTENSIONS:
            return ProbationDecision(ProbationAction.WATCH, f"extended: {few}")
        case _:
            return ProbationDecision(ProbationAction.INCONCLUSIVE, few)


def _violated_limit(limits: ProbationLimits, observation: ServingObservation, baseline: ServingObservation) -> str:
    if observation.crashes:
        return f"its process died {observation.crashes} times" if observation.crashes > 1 else "its process died"
    for what, count, ppm in (
        ("failed", observation.errors, limits.error_ppm),
        ("NaN", observation.nan, limits.nan_ppm),
    ):
        if count and ppm == 0:
            return f"{count} {what} answers in {observation.requests} requests, none is allowed"
        if observation.requests >= max(1, limits.min_requests) and count * PPM > ppm * observation.requests:
            return f"{count} {what} answers in {observation.requests} requests, at most {ppm} in a million are allowed"
    enough = min(observation.requests, baseline.requests) >= max(1, limits.min_requests)
    slowest_us = limits.latency_percent * baseline.p50_us // 100 + LATENCY_ALLOWANCE_US
    if enough and baseline.p50_us and observation.p50_us > slowest_us:
        return (
            f"median latency {observation.p50_us} µs against {baseline.p50_us} µs before, at most "
            f"{slowest_us} are allowed"
        )
    return ""
