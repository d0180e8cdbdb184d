"""Signing keys that live elsewhere: in a PKCS#11 token (`hsm:`), or a cloud's key service, through securesystemslib.

Rules:
1. A URI names the key and never holds a secret; the PIN comes from where passphrases come from.
2. `hsm:[key id][?label=…]` needs the extra `pkcs11` and PYKCS11LIB, the path of the token's library. P-256 or P-384.
3. What securesystemslib and the token raise is translated here, once.
"""

import os
from typing import Final

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import HSMSigner, Signature, Signer, SSlibKey
from securesystemslib.signer import Key as PublicKey

from bundle.frames import Secret
from keys.errors import KeyUnreadable, TokenUnavailable, WrongPin

LIBRARY: Final = "PYKCS11LIB"
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
        found, public = HSMSigner.import_(int(number) if number else DEFAULT_KEY_ID, label, answer)
        inner = HSMSigner.from_priv_key_uri(found, public, answer)
    except Exception as error:  # as above
        raise _translate(uri, error) from error
    return TokenSigner(uri, public, inner)


def _translate(uri: str, error: Exception) -> TokenUnavailable:
    name = type(error).__name__
    if name.startswith("Pin"):
        return WrongPin(f"{uri}: the token refuses the PIN ({name})", remedy="tokens lock after a few wrong PINs")
    if isinstance(error, UnsupportedLibraryError):
        return TokenUnavailable(f"{uri}: python-pkcs11 is not installed", remedy="pip install 'airweights[pkcs11]'")
    return TokenUnavailable(f"{uri}: {name}: {str(error)[:200] or 'no further word from the token'}")
