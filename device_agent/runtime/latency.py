"""A histogram of durations with logarithmic buckets.

Each bucket is 2^(1/8) wide, so a quantile is off by at most 4.5 %. The buckets cover 1 µs to 18 minutes; durations
outside of that count in the first or last bucket.
"""

import math
from typing import Final

BUCKETS_PER_DOUBLING: Final = 8
DOUBLING_COUNT: Final = 30
BUCKET_COUNT: Final = BUCKETS_PER_DOUBLING * DOUBLING_COUNT + 1


class LatencyHistogram:
    """Counts durations. Not thread-safe.

    Attributes:
        count: number of durations.
        counts: number of durations in each bucket.
        total_us: their sum, in microseconds.
    """

    __slots__ = ("count", "counts", "total_us")

    def __init__(self) -> None:
        self.counts = [0] * BUCKET_COUNT
        self.count = 0
        self.total_us = 0

    def add(self, duration_us: int) -> None:
        """Count one duration, in microseconds."""
        index = int(math.log2(duration_us) * BUCKETS_PER_DOUBLING) if duration_us > 1 else 0
        self.counts[min(index, BUCKET_COUNT - 1)] += 1
        self.count += 1
        self.total_us += duration_us

    def merge(self, other: "LatencyHistogram") -> None:
        """Add the counts of another histogram."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.count += other.count
        self.total_us += other.total_us

    def quantile_us(self, share: float) -> int | None:
        """Return a quantile, in microseconds; None if nothing was counted.

        Args:
            share: 0 to 1; 0.95 for the 95th percentile.
        """
        if not self.count:
            return None
        remaining = share * self.count
        for index, count in enumerate(self.counts):
            remaining -= count
            if count and remaining <= 0:
                return round(2 ** ((index + 0.5) / BUCKETS_PER_DOUBLING)) if index else 1
        return None

    def count_below(self, bound_us: float) -> int:
        """Return how many durations are in buckets that end at or below `bound_us`."""
        last = int(math.log2(bound_us) * BUCKETS_PER_DOUBLING) if bound_us > 1 else 0
        return sum(self.counts[:last])
