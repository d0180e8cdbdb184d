"""First use: the device directory is made, with the shipped root and an identity of its own."""

import os
import re
from pathlib import Path

from device_agent.config.config import Config
from device_agent.config.key_storage import FILE
from device_agent.errors import ConfigInvalid
from device_agent.identity.device_keys import check_root, counter_behind_the_floor, create_identity, home_of_keys
from device_agent.identity.device_keys import reseal as move_keys
from device_agent.policy.journal_records import Witness
from device_agent.storage.bundle_store import Store, sync_folder, write_durably
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal


def initialise(device: DeviceDirectory, shipped_root: Path, label: str, home: str = FILE) -> PublicIdentity:
    """Make the directory.

    Args:
        shipped_root: root metadata as the publisher hands it out; the first trust of the device.
        label: what people call the device.
        home: of its keys (device_agent.config.key_storage).

    Raises:
        AlreadyInitialised, ConfigInvalid, TpmUnavailable, DeviceTokenUnavailable; there is no identity then.
    """
    device.check_uninitialised()
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
    public = create_identity(device, label, home)
    witness_from_here(device, home)
    return public


def witness_from_here(device: DeviceDirectory, home: str) -> None:
    """A TPM's counter may stand anywhere when a device begins with it: what counts is that it grows from here on."""
    counter = counter_behind_the_floor(home)
    if counter is None:
        return
    journal = Journal(device.journal)
    try:
        journal.witness_floor(Witness(counter))
    finally:
        journal.close()


def reseal(config: Config) -> None:
    """Bring the keys to the home that the configuration names. No daemon may run. Raises as `identity.reseal`; Busy."""
    device = DeviceDirectory(config.directory)
    device.check_initialised()
    with device.locked():
        had_counter = home_of_keys(device).startswith("tpm:")
        move_keys(device, config.identity)
        if not had_counter:
            witness_from_here(device, config.identity)


def default_label() -> str:
    """The host's name, as far as it is a plain name."""
    plain = re.sub(r"[^a-z0-9-]+", "-", os.uname().nodename.partition(".")[0].lower()).strip("-")
    return plain[:64].strip("-") or "device"
