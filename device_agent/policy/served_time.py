"""The time for which the active bundle of a family has served, for its vitals.

Rules:
- It grows by the seconds since boot. The system clock, which may be wrong or set, does not change it.
- Time in which the device is switched off does not count: after a boot, only the seconds since that boot do.
- Another active bundle begins at 0.
- It is recorded at checks and sends, once an hour at most and after a boot. A boot loses what was not recorded.
"""

from dataclasses import dataclass, replace
from typing import Final

from bundle.files import BundleDigest
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject

DAY_S: Final = 86_400
SAVE_INTERVAL_S: Final = 3600


@dataclass(frozen=True, slots=True)
class ServedTime:
    """The time for which a bundle has been active.

    Attributes:
        digest: digest of the bundle, or None if none is active.
        elapsed_s: seconds of operation since it became active.
        boot_id: the boot of that reading, or "" if unknown.
        boot_elapsed_s: seconds since that boot.
        soak_s: soak time of the plan of the last check, in seconds; 0 without a plan.
    """

    digest: BundleDigest | None = None
    elapsed_s: int = 0
    boot_id: str = ""
    boot_elapsed_s: int = 0
    soak_s: int = 0

    @property
    def days(self) -> int:
        """Return the whole days."""
        return self.elapsed_s // DAY_S

    @property
    def soak_days(self) -> int:
        """Return the whole days after which the soak time is over; 0 without a plan."""
        return -(-self.soak_s // DAY_S)

    @property
    def soak_left_s(self) -> int | None:
        """Return the seconds until the soak time is over, in whole days; None without a plan or after it."""
        left_s = self.soak_days * DAY_S - self.elapsed_s
        return left_s if self.digest is not None and left_s > 0 else None

    def advance(self, active: BundleDigest | None, boot_id: str, boot_elapsed_s: int) -> "ServedTime":
        """Return the time at another reading of the boot clock.

        Args:
            active: digest of the active bundle, or None.
            boot_id: id of this boot, or "" if unknown.
            boot_elapsed_s: seconds since this boot.
        """
        now_s = max(boot_elapsed_s, 0)
        if active is None or active != self.digest:
            return ServedTime(active, 0, boot_id, now_s, self.soak_s)
        is_this_boot = boot_id == self.boot_id and self.boot_elapsed_s <= now_s
        passed_s = now_s - self.boot_elapsed_s if is_this_boot else now_s
        return replace(self, elapsed_s=self.elapsed_s + passed_s, boot_id=boot_id, boot_elapsed_s=now_s)

    def is_worth_recording(self, after: "ServedTime") -> bool:
        """Return whether a later reading must replace this record; else the next reading gives the same."""
        return (
            (self.digest, self.boot_id, self.soak_s) != (after.digest, after.boot_id, after.soak_s)
            or after.boot_elapsed_s < self.boot_elapsed_s
            or after.elapsed_s - self.elapsed_s >= SAVE_INTERVAL_S
        )

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(cls, fields: StrictObject) -> "ServedTime":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        digest = fields.optional_text("digest", SHA256_HEX_PATTERN)
        out = cls(
            digest=None if digest is None else BundleDigest(digest),
            elapsed_s=fields.integer("elapsed_s"),
            boot_id=fields.text("boot_id"),
            boot_elapsed_s=fields.integer("boot_elapsed_s"),
            soak_s=fields.integer("soak_s"),
        )
        fields.reject_unknown()
        return out
