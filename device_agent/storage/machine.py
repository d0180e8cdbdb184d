"""Recognize a device directory that was copied to another machine, so that two have one identity.

When the identity is created, a digest of this machine's id (machine-id(5)) is stored in `machine-id.sha256`. A machine
without an id has no such file, and is not checked.
"""

import hashlib
from pathlib import Path
from typing import Final

from device_agent.storage.bundle_store import write_durably
from device_agent.storage.device_directory import DeviceDirectory

MACHINE_ID_PATH: Final = Path("/etc/machine-id")
FILE_NAME: Final = "machine-id.sha256"
LABEL: Final = b"airweights.machine-id/1\0"


def record_machine(device: DeviceDirectory, device_id: str) -> None:
    """Record that the identity belongs to this machine.

    Args:
        device: the device directory.
        device_id: the device's id.
    """
    digest = _machine_digest(device_id)
    if digest is not None:
        write_durably(device.root / FILE_NAME, f"{digest}\n".encode(), 0o644)


def is_copied(device: DeviceDirectory, device_id: str) -> bool:
    """Return whether the identity was created on another machine.

    Args:
        device: the device directory.
        device_id: the device's id.
    """
    try:
        recorded = (device.root / FILE_NAME).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return False
    digest = _machine_digest(device_id)
    return digest is not None and recorded != digest


def _machine_digest(device_id: str) -> str | None:
    try:
        machine_id = MACHINE_ID_PATH.read_bytes().strip()
    except OSError:
        return None
    if not machine_id or machine_id == b"uninitialized":
        return None
    # the id of a machine is confidential: the digest also depends on the device
    return hashlib.sha256(LABEL + device_id.encode() + b"\0" + machine_id).hexdigest()
