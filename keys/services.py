"""Signing keys in a cloud's key service, through securesystemslib and the service's own library.

    awskms:KEY-ID-OR-ARN                                         AWS KMS            extra awskms
    gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/…       Google Cloud KMS   extra gcpkms
    azurekms://VAULT.vault.azure.net/keys/NAME[/VERSION]          Azure Key Vault    extra azurekms
    hv:NAME[/VERSION]                                            Vault transit      extra vault

Rules:
1. Credentials are the library's own: environment, instance, configuration file. A URI holds none.
2. The public half is asked of the service, and given the key id that any other way to the same key gives it.
3. Where a URI names a version, that version signs or none: a service that rotated its key meanwhile is an error.
4. What the libraries raise is translated here, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.exceptions import UnsupportedAlgorithmError, UnsupportedLibraryError
from securesystemslib.signer import AWSSigner, AzureSigner, GCPSigner, Signature, Signer, SSlibKey, VaultSigner
from securesystemslib.signer import Key as PublicKey

from keys.errors import KeyServiceUnavailable, KeyUnreadable

MAX_REASON_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Service:
    """A key service.

    Attributes:
        name: for people.
        extra: of this distribution; brings the library.
        signer: securesystemslib's class.
        find: asks the service for URI and public half of the key that a URI names.
    """

    name: str
    extra: str
    signer: type[Signer]
    find_key: Callable[[str], tuple[str, SSlibKey]]


class ServiceSigner(Signer):
    """A signer over a key service, with our errors and our key id (rule 2)."""

    def __init__(self, uri: str, public_key: SSlibKey, inner: Signer) -> None:
        self._uri, self._public, self._inner = uri, public_key, inner

    def __repr__(self) -> str:
        return f"ServiceSigner({self._uri})"

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: PublicKey, secrets_handler: object = None) -> Signer:
        """Not registered with securesystemslib; see `load_service`."""
        raise NotImplementedError(priv_key_uri)

    @property
    def public_key(self) -> SSlibKey:
        """Public half, as the service gave it."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Raises KeyServiceUnavailable."""
        try:
            made = self._inner.sign(payload)
        except Exception as error:  # the libraries are extras: their error classes may not be importable here
            raise _translate_error(self._uri, error) from error
        return Signature(self._public.keyid, made.signature)


def load_service(uri: str) -> Signer:
    """The signer behind a key service's URI.

    Raises:
        KeyUnreadable: not such a URI, a key of another kind, or another version than the newest.
        KeyServiceUnavailable: no library, no credentials, no answer, or no such key.
    """
    service = SERVICES[uri.partition(":")[0]]
    try:
        found, public = service.find_key(uri)
        inner = service.signer.from_priv_key_uri(found, public)
    except Exception as error:  # as above
        raise _translate_error(uri, error) from error
    if found != uri and not found.startswith(f"{uri.rstrip('/')}/"):
        raise KeyUnreadable(f"{uri}: the service's newest is {found}", hint="name the newest version, or none")
    return ServiceSigner(uri, _set_own_key_id(public), inner)


def _find_aws_key(uri: str) -> tuple[str, SSlibKey]:
    return AWSSigner.import_(uri.partition(":")[2])


def _find_gcp_key(uri: str) -> tuple[str, SSlibKey]:
    return GCPSigner.import_(uri.partition(":")[2])


def _find_azure_key(uri: str) -> tuple[str, SSlibKey]:
    place = urlsplit(uri)
    vault, _, domain = place.netloc.partition(".")
    parts = place.path.strip("/").split("/")
    if domain != "vault.azure.net" or parts[0] != "keys" or len(parts) not in (2, 3):
        raise KeyUnreadable(f"key URI {uri!r}: expected azurekms://VAULT.vault.azure.net/keys/NAME")
    return AzureSigner.import_(vault, parts[1])


def _find_vault_key(uri: str) -> tuple[str, SSlibKey]:
    return VaultSigner.import_(uri.partition(":")[2].partition("/")[0])


SERVICES: Final[Mapping[str, Service]] = {
    AWSSigner.SCHEME: Service("AWS KMS", "awskms", AWSSigner, _find_aws_key),
    GCPSigner.SCHEME: Service("Google Cloud KMS", "gcpkms", GCPSigner, _find_gcp_key),
    AzureSigner.SCHEME: Service("Azure Key Vault", "azurekms", AzureSigner, _find_azure_key),
    VaultSigner.SCHEME: Service("Vault", "vault", VaultSigner, _find_vault_key),
}


def _set_own_key_id(public: SSlibKey) -> SSlibKey:
    # services write PEM each in their own way, and the key id is over the text
    text = str(public.keyval["public"])
    if not text.startswith("-----BEGIN"):
        return public
    return SSlibKey.from_crypto(load_pem_public_key(text.encode()), scheme=public.scheme)


def _translate_error(uri: str, error: Exception) -> Exception:
    service = SERVICES[uri.partition(":")[0]]
    if isinstance(error, KeyUnreadable):
        return error
    if isinstance(error, UnsupportedLibraryError):
        return KeyServiceUnavailable(
            f"{uri}: the library for {service.name} is not installed",
            hint=f"pip install 'airweights[{service.extra}]'",
        )
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or "no further word"
    if isinstance(error, UnsupportedAlgorithmError) or type(error).__name__ == "UnsupportedKeyType":
        return KeyUnreadable(f"{uri}: {service.name} holds a key of another kind: {reason}")
    return KeyServiceUnavailable(
        f"{uri}: {service.name}: {type(error).__name__}: {reason}",
        hint="are the credentials of its library set, and may they read and use this key?",
    )
