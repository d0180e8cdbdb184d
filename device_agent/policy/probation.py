"""The decision about a candidate in probation, from the live requests and its signed health contract.

The words: a bad response is an error, a response with NaN, a slow one, a crash or a hang. It is repeated when the
previous release got the same request, and confirmed when that responded well (device_agent.front.repeats).

The rules apply in this order:

1. A candidate whose process crashed without a request has failed.
2. Only confirmed responses count, so that no request that the previous release fails on, too, ends a probation. They
   count when they have MIN_INPUTS distinct inputs, or when there are MIN_CONFIRMED of them: one input that a client
   sends now and then does not end a probation.
3. Then a confirmed crash or hang fails the candidate. For errors and NaN the share of confirmed responses, estimated
   from those that were repeated, is compared with the limits of the health contract.
4. A candidate is too slow if MIN_CONFIRMED responses are confirmed as slower than the limit, on equal inputs, and more
   than half of all responses are slow by that estimate.
5. A window that ends while the process is down, while requests wait to be repeated, or with fewer confirmed responses
   than rule 2 needs, is extended by at most REPEAT_GRACE_S.
6. If the window ends with fewer than `min_requests` requests, the probation is inconclusive. The health contract says
   whether the candidate is then committed, watched longer, or rolled back.

If requests cannot be repeated, the candidate's golden inputs decide after a bad response
(device_agent.update.probation_watch).

This module does no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bundle.contract import PPM, Contract, Health
from device_agent.policy.serving_counts import (
    MIN_CONFIRMED,
    BadResponse,
    ProbationSummary,
    ProbationVerdict,
    ServingObservation,
)

# one scheduler delay: with the ratio alone, a busy processor would fail a model whose latency is below this
LATENCY_ALLOWANCE_US: Final = 5_000
REPEAT_GRACE_S: Final = 30.0
# a window that is extended without end would keep two models in memory on a device that gets no requests
MAX_EXTENSIONS: Final = 10


class ProbationAction(StrEnum):
    """An action on a candidate in probation."""

    WATCH = "watch"
    COMMIT = "commit"
    ROLL_BACK = "roll-back"
    INCONCLUSIVE = "inconclusive"


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
        baseline: counters of the previous generation, for the summary; all 0 without one.
        elapsed_s: seconds since the candidate serves.
    """
    failure = _violated_limit(limits, observation)
    if failure:
        return ProbationDecision(ProbationAction.ROLL_BACK, failure)
    if elapsed_s < limits.window_s:
        return ProbationDecision(ProbationAction.WATCH, f"{observation.requests} requests so far")
    repeats = observation.repeats
    is_undecided = (
        repeats.waiting or not observation.is_alive or (repeats.failures.confirmed and not repeats.is_evident)
    )
    if is_undecided and elapsed_s < limits.window_s + REPEAT_GRACE_S:
        return ProbationDecision(ProbationAction.WATCH, "bad responses are not decided yet")
    text = summarize_probation(limits, observation, baseline, elapsed_s).text
    if observation.requests >= limits.min_requests:
        return ProbationDecision(ProbationAction.COMMIT, text)
    return decide_inconclusive(limits, elapsed_s, text)


def decide_inconclusive(limits: ProbationLimits, elapsed_s: float, text: str) -> ProbationDecision:
    """Decide at the end of a window that proved nothing (rule 6).

    Args:
        limits: duration of the probation, and the action of the health contract.
        elapsed_s: seconds since the candidate serves.
        text: what was counted, in one line.
    """
    extensions = elapsed_s / limits.window_s if limits.window_s else float(MAX_EXTENSIONS)
    match limits.inconclusive:
        case "commit":
            return ProbationDecision(ProbationAction.COMMIT, text, is_inconclusive=True)
        case "extend" if extensions < MAX_EXTENSIONS:
            return ProbationDecision(ProbationAction.WATCH, f"extended: {text}")
        case _:
            return ProbationDecision(ProbationAction.INCONCLUSIVE, text)


