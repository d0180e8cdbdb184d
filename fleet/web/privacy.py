"""Hide groups below MIN_GROUP devices: without a login, in exports and in metrics.

Rules:
- A count from 1 to MIN_GROUP - 1 becomes None, and is shown as "below 10".
- A value of a stratum is shown only if its group is large enough. The same holds for the number of its failed devices.
- Sums over the whole fleet are shown as they are: they name no group.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from fleet.queries import ReleaseCounts

MIN_GROUP: Final = 10


def visible(count: int) -> int | None:
    """Return a count, or None if it is above 0 and below MIN_GROUP."""
    return None if 0 < count < MIN_GROUP else count


def large_values(values: Mapping[str, int]) -> dict[str, int]:
    """Return the values of a kind with at least MIN_GROUP devices."""
    return {value: count for value, count in values.items() if count >= MIN_GROUP}


def without_small_groups(releases: Iterable[ReleaseCounts]) -> list[ReleaseCounts]:
    """Return the counts of releases without any group below MIN_GROUP."""
    shown = []
    for one in releases:
        values = {kind: large_values(counts) for kind, counts in one.values.items()}
        shown.append(ReleaseCounts(one.family, one.channel, one.release, values))
    return [one for one in shown if one.devices or one.suspects]
