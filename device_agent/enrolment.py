"""First use: the device directory is made, with the shipped root and an identity of its own."""

import os
import re
from pathlib import Path

from device_agent.device import DeviceDirectory, PublicIdentity
from device_agent.errors import AlreadyInitialised, ConfigInvalid
from device_agent.identity import check_root, create_identity
from device_agent.store import Store, sync_folder, write_durably


def initialise(device: DeviceDirectory, shipped_root: Path, label: str) -> PublicIdentity:
    """Make the directory.

    Args:
        shipped_root: root metadata as the publisher hands it out; the first trust of the device.
        label: what people call the device.

    Raises:
        AlreadyInitialised, ConfigInvalid; nothing is left behind then.
    """
    if device.identity.exists():
        raise AlreadyInitialised(f"{device.identity} exists", remedy="remove the device directory to start over")
    root = check_root(shipped_root)
    try:
        device.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        device.trust.mkdir(mode=0o700, exist_ok=True)
        write_durably(device.shipped_root, root)
        Store(device.root)
        sync_folder(device.root)
    except OSError as error:
        raise ConfigInvalid(
            f"{device.root}: {error.strerror}", remedy="name another folder with --directory"
        ) from error
    return create_identity(device, label)


def default_label() -> str:
    """The host's name, as far as it is a plain name."""
    plain = re.sub(r"[^a-z0-9-]+", "-", os.uname().nodename.partition(".")[0].lower()).strip("-")
    return plain[:64].strip("-") or "device"
