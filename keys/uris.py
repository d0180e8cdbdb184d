"""Load the signer of a key URI: `hsm:` from a token, all others from a cloud key service."""

from typing import Final

from securesystemslib.signer import HSMSigner, Signer

from bundle.frames import Secret
from keys.errors import KeyUnreadable
from keys.services import SERVICES, load_service
from keys.tokens import load_token

SCHEMES: Final = (HSMSigner.SCHEME, *SERVICES)


def load_uri(uri: str, pin: Secret | None) -> Signer:
    """Load the signer of a key URI.

    Args:
        uri: the URI, with one of SCHEMES.
        pin: the PIN of a token; key services need none.

    Raises:
        KeyUnreadable: the scheme is unknown, the URI is malformed, or the key is of an unsupported kind.
        TokenUnavailable: there is no library, no token, or no such key on it.
        WrongPin: the token rejected the PIN.
        KeyServiceUnavailable: no library, no credentials, no response, or no such key.
    """
    scheme = uri.partition(":")[0]
    if scheme == HSMSigner.SCHEME:
        return load_token(uri, pin)
    if scheme in SERVICES:
        return load_service(uri)
    raise KeyUnreadable(
        f"key URI {uri!r}: unknown scheme {scheme!r}, expected one of {', '.join(SCHEMES)}",
        hint="correct the URI, or give the path of a key file",
    )
