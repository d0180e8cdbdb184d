"""The decision about a candidate in shadow mode, from the responses to mirrored requests.

The rules apply in this order:

1. A candidate whose process crashed has failed.
2. Failed and NaN responses have the limits of the probation; if a limit is zero, the first such response fails it.
3. Once `min_requests` requests were mirrored, the share of responses that agree with the running model's decides.
4. If the window ends with fewer requests, the health contract decides as for a probation: continue with the swap, watch
   longer, or keep the old release.

This module does no I/O.
"""

from dataclasses import dataclass

from bundle.contract import PPM, Health
from device_agent.policy.probation import MAX_EXTENSIONS, ProbationAction, ProbationDecision, ProbationLimits


@dataclass(frozen=True, slots=True)
class ShadowObservation:
    """Counters of a candidate in shadow mode.

    Attributes:
        compared: requests that the candidate and the running model both answered.
        agreed: among them, those with responses that agree (device_agent.runtime.comparison).
        errors: requests that failed on the candidate only.
        nan: candidate's responses with NaN or infinity.
        crashes: 1 after its process ended, else 0.
    """

    compared: int = 0
    agreed: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0


def judge_shadow(
    health: Health, limits: ProbationLimits, shadow_observation: ShadowObservation, elapsed_s: float
) -> ProbationDecision:
    """Decide about a candidate in shadow mode; COMMIT means to continue with the swap.

    Args:
        health: health contract of the candidate.
        limits: limits of its probation, which apply here too.
        shadow_observation: its counters since shadow mode began.
        elapsed_s: seconds since then.
    """
    if shadow_observation.crashes:
        return ProbationDecision(ProbationAction.ROLL_BACK, "its process crashed in shadow mode")
    mirrored = shadow_observation.compared + shadow_observation.errors
    is_enough = mirrored >= max(1, limits.min_requests)
    for kind, count, ppm in (
        ("failed", shadow_observation.errors, limits.error_ppm),
        ("NaN", shadow_observation.nan, limits.nan_ppm),
    ):
        if count and (ppm == 0 or (is_enough and count * PPM > ppm * mirrored)):
            return ProbationDecision(
                ProbationAction.ROLL_BACK,
                f"{count} {kind} responses in {mirrored} mirrored requests, at most {ppm} in a million allowed",
            )
    if is_enough:
        found = f"{shadow_observation.agreed} of {shadow_observation.compared} mirrored responses agree"
        if shadow_observation.agreed * PPM < health.shadow_agreement_ppm * shadow_observation.compared:
            return ProbationDecision(
                ProbationAction.ROLL_BACK, f"{found}, at least {health.shadow_agreement_ppm} in a million needed"
            )
        return ProbationDecision(ProbationAction.COMMIT, found)
    few = f"{mirrored} mirrored requests in {elapsed_s:.0f} s, at least {limits.min_requests} are needed"
    if elapsed_s < limits.window_s:
        return ProbationDecision(ProbationAction.WATCH, few)
    match limits.inconclusive:
        case "commit":
            return ProbationDecision(ProbationAction.COMMIT, few, is_inconclusive=True)
        case "extend" if limits.window_s and elapsed_s < MAX_EXTENSIONS * limits.window_s:
            return ProbationDecision(ProbationAction.WATCH, f"extended: {few}")
        case _:
            return ProbationDecision(ProbationAction.INCONCLUSIVE, few)
