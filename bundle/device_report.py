"""Device reports: a signed chain of the update outcomes of one device (docs/format.md section 15).

Rules:
- Only final outcomes are reported: updated, rolled back, refused, unfit. A report contains no model inputs or outputs
  and no usage figures.
- Reports of one log are numbered from 1, and each contains the digest of the previous one, so that missing, changed and
  inserted reports are detected. A device that lost its journal starts a new log.
- The device's Ed25519 key signs SIGNATURE_LABEL ‖ canonical JSON of all fields but the signature. The label separates
  reports from enrollment requests, which the same key signs.
- The digest in the chain covers the outcome only (`DeviceReport.digest`), without device id and signature, because the
  journal extends the chain when the device's key is not available.

Pure: the supervisor loads this module without a cryptographic library.
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
        log: random id of the log, 32 hexadecimal digits.
        sequence: number in the log, from 1.
        previous: digest of the previous report, or None for the first.
        outcome: one of OUTCOMES.
        reason: reason of the error, or "".
        family: family of the attempt, or None if unknown.
        release: version of the candidate, or None if unknown.
        counter: counter of the candidate, or 0 if unknown.
        variant: name of the variant, or None if unknown.
        bundle: digest of the bundle, or None if unknown.
        trigger: cause of the attempt: "poll", "operator", "start" or "rollback".
        finished_ms: end of the attempt by the device's clock, Unix milliseconds.
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
        """Return the outcome's fields as a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def digest(self) -> str:
        """Return the digest for the chain: SHA-256 of the canonical fields, in hexadecimal."""
        return hashlib.sha256(strict_json.encode(self.as_json())).hexdigest()

    def signed_bytes(self, device_id: str) -> bytes:
        """Return the bytes that the device signs; `device_id` is 64 hexadecimal digits."""
        return SIGNATURE_LABEL + strict_json.encode({"schema": SCHEMA, "device_id": device_id, **self.as_json()})

    def encode(self, device_id: str, signature: bytes) -> bytes:
        """Return the report as the device sends it: one line of canonical JSON.

        Args:
            device_id: id of the device, 64 hexadecimal digits.
            signature: Ed25519 signature of `signed_bytes`, 64 bytes.
        """
        return strict_json.encode(
            {"schema": SCHEMA, "device_id": device_id, **self.as_json(), "signature": signature.hex()}
        )

    @classmethod
    def parse(cls, fields: StrictObject) -> "DeviceReport":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
            raise Malformed(f"{fields.where}: report {out.sequence} has {out.previous} as the previous digest")
        return out


@dataclass(frozen=True, slots=True)
class SignedReport:
    """A report that was read; its signature is not verified yet.

    Attributes:
        device_id: id of the device, 64 hexadecimal digits.
        report: the outcome.
        signature: Ed25519 signature of `report.signed_bytes(device_id)`, 64 bytes.
    """

    device_id: str
    report: DeviceReport
    signature: bytes

    def as_bytes(self) -> bytes:
        """Return the report as one line of canonical JSON."""
        return self.report.encode(self.device_id, self.signature)


def parse_report(data: bytes) -> SignedReport:
    """Parse a report strictly, without verifying its signature.

    Raises:
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_REPORT_BYTES.
    """
    fields = StrictObject(strict_json.decode(data, what="report", max_bytes=MAX_REPORT_BYTES), "report")
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"report.schema: found {schema!r}, expected {SCHEMA!r}")
    device_id, signature = fields.text("device_id", SHA256_HEX_PATTERN), fields.text("signature", SIGNATURE_PATTERN)
    report = DeviceReport.parse(fields)
    fields.reject_unknown()
    return SignedReport(device_id, report, bytes.fromhex(signature))
