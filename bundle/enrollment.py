"""The enrollment request: a device shows its two public keys and proves that it holds the signing one.

Rules:
1. Device id = SHA-256 of label ‖ X-Wing public key ‖ Ed25519 public key, hexadecimal: it cannot be chosen.
2. The request is canonical JSON, signed by the device's own Ed25519 key over everything but the signature.
3. The signature does not say that the device is ours: that is for a person to confirm, by fingerprint, out of band.
4. The fingerprint is the first 20 bytes of SHA-256 over the signed bytes, as ten groups of four digits.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bundle import strict_json
from bundle.envelope import PUBLIC_BYTES
from bundle.errors import EnrollmentRefused, Malformed
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

SCHEMA: Final = "airweights.enrolment/1"
MAX_REQUEST_BYTES: Final = 16 * 1024
ID_LABEL: Final = b"airweights device id v1"
ED25519_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
MAX_ATTRIBUTES: Final = 16


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """What a device asks to be registered as.

    Attributes:
        label: what people call the device.
        x_wing_public: PUBLIC_BYTES; what its envelopes are sealed to.
        ed25519_public: ED25519_BYTES; what its reports are signed with.
        attributes: printable strings by name, for example hardware class; sorted.
    """

    label: str
    x_wing_public: bytes
    ed25519_public: bytes
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def device_id(self) -> str:
        """Rule 1."""
        return derive_device_id(self.x_wing_public, self.ed25519_public)

    def signed_bytes(self) -> bytes:
        """What the signature is over (rule 2)."""
        return strict_json.encode(self._as_json())

    @property
    def fingerprint(self) -> str:
        """Rule 4."""
        digits = hashlib.sha256(self.signed_bytes()).hexdigest()[:40]
        return " ".join(digits[start : start + 4] for start in range(0, 40, 4))

    def encode(self, private_key: Ed25519PrivateKey) -> bytes:
        """The request file, signed. ValueError if `private` is not the key that the request names."""
        if private_key.public_key().public_bytes_raw() != self.ed25519_public:
            raise ValueError("the request names another signing key")
        return strict_json.encode({**self._as_json(), "signature": private_key.sign(self.signed_bytes()).hex()})

    def _as_json(self) -> dict[str, JSON]:
        return {
            "schema": SCHEMA,
            "device_id": self.device_id,
            "label": self.label,
            "x_wing_public": self.x_wing_public.hex(),
            "ed25519_public": self.ed25519_public.hex(),
            "attributes": dict(self.attributes),
        }


def derive_device_id(x_wing_public: bytes, ed25519_public: bytes) -> str:
    """Rule 1: 64 hexadecimal digits."""
    return hashlib.sha256(ID_LABEL + x_wing_public + ed25519_public).hexdigest()


def parse_enrollment(data: bytes) -> EnrollmentRequest:
    """Read a request and check its signature.

    Raises:
        MalformedRefused, TooLargeRefused: not a request.
        EnrollmentRefused: the id is not that of the keys, or the signature does not hold.
    """
    fields = StrictObject(
        strict_json.decode(data, what="enrollment request", max_bytes=MAX_REQUEST_BYTES), "enrollment request"
    )
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"enrollment request.schema: found {schema!r}, expected {SCHEMA!r}")
    attributes = fields.object("attributes")
    names = sorted(attributes.remaining_names())
    if len(names) > MAX_ATTRIBUTES or not all(NAME_PATTERN.fullmatch(name) for name in names):
        raise Malformed(f"enrollment request.attributes: expected at most {MAX_ATTRIBUTES} plain names")
    claimed = fields.text("device_id", SHA256_HEX_PATTERN)
    request = EnrollmentRequest(
        label=fields.text("label", NAME_PATTERN),
        x_wing_public=_read_hex(fields, "x_wing_public", PUBLIC_BYTES),
        ed25519_public=_read_hex(fields, "ed25519_public", ED25519_BYTES),
        attributes=tuple((name, attributes.text(name, max_length=128)) for name in names),
    )
    signature = _read_hex(fields, "signature", SIGNATURE_BYTES)
    fields.reject_unknown()
    if request.device_id != claimed:
        raise EnrollmentRefused(f"enrollment request: device id {claimed[:16]}… is not that of its keys")
    try:
        Ed25519PublicKey.from_public_bytes(request.ed25519_public).verify(signature, request.signed_bytes())
    except (InvalidSignature, ValueError) as error:
        raise EnrollmentRefused(f"enrollment request of {request.label!r}: its signature does not hold") from error
    return request


def _read_hex(fields: StrictObject, name: str, size: int) -> bytes:
    text = fields.text(name, max_length=2 * size)
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise Malformed(f"{fields.where}.{name}: not hexadecimal") from error
    if len(value) != size or value.hex() != text:
        raise Malformed(f"{fields.where}.{name}: expected {size} bytes in lower-case hexadecimal")
    return value
