"""The time until the next check of the repository.

Rules:
- Each delay is drawn at random around the interval, so that devices that started together do not poll together.
- After a failure the delay is short; it doubles with each further failure, up to a multiple of the interval. So a
  repository that comes back is found soon, and one that stays down gets few requests.
"""

import os
from collections.abc import Callable
from typing import Final

JITTER_SHARE: Final = 0.2
FIRST_RETRY_S: Final = 15.0
MAX_RETRY_FACTOR: Final = 4  # the longest delay after failures, in poll intervals
MAX_DOUBLINGS: Final = 20  # the factor is reached long before; this bounds the shift


def _draw_random() -> float:
    # the module `random` would stay in the daemon's memory: 240 kB for one number per poll
    return int.from_bytes(os.urandom(4), "big") / 2**32


def next_poll_delay_s(interval_s: int, failures: int, draw: Callable[[], float] = _draw_random) -> float:
    """Draw the delay until the next poll, in seconds.

    Args:
        interval_s: mean time between polls, in seconds.
        failures: number of failed checks in a row.
        draw: returns a random number from 0 to 1.
    """
    if not failures:
        return interval_s * (1 - JITTER_SHARE + 2 * JITTER_SHARE * draw())
    longest = min(FIRST_RETRY_S * float(1 << min(failures - 1, MAX_DOUBLINGS)), float(MAX_RETRY_FACTOR * interval_s))
    return longest * (1 + draw()) / 2
