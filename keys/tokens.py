"""Signing keys in a PKCS#11 token: `hsm:[key id][?label=TOKEN]`.

- A URI names the key and contains no secret; the PIN comes from keys.passphrase.
- The extra `pkcs11` must be installed, and the variable PYKCS11LIB set to the path of the token's library. P-256 and
  P-384 keys sign through securesystemslib, Ed25519 keys through `Ed25519TokenSigner`.
- `generate_token_key` creates the key inside the token, not extractable, and never overwrites one.
- Errors of securesystemslib and of the token are translated here and nowhere else.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import HSMSigner, Signature, Signer, SSlibKey
from securesystemslib.signer import Key as PublicKey

from bundle.frames import Secret
from keys.errors import KeyExists, KeyUnreadable, TokenUnavailable, WrongPin

LIBRARY_VARIABLE: Final = "PYKCS11LIB"
ED25519_BYTES: Final = 32
DEFAULT_KEY_ID: Final = 2  # PIV slot 9c, digital signature
MAX_REASON_CHARACTERS: Final = 200
CURVES: Final = {"ecdsa-p256": ("EC", "secp256r1"), "ed25519": ("EC_EDWARDS", "1.3.101.112")}


@dataclass(frozen=True, slots=True)
class TokenKey:
    """The key that an `hsm:` URI names.

    Attributes:
        number: the key id (CKA_ID) as a number.
        label: the token's label; None if only one token is present.
    """

    number: int
    label: str | None

    @property
    def id_bytes(self) -> bytes:
        """The key id as PKCS#11 wants it (CKA_ID): big-endian, at least one byte."""
        return self.number.to_bytes(max(1, (self.number.bit_length() + 7) // 8), "big")

    @classmethod
    def parse(cls, uri: str) -> "TokenKey":
        """Parse an `hsm:` URI.

        Raises:
            KeyUnreadable: the URI is malformed.
        """
        number, _, query = uri.removeprefix(f"{HSMSigner.SCHEME}:").partition("?")
        fields = parse_qs(query, keep_blank_values=True)
        if (number and not (number.isascii() and number.isdigit())) or set(fields) - {"label"}:
            raise KeyUnreadable(f"key URI {uri!r}: expected hsm:NUMBER?label=TOKEN, for example hsm:2?label=OFFICER")
        return cls(int(number) if number else DEFAULT_KEY_ID, fields.get("label", [None])[0])


class TokenSigner(Signer):
    """A signer that uses a PKCS#11 token, with our errors; it opens the token for each signature."""

    def __init__(self, uri: str, public_key: SSlibKey, inner: Signer) -> None:
        self._uri, self._public, self._inner = uri, public_key, inner

    def __repr__(self) -> str:
        return f"TokenSigner({self._uri})"

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: PublicKey, secrets_handler: object = None) -> Signer:
        """Raise NotImplementedError: securesystemslib does not know this class; use `load_token`.

        Args:
            priv_key_uri: ignored.
            public_key: ignored.
            secrets_handler: ignored.
        """
        raise NotImplementedError(priv_key_uri)

    @property
    def public_key(self) -> SSlibKey:
        """The public key, as read from the token."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Sign with the token's key.

        Raises:
            TokenUnavailable: the token is missing or did not sign.
            WrongPin: the token rejected the PIN.
        """
        try:
            return self._inner.sign(payload)
        except Exception as error:  # python-pkcs11 is an extra: its error classes may not be importable
            raise _translate_error(self._uri, error) from error


class Ed25519TokenSigner(Signer):
    """A signer that uses EdDSA of a PKCS#11 token (PKCS#11 3.0 section 2.3.5).

    It opens the token for each signature.
    """

    def __init__(self, token: Any, key_id: bytes, public_key: SSlibKey, pin: Callable[[str], str]) -> None:
        self._token, self._key_id, self._public, self._pin = token, key_id, public_key, pin

    @classmethod
    def import_(cls, key: TokenKey, pin: Callable[[str], str]) -> "Ed25519TokenSigner":
        """Create a signer for a key on the token; errors of python-pkcs11 pass through.

        Args:
            key: key id and token label.
            pin: called before each signature; returns the PIN.
        """
        import pkcs11

        token = pkcs11.lib(os.environ[LIBRARY_VARIABLE]).get_token(token_label=key.label)
        with token.open() as session:
            found = session.get_key(pkcs11.ObjectClass.PUBLIC_KEY, pkcs11.KeyType.EC_EDWARDS, id=key.id_bytes)
            point = bytes(found[pkcs11.Attribute.EC_POINT])
        # PKCS#11 2.40: a DER octet string around the 32 bytes; 3.0: the bytes alone
        public = Ed25519PublicKey.from_public_bytes(point[-ED25519_BYTES:])
        return cls(token, key.id_bytes, SSlibKey.from_crypto(public), pin)

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: PublicKey, secrets_handler: object = None) -> Signer:
        """Raise NotImplementedError: securesystemslib does not know this class; use `load_token`.

        Args:
            priv_key_uri: ignored.
            public_key: ignored.
            secrets_handler: ignored.
        """
        raise NotImplementedError(priv_key_uri)

    @property
    def public_key(self) -> SSlibKey:
        """The public key, as read from the token."""
        return self._public

    def sign(self, payload: bytes) -> Signature:
        """Sign with the token's key; errors of python-pkcs11 pass through."""
        import pkcs11

        with self._token.open(user_pin=self._pin("pin")) as session:
            key = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.KeyType.EC_EDWARDS, id=self._key_id)
            return Signature(self._public.keyid, key.sign(payload, mechanism=pkcs11.Mechanism.EDDSA).hex())


