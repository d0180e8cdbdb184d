"""The decision about a candidate in probation, from the live requests and its signed health contract.

The rules apply in this order:

1. A candidate whose process crashed has failed.
2. If a limit is zero, the first failed response or the first NaN response fails the candidate.
3. Other ratios are judged as soon as `min_requests` requests were answered: a bad candidate does not stay until the
   window ends.
4. Latency is compared as a median with the previous generation on this device, if both answered `min_requests`.
5. If the window ends with fewer requests, the probation is inconclusive. The health contract says whether the candidate
   is then committed, watched longer, or rolled back.

This module does no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bundle.contract import PPM, Health

# one scheduler delay: with the ratio alone, a busy processor would fail a model whose latency is below this
LATENCY_ALLOWANCE_US: Final = 5_000
# a window that is extended without end would keep two models in memory on a device that gets no requests
MAX_EXTENSIONS: Final = 10


class ProbationAction(StrEnum):
    """An action on a candidate in probation."""

    WATCH = "watch"
    COMMIT = "commit"
    ROLL_BACK = "roll-back"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class ServingObservation:
    """Counters of one generation.

    Attributes:
        requests: answered requests, without those that were the client's mistake.
        errors: failed ones among them.
        nan: responses with NaN or infinity among them.
        p50_us: median latency in microseconds; 0 without requests.
        crashes: unexpected ends of its process.
    """

    requests: int = 0
    errors: int = 0
    nan: int = 0
    p50_us: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class ProbationLimits:
    """The limits of a probation, from the health contract and the configuration.

    Attributes:
        window_s: length of the probation, in seconds.
        min_requests: answered requests that are needed for a decision.
        error_ppm: allowed failed responses, in a million.
        nan_ppm: allowed responses with NaN or infinity, in a million.
        latency_percent: allowed median latency, in percent of the previous generation's.
        inconclusive: "commit", "extend" or "rollback", if the window ends with too few requests.
    """

    window_s: int
    min_requests: int
    error_ppm: int
    nan_ppm: int
    latency_percent: int
    inconclusive: str

    @classmethod
    def from_health(cls, health: Health, window_s: int | None, min_requests: int | None) -> "ProbationLimits":
        """Create the limits from the signed health contract and the device's configuration.

        Args:
            health: signed health contract of the candidate.
            window_s: configured length in seconds, or None for the health contract's.
            min_requests: configured number of requests, or None for the health contract's.
        """
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
    """A decision about a candidate, with its reason.

    Attributes:
        action: the next step.
        detail: the reason in one line.
        is_inconclusive: COMMIT follows from the health contract, not from enough requests.
    """

    action: ProbationAction
    detail: str
    is_inconclusive: bool = False


def judge_probation(
    limits: ProbationLimits, observation: ServingObservation, baseline: ServingObservation, elapsed_s: float
) -> ProbationDecision:
    """Decide about a candidate in probation.

    Args:
        limits: thresholds and duration of the probation.
        observation: counters of the candidate since it serves.
        baseline: counters of the previous generation; all 0 without one.
        elapsed_s: seconds since the candidate serves.
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
    few = f"{observation.requests} requests in {elapsed_s:.0f} s, at least {limits.min_requests} are needed"
    match limits.inconclusive:
        case "commit":
            return ProbationDecision(ProbationAction.COMMIT, few, is_inconclusive=True)
        case "extend" if extensions < MAX_EXTENSIONS:
            return ProbationDecision(ProbationAction.WATCH, f"extended: {few}")
        case _:
            return ProbationDecision(ProbationAction.INCONCLUSIVE, few)


def _violated_limit(limits: ProbationLimits, observation: ServingObservation, baseline: ServingObservation) -> str:
    if observation.crashes:
        return f"its process crashed {observation.crashes} times" if observation.crashes > 1 else "its process crashed"
    for kind, count, ppm in (
        ("failed", observation.errors, limits.error_ppm),
        ("NaN", observation.nan, limits.nan_ppm),
    ):
        if count and ppm == 0:
            return f"{count} {kind} responses in {observation.requests} requests, none is allowed"
        if observation.requests >= max(1, limits.min_requests) and count * PPM > ppm * observation.requests:
            return f"{count} {kind} responses in {observation.requests} requests, at most {ppm} in a million allowed"
    enough = min(observation.requests, baseline.requests) >= max(1, limits.min_requests)
    slowest_us = limits.latency_percent * baseline.p50_us // 100 + LATENCY_ALLOWANCE_US
    if enough and baseline.p50_us and observation.p50_us > slowest_us:
        return (
            f"median latency {observation.p50_us} µs, at most {slowest_us} µs allowed "
            f"(previous release: {baseline.p50_us} µs)"
        )
    return ""
