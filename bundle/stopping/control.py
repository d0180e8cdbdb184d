"""Exact comparisons of the silent devices of a rollout with those of its control group.

Theory. s of n exposed devices and c of m control devices are silent. If the release silences no device, the exposed
devices are a random draw of n from all n + m, whatever else makes devices silent: dead batteries, a night, a site
without power. Given s + c = t, s has the hypergeometric distribution. No rate is estimated, and outages that strike
together change nothing, since the draw is independent of them.

Pure: standard library only.
"""

import math
from typing import Final

NEGLIGIBLE: Final = 1e-14  # a further term of a tail, relative to its sum


def silence_p_value(silent: int, exposed: int, control_silent: int, control: int) -> float:
    """Return the probability of at least `silent` silent exposed devices if the release silences none.

    Args:
        silent: s, silent exposed devices.
        exposed: n, all exposed devices.
        control_silent: c, silent devices of the control group.
        control: m, all devices of the control group.
    """
    total = silent + control_silent
    if silent * control <= control_silent * exposed:
        return 1.0  # not above the share of the control group
    term = math.exp(_log_probability(silent, exposed, total, control))
    out = term
    for x in range(silent, min(exposed, total)):
        term *= (exposed - x) * (total - x) / ((x + 1) * (control - total + x + 1))
        out += term
        if term < NEGLIGIBLE * out:
            break
    return min(1.0, out)


def innocent_silence(exposed: int, control_silent: int, control: int, level: float) -> int:
    """Return a number of silent exposed devices that the control group explains.

    With probability of at least 1 - `level`, no fewer exposed devices would be silent under the earlier release.

    Args:
        exposed: n, all exposed devices.
        control_silent: c, silent devices of the control group.
        control: m, all devices of the control group.
        level: probability of an error, between 0 and 1.
    """
    if not control or not control_silent:
        return 0
    low, high = 0, exposed * control_silent // control
    while low < high:
        middle = (low + high) // 2
        if _lower_tail(middle, exposed, control_silent, control) > level:
            high = middle
        else:
            low = middle + 1
    return low


def _lower_tail(silent: int, exposed: int, control_silent: int, control: int) -> float:
    """Return the probability of at most `silent` silent exposed devices, given the sum of both groups."""
    total = silent + control_silent
    term = math.exp(_log_probability(silent, exposed, total, control))
    out = term
    for x in range(silent, max(0, total - control), -1):
        term *= x * (control - total + x) / ((exposed - x + 1) * (total - x + 1))
        out += term
        if term < NEGLIGIBLE * out:
            break
    return out


def _log_probability(silent: int, exposed: int, total: int, control: int) -> float:
    return _log_choose(exposed, silent) + _log_choose(control, total - silent) - _log_choose(exposed + control, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
