"""A token bucket for each sender and device: it is asked before a signature is verified.

The key contains the sender's address, so that an unknown sender of false lines in the name of a device uses up a bucket
of its own, not the device's.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

BURST: Final = 600.0  # lines: all 256 stored reports of two families at once, and vitals
PER_SECOND: Final = 1.0
MAX_BUCKETS: Final = 100_000


class TokenBuckets:
    """Token buckets by key; the one that was not used for longest is forgotten first.

    Args:
        burst: tokens of a full bucket.
        per_second: tokens that return in a second.
        now_s: returns a monotonic time in seconds.
        max_buckets: number of buckets to keep.
    """

    def __init__(
        self,
        burst: float = BURST,
        per_second: float = PER_SECOND,
        now_s: Callable[[], float] = time.monotonic,
        max_buckets: int = MAX_BUCKETS,
    ) -> None:
        self._burst, self._per_second, self._now_s, self._max = burst, per_second, now_s, max_buckets
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, sender: str, device_id: str) -> bool:
        """Take a token, and return whether there was one.

        Args:
            sender: address of the sender.
            device_id: the device that the line names, or "" for another limit.
        """
        key, now = (sender, device_id), self._now_s()
        tokens = self._tokens(key, now)
        is_allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if is_allowed else tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max:
            self._buckets.popitem(last=False)
        return is_allowed

    def has_token(self, sender: str, device_id: str) -> bool:
        """Return whether there is a token, without taking it.

        Args:
            sender: address of the sender.
            device_id: the device that the line names, or "" for another limit.
        """
        return self._tokens((sender, device_id), self._now_s()) >= 1

    def _tokens(self, key: tuple[str, str], now: float) -> float:
        tokens, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._per_second)
