"""Signing keys in cloud key services, through securesystemslib and the service's own library.

    awskms:KEY-ID-OR-ARN                                         AWS KMS            extra awskms
    gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/…       Google Cloud KMS   extra gcpkms
    azurekms://VAULT.vault.azure.net/keys/NAME[/VERSION]          Azure Key Vault    extra azurekms
    hv:NAME[/VERSION]                                            Vault transit      extra vault

- Credentials are the library's own: environment, instance or configuration file. A URI contains none.
- The public key is fetched from the service. Its key id is computed here, so that it equals the id of the same key in a
  PEM file.
- If a URI names a version, only that version signs. If the service has rotated its key since, that is an error.
- Errors of the libraries are translated here and nowhere else.
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
    """One supported key service.

    Attributes:
        name: the service's name in messages.
        extra: the extra of this distribution that installs the library.
        signer: securesystemslib's signer class.
        find_key: fetches the full URI and the public key for a URI.
    """

    name: str
    extra: str
    signer: type[Signer]
    find_key: Callable[[str], tuple[str, SSlibKey]]


class ServiceSigner(Signer):
    """A signer that uses a key service, with our errors and our key id."""

    def __init__(self, uri: str, public_key: SSlibKey, inner: Signer) -> None:
        self._uri, self._public, self._inner = uri, public_key, inner

    def __repr__(self) -> str:
        return f"ServiceSigner({self._uri})"

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: PublicKey, secrets_handler: object = None) -> Signer:
        """Raise NotImplementedError: securesystemslib does not know this class; use `load_service`.

        Args:
            priv_key_uri: ignored.
            public_key: ignored.
            secrets_handler: ignored.
        """
        raise NotImplementedError(priv_key_uri)

    @property
    def public_key(self) -> SSlibKey:
        """The public key, as fetched from the service."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Sign with the service's key.

        Raises:
            KeyServiceUnavailable: the service did not sign.
        """
        try:
            signature = self._inner.sign(payload)
        except Exception as error:  # the libraries are extras: their error classes may not be importable
            raise _translate_error(self._uri, error) from error
        return Signature(self._public.keyid, signature.signature)


def load_service(uri: str) -> Signer:
    """Load the signer of a key service's URI.

    Raises:
        KeyUnreadable: the URI is malformed, the key is of an unsupported kind, or the URI names an old version.
        KeyServiceUnavailable: no library, no credentials, no response, or no such key.
    """
    service = SERVICES[uri.partition(":")[0]]
    try:
        found, public = service.find_key(uri)
        inner = service.signer.from_priv_key_uri(found, public)
    except Exception as error:  # the libraries are extras: their error classes may not be importable
        raise _translate_error(uri, error) from error
    if found != uri and not found.startswith(f"{uri.rstrip('/')}/"):
        raise KeyUnreadable(
            f"{uri}: the newest version of the key is {found}", hint="name the newest version, or omit the version"
        )
    return ServiceSigner(uri, _set_own_key_id(public), inner)


def _find_aws_key(uri: str) -> tuple[str, SSlibKey]:
    return AWSSigner.import_(uri.partition(":")[2])


def _find_gcp_key(uri: str) -> tuple[str, SSlibKey]:
    return GCPSigner.import_(uri.partition(":")[2])


def _find_azure_key(uri: str) -> tuple[str, SSlibKey]:
    split = urlsplit(uri)
    vault, _, domain = split.netloc.partition(".")
    parts = split.path.strip("/").split("/")
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
    # each service formats PEM differently, and the key id is a digest of the text
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
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or "no details"
    if isinstance(error, UnsupportedAlgorithmError) or type(error).__name__ == "UnsupportedKeyType":
        return KeyUnreadable(f"{uri}: {service.name} key of an unsupported kind: {reason}")
    return KeyServiceUnavailable(
        f"{uri}: {service.name}: {type(error).__name__}: {reason}",
        hint=f"set the credentials of the {service.name} library, and allow them to read and use this key",
    )
