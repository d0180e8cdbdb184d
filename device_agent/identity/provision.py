"""Initialize a device with the shipped root and an identity; move its keys later."""

import os
import re
from pathlib import Path

from device_agent.config.config import Config
from device_agent.config.key_storage import FILE_STORAGE
from device_agent.errors import ConfigInvalid
from device_agent.identity.device_keys import create_identity, current_key_storage, read_shipped_root, read_tpm_counter
from device_agent.identity.device_keys import move_keys as move_keys
from device_agent.policy.journal_records import TpmCounterRecord
from device_agent.storage.bundle_store import BundleStore, sync_directory, write_durably
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal


def initialize_device(
    device: DeviceDirectory, shipped_root: Path, label: str, key_storage: str = FILE_STORAGE
) -> PublicIdentity:
    """Create the device directory and the identity.

    Args:
        device: the directory to create.
        shipped_root: file with the root metadata that the publisher hands out; the device's first trust.
        label: a name for people.
        key_storage: URI of the key storage (device_agent.config.key_storage).

    Raises:
        AlreadyInitialized: the device has an identity.
        ConfigInvalid: the root or the label is invalid, or the directory cannot be created.
        TpmUnavailable, DeviceTokenUnavailable: the key storage cannot be used; no identity was created.
    """
    device.check_uninitialized()
    root = read_shipped_root(shipped_root)
    try:
        device.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        device.trust_directory.mkdir(mode=0o700, exist_ok=True)
        write_durably(device.shipped_root_path, root)
        BundleStore(device.root)
        sync_directory(device.root)
    except OSError as error:
        raise ConfigInvalid(
            f"{device.root}: {error.strerror}", hint="choose another folder with --directory"
        ) from error
    public = create_identity(device, label, key_storage)
    record_initial_tpm_counter(device, key_storage)
    return public


def record_initial_tpm_counter(device: DeviceDirectory, key_storage: str) -> None:
    """Record the current value of the TPM counter, if there is one, in the journal.

    A TPM's counter can have any value when a device starts to use it. Only later growth matters.

    Args:
        device: the device directory.
        key_storage: URI of the key storage.

    Raises:
        TpmUnavailable: the TPM cannot be used.
    """
    counter = read_tpm_counter(key_storage)
    if counter is None:
        return
    journal = Journal(device.journal_path)
    try:
        journal.record_tpm_counter(TpmCounterRecord(counter))
    finally:
        journal.close()


def move_keys_to_configured_storage(config: Config) -> None:
    """Move the keys to the key storage that the configuration names. No daemon may be running.

    Raises:
        DeviceLocked: a daemon or another command uses the device directory.
        IdentityInvalid, TpmPolicyMismatch, TpmUnavailable, DeviceTokenUnavailable: as `device_keys.move_keys`.
    """
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    with device.acquire_lock():
        had_counter = current_key_storage(device).startswith("tpm:")
        move_keys(device, config.key_storage)
        if not had_counter:
            record_initial_tpm_counter(device, config.key_storage)


def default_label() -> str:
    """Return the host's name, reduced to a plain name; "device" if nothing is left of it."""
    plain = re.sub(r"[^a-z0-9-]+", "-", os.uname().nodename.partition(".")[0].lower()).strip("-")
    return plain[:64].strip("-") or "device"
