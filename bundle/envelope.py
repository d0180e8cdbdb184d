"""Envelopes: a key sealed to one recipient, with HPKE (RFC 9180) over X-Wing (ML-KEM-768 and X25519).

Rules (docs/format.md section 7; sizes in bytes):
- A recipient's public key is ML-KEM-768 public (1,184) ‖ X25519 public (32). The private key is ML-KEM seed (64) ‖
  X25519 private (32).
- An envelope is magic "AWENVEL1" (8) ‖ encapsulated key (1,120) ‖ ciphertext, in HPKE base mode with HKDF-SHA256 and
  AES-256-GCM.
- The HPKE `info` binds the whole context: repository, purpose, family, counter, cohort, epoch, recipient. An envelope
  that is moved to another place does not open.
- Base mode does not authenticate the sender. A content key is used only if it matches the manifest's commitment, and a
  cohort's private key only if its public half is the one in the fleet document.
- An envelope's name is SHA-256(label ‖ epoch ‖ recipient public key), so that names do not identify devices. Many
  envelopes are published in one file (bundle.envelope_shard).
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite

from bundle import strict_json
from bundle.errors import KeyCommitmentMismatch, Malformed, NotAuthentic
from bundle.frames import KEY_BYTES, Secret
from bundle.key_sizes import MAX_ENVELOPE_BYTES, MLKEM_PUBLIC_BYTES, PRIVATE_BYTES
from bundle.key_sizes import MLKEM_SEED_BYTES as MLKEM_SEED_BYTES
from bundle.key_sizes import PUBLIC_BYTES as PUBLIC_BYTES
from bundle.repository_paths import envelope_name as envelope_name

MAGIC: Final = b"AWENVEL1"
ENCAPSULATION_BYTES: Final = 1120

CONTENT_KEY_PURPOSE: Final = "airweights content key v1"
COHORT_KEY_PURPOSE: Final = "airweights cohort key v1"
COMMITMENT_LABEL: Final = b"airweights key commitment v1"


@dataclass(frozen=True, slots=True)
class EnvelopeContext:
    """The use that an envelope is bound to; a field that its purpose does not need is "" or 0.

    Attributes:
        purpose: CONTENT_KEY_PURPOSE or COHORT_KEY_PURPOSE.
        repository: id of the repository (`bundle.trust.repository_id`), hexadecimal.
        cohort: name of the cohort.
        epoch: epoch of the cohort key.
        family: family of the release (content keys only).
        counter: counter of the release (content keys only).
    """

    purpose: str
    repository: str
    cohort: str
    epoch: int
    family: str = ""
    counter: int = 0

    def encode_info(self, recipient: bytes) -> bytes:
        """Return the HPKE `info` bytes; `recipient` is the recipient's public key."""
        return strict_json.encode(
            {
                "cohort": self.cohort,
                "counter": self.counter,
                "epoch": self.epoch,
                "family": self.family,
                "purpose": self.purpose,
                "recipient": hashlib.sha256(recipient).hexdigest(),
                "repository": self.repository,
            }
        )


def generate_private_key() -> Secret:
    """Generate a recipient's private key, PRIVATE_BYTES long."""
    return Secret(MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw())


def derive_public_key(private_key: Secret) -> bytes:
    """Derive the public key, PUBLIC_BYTES long, from a private key."""
    kem, curve = _split_private_key(private_key)
    return kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()


def seal(secret: Secret, recipient: bytes, context: EnvelopeContext) -> bytes:
    """Seal a secret to one recipient and return the envelope.

    Args:
        secret: the key to seal.
        recipient: public key of the recipient, PUBLIC_BYTES long.
        context: the use that the envelope is bound to.

    Raises:
        Malformed: the public key has another length or is not valid.
    """
    if len(recipient) != PUBLIC_BYTES:
        raise Malformed(f"recipient key: found {len(recipient)} bytes, expected {PUBLIC_BYTES}")
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(recipient[:MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(recipient[MLKEM_PUBLIC_BYTES:]),
        )
    except ValueError as error:
        raise Malformed("recipient key: not a valid X-Wing public key") from error
    return MAGIC + _hpke_suite().encrypt(secret.value, key, context.encode_info(recipient))


def open_envelope(envelope: bytes, private_key: Secret, context: EnvelopeContext) -> Secret:
    """Open an envelope and return the secret in it.

    Args:
        envelope: the bytes that `seal` returned.
        private_key: the recipient's private key, PRIVATE_BYTES long.
        context: the use that the envelope must be bound to.

    Raises:
        Malformed: the bytes are not an envelope, or the private key has another length.
        NotAuthentic: the envelope is sealed to another key or context, or was changed; the cases are not distinguished.
    """
    if not envelope.startswith(MAGIC) or len(envelope) > MAX_ENVELOPE_BYTES:
        raise Malformed(f"envelope: found {bytes(envelope[:8])!r} and {len(envelope)} bytes, expected {MAGIC!r}")
    kem, curve = _split_private_key(private_key)
    try:
        plain = _hpke_suite().decrypt(
            envelope[len(MAGIC) :],
            MLKEM768X25519PrivateKey(kem, curve),
            context.encode_info(derive_public_key(private_key)),
        )
    except (InvalidTag, ValueError) as error:
        raise NotAuthentic(
            "the envelope does not open: it is sealed to another key or context, or was changed"
        ) from error
    return Secret(plain)


def compute_commitment(content_key: Secret) -> str:
    """Return the commitment to a content key: HMAC-SHA256(key, COMMITMENT_LABEL), in hexadecimal.

    The manifest contains it, because an AES-GCM ciphertext can be valid under more than one key.
    """
    return hmac.new(content_key.value, COMMITMENT_LABEL, "sha256").hexdigest()


def check_commitment(content_key: Secret, commitment: str) -> None:
    """Check a content key against the manifest's commitment, before any use of the key.

    Args:
        content_key: the key from an envelope.
        commitment: the commitment in the manifest, hexadecimal.

    Raises:
        KeyCommitmentMismatch: the key has another commitment, or another length than KEY_BYTES.
    """
    if len(content_key.value) != KEY_BYTES or not hmac.compare_digest(compute_commitment(content_key), commitment):
        raise KeyCommitmentMismatch("the content key in the envelope is not the one that the manifest commits to")


def _hpke_suite() -> Suite:
    return Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _split_private_key(private_key: Secret) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(private_key.value) != PRIVATE_BYTES:
        raise Malformed(f"recipient private key: found {len(private_key.value)} bytes, expected {PRIVATE_BYTES}")
    return (
        MLKEM768PrivateKey.from_seed_bytes(private_key.value[:MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(private_key.value[MLKEM_SEED_BYTES:]),
    )
