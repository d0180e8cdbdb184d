"""The device directory: its paths, its lock and the public identity of the device.

    identity/   0700: device.json (public), x-wing.key, ed25519.key, storage.key (0600)
    trust/      root.json (shipped), cache/ (of tuf), slots/ (two copies of the trust state)
    spool/      partial downloads       store/  sealed bundles
    state.db    the journal             control.sock, lock
    families/NAME/  spool, store, journal and adapter of each further family; those of the first are at the top

Rules:
- One process writes to a directory at a time: the one that has locked `lock`. The kernel releases the lock when the
  process ends.
- The supervisor opens key files and passes the descriptors; it never reads a secret.
- Identity and trust state belong to the device: all its families come from one repository.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle import strict_json
from bundle.errors import Malformed
from bundle.strict_json import NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject
from device_agent.errors import AlreadyInitialized, DeviceLocked, IdentityInvalid, NotInitialized
from device_agent.storage.bundle_store import sync_directory

if TYPE_CHECKING:
    from device_agent.config.config import Config  # a tenth of the start of a worker that only reads keys

IDENTITY_SCHEMA: Final = "airweights.device/1"
DAEMON: Final = "daemon"  # holders of the lock
COMMAND: Final = "command"
MAX_HOLDER_BYTES: Final = 16
MAX_IDENTITY_BYTES: Final = 16 * 1024
DEVICE_KEY_FILE: Final = "x-wing.key"
SIGNING_KEY_FILE: Final = "ed25519.key"
STORAGE_KEY_FILE: Final = "storage.key"
CLIENT_KEY_FILE: Final = "client.key.sealed"  # the TLS client key, sealed under the storage key
DEVICE_KEY: Final = "x-wing"
SIGNING_KEY: Final = "ed25519"
STORAGE_KEY: Final = "storage"
KEY_FILES: Final = {DEVICE_KEY: DEVICE_KEY_FILE, SIGNING_KEY: SIGNING_KEY_FILE, STORAGE_KEY: STORAGE_KEY_FILE}


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """The public part of the device's identity.

    Attributes:
        device_id: SHA-256 of both public keys, hexadecimal.
        label: name for people.
        x_wing_public: public key that envelopes are sealed to (X-Wing).
        ed25519_public: public key of the device's signatures (Ed25519).
    """

    device_id: str
    label: str
    x_wing_public: bytes
    ed25519_public: bytes

    def as_bytes(self) -> bytes:
        """Return the content of identity/device.json."""
        return strict_json.encode(
            {
                "schema": IDENTITY_SCHEMA,
                "device_id": self.device_id,
                "label": self.label,
                "x_wing_public": self.x_wing_public.hex(),
                "ed25519_public": self.ed25519_public.hex(),
            }
        )


class DeviceDirectory:
    """The paths of a device directory; creating the object creates no file.

    Args:
        root: the directory.
        family_directory: the part of one family; None for the first family, whose part is `root` itself.
    """

    def __init__(self, root: Path, family_directory: Path | None = None) -> None:
        self.root = root
        self.family_directory = root if family_directory is None else family_directory
        self.identity_directory = root / "identity"
        self.trust_directory = root / "trust"
        self.shipped_root_path = self.trust_directory / "root.json"
        self.journal_path = self.family_directory / "state.db"
        self.control_path = root / "control.sock"
        self.apps_path = root / "apps.sock"
        self.lock_path = root / "lock"

    @classmethod
    def for_family(cls, config: "Config") -> "DeviceDirectory":
        """Return the device directory with the part of the configured family."""
        return cls(config.directory, config.family_directory)

    def create_family_directory(self) -> None:
        """Create the family's directory durably, so that files committed into it later cannot lose their path.

        Raises:
            OSError: the directory cannot be created.
        """
        if not self.family_directory.is_dir():
            self.family_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self.family_directory.parent)
            sync_directory(self.root)

    def check_initialized(self) -> None:
        """Check that the device has an identity and a shipped root.

        Raises:
            NotInitialized: a file is missing.
        """
        for path in (self.identity_directory / "device.json", self.shipped_root_path):
            if not path.exists():
                is_image = self.shipped_root_path.exists() and not self.identity_directory.exists()
                command = "first-boot" if is_image else "init"
                raise NotInitialized(f"{path} is missing", hint=f"run `device-agent {command}` first")

    def check_uninitialized(self) -> None:
        """Check that the device has no identity yet.

        Raises:
            AlreadyInitialized: it has one.
        """
        if self.identity_directory.exists():
            raise AlreadyInitialized(
                f"{self.identity_directory} exists", hint="remove the device directory to start over"
            )

    def read_public_identity(self) -> PublicIdentity:
        """Read identity/device.json.

        Raises:
            NotInitialized: the device has no identity.
            IdentityInvalid: the file is unreadable or malformed.
        """
        self.check_initialized()
        path = self.identity_directory / "device.json"
        try:
            fields = StrictObject(
                strict_json.decode(path.read_bytes(), what=str(path), max_bytes=MAX_IDENTITY_BYTES), str(path)
            )
            fields.choice("schema", (IDENTITY_SCHEMA,))
            out = PublicIdentity(
                device_id=fields.text("device_id", SHA256_HEX_PATTERN),
                label=fields.text("label", NAME_PATTERN),
                x_wing_public=bytes.fromhex(fields.text("x_wing_public", max_length=4096)),
                ed25519_public=bytes.fromhex(fields.text("ed25519_public", max_length=64)),
            )
            fields.reject_unknown()
        except (OSError, ValueError, Malformed) as error:
            raise IdentityInvalid(
                f"{path}: {error}", hint="restore it from a backup, or initialize and enroll the device again"
            ) from error
        return out

    def open_key(self, name: str) -> int:
        """Open a key file; the caller closes the descriptor.

        Raises:
            IdentityInvalid: it is missing, no regular file, or accessible to others.
            OSError: it cannot be opened.
        """
        path = self.identity_directory / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, PermissionError) as error:
            raise IdentityInvalid(f"{path}: {error.strerror}") from error
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            os.close(fd)
            raise IdentityInvalid(f"{path} has mode {stat.S_IMODE(mode):04o}, expected 0600", hint=f"chmod 600 {path}")
        return fd

    @contextmanager
    def acquire_lock(self, holder: str = COMMAND) -> Iterator[None]:
        """Lock the device directory for the duration of a `with` block.

        Args:
            holder: DAEMON or COMMAND; other processes can read it.

        Raises:
            DeviceLocked: another process has the lock.
        """
        fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                found = os.pread(fd, MAX_HOLDER_BYTES, 0).decode("ascii", "replace")
                raise DeviceLocked(
                    f"{'the daemon' if found == DAEMON else 'another process'} uses {self.root}",
                    hint="wait until `device-agent run` or `update` has ended",
                    is_daemon=found == DAEMON,
                ) from error
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode(), 0)
            yield
        finally:
            os.close(fd)
