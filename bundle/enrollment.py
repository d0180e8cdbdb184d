"""The enrollment request: a device's public keys, with a proof that it has the private signing key.

Rules (docs/format.md section 10):
- The device id is SHA-256 of ID_LABEL ‖ X-Wing public key ‖ Ed25519 public key, in hexadecimal. A device cannot choose
  its id.
- The request is canonical JSON. The device's Ed25519 key signs all fields but the signature.
- The signature does not prove that the device belongs to the fleet: a person confirms that by comparing the fingerprint
  over another channel.
- The fingerprint is the first 20 bytes of the SHA-256 of the signed bytes, as ten groups of four hexadecimal digits.
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
    """A device's request to be registered.

    Attributes:
        label: name of the device for people.
        x_wing_public: public key that envelopes are sealed to, PUBLIC_BYTES long.
        ed25519_public: public key that verifies the device's reports, ED25519_BYTES long.
        attributes: printable strings by name, for example the hardware class; sorted.
    """

    label: str
    x_wing_public: bytes
    ed25519_public: bytes
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def device_id(self) -> str:
        """The id of the device, 64 hexadecimal digits."""
        return derive_device_id(self.x_wing_public, self.ed25519_public)

    def signed_bytes(self) -> bytes:
        """Return the bytes that the device signs: canonical JSON of all fields but the signature."""
        return strict_json.encode(self._as_json())

    @property
    def fingerprint(self) -> str:
        """The fingerprint that people compare: ten groups of four hexadecimal digits."""
        digits = hashlib.sha256(self.signed_bytes()).hexdigest()[:40]
        return " ".join(digits[start : start + 4] for start in range(0, 40, 4))

    def encode(self, private_key: Ed25519PrivateKey) -> bytes:
        """Return the signed request file.

        Raises:
            ValueError: `private_key` does not belong to the public key in the request.
        """
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
    """Return the id of the device with these keys: 64 hexadecimal digits.

    Args:
        x_wing_public: public key that envelopes are sealed to, PUBLIC_BYTES long.
        ed25519_public: public key that verifies reports, ED25519_BYTES long.
    """
    return hashlib.sha256(ID_LABEL + x_wing_public + ed25519_public).hexdigest()


def parse_enrollment(data: bytes) -> EnrollmentRequest:
    """Parse an enrollment request strictly and verify its signature.

    Raises:
        EnrollmentRefused: the device id is not the id of the keys, or the signature is not valid.
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_REQUEST_BYTES.
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
        raise EnrollmentRefused(f"enrollment request: device id {claimed[:16]}… is not the id of its keys")
    try:
        Ed25519PublicKey.from_public_bytes(request.ed25519_public).verify(signature, request.signed_bytes())
    except (InvalidSignature, ValueError) as error:
        raise EnrollmentRefused(f"enrollment request of {request.label!r}: the signature is not valid") from error
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
