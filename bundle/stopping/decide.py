"""The stopping rule of staged rollouts (docs/operations/stopping-rule.md).

Rules, in this order; `counts.py` defines what is counted:
1. Halt on failures. Unreported devices count as good. E of the bad among *all* exposed devices against `accept`, for
   the whole fleet and for each stratum, at any time.
2. Halt on silence. More exposed devices are silent than the control group explains, for the whole fleet and for each
   stratum, once at each checkpoint.
3. Wait until the soak time is over.
4. After the last stage nothing is advanced: wait, or ask as long as devices are missing.
5. Ask if silence has no measure: fewer than MIN_CONTROL control devices, no line from any of them (no vitals), or a
   silent share of the control group above the plan's ceiling.
6. Go if E against `refuse` is large enough. Incomplete devices count as bad, beyond the number that the control group
   explains; and no stratum may be above `refuse` with them. But grow to twice the share first if the next stage would
   expose more than MAX_UNTESTED devices of a stratum, and more than twice as many as now, for which a failure rate of
   UNTESTED_RATE times `refuse` is not ruled out yet. So a small class that fails loses few devices.
7. When the stage is old enough: grow to twice the share, below the next stage, if the unexplained devices are fewer
   than `refuse`, since reported failures then halt or clear the release; otherwise ask.

Bounds. They hold for any number of looks and any delay of reports, and as far as it says here:
- A false halt on failures (rate at most `accept`, in the whole and in each stratum): at most 3/4 alpha, for failures
  that are independent from device to device. Half of it is for the whole fleet, and the strata share the other half
  equally: their number is fixed by the census, before the data.
- A false halt on silence (the release silences no device): at most 1/4 alpha, also for outages that strike together.
- A false go (rate at least `refuse`): at most 3/4 beta if the time of a report does not depend on its outcome. If bad
  devices report late or never: at most beta for the looks of each share, if devices that are silent anyway are not
  those that would fail.
- Not bounded: failures that strike together (a proxy, a site), devices that report success and fail later, a go after
  false reports of success, and a control group whose lines are withheld (only up to the ceiling, which is signed).

Pure: standard library only.
"""

import math
from typing import Final

from bundle.plan import MILLION, Plan
from bundle.stopping.control import innocent_silence, silence_p_value
from bundle.stopping.counts import BASIS_POINTS, Counts, Group, checkpoint_number
from bundle.stopping.decisions import Ask, Decision, Go, Grow, Halt, Wait
from bundle.stopping.e_values import fewest_devices, go_log_e, halt_log_e

MIN_CONTROL: Final = 200
MIN_BAD: Final = 3  # fewer bad or silent devices never halt a rollout
HEARD_PERCENT: Final = 80
MAX_UNTESTED: Final = 30  # devices; at a failure rate of 40 %, a step then costs a class 12 of them
UNTESTED_RATE: Final = 6  # times `refuse`: the failure rate that such a stratum must not have
HIGHEST_REFUSE: Final = 0.5
FAILURE_SHARE: Final = 0.75  # of alpha; half of it for the whole fleet, half for the strata
SILENCE_SHARE: Final = 0.25
E_VALUE_SHARE: Final = 0.75  # of beta; the rest is for the number of innocent silent devices


def decide(plan: Plan, counts: Counts) -> Decision:
    """Decide what happens to a rollout now.

    Args:
        plan: the signed plan.
        counts: what is known about the rollout.
    """
    halt = _halt_on_failures(plan, counts) or _halt_on_silence(plan, counts)
    if halt is not None:
        return halt
    if counts.age_s < plan.soak_s:
        left = plan.soak_s - counts.age_s
        return Wait("soak", f"the soak time ends in {left} s", {"left_s": left})
    following = plan.next_stage_bp(counts.percent_bp)
    if following is None:
        return _after_the_last_stage(plan, counts)
    return _ask_without_control(plan, counts.whole) or _advance(plan, counts, following)


def silence_level(plan: Plan, counts: Counts) -> float:
    """Return the part of a budget of 1 that the checkpoint of `counts` may use.

    The parts of all steps i and all checkpoints j, 1 / (i (i + 1) j (j + 1)), add up to 1.

    Args:
        plan: the signed plan.
        counts: what is known about the rollout, after the soak time.
    """
    i, j = plan.step_number(counts.percent_bp), checkpoint_number(plan.soak_s, counts.age_s)
    return 1 / (i * (i + 1) * j * (j + 1))


