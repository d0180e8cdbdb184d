"""The ramp: how fast a release may spread at most (docs/format.md section 3.3).

The release role, whose keys are offline, signs it into the manifest.

Rules:
- A ramp is a list of steps (time, share). The times begin with 0 and rise strictly; the shares rise strictly.
- The time counts from the moment when a device first verified a rollout of the release, by the device's own elapsed
  time. Signed times do not advance it.
- The bucket of a device depends on the release digest and the device id only. No online role can change it: a new salt,
  a resumed rollout or another rollout of the same release neither restarts nor skips the ramp.
- An empty ramp limits nothing.

Pure: standard library only.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from bundle.errors import Malformed
from bundle.strict_json import JSON, StrictObject

MAX_RAMP_STEPS: Final = 16
MAX_RAMP_SECONDS: Final = 365 * 86400
BASIS_POINTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class RampStep:
    """One step of a ramp.

    Attributes:
        after_s: elapsed time from which the step holds, in seconds.
        percent_bp: maximum share of devices, 1 to 10,000 basis points.
    """

    after_s: int
    percent_bp: int

    def as_json(self) -> dict[str, JSON]:
        """Return the step as an object of the manifest's `ramp` list."""
        return {"after_s": self.after_s, "percent_bp": self.percent_bp}


def parse_ramp(rows: list[StrictObject], where: str) -> tuple[RampStep, ...]:
    """Parse the `ramp` list of a manifest.

    Args:
        rows: the objects of the list.
        where: name of the list in error messages.

    Raises:
        Malformed: a step does not follow its schema, or `check_ramp` refuses the list.
    """
    steps = []
    for row in rows:
        step = RampStep(row.integer("after_s", 0, MAX_RAMP_SECONDS), row.integer("percent_bp", 1, BASIS_POINTS))
        row.reject_unknown()
        steps.append(step)
    check_ramp(steps, where)
    return tuple(steps)


def check_ramp(steps: Sequence[RampStep], where: str) -> None:
    """Check that times and shares rise, and that the first time is 0.

    Args:
        steps: the steps of a ramp.
        where: name of the list in error messages.

    Raises:
        Malformed: the steps are not a ramp.
    """
    if steps and steps[0].after_s != 0:
        raise Malformed(f"{where}: the first step begins after {steps[0].after_s} s, expected 0")
    for before, after in pairwise(steps):
        if before.after_s >= after.after_s or before.percent_bp >= after.percent_bp:
            raise Malformed(f"{where}: found {after} after {before}, expected later times with greater shares")


def ramp_bucket(release_digest: str, device_id: str) -> int:
    """Return the bucket of a device in the ramp of a release, 0 to 9,999 basis points.

    Computed as the integer of SHA-256(release digest ‖ 0x00 ‖ device id), big-endian, modulo 10,000; both are
    hexadecimal text in ASCII.

    Args:
        release_digest: digest of the manifest without its patches, 64 hexadecimal digits.
        device_id: id of the device, 64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{release_digest}\0{device_id}".encode()).digest()
    return int.from_bytes(digest, "big") % BASIS_POINTS


def allowed_share(ramp: Sequence[RampStep], elapsed_s: int) -> int:
    """Return the maximum share of devices at a time, in basis points.

    Args:
        ramp: the steps of the release; empty means no limit.
        elapsed_s: seconds since the device first verified a rollout of the release.
    """
    return max((step.percent_bp for step in ramp if step.after_s <= elapsed_s), default=0 if ramp else BASIS_POINTS)


def describe_wait(ramp: Sequence[RampStep], bucket: int, elapsed_s: int) -> str:
    """Describe in one line why a device does not take a release yet.

    Args:
        ramp: the steps of the release.
        bucket: the device's bucket (`ramp_bucket`), above the share that is allowed now.
        elapsed_s: seconds since the device first verified a rollout of the release.
    """
    share = (
        f"this device is at {bucket / 100:.2f} % of the ramp, which covers {allowed_share(ramp, elapsed_s) / 100:g} %"
    )
    opens_s = ramp_opens_after(ramp, bucket)
    if opens_s is None:
        return f"{share} and never more"
    return f"{share} now, and this device after {(opens_s - elapsed_s) / 3600:.1f} more hours of operation"


def ramp_opens_after(ramp: Sequence[RampStep], bucket: int) -> int | None:
    """Return the elapsed time in seconds from which a device may take the release, or None for never.

    Args:
        ramp: the steps of the release; empty means no limit.
        bucket: the device's bucket (`ramp_bucket`).
    """
    if not ramp:
        return 0
    return next((step.after_s for step in ramp if bucket < step.percent_bp), None)
