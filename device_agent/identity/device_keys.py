"""The device's own keys: created once, and read only by the process that uses them.

Rules:
1. There are three keys. X-Wing opens envelopes, Ed25519 signs reports and the enrollment request, and the storage key
   seals the bundle store. None of them can sign a release.
2. A key file is canonical JSON with its use and a checksum, mode 0600. The checksum separates a damaged file from a
   wrong one. If the keys are stored in files, a stolen disk gives away the storage key (docs/threat-model.md). In any
   other key storage, the key file contains data that only the TPM or token can open.
3. `create_identity` creates all files or none: it renames the complete folder as its last step.
"""

import hashlib
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle import strict_json
from bundle.enrollment import EnrollmentRequest, derive_device_id
from bundle.envelope import derive_public_key, generate_private_key
from bundle.errors import Malformed, TooLarge
from bundle.frames import KEY_BYTES, Secret
from bundle.local_files import read_local_file
from bundle.strict_json import SHA256_HEX_PATTERN, StrictObject
from device_agent.config.key_storage import FILE_STORAGE, parse_key_storage
from device_agent.errors import ConfigInvalid, IdentityInvalid
from device_agent.identity.label import check_label, default_label
from device_agent.identity.sealed_key import (
    MAX_SEALED_FILE_BYTES,
    encode_sealed_file,
    is_sealed,
    open_key_storage,
    parse_sealed_file,
)
from device_agent.storage.bundle_store import sync_directory, write_durably
from device_agent.storage.device_directory import (
    DEVICE_KEY,
    KEY_FILES,
    SIGNING_KEY,
    STORAGE_KEY,
    DeviceDirectory,
    PublicIdentity,
)

KEY_SCHEMA: Final = "airweights.device-key/1"
MAX_KEY_FILE_BYTES: Final = 4096