def _halt_on_failures(plan: Plan, counts: Counts) -> Halt | None:
    alpha = FAILURE_SHARE * plan.alpha_ppm / MILLION
    for name, group, part in _shares(counts, alpha):
        if group.bad < MIN_BAD:
            continue
        found, needed = halt_log_e(group.bad, group.exposed, plan.accept_ppm / MILLION), -math.log(part)
        if found >= needed:
            return Halt(
                "failures",
                f"{group.bad} of {group.exposed} devices{_of(name)} failed,"
                f" more than a rate of {_percent(plan.accept_ppm)} explains",
                {
                    "bad": group.bad,
                    "exposed": group.exposed,
                    "log_e_milli": _milli(found),
                    "needed_milli": _milli(needed),
                },
                stratum=name,
            )
    return None


def _halt_on_silence(plan: Plan, counts: Counts) -> Halt | None:
    if counts.age_s < plan.soak_s:
        return None
    alpha = SILENCE_SHARE * plan.alpha_ppm / MILLION * silence_level(plan, counts)
    for name, group, part in _shares(counts, alpha):
        if group.silent < MIN_BAD or not group.control:
            continue
        found = silence_p_value(group.silent, group.exposed, group.control_silent, group.control)
        if found <= part:
            return Halt(
                "silence",
                f"{group.silent} of {group.exposed} devices{_of(name)} are silent,"
                f" and {group.control_silent} of {group.control} of the control group",
                {
                    "silent": group.silent,
                    "exposed": group.exposed,
                    "control_silent": group.control_silent,
                    "control": group.control,
                    "probability_ppb": math.floor(found * 1e9),
                    "needed_ppb": math.floor(part * 1e9),
                },
                stratum=name,
            )
    return None


def _after_the_last_stage(plan: Plan, counts: Counts) -> Wait | Ask:
    whole = counts.whole
    numbers = _go_numbers(plan, whole, 0)
    if _is_good(plan, whole, 0):
        return Wait("last-stage", "the last stage passed: there is nothing to advance", numbers)
    text = (
        f"the last stage is reached: {whole.complete} of {whole.exposed} devices reported the end of the soak time,"
        f" {whole.bad} failed, and no control group explains the rest"
    )
    return Wait("evidence", text, numbers) if counts.age_s < plan.grow_after_s else Ask("last-stage", text, numbers)


def _ask_without_control(plan: Plan, group: Group) -> Ask | None:
    numbers = {"control": group.control, "control_silent": group.control_silent, "needed": MIN_CONTROL}
    if group.control < MIN_CONTROL:
        return Ask(
            "control-too-small",
            f"the control group has {group.control} devices, expected at least {MIN_CONTROL}",
            numbers,
        )
    if group.control_silent == group.control:
        return Ask("no-vitals", f"none of the {group.control} devices of the control group sent a line", numbers)
    if group.control_silent * MILLION > plan.base_ceiling_ppm * group.control:
        return Ask(
            "base-above-ceiling",
            f"{group.control_silent} of {group.control} devices of the control group are silent, more than the"
            f" {_percent(plan.base_ceiling_ppm)} that the plan allows",
            numbers | {"ceiling_ppm": plan.base_ceiling_ppm},
        )
    return None


def _advance(plan: Plan, counts: Counts, following: int) -> Decision:
    whole = counts.whole
    level = (1 - E_VALUE_SHARE) * plan.beta_ppm / MILLION * silence_level(plan, counts)
    explained = innocent_silence(whole.exposed, whole.control_silent, whole.control, level)
    numbers = _go_numbers(plan, whole, explained)
    doubtful = _doubtful_stratum(plan, counts, level)
    if _is_good(plan, whole, explained) and doubtful is None:
        untested = _untested_stratum(plan, counts, following, level)
        if untested is not None:
            text = f"too little is known{_of(untested)} for {following / 100:g} %: twice the share first"
            return Grow("untested-stratum", text, numbers, percent_bp=2 * counts.percent_bp)
        text = (
            f"{whole.complete} of {whole.exposed} devices are complete, {whole.bad} failed,"
            f" {min(explained, whole.incomplete)} of {whole.incomplete} others are explained by the control group"
        )
        return Go("evidence", text, numbers, percent_bp=following)
    missing = (
        f"{whole.complete} of {whole.exposed} devices are complete, {whole.bad} failed, {whole.incomplete} are missing"
        f"{'' if doubtful is None else f'; doubtful:{_of(doubtful)}'}"
    )
    if counts.age_s < plan.grow_after_s:
        return Wait("evidence", missing, numbers)
    grown = min(2 * counts.percent_bp, following - 1)
    missing_devices = max(0, whole.incomplete - explained)
    if grown > counts.percent_bp and missing_devices * MILLION < plan.refuse_ppm * whole.exposed:
        return Grow("too-few", f"{missing}: more devices are needed", numbers, percent_bp=grown)
    return Ask("undecided", f"{missing}; the stage is {counts.age_s} s old", numbers)


