"""Device keys sealed by a TPM, or encrypted by a key in a PKCS#11 token.

Rules:
1. Each key file names the key storage that sealed it. So a move to another key storage (`device-agent identity move`)
   can be interrupted between two files and run again.
2. In the daemon, only the key opener (device_agent.workers.key_opener) talks to a TPM or token. It is started to open
   a key and ends afterwards.
3. A sealed key cannot be used on another device. Its use is still checked, against a swap of two files.
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
    """A key storage that is ready to seal and unseal keys."""

    def seal(self, use: str, key: Secret) -> dict[str, JSON]:
        """Seal a key; return the fields to write into its file.

        Args:
            use: purpose of the key; a token binds the result to it.
            key: the private key.
        """
        ...

    def unseal(self, use: str, sealed: StrictObject) -> Secret:
        """Open a sealed key; the inverse of `seal`.

        Args:
            use: purpose of the key.
            sealed: the fields from its file.

        Raises:
            IdentityInvalid: the fields are damaged, or another TPM or token sealed them.
            TpmPolicyMismatch: the PCRs differ from those at the time of sealing.
            TpmUnavailable, DeviceTokenUnavailable: the TPM or token cannot be used.
        """
        ...

    def read_counter(self) -> int | None:
        """Return the value of the TPM counter, or None if this key storage has none."""
        ...

    def raise_counter(self, value: int) -> int | None:
        """Increment the TPM counter to at least `value`; return its value, or None without one."""
        ...


def open_key_storage(settings: TpmSettings | TokenSettings, stack: ExitStack) -> OpenKeyStorage:
    """Open a key storage; the stack closes it.

    Args:
        settings: which TPM or token.
        stack: receives the cleanup.

    Raises:
        TpmUnavailable, DeviceTokenUnavailable: the TPM or token cannot be used.
        IdentityInvalid: the token's PIN file cannot be read, or others can read it.
    """
    if isinstance(settings, TpmSettings):
        return _TpmKeyStorage(stack.enter_context(Tpm(settings)))
    return _TokenKeyStorage(settings, stack)


def encode_sealed_file(uri: str, use: str, sealed: dict[str, JSON]) -> bytes:
    """Encode a sealed key file; its field `home` names the key storage.

    Args:
        uri: the key storage that sealed the key.
        use: purpose of the key.
        sealed: the fields that `OpenKeyStorage.seal` returned.
    """
    body: dict[str, JSON] = {"schema": SEALED_SCHEMA, "use": use, "home": uri, "sealed": sealed}
    return strict_json.encode({**body, "sha256": hashlib.sha256(strict_json.encode(body)).hexdigest()})


def parse_sealed_file(data: bytes, use: str) -> tuple[str, StrictObject]:
    """Parse a sealed key file.

    Args:
        data: content of the file.
        use: the use that the file must have.

    Returns:
        The URI of the key storage that sealed the key, and the sealed fields.

    Raises:
        IdentityInvalid: the file is damaged or of another use. The message does not contain the content.
    """
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
        raise IdentityInvalid(f"the sealed {use} key of this device is damaged: its checksum does not match")
    if found != use:
        raise IdentityInvalid(f"found a sealed {found} key where the {use} key is expected")
    return uri, StrictObject(sealed, "sealed key")


def is_sealed(data: bytes) -> bool:
    """Return whether the file looks like a sealed key file; it can still be damaged."""
    return SEALED_SCHEMA.encode() in data


class _TpmKeyStorage:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def seal(self, use: str, key: Secret) -> dict[str, JSON]:
        del use  # the opened key is compared with the device's public key, which is stored outside
        sealed = self._tpm.seal(key.value)
        return {
            "public": sealed.public.hex(),
            "private": sealed.private.hex(),
            "parent": sealed.parent_name.hex(),
            "pcrs": list(sealed.pcrs),
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
    """Encrypts with AES-256-GCM under a key that never leaves the token (PKCS#11 2.40 mechanisms, 2.12)."""

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
            # tokens report a wrong authentication tag in different ways
            raise IdentityInvalid(f"token {self._settings.label!r} cannot open the {use} key") from error

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
            hint = "check that the token is present and the PIN is right; tokens lock after a few wrong PINs"
            detail = " ".join(str(error).split())[:200] or "no details"
            raise DeviceTokenUnavailable(
                f"token {self._settings.label!r} of {self._settings.module}: {name}: {detail}", hint=hint
            ) from error


def _read_pin(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise IdentityInvalid(f"{path} can be read by other users", hint=f"chmod 600 {path}")
            return file.read(MAX_PIN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityInvalid(f"{path}: cannot read the token's PIN: {error}") from error


def _parse_hexadecimal(fields: StrictObject, name: str) -> bytes:
    try:
        return bytes.fromhex(fields.text(name, max_length=MAX_SEALED_FILE_BYTES))
    except (ValueError, Malformed) as error:
        raise IdentityInvalid(f"sealed key: {name} is not hexadecimal") from error
