"""A device's key at rest in another home than a file: sealed to a TPM, or wrapped by a key in a PKCS#11 token.

Rules:
1. Each key file says how it is sealed, so that a move to another storage (`device-agent identity move`) can be
   interrupted between two files and run again.
2. In the daemon a process that is started for it and ends after it opens a sealed key
   (device_agent.workers.key_opener); nothing
   else talks to TPM or token.
3. A sealed key is of no use elsewhere; it is still checked to be the one that it is named for.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from bundle import strict_json
from bundle.errors import Malformed
from bundle.frames import Secret
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject
from device_agent.config.key_storage import TokenSettings, TpmSettings
from device_agent.errors import DeviceTokenUnavailable, IdentityInvalid
from device_agent.identity.tpm import SealedObject, Tpm

SEALED_SCHEMA: Final = "airweights.sealed-device-key/1"
MAX_SEALED_FILE_BYTES: Final = 4096
MAX_PIN_BYTES: Final = 256
NONCE_BYTES: Final = 12
TAG_BITS: Final = 128
WRAPPING_KEY_LABEL: Final = "airweights-identity"


class OpenKeyStorage(Protocol):
    """A home that is ready: keys go in and come out."""

    def seal(self, use: str, key: Secret) -> dict[str, JSON]:
        """What to keep of a key; `use` is bound to it."""
        ...

    def unseal(self, use: str, sealed: StrictObject) -> Secret:
        """Inverse of `seal`. Raises IdentityInvalid, TpmPolicyUnavailable, TpmUnavailable, DeviceTokenUnavailable."""
        ...

    def read_counter(self) -> int | None:
        """The counter behind the floor, or None where this home has none."""
        ...

    def raise_counter(self, value: int) -> int | None:
        """At least `value` now."""
        ...


def open_key_storage(settings: TpmSettings | TokenSettings, stack: ExitStack) -> OpenKeyStorage:
    """Get a home ready until the stack ends. Raises TpmUnavailable, DeviceTokenUnavailable, IdentityInvalid."""
    if isinstance(settings, TpmSettings):
        return _TpmKeyStorage(stack.enter_context(Tpm(settings)))
    return _TokenKeyStorage(settings, stack)


def encode_sealed_file(uri: str, use: str, sealed: dict[str, JSON]) -> bytes:
    """A sealed key file."""
    body: dict[str, JSON] = {"schema": SEALED_SCHEMA, "use": use, "home": uri, "sealed": sealed}
    return strict_json.encode({**body, "sha256": hashlib.sha256(strict_json.encode(body)).hexdigest()})


def parse_sealed_file(data: bytes, use: str) -> tuple[str, StrictObject]:
    """The home's URI and what it keeps of a key. Raises IdentityInvalid, which says nothing of the content."""
    try:
        fields = StrictObject(
            strict_json.decode(data, what="sealed key", max_bytes=MAX_SEALED_FILE_BYTES), "sealed key"
        )
        fields.choice("schema", (SEALED_SCHEMA,))
        found, uri = fields.text("use"), fields.text("home", max_length=1024)
        sealed, checksum = fields.value("sealed"), fields.text("sha256", SHA256_HEX_PATTERN)
        fields.reject_unknown()
    except Malformed as error:
        raise IdentityInvalid(f"the sealed {use} key of this device is damaged") from error
    body: dict[str, JSON] = {"schema": SEALED_SCHEMA, "use": found, "home": uri, "sealed": sealed}
    if hashlib.sha256(strict_json.encode(body)).hexdigest() != checksum:
        raise IdentityInvalid(f"the sealed {use} key of this device is damaged: its checksum does not hold")
    if found != use:
        raise IdentityInvalid(f"found a sealed {found} key where the {use} key is expected")
    return uri, StrictObject(sealed, "sealed key")


def is_sealed(data: bytes) -> bool:
    """Is this a sealed key file rather than a plain one (rule 1)? Says nothing of whether it is intact."""
    return SEALED_SCHEMA.encode() in data


