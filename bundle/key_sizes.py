"""Sizes of X-Wing keys, ML-KEM-768 (FIPS 203) and X25519 (RFC 7748), and of envelopes, in bytes.

The supervisor uses them without loading a cryptographic library.
"""

from typing import Final

MLKEM_PUBLIC_BYTES: Final = 1184
MLKEM_SEED_BYTES: Final = 64
X25519_BYTES: Final = 32
PUBLIC_BYTES: Final = MLKEM_PUBLIC_BYTES + X25519_BYTES
PRIVATE_BYTES: Final = MLKEM_SEED_BYTES + X25519_BYTES
MAX_ENVELOPE_BYTES: Final = 4096
