"""The device's own keys: made once, read only by the process that uses them.

Rules:
1. Three keys: X-Wing (envelopes are opened with it), Ed25519 (reports and the enrolment request are signed with it) and
   the storage key (the store is sealed under it). None of them can sign a release.
2. A key file is canonical JSON with its use and a checksum, mode 0600, so that a damaged file is told apart from a
   wrong one. A storage key in a file does not protect a stolen disk: docs/threat-model.md.
3. `init` makes all of it or nothing: the folder gets its name last.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle import canonical
from bundle.canonical import NAME, SHA256_HEX, Fields
from bundle.enrolment import EnrolmentRequest, device_id
from bundle.envelope import generate_private, public_of
from bundle.errors import MalformedRefused
from bundle.frames import KEY_BYTES, Secret
from device_agent.device import (
    DEVICE_KEY_FILE,
    SIGNING_KEY_FILE,
    STORAGE_KEY_FILE,
    DeviceDirectory,
    PublicIdentity,
)
from device_agent.errors import AlreadyInitialised, ConfigInvalid, IdentityInvalid
from device_agent.store import sync_folder, write_durably

KEY_SCHEMA: Final = "airweights.device-key/1"
MAX_KEY_FILE_BYTES: Final = 4096
DEVICE_KEY: Final = "x-wing"
SIGNING_KEY: Final = "ed25519"
STORAGE_KEY: Final = "storage"


def create_identity(device: DeviceDirectory, label: str) -> PublicIdentity:
    """Make all keys.

    Raises:
        AlreadyInitialised: there is an identity.
        ConfigInvalid: the label is not a plain name.
    """
    if not NAME.fullmatch(label):
        raise ConfigInvalid(f"label {label!r}: expected a match of {NAME.pattern}")
    if device.identity.exists():
        raise AlreadyInitialised(f"{device.identity} exists", remedy="remove the device directory to start over")
    x_wing, ed25519 = generate_private(), Ed25519PrivateKey.generate()
    public = PublicIdentity(
        device_id=device_id(public_of(x_wing), ed25519.public_key().public_bytes_raw()),
        label=label,
        x_wing_public=public_of(x_wing),
        ed25519_public=ed25519.public_key().public_bytes_raw(),
    )
    new = device.identity.with_name("identity.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    write_durably(new / DEVICE_KEY_FILE, _key_file(DEVICE_KEY, x_wing))
    write_durably(new / SIGNING_KEY_FILE, _key_file(SIGNING_KEY, Secret(ed25519.private_bytes_raw())))
    write_durably(new / STORAGE_KEY_FILE, _key_file(STORAGE_KEY, Secret(os.urandom(KEY_BYTES))))
    write_durably(new / "device.json", public.as_bytes(), 0o644)
    new.rename(device.identity)
    sync_folder(device.root)
    return public


def enrolment_request(device: DeviceDirectory) -> tuple[EnrolmentRequest, bytes]:
    """What this device asks to be registered as, and the signed file. Raises IdentityInvalid."""
    public = device.public_identity()
    fd = device.open_key(SIGNING_KEY_FILE)
    try:
        private = Ed25519PrivateKey.from_private_bytes(read_key(fd, SIGNING_KEY).value)
    finally:
        os.close(fd)
    request = EnrolmentRequest(public.label, public.x_wing_public, public.ed25519_public)
    return request, request.encode(private)


def read_key(fd: int, use: str) -> Secret:
    """A key file by descriptor. Raises IdentityInvalid, which says nothing of the content."""
    data = os.pread(fd, MAX_KEY_FILE_BYTES + 1, 0)
    try:
        fields = Fields(canonical.decode(data, what="device key", max_bytes=MAX_KEY_FILE_BYTES), "device key")
        fields.choice("schema", (KEY_SCHEMA,))
        found = fields.text("use")
        value = bytes.fromhex(fields.text("value"))
        checksum = fields.text("sha256", SHA256_HEX)
        fields.end()
    except (MalformedRefused, ValueError) as error:
        raise IdentityInvalid(f"the {use} key file of this device is damaged") from error
    if checksum != _checksum(found, value):
        raise IdentityInvalid(f"the {use} key file of this device is damaged: its checksum does not hold")
    if found != use:
        raise IdentityInvalid(f"found a {found} key file where the {use} key is expected")
    return Secret(value)


def check_root(shipped: Path) -> bytes:
    """The bytes of a shipped root. Raises ConfigInvalid where it is no root metadata."""
    from tuf.api.metadata import Metadata, Root
    from tuf.api.serialization import DeserializationError

    try:
        data = shipped.read_bytes()
        is_root = isinstance(Metadata[Root].from_bytes(data).signed, Root)
    except (OSError, DeserializationError) as error:
        raise ConfigInvalid(
            f"{shipped}: not root metadata ({error})", remedy="take metadata/1.root.json of the repository"
        ) from error
    if not is_root:
        raise ConfigInvalid(f"{shipped}: metadata of another role", remedy="take metadata/1.root.json")
    return data


def _key_file(use: str, key: Secret) -> bytes:
    return canonical.encode(
        {"schema": KEY_SCHEMA, "use": use, "value": key.value.hex(), "sha256": _checksum(use, key.value)}
    )


def _checksum(use: str, value: bytes) -> str:
    return hashlib.sha256(use.encode() + b"\0" + value).hexdigest()
