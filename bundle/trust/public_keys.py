"""Digests of public keys: they recognize the same key under any key id and encoding."""

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import Key


def key_digest(key: Key) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo in DER (RFC 5280), in hexadecimal.

    A key that cannot be parsed gets the SHA-256 of its type and its text, so that it still has a stable digest.
    """
    public = str(key.keyval.get("public"))
    try:
        loaded = (
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
            if key.keytype == "ed25519"
            else load_pem_public_key(public.encode())
        )
    except (ValueError, UnsupportedAlgorithm):
        return hashlib.sha256(f"{key.keytype}\0{public}".encode()).hexdigest()
    return hashlib.sha256(loaded.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
