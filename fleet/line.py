"""A line: one signed report or vital, from its bytes to its verified content."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bundle.device_report import SCHEMA as REPORT_SCHEMA
from bundle.device_report import SignedReport, parse_report
from bundle.errors import Malformed, TooLarge
from bundle.vital import SCHEMA as VITAL_SCHEMA
from bundle.vital import SignedVital, parse_vital
from fleet.errors import LineOfAnotherRepository, LineSchemaUnknown, LineSignatureInvalid

MAX_LINE_BYTES: Final = 16 * 1024
MAX_BATCH_LINES: Final = 500

SignedLine: TypeAlias = SignedReport | SignedVital


@dataclass(frozen=True, slots=True)
class ReceivedLine:
    """A line as it came.

    Attributes:
        received_s: time of its receipt by the collector's clock, Unix seconds.
        data: the bytes of the line, without its line end.
    """

    received_s: int
    data: bytes


def parse_line(data: bytes) -> SignedLine:
    """Parse a report or a vital strictly, without verifying its signature.

    Raises:
        TooLarge: the line is longer than MAX_LINE_BYTES.
        Malformed: the line does not follow its schema, or is not in the canonical form, in which devices send it: the
            same content in other bytes would be another line to a program that compares or searches bytes.
        LineSchemaUnknown: it is of another schema.
    """
    if len(data) > MAX_LINE_BYTES:
        raise TooLarge(f"line of {len(data)} bytes, at most {MAX_LINE_BYTES} are allowed")
    # the canonical form has no spaces; others are found by the parser of reports, whose message names the schema
    if f'"schema":"{VITAL_SCHEMA}"'.encode() in data:
        vital = parse_vital(data)
        _check_canonical(data, vital.vital.encode(vital.device_id, vital.signature))
        return vital
    if REPORT_SCHEMA.encode() in data:
        report = parse_report(data)
        _check_canonical(data, report.report.encode(report.device_id, report.signature))
        return report
    raise LineSchemaUnknown(f"line of {len(data)} bytes, expected schema {REPORT_SCHEMA!r} or {VITAL_SCHEMA!r}")


def _check_canonical(data: bytes, expected: bytes) -> None:
    if data != expected:
        raise Malformed(f"line of {len(data)} bytes: not in canonical form, which has {len(expected)}")


def repository_of(line: SignedLine) -> str:
    """Return the id of the repository that a line names."""
    return line.report.repository if isinstance(line, SignedReport) else line.vital.repository


def verify_line(line: SignedLine, ed25519_public: bytes, repository_id: str) -> None:
    """Check that a line is about a repository and signed by a device.

    Args:
        line: the parsed line.
        ed25519_public: the device's key, from the registry.
        repository_id: id of the repository, 64 hexadecimal digits.

    Raises:
        LineOfAnotherRepository: the line names another repository.
        LineSignatureInvalid: the signature is not the device's.
    """
    if repository_of(line) != repository_id:
        raise LineOfAnotherRepository(
            f"line of device {line.device_id[:16]}…: found repository {repository_of(line)[:16]}…,"
            f" expected {repository_id[:16]}…"
        )
    content = line.report if isinstance(line, SignedReport) else line.vital
    try:
        key = Ed25519PublicKey.from_public_bytes(ed25519_public)
        key.verify(line.signature, content.signed_bytes(line.device_id))
    except InvalidSignature as error:
        raise LineSignatureInvalid(f"line of device {line.device_id[:16]}…: its signature is invalid") from error