def load_token(uri: str, pin: Secret | None) -> Signer:
    """Load the signer of an `hsm:` URI.

    Args:
        uri: the key URI.
        pin: the PIN of the token's user; None if only the public key is needed.

    Raises:
        KeyUnreadable: the URI is malformed.
        TokenUnavailable: there is no library, no token, or no such key on it.
        WrongPin: the token rejected the PIN.
    """
    key = TokenKey.parse(uri)
    _check_library(uri)

    def give_pin(_question: str) -> str:
        return "" if pin is None else pin.value.decode()

    try:
        inner = _find_signer(key, give_pin, has_pin=pin is not None)
    except Exception as error:  # python-pkcs11 is an extra: its error classes may not be importable
        raise _translate_error(uri, error) from error
    public = inner.public_key
    assert isinstance(public, SSlibKey)
    return TokenSigner(uri, public, inner)


def generate_token_key(uri: str, algorithm: str, pin: Secret) -> SSlibKey:
    """Create a key pair inside a token and return the public key.

    Args:
        uri: URI of the new key; its key id must be free.
        algorithm: one of CURVES; a token may support only some of them.
        pin: the PIN of the token's user.

    Raises:
        KeyUnreadable: the URI is malformed, or the algorithm is not one for tokens.
        KeyExists: the key id is taken.
        TokenUnavailable: there is no library or token, or the token cannot create such a key.
        WrongPin: the token rejected the PIN.
    """
    key = TokenKey.parse(uri)
    if algorithm not in CURVES:
        raise KeyUnreadable(f"unknown algorithm {algorithm!r} for a token, expected one of {', '.join(CURVES)}")
    _check_library(uri)
    try:
        is_created = _generate_in_token(key, algorithm, pin)
    except Exception as error:  # python-pkcs11 is an extra: its error classes may not be importable
        raise _translate_error(uri, error) from error
    if not is_created:
        raise KeyExists(f"{uri}: the token contains a key with id {key.number} already", hint="choose another key id")
    public = load_token(uri, pin).public_key
    assert isinstance(public, SSlibKey)
    return public


def _generate_in_token(key: TokenKey, algorithm: str, pin: Secret) -> bool:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    kind, curve = CURVES[algorithm]
    key_type = getattr(pkcs11.KeyType, kind)
    with (
        pkcs11.lib(os.environ[LIBRARY_VARIABLE])
        .get_token(token_label=key.label)
        .open(user_pin=pin.value.decode(), rw=True) as session
    ):
        if any(True for _ in session.get_objects({pkcs11.Attribute.ID: key.id_bytes})):
            return False
        parameters = session.create_domain_parameters(
            key_type, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
        )
        mechanism = pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN if algorithm == "ed25519" else None
        sealed = {
            pkcs11.Attribute.SENSITIVE: True,
            pkcs11.Attribute.EXTRACTABLE: False,
            pkcs11.Attribute.PRIVATE: True,
        }
        parameters.generate_keypair(
            store=True, id=key.id_bytes, label=f"airweights-{key.number}", private_template=sealed, mechanism=mechanism
        )
    return True


def _check_library(uri: str) -> None:
    if LIBRARY_VARIABLE not in os.environ:
        raise TokenUnavailable(
            f"{uri}: the variable {LIBRARY_VARIABLE} is not set",
            hint=f"set {LIBRARY_VARIABLE} to the path of the token's PKCS#11 library",
        )


def _find_signer(key: TokenKey, pin: Callable[[str], str], *, has_pin: bool) -> Signer:
    # try without the PIN first: a wrong one brings the token closer to its lock
    for pin_or_none in (None, pin) if has_pin else (None,):
        try:
            found, public = HSMSigner.import_(key.number, key.label, pin_or_none)
            return HSMSigner.from_priv_key_uri(found, public, pin)
        except ValueError as error:
            # no EC key of that id; PKCS#11 gives Ed25519 keys another type
            first_error = error
        try:
            return Ed25519TokenSigner.import_(key, pin)
        except Exception:  # noqa: BLE001, S112  # the first error explains more
            continue
    raise first_error


def _translate_error(uri: str, error: Exception) -> TokenUnavailable:
    name = type(error).__name__
    if name.startswith("Pin"):
        return WrongPin(
            f"{uri}: the token rejected the PIN ({name})", hint="check the PIN; tokens lock after a few wrong ones"
        )
    if isinstance(error, UnsupportedLibraryError | ImportError):
        return TokenUnavailable(f"{uri}: python-pkcs11 is not installed", hint="pip install 'airweights[pkcs11]'")
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or "no details from the token"
    kind = "" if isinstance(error, ValueError) else f"{name}: "
    return TokenUnavailable(
        f"{uri}: {kind}{reason}",
        hint=f"insert the token, and check its label, the key id and {LIBRARY_VARIABLE}",
    )