class _TpmKeyStorage:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def seal(self, use: str, key: Secret) -> dict[str, JSON]:
        del use  # the public key that it belongs to is outside, and is compared by whoever opens it
        made = self._tpm.seal(key.value)
        return {
            "public": made.public.hex(),
            "private": made.private.hex(),
            "parent": made.parent_name.hex(),
            "pcrs": list(made.pcrs),
        }

    def unseal(self, use: str, sealed: StrictObject) -> Secret:
        del use
        pcrs = sealed.value("pcrs")
        if not isinstance(pcrs, list) or not all(isinstance(number, int) for number in pcrs):
            raise IdentityInvalid("sealed key: pcrs are not numbers")
        public, private, parent = (_parse_hexadecimal(sealed, name) for name in ("public", "private", "parent"))
        found = SealedObject(public, private, parent, tuple(int(str(number)) for number in pcrs))
        return Secret(self._tpm.unseal(found))

    def read_counter(self) -> int | None:
        return self._tpm.read_counter()

    def raise_counter(self, value: int) -> int | None:
        return self._tpm.raise_counter(value)


class _TokenKeyStorage:
    """AES-256-GCM by a key that is made in the token, sensitive and not extractable (PKCS#11 2.40 mechanisms, 2.12)."""

    def __init__(self, settings: TokenSettings, stack: ExitStack) -> None:
        self._settings = settings
        try:
            import pkcs11
        except ImportError as error:
            raise DeviceTokenUnavailable(
                "python-pkcs11 is not installed", hint="pip install 'airweights[pkcs11]'"
            ) from error
        self._pkcs11: Any = pkcs11
        pin = _read_pin(settings.pin_file)
        self._session: Any = self._translate_errors(
            lambda: stack.enter_context(
                pkcs11.lib(str(settings.module)).get_token(token_label=settings.label).open(user_pin=pin, rw=True)
            )
        )

    def seal(self, use: str, key: Secret) -> dict[str, JSON]:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._translate_errors(
            lambda: self._find_wrapping_key(make=True).encrypt(key.value, **self._mechanism(nonce, use))
        )
        return {"nonce": nonce.hex(), "value": bytes(sealed).hex()}

    def unseal(self, use: str, sealed: StrictObject) -> Secret:
        nonce, value = _parse_hexadecimal(sealed, "nonce"), _parse_hexadecimal(sealed, "value")
        try:
            return Secret(bytes(self._find_wrapping_key(make=False).decrypt(value, **self._mechanism(nonce, use))))
        except self._pkcs11.exceptions.NoSuchKey as error:
            raise IdentityInvalid(f"token {self._settings.label!r} has no key {WRAPPING_KEY_LABEL!r}") from error
        except self._pkcs11.exceptions.PKCS11Error as error:
            # tokens have no common word for a tag that does not hold
            raise IdentityInvalid(f"token {self._settings.label!r} does not open the {use} key") from error

    def read_counter(self) -> int | None:
        return None

    def raise_counter(self, value: int) -> int | None:
        del value
        return None

    def _find_wrapping_key(self, *, make: bool) -> Any:
        p = self._pkcs11
        try:
            return self._session.get_key(p.ObjectClass.SECRET_KEY, p.KeyType.AES, label=WRAPPING_KEY_LABEL)
        except p.exceptions.NoSuchKey:
            if not make:
                raise
        template = {p.Attribute.SENSITIVE: True, p.Attribute.EXTRACTABLE: False, p.Attribute.PRIVATE: True}
        return self._session.generate_key(p.KeyType.AES, 256, store=True, label=WRAPPING_KEY_LABEL, template=template)

    def _mechanism(self, nonce: bytes, use: str) -> dict[str, Any]:
        parameters = self._pkcs11.GCMParams(nonce, b"airweights device key v1 " + use.encode(), TAG_BITS)
        return {"mechanism": self._pkcs11.Mechanism.AES_GCM, "mechanism_param": parameters}

    def _translate_errors(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (self._pkcs11.exceptions.PKCS11Error, RuntimeError, OSError) as error:
            name = type(error).__name__
            hint = "is the token there, and the PIN right? Tokens lock after a few wrong PINs"
            detail = " ".join(str(error).split())[:200] or "no further word from it"
            raise DeviceTokenUnavailable(
                f"token {self._settings.label!r} of {self._settings.module}: {name}: {detail}", hint=hint
            ) from error


def _read_pin(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise IdentityInvalid(f"{path} is readable by others", hint=f"chmod 600 {path}")
            return file.read(MAX_PIN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityInvalid(f"{path}: the token's PIN cannot be read: {error}") from error


def _parse_hexadecimal(fields: StrictObject, name: str) -> bytes:
    try:
        return bytes.fromhex(fields.text(name, max_length=MAX_SEALED_FILE_BYTES))
    except (ValueError, Malformed) as error:
        raise IdentityInvalid(f"sealed key: {name} is not hexadecimal") from error
