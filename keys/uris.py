"""Keys by URI: which scheme lives where, and what it needs to be opened."""

from typing import Final

from securesystemslib.signer import HSMSigner, Signer

from bundle.frames import Secret
from keys.errors import KeyUnreadable
from keys.services import SERVICES, load_service
from keys.tokens import load_token

SCHEMES: Final = (HSMSigner.SCHEME, *SERVICES)


def load_uri(uri: str, pin: Secret | None) -> Signer:
    """The signer behind a key URI.

    Args:
        uri: with one of SCHEMES.
        pin: of a token; nothing else needs one.

    Raises:
        KeyUnreadable: another scheme, or a key of a kind that is not known here.
        TokenUnavailable, WrongPin, KeyServiceUnavailable.
    """
    scheme = uri.partition(":")[0]
    if scheme == HSMSigner.SCHEME:
        return load_token(uri, pin)
    if scheme in SERVICES:
        return load_service(uri)
    raise KeyUnreadable(
        f"key URI {uri!r}: scheme {scheme!r} is not supported", hint=f"a key file, or {':, '.join(SCHEMES)}:"
    )