def summarize_probation(
    limits: ProbationLimits,
    observation: ServingObservation,
    baseline: ServingObservation,
    elapsed_s: float,
    *,
    has_failed: bool = False,
) -> ProbationSummary:
    """Summarize a probation from the last counters.

    Args:
        limits, observation, baseline, elapsed_s: as for `judge_probation`.
        has_failed: whether it ends in a rollback because of a limit.
    """
    repeats = observation.repeats
    bad = repeats.count(BadResponse.ERROR).seen + repeats.count(BadResponse.CRASH).seen
    requests = max(observation.requests, bad)  # a response 400 for inputs that the model cannot run on is not in both
    if has_failed:
        verdict = ProbationVerdict.FAILED
    elif not requests:
        verdict = ProbationVerdict.UNTRIED
    elif requests < limits.min_requests:
        verdict = ProbationVerdict.INCONCLUSIVE
    else:
        verdict = ProbationVerdict.PASSED
    return ProbationSummary(
        verdict=verdict,
        seconds=round(elapsed_s),
        requests=requests,
        needed_requests=limits.min_requests,
        errors=max(observation.errors, bad),
        nan=observation.nan,
        repeated=repeats.failures.repeated,
        confirmed=repeats.failures.confirmed,
        latency_percent=(
            observation.p50_us * 100 // baseline.p50_us if observation.p50_us and baseline.p50_us else None
        ),
    )


def _violated_limit(limits: ProbationLimits, observation: ServingObservation) -> str:
    repeats = observation.repeats
    if repeats.crashes_without_request:
        return "its process crashed without a request"
    if repeats.is_evident:
        for kind, word in ((BadResponse.CRASH, "crashed"), (BadResponse.HANG, "hung")):
            found = repeats.count(kind)
            if found.confirmed:
                return f"its process {word} on {found.confirmed} requests that the previous release responds to"
        for kind, word, ppm in (
            (BadResponse.ERROR, "failed", limits.error_ppm),
            (BadResponse.NAN, "NaN", limits.nan_ppm),
        ):
            found, requests = repeats.count(kind), max(observation.requests, repeats.count(kind).seen)
            if found.estimate * PPM > ppm * requests:
                return (
                    f"{found.seen} {word} responses in {requests} requests, at most {ppm} in a million are allowed; "
                    f"the previous release responds well to {found.confirmed} of {found.repeated} that were repeated"
                )
    slow = repeats.count(BadResponse.SLOW)
    if slow.confirmed >= MIN_CONFIRMED and slow.estimate * 2 > observation.requests:
        return (
            f"{slow.seen} of {observation.requests} responses are slow; {slow.confirmed} of {slow.repeated} that were "
            f"repeated took more than {limits.latency_percent} % of the previous release's time"
        )
    return ""


def slow_limit_us(limits: ProbationLimits, usual_us: int | None) -> int | None:
    """Return the time in microseconds above which a response is slow; None without a usual one.

    Args:
        limits: limits of the probation.
        usual_us: usual latency of the previous release, or None.
    """
    return None if not usual_us else usual_us * limits.latency_percent // 100 + LATENCY_ALLOWANCE_US


def returns_state(contract: Contract) -> bool:
    """Return whether clients send an output back as an input, as recurrent models need it.

    Such a state belongs to the release that computed it, so that another release cannot be asked the same. A state is
    an output with the dtype and shape of an input, whose name is that of the input, changed as exporters do it.
    """
    outputs = {tensor.name: tensor for tensor in contract.outputs}
    for tensor in contract.inputs:
        name = tensor.name
        stem = name.removesuffix("_in").removesuffix("_prev")
        names = {f"next_{name}", f"new_{name}", f"{name}_next", f"{name}_new", f"{name}_out", f"{name}.1"}
        names |= {f"{stem}_out", f"{stem}_next", name.replace("past", "present", 1)} - {name}
        names |= {other for other in outputs if "state" in other.lower() and "state" in name.lower()}
        for found in (outputs[other] for other in names if other in outputs):
            if found.dtype == tensor.dtype and len(found.shape) == len(tensor.shape):
                return True
    return False
