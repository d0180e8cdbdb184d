"""A factory's list of enrollment requests, signed by an enrollment key: ten thousand devices without ten thousand
calls.

Rules:
1. The list is lines: a header, one enrollment request each, and last the signature over the SHA-256 of all before it.
2. Each request still proves its own keys; the signature says that the factory made these devices, and replaces the
   confirmation of each fingerprint.
3. A list is admitted whole or not at all. Admitting it again changes nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer

from bundle import strict_json
from bundle.enrollment import MAX_REQUEST_BYTES, EnrollmentRequest, parse_enrollment
from bundle.errors import EnrollmentRefused, Malformed
from bundle.strict_json import StrictObject

SCHEMA: Final = "airweights.enrolment-batch/1"
SIGNATURE_LABEL: Final = b"airweights enrolment batch v1"
MAX_LINE_BYTES: Final = 32 * 1024
MAX_DEVICES: Final = 1_000_000


def sign_batch(requests: Iterable[bytes], signer: Signer) -> bytes:
    """The list file of request files. Raises MalformedRefused, EnrollmentRefused for a request that is not one."""
    lines = []
    for data in requests:
        parse_enrollment(data)
        lines.append(
            strict_json.encode(strict_json.decode(data, what="enrollment request", max_bytes=MAX_REQUEST_BYTES))
        )
    head = strict_json.encode({"schema": SCHEMA, "devices": len(lines)})
    body = b"".join(line + b"\n" for line in (head, *lines))
    signature = signer.sign(SIGNATURE_LABEL + hashlib.sha256(body).digest())
    return body + strict_json.encode({"key_id": signature.keyid, "signature": signature.signature}) + b"\n"


def parse_batch(data: bytes, keys: Sequence[Key]) -> tuple[EnrollmentRequest, ...]:
    """The requests of a list that one of `keys` signed.

    Raises:
        EnrollmentRefused: none of the keys signed it, or a request does not prove its keys.
        MalformedRefused, TooLargeRefused: not such a list.
    """
    body, _, last = data.removesuffix(b"\n").rpartition(b"\n")
    if not body or not data.endswith(b"\n"):
        raise Malformed("enrollment list: expected a header, requests and a signature, a line each")
    _check_signature(body + b"\n", last, keys)
    head, *lines = body.split(b"\n")
    fields = StrictObject(strict_json.decode(head, what="enrollment list", max_bytes=MAX_LINE_BYTES), "enrollment list")
    if fields.text("schema") != SCHEMA:
        raise Malformed(f"enrollment list.schema: expected {SCHEMA!r}")
    devices = fields.integer("devices", 1, MAX_DEVICES)
    fields.reject_unknown()
    if devices != len(lines):
        raise Malformed(f"enrollment list: found {len(lines)} requests, its header says {devices}")
    return tuple(parse_enrollment(line) for line in lines)


def _check_signature(body: bytes, signature_line: bytes, keys: Sequence[Key]) -> None:
    fields = StrictObject(
        strict_json.decode(signature_line, what="enrollment list signature", max_bytes=MAX_LINE_BYTES), "signature"
    )
    signature = Signature(fields.text("key_id", max_length=256), fields.text("signature", max_length=16384))
    fields.reject_unknown()
    key = next((key for key in keys if key.keyid == signature.keyid), None)
    if key is None:
        raise EnrollmentRefused(
            f"enrollment list: signed by key {signature.keyid[:20]}, which is no enrollment key here"
        )
    try:
        key.verify_signature(signature, SIGNATURE_LABEL + hashlib.sha256(body).digest())
    except UnverifiedSignatureError as error:
        raise EnrollmentRefused("enrollment list: its signature does not hold") from error