def create_identity(
    device: DeviceDirectory, label: str | None = None, key_storage: str = FILE_STORAGE
) -> PublicIdentity:
    """Create all keys of the device.

    Args:
        device: the device directory.
        label: a name for people; None for one that contains the start of the device id (device_agent.identity.label).
        key_storage: URI of the key storage (device_agent.config.key_storage). In a TPM, the counter is created too.

    Raises:
        AlreadyInitialized: the device has an identity.
        ConfigInvalid: the label is not a plain name.
        TpmUnavailable, DeviceTokenUnavailable: the key storage cannot be used; no identity was created.
    """
    if label is not None:
        check_label(label)
    device.check_uninitialized()
    x_wing, ed25519 = generate_private_key(), Ed25519PrivateKey.generate()
    device_id = derive_device_id(derive_public_key(x_wing), ed25519.public_key().public_bytes_raw())
    public = PublicIdentity(
        device_id=device_id,
        label=label or default_label(device_id),
        x_wing_public=derive_public_key(x_wing),
        ed25519_public=ed25519.public_key().public_bytes_raw(),
    )
    keys = {
        DEVICE_KEY: x_wing,
        SIGNING_KEY: Secret(ed25519.private_bytes_raw()),
        STORAGE_KEY: Secret(os.urandom(KEY_BYTES)),
    }
    files = _seal_keys(keys, key_storage)
    new = device.identity_directory.with_name("identity.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    for use, data in files.items():
        write_durably(new / KEY_FILES[use], data)
    write_durably(new / "device.json", public.as_bytes(), 0o644)
    new.rename(device.identity_directory)
    sync_directory(device.root)
    return public


def create_enrollment_request(
    device: DeviceDirectory, key_storage: str = FILE_STORAGE
) -> tuple[EnrollmentRequest, bytes]:
    """Create and sign the device's enrollment request.

    Args:
        device: the device directory.
        key_storage: URI of the key storage.

    Returns:
        The request and the bytes of the signed file.

    Raises:
        IdentityInvalid, TpmPolicyMismatch, TpmUnavailable, DeviceTokenUnavailable: as `open_signing_key`.
    """
    public = device.read_public_identity()
    private = open_signing_key(device, key_storage)
    request = EnrollmentRequest(public.label, public.x_wing_public, public.ed25519_public)
    return request, request.encode(private)


def open_signing_key(device: DeviceDirectory, key_storage: str = FILE_STORAGE) -> Ed25519PrivateKey:
    """Open the key that signs enrollment requests and reports.

    Args:
        device: the device directory.
        key_storage: URI of the key storage.

    Raises:
        IdentityInvalid: the key file is missing or damaged, or was sealed by another TPM or token.
        TpmPolicyMismatch: the PCRs differ from those at the time of sealing.
        TpmUnavailable, DeviceTokenUnavailable: the TPM or token cannot be used.
    """
    return Ed25519PrivateKey.from_private_bytes(_open_key(device, SIGNING_KEY, key_storage).value)


def move_keys(device: DeviceDirectory, key_storage: str) -> None:
    """Move every key to the given key storage, from wherever it is now. Can be run again after a crash.

    Args:
        device: the device directory.
        key_storage: URI of the new key storage.

    Raises:
        IdentityInvalid, TpmPolicyMismatch, TpmUnavailable, DeviceTokenUnavailable: a key cannot be opened or sealed; no
            file was changed.
    """
    keys = {use: _open_key(device, use, key_storage) for use in KEY_FILES}
    for use, data in _seal_keys(keys, key_storage).items():
        write_durably(device.identity_directory / KEY_FILES[use], data)


def current_key_storage(device: DeviceDirectory) -> str:
    """Return the URI of the key storage that the storage key is in now.

    Raises:
        IdentityInvalid: the key file is missing or damaged.
    """
    data = _read_key_file(device, STORAGE_KEY)
    return parse_sealed_file(data, STORAGE_KEY)[0] if is_sealed(data) else FILE_STORAGE


def read_tpm_counter(key_storage: str) -> int | None:
    """Read the TPM counter; return None if the key storage has none.

    Raises:
        TpmUnavailable: the TPM cannot be used.
    """
    settings = parse_key_storage(key_storage)
    if settings is None:
        return None
    with ExitStack() as stack:
        return open_key_storage(settings, stack).read_counter()


def _open_key(device: DeviceDirectory, use: str, key_storage: str) -> Secret:
    data = _read_key_file(device, use)
    if not is_sealed(data):
        return parse_key(data, use)
    uri, sealed = parse_sealed_file(data, use)
    # if both URIs name the same kind of storage, use the configured one: the connection to a TPM may have changed.
    # If not, the keys are being moved, and the file names the storage that it was sealed in.
    settings = parse_key_storage(key_storage if _uri_scheme(key_storage) == _uri_scheme(uri) else uri)
    if settings is None:
        raise IdentityInvalid(f"the sealed {use} key names no key storage that can open it")
    with ExitStack() as stack:
        return open_key_storage(settings, stack).unseal(use, sealed)


def _read_key_file(device: DeviceDirectory, use: str) -> bytes:
    fd = device.open_key(KEY_FILES[use])
    try:
        return os.pread(fd, MAX_SEALED_FILE_BYTES + 1, 0)
    finally:
        os.close(fd)


def _seal_keys(keys: dict[str, Secret], key_storage: str) -> dict[str, bytes]:
    settings = parse_key_storage(key_storage)
    if settings is None:
        return {use: encode_key_file(use, key) for use, key in keys.items()}
    with ExitStack() as stack:
        opened = open_key_storage(settings, stack)
        opened.raise_counter(1)
        return {use: encode_sealed_file(key_storage, use, opened.seal(use, key)) for use, key in keys.items()}


def _uri_scheme(uri: str) -> str:
    return uri.partition(":")[0]


def read_key(fd: int, use: str) -> Secret:
    """Read a plain key from an open key file.

    Args:
        fd: descriptor of the key file.
        use: the use that the file must have.

    Raises:
        IdentityInvalid: the file is sealed, damaged or of another use. The message does not contain the content.
    """
    return parse_key(os.pread(fd, MAX_KEY_FILE_BYTES + 1, 0), use)


def parse_key(data: bytes, use: str) -> Secret:
    """Parse a plain key file.

    Args:
        data: content of the file.
        use: the use that the file must have.

    Raises:
        IdentityInvalid: the file is sealed, damaged or of another use. The message does not contain the content.
    """
    if is_sealed(data):
        raise IdentityInvalid(
            f"the {use} key of this device is sealed, but `key_storage` in the configuration is file",
            hint="set `key_storage` to the storage of the keys, or move them with `device-agent identity move`",
        )
    try:
        fields = StrictObject(strict_json.decode(data, what="device key", max_bytes=MAX_KEY_FILE_BYTES), "device key")
        fields.choice("schema", (KEY_SCHEMA,))
        found = fields.text("use")
        value = bytes.fromhex(fields.text("value"))
        checksum = fields.text("sha256", SHA256_HEX_PATTERN)
        fields.reject_unknown()
    except (Malformed, ValueError) as error:
        raise IdentityInvalid(f"the {use} key file of this device is damaged") from error
    if checksum != _checksum(found, value):
        raise IdentityInvalid(f"the {use} key file of this device is damaged: its checksum does not match")
    if found != use:
        raise IdentityInvalid(f"found a {found} key file where the {use} key is expected")
    return Secret(value)


def read_shipped_root(shipped: Path) -> bytes:
    """Read a shipped root and check that it is root metadata.

    Raises:
        ConfigInvalid: the file cannot be read or is not root metadata.
    """
    from tuf.api.metadata import Metadata, Root
    from tuf.api.serialization import DeserializationError

    from bundle.trust.updater import MAX_ROOT_BYTES

    try:
        data = read_local_file(shipped, MAX_ROOT_BYTES)
        is_root = isinstance(Metadata[Root].from_bytes(data).signed, Root)
    except (OSError, TooLarge, DeserializationError) as error:
        raise ConfigInvalid(
            f"{shipped}: not root metadata ({error})", hint="use metadata/1.root.json of the repository"
        ) from error
    if not is_root:
        raise ConfigInvalid(
            f"{shipped}: metadata of another role, expected root", hint="use metadata/1.root.json of the repository"
        )
    return data


def encode_key_file(use: str, key: Secret) -> bytes:
    """Encode a plain key file (rule 2 of this module).

    Args:
        use: purpose of the key.
        key: the private key.
    """
    return strict_json.encode(
        {"schema": KEY_SCHEMA, "use": use, "value": key.value.hex(), "sha256": _checksum(use, key.value)}
    )


def _checksum(use: str, value: bytes) -> str:
    return hashlib.sha256(use.encode() + b"\0" + value).hexdigest()
