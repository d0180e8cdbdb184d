"""Tests of a failure rate that hold at every look: e-values of k failures among n devices.

For a boundary p and alternatives q1 ... qm,

    log E(k, n, p) = log( 1/m * sum over j of (qj / p)^k * ((1 - qj) / (1 - p))^(n - k) )

Each term is a likelihood ratio of independent devices with failure rate qj against p. Along the devices in the order of
their buckets, their mean is a nonnegative supermartingale that begins at 1, if the failure rate is on the tested side
of p. By Ville's inequality it ever reaches 1/alpha with probability at most alpha, at any number of looks.

Pure: standard library only.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

HALT_POINTS: Final = 16
GO_POINTS: Final = 12
HIGHEST_RATE: Final = 0.95


def log_e(failures: int, devices: int, boundary: float, alternatives: Sequence[float]) -> float:
    """Return the natural logarithm of E.

    Args:
        failures: k, at most `devices`.
        devices: n.
        boundary: p, between 0 and 1.
        alternatives: the qj, between 0 and 1.
    """
    log_p, log_not_p = math.log(boundary), math.log1p(-boundary)
    passes = devices - failures
    terms = [failures * (math.log(q) - log_p) + passes * (math.log1p(-q) - log_not_p) for q in alternatives]
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms) / len(terms))


def halt_log_e(failures: int, devices: int, accept: float) -> float:
    """Return log E against "the failure rate is at most `accept`"; it grows with the failures.

    Args:
        failures: exposed devices with a report that counts against the release.
        devices: all exposed devices, reported or not.
        accept: acceptable failure rate, above 0 and at most 0.5.
    """
    return log_e(failures, devices, accept, _rates(1.5 * accept, HIGHEST_RATE, HALT_POINTS))


def go_log_e(failures: int, devices: int, refuse: float) -> float:
    """Return log E against "the failure rate is at least `refuse`"; it falls with the failures.

    Args:
        failures: devices that are bad or must be taken for bad.
        devices: these and the complete devices.
        refuse: failure rate that must not pass, above 0 and at most 0.5.
    """
    return log_e(failures, devices, refuse, _rates(0.01 * refuse, 0.6 * refuse, GO_POINTS))


def halt_at(devices: int, accept: float, alpha: float) -> int:
    """Return the least number of failures at which E reaches 1/alpha; `devices` + 1 if none does.

    Args:
        devices: all exposed devices.
        accept: acceptable failure rate.
        alpha: probability of a false halt, between 0 and 1.
    """
    low, high = 0, devices + 1
    while low < high:
        middle = (low + high) // 2
        if halt_log_e(middle, devices, accept) >= -math.log(alpha):
            high = middle
        else:
            low = middle + 1
    return low


def go_with(devices: int, refuse: float, beta: float) -> int:
    """Return the greatest number of failures with which E reaches 1/beta; -1 if none does.

    Args:
        devices: devices that count in the go test.
        refuse: failure rate that must not pass.
        beta: probability of a false go, between 0 and 1.
    """
    low, high = -1, devices
    while low < high:
        middle = (low + high + 1) // 2
        if go_log_e(middle, devices, refuse) >= -math.log(beta):
            low = middle
        else:
            high = middle - 1
    return low


@cache
def fewest_devices(refuse: float, beta: float) -> int:
    """Return the fewest devices that allow an advance if none of them fails.

    Args:
        refuse: failure rate that must not pass.
        beta: probability of a false go.
    """
    high = 1
    while go_log_e(0, high, refuse) < -math.log(beta):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if go_log_e(0, middle, refuse) >= -math.log(beta):
            high = middle
        else:
            low = middle
    return high


@cache
def _rates(low: float, high: float, points: int) -> tuple[float, ...]:
    """Return `points` rates from `low` to `high` at equal ratios."""
    return tuple(low * (high / low) ** (i / (points - 1)) for i in range(points))
