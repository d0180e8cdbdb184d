"""A device's report of one outcome: what it tried, how that ended, and that it is the next in a chain.

Rules:
1. Only terminal outcomes are reported: updated, rolled back, refused, unfit. No input, no output, no use is told.
2. Reports of one log are numbered from 1, and each names the digest of the one before: one that is missing, changed or
   put in from elsewhere is seen. A device that lost its journal begins another log.
3. The device's Ed25519 key signs label ‖ canonical JSON of everything but the signature. The label tells a report from
   an enrollment request, which the same key signs.
4. The digest in the chain is that of the outcome alone (`Report.digest`), without device and signature: the journal
   builds the chain where no key is at hand.

Pure: the supervisor loads this, and no cryptographic library.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from bundle import strict_json
from bundle.errors import Malformed
from bundle.files import BundleDigest
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject

SCHEMA: Final = "airweights.report/1"
SIGNATURE_LABEL: Final = b"airweights device report v1\0"
OUTCOMES: Final = ("updated", "rolled-back", "refused", "unfit")
MAX_REPORT_BYTES: Final = 16 * 1024
LOG_ID_PATTERN: Final = re.compile(r"[0-9a-f]{32}")
REASON_PATTERN: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*|")
SIGNATURE_PATTERN: Final = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One outcome in a log.

    Attributes:
        log: drawn when the log was begun, 32 hexadecimal digits.
        sequence: from 1.
        previous: digest of the report before, or None for the first.
        outcome: one of OUTCOMES; reason: of an error, or "".
        family, release, counter, variant, bundle: what was tried, as far as it was known.
        trigger: what began the attempt.
        finished_ms: Unix milliseconds, by the device's clock.
        agent: version of the agent.
        runtime: version of onnxruntime.
    """

    log: str
    sequence: int
    previous: str | None
    outcome: str
    reason: str
    family: str | None
    release: str | None
    counter: int
    variant: str | None
    bundle: BundleDigest | None
    trigger: str
    finished_ms: int
    agent: str
    runtime: str

    def as_json(self) -> dict[str, JSON]:
        """The outcome's fields."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def digest(self) -> str:
        """Rule 4: SHA-256 of the canonical fields, hexadecimal."""
        return hashlib.sha256(strict_json.encode(self.as_json())).hexdigest()

    def signed_bytes(self, device_id: str) -> bytes:
        """What the signature is over (rule 3)."""
        return SIGNATURE_LABEL + strict_json.encode({"schema": SCHEMA, "device_id": device_id, **self.as_json()})

    def encode(self, device_id: str, signature: bytes) -> bytes:
        """The report as it leaves the device: one line."""
        return strict_json.encode(
            {"schema": SCHEMA, "device_id": device_id, **self.as_json(), "signature": signature.hex()}
        )

    @classmethod
    def parse(cls, fields: StrictObject) -> "DeviceReport":
        """Inverse of `as_json`. Raises MalformedRefused."""
        bundle = fields.optional_text("bundle", SHA256_HEX_PATTERN)
        out = cls(
            log=fields.text("log", LOG_ID_PATTERN),
            sequence=fields.integer("sequence", 1),
            previous=fields.optional_text("previous", SHA256_HEX_PATTERN),
            outcome=fields.choice("outcome", OUTCOMES),
            reason=fields.text("reason", REASON_PATTERN),
            family=fields.optional_text("family", NAME_PATTERN),
            release=fields.optional_text("release", VERSION_PATTERN),
            counter=fields.integer("counter"),
            variant=fields.optional_text("variant", NAME_PATTERN),
            bundle=None if bundle is None else BundleDigest(bundle),
            trigger=fields.text("trigger", NAME_PATTERN),
            finished_ms=fields.integer("finished_ms"),
            agent=fields.text("agent", max_length=64),
            runtime=fields.text("runtime", max_length=64),
        )
        if (out.sequence == 1) != (out.previous is None):
            raise Malformed(f"{fields.where}: report {out.sequence} names {out.previous} as the one before")
        return out


@dataclass(frozen=True, slots=True)
class SignedReport:
    """A report as it was read; whether the signature holds is for who knows the device's key."""

    device_id: str
    report: DeviceReport
    signature: bytes

    def as_bytes(self) -> bytes:
        """The report's line."""
        return self.report.encode(self.device_id, self.signature)


def parse_report(data: bytes) -> SignedReport:
    """Read a report strictly; the signature is not checked here. Raises MalformedRefused, TooLargeRefused."""
    fields = StrictObject(strict_json.decode(data, what="report", max_bytes=MAX_REPORT_BYTES), "report")
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"report.schema: found {schema!r}, expected {SCHEMA!r}")
    device_id, signature = fields.text("device_id", SHA256_HEX_PATTERN), fields.text("signature", SIGNATURE_PATTERN)
    report = DeviceReport.parse(fields)
    fields.reject_unknown()
    return SignedReport(device_id, report, bytes.fromhex(signature))
