"""The time for which a device has seen the rollout of a release (docs/format.md section 3.3).

The ramp of a release counts this time. Rules:
- It begins when the device first verifies a rollout of the release, and grows only between two checks that both
  verified a rollout of it that is not halted. A halted release keeps its time; it gains none until it is offered
  again.
- It grows by the seconds since boot. Neither the system clock nor a signed time changes it.
- It is kept by release digest: another salt, percentage or rollout of the same release neither restarts nor skips it.
- Time in which the device is switched off does not count: after a boot, only the seconds since that boot do.
- It is stored once an hour at most, and after a boot, so that a poll does not write to the disk. A boot, a halt or
  another release loses what was not stored, less than an hour.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject
from bundle.trust.clock import ClockFacts

MAX_SIGHTINGS: Final = 64  # per family; the least time is dropped first, which only slows a ramp
SAVE_INTERVAL_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Sighting:
    """The time for which a device has seen the rollout of a release.

    Attributes:
        elapsed_s: seconds up to the check that stored this.
        is_offered: whether that check verified a rollout of the release that was not halted.
        boot_id: the boot of that check, or "" if unknown.
        boot_elapsed_s: seconds since that boot at that check.
    """

    elapsed_s: int = 0
    is_offered: bool = False
    boot_id: str = ""
    boot_elapsed_s: int = 0

    def as_json(self) -> dict[str, JSON]:
        """Return the stored object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def advance_sighting(before: Sighting | None, clock: ClockFacts, *, is_offered: bool) -> Sighting:
    """Return the sighting after a check that verified a rollout of the release.

    Args:
        before: the stored sighting, or None at the first check.
        clock: the clock readings of the check; only boot and seconds since boot are used.
        is_offered: whether the rollout is not halted.
    """
    now_s = max(clock.boot_elapsed_s, 0)
    if before is None:
        return Sighting(0, is_offered, clock.boot_id, now_s)
    is_this_boot = clock.boot_id == before.boot_id and before.boot_elapsed_s <= now_s
    passed_s = now_s - before.boot_elapsed_s if is_this_boot else now_s
    grown_s = passed_s if before.is_offered and is_offered else 0
    return Sighting(before.elapsed_s + grown_s, is_offered, clock.boot_id, now_s)


def is_worth_storing(before: Sighting | None, after: Sighting) -> bool:
    """Return whether a sighting must replace the stored one; else the next check computes the same.

    Args:
        before: the stored sighting, or None.
        after: the sighting of this check.
    """
    if before is None or before.is_offered != after.is_offered or before.boot_id != after.boot_id:
        return True
    is_rewound = after.boot_elapsed_s < before.boot_elapsed_s
    return is_rewound or after.elapsed_s - before.elapsed_s >= SAVE_INTERVAL_S


def update_sightings(
    before: Mapping[str, Sighting], digest: str, clock: ClockFacts, *, is_offered: bool
) -> tuple[dict[str, Sighting], Sighting]:
    """Return the sightings to store, and that of the release at this check.

    Args:
        before: the stored sightings of a family, by release digest.
        digest: digest of the release that the rollout names.
        clock: the clock readings of the check.
        is_offered: whether the rollout is not halted.
    """
    seen = advance_sighting(before.get(digest), clock, is_offered=is_offered)
    # every other release of the family is not offered any more
    out = {
        name: replace(other, is_offered=False) if other.is_offered else other
        for name, other in before.items()
        if name != digest
    }
    stored = before.get(digest)
    out[digest] = seen if stored is None or is_worth_storing(stored, seen) else stored
    while len(out) > MAX_SIGHTINGS:
        del out[min((name for name in out if name != digest), key=lambda name: out[name].elapsed_s)]
    return out, seen


def parse_sighting(row: StrictObject) -> tuple[str, Sighting]:
    """Parse an entry of the trust state's `sightings`.

    Raises:
        Malformed: the entry does not follow its schema.
    """
    digest = row.text("digest", SHA256_HEX_PATTERN)
    out = Sighting(row.integer("elapsed_s"), row.flag("is_offered"), row.text("boot_id"), row.integer("boot_elapsed_s"))
    row.reject_unknown()
    return digest, out
