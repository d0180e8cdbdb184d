"""Batches of enrollment requests that a factory signs with an enrollment key.

A batch enrolls many devices without a confirmation of each fingerprint.

- A batch file is text lines: a header, one enrollment request per line, and last the signature over the SHA-256 of all
  lines before it.
- Each request still proves that its device has the private keys. The batch signature states that the factory made these
  devices; it replaces the confirmation of the fingerprints.
- Either all devices of a batch are enrolled or none. Enrolling a batch again changes nothing.
- No two requests of a batch have the same label or the same keys. This is checked before a batch is signed, because
  the factory can still change a label then, and again when it is read.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer

from bundle import strict_json
from bundle.enrollment import MAX_REQUEST_BYTES, EnrollmentRequest, parse_enrollment
from bundle.errors import EnrollmentRefused, Malformed, Refused
from bundle.strict_json import StrictObject
from keys.errors import DuplicateRequest

SCHEMA: Final = "airweights.enrolment-batch/1"
SIGNATURE_LABEL: Final = b"airweights enrolment batch v1"
MAX_LINE_BYTES: Final = 32 * 1024
MAX_DEVICES: Final = 1_000_000


def sign_batch(requests: Iterable[bytes], signer: Signer, names: Sequence[str] = ()) -> bytes:
    """Sign enrollment requests as one batch file.

    Args:
        requests: the content of each request file.
        signer: the enrollment key.
        names: name of each request file, for messages; without names, messages contain the numbers of requests.

    Raises:
        Malformed, TooLarge: a file is not an enrollment request.
        EnrollmentRefused: a request does not prove its keys.
        DuplicateRequest: two requests have the same label or the same keys.
    """
    lines, parsed = [], []
    for position, data in enumerate(requests):
        try:
            parsed.append(parse_enrollment(data))
        except Refused as error:
            raise type(error)(f"{_name_of(position, names)}: {error.message}", hint=error.hint) from error
        lines.append(
            strict_json.encode(strict_json.decode(data, what="enrollment request", max_bytes=MAX_REQUEST_BYTES))
        )
    _check_unique(parsed, names)
    head = strict_json.encode({"schema": SCHEMA, "devices": len(lines)})
    body = b"".join(line + b"\n" for line in (head, *lines))
    signature = signer.sign(SIGNATURE_LABEL + hashlib.sha256(body).digest())
    return body + strict_json.encode({"key_id": signature.keyid, "signature": signature.signature}) + b"\n"


def parse_batch(data: bytes, keys: Sequence[Key]) -> tuple[EnrollmentRequest, ...]:
    """Verify a batch file and return its enrollment requests.

    Args:
        data: the file's content.
        keys: the enrollment keys; one of them must have signed.

    Raises:
        EnrollmentRefused: none of the keys signed the batch, or a request does not prove its keys.
        DuplicateRequest: two requests have the same label or the same keys.
        Malformed, TooLarge: the data is not a batch file.
    """
    body, _, last = data.removesuffix(b"\n").rpartition(b"\n")
    if not body or not data.endswith(b"\n"):
        raise Malformed("enrollment batch: expected a header, requests and a signature, one per line")
    _check_signature(body + b"\n", last, keys)
    head, *lines = body.split(b"\n")
    header = strict_json.decode(head, what="enrollment batch", max_bytes=MAX_LINE_BYTES)
    fields = StrictObject(header, "enrollment batch")
    if fields.text("schema") != SCHEMA:
        raise Malformed(f"enrollment batch.schema: expected {SCHEMA!r}")
    devices = fields.integer("devices", 1, MAX_DEVICES)
    fields.reject_unknown()
    if devices != len(lines):
        raise Malformed(f"enrollment batch: found {len(lines)} requests, the header declares {devices}")
    requests = tuple(parse_enrollment(line) for line in lines)
    _check_unique(requests)
    return requests


def _check_unique(requests: Sequence[EnrollmentRequest], names: Sequence[str] = ()) -> None:
    first_by_label: dict[str, int] = {}
    first_by_id: dict[str, int] = {}
    duplicates = []  # (position of the first request, position of its duplicate)
    for position, request in enumerate(requests):
        first = first_by_id.setdefault(request.device_id, position)
        if first == position:
            first = first_by_label.setdefault(request.label, position)
        if first != position:
            duplicates.append((first, position))
    if not duplicates:
        return
    first, second = duplicates[0]
    one, other = (_name_of(position, names) for position in (first, second))
    further = f"; {len(duplicates) - 1} further duplicates" if len(duplicates) > 1 else ""
    if requests[first].device_id == requests[second].device_id:
        raise DuplicateRequest(
            f"{one} and {other} are requests of one device, {requests[first].device_id[:16]}…{further}",
            hint="give each request once; if the devices were cloned, run `device-agent init` anew on one of them",
        )
    raise DuplicateRequest(
        f"{one} and {other} have the same label {requests[first].label!r}{further}",
        hint="give one device another label with `device-agent relabel`, and create its request again",
    )


def _name_of(position: int, names: Sequence[str]) -> str:
    return names[position] if names else f"request {position + 1}"


def _check_signature(body: bytes, signature_line: bytes, keys: Sequence[Key]) -> None:
    fields = StrictObject(
        strict_json.decode(signature_line, what="enrollment batch signature", max_bytes=MAX_LINE_BYTES), "signature"
    )
    signature = Signature(fields.text("key_id", max_length=256), fields.text("signature", max_length=16384))
    fields.reject_unknown()
    key = next((key for key in keys if key.keyid == signature.keyid), None)
    if key is None:
        raise EnrollmentRefused(
            f"enrollment batch: signed by key {signature.keyid[:20]}, which is none of the {len(keys)} given keys",
            hint="give the factory's public key with --enrollment-key",
        )
    try:
        key.verify_signature(signature, SIGNATURE_LABEL + hashlib.sha256(body).digest())
    except UnverifiedSignatureError as error:
        raise EnrollmentRefused("enrollment batch: the signature is invalid") from error
