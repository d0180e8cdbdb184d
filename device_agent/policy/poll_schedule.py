"""When to ask the repository again.

Rules:
1. Each pause is drawn anew around the interval, so that devices that started together do not stay together.
2. After failures in a row it starts short and doubles, up to a multiple of the interval: a repository that comes back
   is found soon, and one that does not is not hammered.
"""

import random
from collections.abc import Callable
from typing import Final

JITTER_SHARE: Final = 0.2
FIRST_RETRY_S: Final = 15.0
MAX_RETRY_FACTOR: Final = 4  # of the poll interval
MAX_DOUBLINGS: Final = 20  # far beyond what the factor allows; keeps the shift small


def next_poll_delay_s(interval_s: int, failures: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds until the next poll.

    Args:
        interval_s: mean time between polls.
        failures: in a row, up to now.
        draw: from 0 to 1.
    """
    if not failures:
        return interval_s * (1 - JITTER_SHARE + 2 * JITTER_SHARE * draw())
    longest = min(FIRST_RETRY_S * float(1 << min(failures - 1, MAX_DOUBLINGS)), float(MAX_RETRY_FACTOR * interval_s))
    return longest * (1 + draw()) / 2
