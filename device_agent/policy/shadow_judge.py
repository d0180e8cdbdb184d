"""Judges a candidate that hears a share of the live requests before the swap (device_agent.front.shadow). Pure.

Rules, in this order:
1. A process that died has failed.
2. Failed and NaN answers are held to the limits that the probation will hold them to; a limit of zero is passed by the
   first case.
3. Once `min_requests` answers were compared, the share of them that agree decides.
4. When the window ends with fewer, the contract says what follows, as for a probation: go on to the swap, wait longer,
   or keep the old release.
"""

from dataclasses import dataclass

from bundle.contract import PPM, Health
from device_agent.policy.probation import MAX_EXTENSIONS, ProbationAction, ProbationDecision, ProbationLimits


@dataclass(frozen=True, slots=True)
class ShadowObservation:
    """What a candidate did so far.

    Attributes:
        compared: requests that it and the live model answered.
        agreed: of these (device_agent.runtime.comparison).
        errors: requests that failed on the candidate only.
        nan: answers with NaN or infinity that it made.
        crashes: 1 once its process has died.
    """

    compared: int = 0
    agreed: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0


def judge_shadow(
    health: Health, limits: ProbationLimits, shadow_observation: ShadowObservation, elapsed_s: float
) -> ProbationDecision:
    """All rules; COMMIT means: go on to the swap.

    Args:
        health: of the candidate.
        limits: of its probation, as this device's operator may have set them.
        heard: since the shadow began.
        elapsed_s: since then.
    """
    if shadow_observation.crashes:
        return ProbationDecision(ProbationAction.ROLL_BACK, "its process died in the shadow")
    asked = shadow_observation.compared + shadow_observation.errors
    is_enough = asked >= max(1, limits.min_requests)
    for what, count, ppm in (
        ("failed", shadow_observation.errors, limits.error_ppm),
        ("NaN", shadow_observation.nan, limits.nan_ppm),
    ):
        if count and (ppm == 0 or (is_enough and count * PPM > ppm * asked)):
            return ProbationDecision(
                ProbationAction.ROLL_BACK,
                f"{count} {what} answers in {asked} shadowed requests, limit {ppm} in a million",
            )
    if is_enough:
        found = f"{shadow_observation.agreed} of {shadow_observation.compared} shadowed answers agree"
        if shadow_observation.agreed * PPM < health.shadow_agreement_ppm * shadow_observation.compared:
            return ProbationDecision(
                ProbationAction.ROLL_BACK, f"{found}, {health.shadow_agreement_ppm} in a million are needed"
            )
        return ProbationDecision(ProbationAction.COMMIT, found)
    few = f"{asked} shadowed requests in {elapsed_s:.0f} s, {limits.min_requests} are needed to tell"
    if elapsed_s < limits.window_s:
        return ProbationDecision(ProbationAction.WATCH, few)
    match limits.inconclusive:
        case "commit":
            return ProbationDecision(ProbationAction.COMMIT, f"inconclusive, goes on as the contract says: {few}")
        case "extend" if limits.window_s and elapsed_s < MAX_EXTENSIONS * limits.window_s:
            return ProbationDecision(ProbationAction.WATCH, f"extended: {few}")
        case _:
            return ProbationDecision(ProbationAction.INCONCLUSIVE, few)
