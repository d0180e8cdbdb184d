"""Signing keys that live elsewhere: in a PKCS#11 token (`hsm:`), or a cloud's key service, through securesystemslib.

Rules:
1. A URI names the key and never holds a secret; the PIN comes from where passphrases come from.
2. `hsm:[key id][?label=…]` needs the extra `pkcs11` and PYKCS11LIB, the path of the token's library. P-256 and P-384
   keys sign through securesystemslib, Ed25519 keys through a small signer here.
3. What securesystemslib and the token raise is translated here, once.
"""

import os
from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import HSMSigner, Signature, Signer, SSlibKey
from securesystemslib.signer import Key as PublicKey

from bundle.frames import Secret
from keys.errors import KeyUnreadable, TokenUnavailable, WrongPin

LIBRARY: Final = "PYKCS11LIB"
ED25519_BYTES: Final = 32
DEFAULT_KEY_ID: Final = 2  # PIV slot 9c, digital signature


class TokenSigner(Signer):
    """A signer over a PKCS#11 token, with our errors; the token is opened for each signature."""

    def __init__(self, uri: str, public_key: SSlibKey, inner: Signer) -> None:
        self._uri, self._public, self._inner = uri, public_key, inner

    def __repr__(self) -> str:
        return f"TokenSigner({self._uri})"

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: PublicKey, secrets_handler: object = None) -> Signer:
        """Not registered with securesystemslib; see `load_uri`."""
        raise NotImplementedError(priv_key_uri)

    @property
    def public_key(self) -> SSlibKey:
        """Public half, read from the token."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Raises TokenUnavailable, WrongPin."""
        try:
            return self._inner.sign(payload)
        except Exception as error:  # python-pkcs11 is an extra: its error classes may not be importable here
            raise _translate(self._uri, error) from error


class Ed25519TokenSigner(Signer):
    """EdDSA by a PKCS#11 token (PKCS#11 3.0 section 2.3.5). The token is opened for each signature."""

    def __init__(self, token: Any, key_id: bytes, public_key: SSlibKey, pin: Callable[[str], str]) -> None:
        self._token, self._key_id, self._public, self._pin = token, key_id, public_key, pin

    @classmethod
    def import_(cls, number: int, label: str | None, pin: Callable[[str], str]) -> "Ed25519TokenSigner":
        """Find the public key on the token. Raises what python-pkcs11 raises."""
        import pkcs11

        token = pkcs11.lib(os.environ[LIBRARY]).get_token(token_label=label)
        key_id = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")
        with token.open() as session:
            found = session.get_key(pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.KeyType.EC_EDWARDS, id=key_id)
            point = bytes(found[pkcs11.Attribute.EC_POINT])
        # a DER octet string around the 32 bytes (PKCS#11 2.40), or the bytes alone (3.0)
        public = Ed25519PublicKey.from_public_bytes(point[-ED25519_BYTES:])
        return cls(token, key_id, SSlibKey.from_crypto(public), pin)

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: PublicKey, secrets_handler: object = None) -> Signer:
        """Not registered with securesystemslib; see `load_uri`."""
        raise NotImplementedError(priv_key_uri)

    @property
    def public_key(self) -> SSlibKey:
        """Public half, read from the token."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Raises what python-pkcs11 raises."""
        import pkcs11

        with self._token.open(user_pin=self._pin("pin")) as session:
            key = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.KeyType.EC_EDWARDS, id=self._key_id)
            return Signature(self._public.keyid, key.sign(payload, mechanism=pkcs11.Mechanism.EDDSA).hex())


def load_uri(uri: str, pin: Secret | None) -> Signer:
    """The signer behind a key URI.

    Raises:
        KeyUnreadable: a scheme that is not supported, or a key of another kind.
        TokenUnavailable, WrongPin.
    """
    scheme, _, rest = uri.partition(":")
    if scheme != HSMSigner.SCHEME:
        raise KeyUnreadable(f"key URI {uri!r}: scheme {scheme!r} is not supported", remedy="a key file, or hsm:…")
    if LIBRARY not in os.environ:
        raise TokenUnavailable(f"{uri}: {LIBRARY} is not set", remedy=f"set {LIBRARY} to the token's PKCS#11 library")
    number, _, query = rest.partition("?")
    label = query.removeprefix("label=") if query.startswith("label=") else None
    if number and not number.isdigit():
        raise KeyUnreadable(f"key URI {uri!r}: found key id {number!r}, expected a number")

    def answer(_question: str) -> str:
        return "" if pin is None else pin.value.decode()

    try:
        inner = _find(int(number) if number else DEFAULT_KEY_ID, label, answer)
    except Exception as error:  # as above
        raise _translate(uri, error) from error
    public = inner.public_key
    assert isinstance(public, SSlibKey)
    return TokenSigner(uri, public, inner)


def _find(number: int, label: str | None, pin: Callable[[str], str]) -> Signer:
    try:
        found, public = HSMSigner.import_(number, label, pin)
        return HSMSigner.from_priv_key_uri(found, public, pin)
    except ValueError as error:
        # no elliptic-curve key of that id: an Edwards one is of another type to PKCS#11
        try:
            return Ed25519TokenSigner.import_(number, label, pin)
        except Exception:  # noqa: BLE001  # the first error says more than that the second way failed too
            raise error from None


def _translate(uri: str, error: Exception) -> TokenUnavailable:
    name = type(error).__name__
    if name.startswith("Pin"):
        return WrongPin(f"{uri}: the token refuses the PIN ({name})", remedy="tokens lock after a few wrong PINs")
    if isinstance(error, UnsupportedLibraryError):
        return TokenUnavailable(f"{uri}: python-pkcs11 is not installed", remedy="pip install 'airweights[pkcs11]'")
    return TokenUnavailable(f"{uri}: {name}: {str(error)[:200] or 'no further word from the token'}")
