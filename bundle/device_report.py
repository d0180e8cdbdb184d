"""Device reports: a signed chain of the update outcomes of one device (docs/format.md section 15).

Rules:
- Only final outcomes are reported: updated, rolled back, refused, unfit; and only those that name a verified release
  and whose reason is not silent (bundle.report_weights). A report contains no model inputs or outputs, and no usage.
- A report names the repository, the channel and the rollout that the device followed, so that it says nothing in
  another repository, and nothing about another rollout.
- Reports of one log are numbered from 1, and each contains the digest of the previous one, so that missing, changed and
  inserted reports are detected. A device that lost its journal starts a new log.
- The device's Ed25519 key signs SIGNATURE_LABEL ‖ canonical JSON of all fields but the signature. The label separates
  reports from enrollment requests and vitals, which the same key signs.
- The digest in the chain covers the outcome only (`DeviceReport.digest`), without device id and signature, because the
  journal extends the chain when the device's key is not available.

Pure: the supervisor loads this module without a cryptographic library.
"""

from dataclasses import dataclass
from typing import Final

from bundle.errors import Malformed
from bundle.files import BundleDigest
from bundle.report_weights import Weight, weigh_reason
from bundle.signed_line import LOG_ID_PATTERN, REASON_PATTERN, LineContent, open_line
from bundle.strict_json import NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject

SCHEMA: Final = "airweights.report/2"
SIGNATURE_LABEL: Final = b"airweights device report v2\0"
UPDATED: Final = "updated"
OUTCOMES: Final = (UPDATED, "rolled-back", "refused", "unfit")
STATES: Final = (
    *("checking", "fetching", "patching", "probing", "staged", "swapping", "probation", "committing", "rolling-back"),
)
MAX_REPORT_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class DeviceReport(LineContent):
    """One outcome in a log.

    Attributes:
        log: random id of the log, 32 hexadecimal digits.
        sequence: number in the log, from 1.
        previous: digest of the previous report, or None for the first.
        outcome: one of OUTCOMES.
        reason: reason of the error; of an update that too few requests tried, the verdict; or "".
        state: the last state in which the attempt worked, one of STATES.
        repository: id of the repository, 64 hexadecimal digits.
        family: family of the attempt.
        channel: channel that the device followed.
        rollout: digest of the rollout that it followed, or None if an operator's rollback left a release that the
            rollout does not name.
        release: version of the candidate.
        counter_epoch: counter epoch of the candidate.
        counter: counter of the candidate.
        variant: name of the variant, or None if no variant was chosen.
        bundle: digest of the bundle, or None if no variant was chosen.
        from_release: version that was active when the attempt started, or None.
        trigger: cause of the attempt: "poll", "operator", "start" or "rollback".
        started_ms: start of the attempt by the device's clock, Unix milliseconds.
        finished_ms: end of the attempt by the device's clock, Unix milliseconds.
        agent: version of the agent.
        runtime: version of onnxruntime.
    """

    log: str
    sequence: int
    previous: str | None
    outcome: str
    reason: str
    state: str
    repository: str
    family: str
    channel: str
    rollout: str | None
    release: str
    counter_epoch: int
    counter: int
    variant: str | None
    bundle: BundleDigest | None
    from_release: str | None
    trigger: str
    started_ms: int
    finished_ms: int
    agent: str
    runtime: str

    schema = SCHEMA
    label = SIGNATURE_LABEL

    @property
    def is_failure(self) -> bool:
        """Return whether the report counts against its release (bundle.report_weights)."""
        return self.outcome != UPDATED and weigh_reason(self.reason, self.state) is Weight.COUNTS

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
            reason=fields.text("reason", REASON_PATTERN, max_length=64),
            state=fields.choice("state", STATES),
            repository=fields.text("repository", SHA256_HEX_PATTERN),
            family=fields.text("family", NAME_PATTERN),
            channel=fields.text("channel", NAME_PATTERN),
            rollout=fields.optional_text("rollout", SHA256_HEX_PATTERN),
            release=fields.text("release", VERSION_PATTERN),
            counter_epoch=fields.integer("counter_epoch"),
            counter=fields.integer("counter"),
            variant=fields.optional_text("variant", NAME_PATTERN),
            bundle=None if bundle is None else BundleDigest(bundle),
            from_release=fields.optional_text("from_release", VERSION_PATTERN),
            trigger=fields.text("trigger", NAME_PATTERN),
            started_ms=fields.integer("started_ms"),
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
    fields, device_id, signature = open_line(data, "report", SCHEMA, MAX_REPORT_BYTES)
    report = DeviceReport.parse(fields)
    fields.reject_unknown()
    return SignedReport(device_id, report, signature)