def _is_good(plan: Plan, group: Group, explained: int) -> bool:
    """Return whether a group passes the go test with `explained` innocent silent devices."""
    guilty = _guilty(group, explained)
    is_heard = 100 * (group.complete + group.bad) >= HEARD_PERCENT * group.exposed
    return is_heard and go_log_e(guilty, guilty + group.complete, plan.refuse_ppm / MILLION) >= _go_threshold(plan)


def _doubtful_stratum(plan: Plan, counts: Counts, level: float) -> str | None:
    """Return the first stratum that is above `refuse` if its unexplained devices are bad, or None."""
    for name, group in _sorted(counts):
        guilty = _guilty(group, innocent_silence(group.exposed, group.control_silent, group.control, level))
        if guilty < MIN_BAD:
            continue
        if halt_log_e(guilty, guilty + group.complete, plan.refuse_ppm / MILLION) >= -math.log(
            plan.alpha_ppm / MILLION
        ):
            return name
    return None


def _untested_stratum(plan: Plan, counts: Counts, following: int, level: float) -> str | None:
    """Return the first stratum of which a stage would expose too many devices for what is known, or None.

    Args:
        plan: the signed plan.
        counts: what is known about the rollout.
        following: share of the next stage, in basis points.
        level: probability of an error of the number of innocent silent devices.
    """
    if following <= 2 * counts.percent_bp:
        return None
    drawn = (following - counts.percent_bp) / (BASIS_POINTS - counts.percent_bp)  # share of the control group
    rate = min(HIGHEST_REFUSE, UNTESTED_RATE * plan.refuse_ppm / MILLION)
    for name, group in _sorted(counts):
        if group.exposed + group.control * drawn <= MAX_UNTESTED:
            continue
        guilty = _guilty(group, innocent_silence(group.exposed, group.control_silent, group.control, level))
        if go_log_e(guilty, guilty + group.complete, rate) < _go_threshold(plan):
            return name
    return None


def _go_numbers(plan: Plan, group: Group, explained: int) -> dict[str, int]:
    refuse = plan.refuse_ppm / MILLION
    guilty = _guilty(group, explained)
    return {
        "exposed": group.exposed,
        "bad": group.bad,
        "complete": group.complete,
        "incomplete": group.incomplete,
        "explained": explained,
        "counted_as_bad": guilty,
        "log_e_milli": _milli(go_log_e(guilty, guilty + group.complete, refuse)),
        "needed_milli": _milli(_go_threshold(plan)),
        "fewest_devices": fewest_devices(refuse, E_VALUE_SHARE * plan.beta_ppm / MILLION),
    }


def _guilty(group: Group, explained: int) -> int:
    """Return the number of bad devices and of incomplete ones that the control group does not explain."""
    return group.bad + max(0, group.incomplete - explained)


def _go_threshold(plan: Plan) -> float:
    return -math.log(E_VALUE_SHARE * plan.beta_ppm / MILLION)


def _shares(counts: Counts, alpha: float) -> list[tuple[str, Group, float]]:
    """Return the whole and each stratum with its part of an error budget."""
    strata = _sorted(counts)
    return [("", counts.whole, alpha / 2), *((name, one, alpha / 2 / len(strata)) for name, one in strata)]


def _sorted(counts: Counts) -> list[tuple[str, Group]]:
    return sorted(counts.strata.items())


def _milli(log_e: float) -> int:
    return math.floor(log_e * 1000)


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:g} %"


def _of(stratum: str) -> str:
    return f" of {stratum}" if stratum else ""
