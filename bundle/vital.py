"""Vitals: what a device says about itself once an interval, signed (docs/format.md section 18).

Rules:
- Off until `reports.url` is configured. At most one vital an interval is made (`reports.vital_interval_s`), and one
  more when the soak time of a plan ends.
- Coarse: counts are magnitudes (powers of two), times are whole days. A vital contains no model inputs or outputs, no
  address, no place and no free text.
- Vitals are numbered from 1 in the log of the device's reports, and not chained: each one replaces the one before it,
  and none has to arrive. Two vitals of one number that differ come from two disks. A vital names the newest report, so
  that a missing report is noticed, and the order of vitals and reports is known.
- It says where the device stands with the release that its channel offers, so that a device that waits, or that could
  not judge a release, differs from a silent one (`VITAL_STATES`).
- The device's Ed25519 key signs SIGNATURE_LABEL ‖ canonical JSON of all fields but the signature.

Pure: the supervisor loads this module without a cryptographic library.
"""

from dataclasses import dataclass
from typing import Final

from bundle.errors import Malformed
from bundle.signed_line import LOG_ID_PATTERN, REASON_PATTERN, LineContent, open_line
from bundle.strict_json import NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject

SCHEMA: Final = "airweights.vital/1"
SIGNATURE_LABEL: Final = b"airweights device vital v1\0"
MAX_VITAL_BYTES: Final = 16 * 1024
MAX_DAY: Final = 200_000  # days since 1970; the year 2517
MAX_MAGNITUDE: Final = 48
MAX_SERVED_DAYS: Final = 4096
FAILING_RESTARTS: Final = 3  # magnitude: 4 to 7 unexpected ends of the model process since the last vital

# serving: the offered release serves, or nothing newer is offered; waiting, unavailable, inconclusive, interrupted,
# rejected: how the last attempt to install the offered release ended; stopped: no release serves
VITAL_STATES: Final = (
    *("serving", "trying", "waiting", "unavailable", "inconclusive", "interrupted", "rejected", "paused", "stopped"),
)
STOPPED: Final = "stopped"
PROBATIONS: Final = ("none", "passed", "untried", "inconclusive")


@dataclass(frozen=True, slots=True)
class Vital(LineContent):
    """One vital of a device and family.

    Attributes:
        log: random id of the device's log, 32 hexadecimal digits.
        number: number of the vital in the log, from 1.
        reports: number of the newest report of the same log, or 0.
        day: day on which it was made, by the device's clock, in days since 1970-01-01.
        repository: id of the repository, 64 hexadecimal digits.
        family: name of the family.
        channel: channel that the device follows.
        rollout: digest of the rollout that the last check verified, or None before the first check.
        offered: version that this rollout selects, or None.
        state: where the device stands, one of VITAL_STATES.
        reason: reason of that state, or "".
        release: version that serves, or None.
        counter_epoch: its counter epoch, or 0.
        counter: its counter, or 0.
        variant: its variant, or None.
        probation: verdict of its probation, one of PROBATIONS.
        served_days: whole days of operation since it became active, by the device's boot clock.
        restarts: magnitude of the unexpected ends of its model process since the vital before.
        requests: magnitude of the answered requests since the vital before.
        failed: magnitude of the failed ones among them.
        free_storage: magnitude of the free bytes of the device directory's file system.
        cpu: class of the processor, such as "x86_64-avx2".
        agent: version of the agent.
        runtime: version of onnxruntime.
    """

    log: str
    number: int
    reports: int
    day: int
    repository: str
    family: str
    channel: str
    rollout: str | None
    offered: str | None
    state: str
    reason: str
    release: str | None
    counter_epoch: int
    counter: int
    variant: str | None
    probation: str
    served_days: int
    restarts: int
    requests: int
    failed: int
    free_storage: int
    cpu: str
    agent: str
    runtime: str

    schema = SCHEMA
    label = SIGNATURE_LABEL

    @property
    def is_failing(self) -> bool:
        """Return whether the release that serves fails: its process ends again and again, or it stopped."""
        return self.release is not None and (self.restarts >= FAILING_RESTARTS or self.state == STOPPED)

    @classmethod
    def parse(cls, fields: StrictObject) -> "Vital":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
        out = cls(
            log=fields.text("log", LOG_ID_PATTERN),
            number=fields.integer("number", 1),
            reports=fields.integer("reports"),
            day=fields.integer("day", 0, MAX_DAY),
            repository=fields.text("repository", SHA256_HEX_PATTERN),
            family=fields.text("family", NAME_PATTERN),
            channel=fields.text("channel", NAME_PATTERN),
            rollout=fields.optional_text("rollout", SHA256_HEX_PATTERN),
            offered=fields.optional_text("offered", VERSION_PATTERN),
            state=fields.choice("state", VITAL_STATES),
            reason=fields.text("reason", REASON_PATTERN, max_length=64),
            release=fields.optional_text("release", VERSION_PATTERN),
            counter_epoch=fields.integer("counter_epoch"),
            counter=fields.integer("counter"),
            variant=fields.optional_text("variant", NAME_PATTERN),
            probation=fields.choice("probation", PROBATIONS),
            served_days=fields.integer("served_days", 0, MAX_SERVED_DAYS),
            restarts=fields.integer("restarts", 0, MAX_MAGNITUDE),
            requests=fields.integer("requests", 0, MAX_MAGNITUDE),
            failed=fields.integer("failed", 0, MAX_MAGNITUDE),
            free_storage=fields.integer("free_storage", 0, MAX_MAGNITUDE),
            cpu=fields.text("cpu", NAME_PATTERN),
            agent=fields.text("agent", max_length=64),
            runtime=fields.text("runtime", max_length=64),
        )
        if (out.release is None) != (out.variant is None):
            raise Malformed(f"{fields.where}: release {out.release} has variant {out.variant}")
        return out


@dataclass(frozen=True, slots=True)
class SignedVital:
    """A vital that was read; its signature is not verified yet.

    Attributes:
        device_id: id of the device, 64 hexadecimal digits.
        vital: the vital.
        signature: Ed25519 signature of `vital.signed_bytes(device_id)`, 64 bytes.
    """

    device_id: str
    vital: Vital
    signature: bytes

    def as_bytes(self) -> bytes:
        """Return the vital as one line of canonical JSON."""
        return self.vital.encode(self.device_id, self.signature)


def magnitude(count: int) -> int:
    """Return the magnitude of a count: 0 for 0, n for 2^(n-1) to 2^n - 1, at most MAX_MAGNITUDE."""
    return min(count.bit_length(), MAX_MAGNITUDE)


def parse_vital(data: bytes) -> SignedVital:
    """Parse a vital strictly, without verifying its signature.

    Raises:
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_VITAL_BYTES.
    """
    fields, device_id, signature = open_line(data, "vital", SCHEMA, MAX_VITAL_BYTES)
    vital = Vital.parse(fields)
    fields.reject_unknown()
    return SignedVital(device_id, vital, signature)
