"""Initialize a device with the shipped root and an identity; change its label and move its keys later."""

from dataclasses import replace
from pathlib import Path

from device_agent.config.config import Config
from device_agent.config.key_storage import FILE_STORAGE
from device_agent.errors import AlreadyEnrolled, ConfigInvalid
from device_agent.identity.device_keys import create_identity, current_key_storage, read_shipped_root, read_tpm_counter
from device_agent.identity.device_keys import move_keys as move_keys
from device_agent.identity.label import check_label
from device_agent.policy.journal_records import TpmCounterRecord
from device_agent.storage.bundle_store import BundleStore, sync_directory, write_durably
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal, open_for_reading
from device_agent.storage.machine import record_machine


def initialize_device(
    device: DeviceDirectory, shipped_root: Path, label: str | None = None, key_storage: str = FILE_STORAGE
) -> PublicIdentity:
    """Create the device directory and the identity.

    Args:
        device: the directory to create.
        shipped_root: file with the root metadata that the publisher hands out; the device's first trust.
        label: a name for people; None for the default (device_agent.identity.label).
        key_storage: URI of the key storage (device_agent.config.key_storage).

    Raises:
        AlreadyInitialized: the device has an identity.
        ConfigInvalid: the root or the label is invalid, or the directory cannot be created.
        TpmUnavailable, DeviceTokenUnavailable: the key storage cannot be used; no identity was created.
    """
    prepare_device(device, shipped_root)
    return create_device_identity(device, label, key_storage)


def create_device_identity(
    device: DeviceDirectory, label: str | None = None, key_storage: str = FILE_STORAGE
) -> PublicIdentity:
    """Create the identity in a directory that `prepare_device` created, and record the machine.

    Args:
        device: the prepared directory.
        label: a name for people; None for the default (device_agent.identity.label).
        key_storage: URI of the key storage (device_agent.config.key_storage).

    Raises:
        AlreadyInitialized: the device has an identity.
        ConfigInvalid: the label is invalid.
        TpmUnavailable, DeviceTokenUnavailable: the key storage cannot be used; no identity was created.
    """
    public = create_identity(device, label, key_storage)
    record_machine(device, public.device_id)
    record_initial_tpm_counter(device, key_storage)
    return public


def prepare_device(device: DeviceDirectory, shipped_root: Path) -> None:
    """Create the device directory without an identity, as for the image of many devices.

    Args:
        device: the directory to create.
        shipped_root: file with the root metadata that the publisher hands out; the device's first trust.

    Raises:
        AlreadyInitialized: the device has an identity.
        ConfigInvalid: the root is invalid, or the directory cannot be created.
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


def relabel_device(config: Config, label: str) -> PublicIdentity:
    """Change the label of a device that is not enrolled; return its identity. No daemon may run.

    The registry keeps the label of a device's first request. An installed release proves that the device was enrolled.
    Before that the device cannot know: the registry then refuses a request with another label, and names the registered
    one.

    Args:
        config: the device's configuration.
        label: the new label.

    Raises:
        ConfigInvalid: the label is not a plain name.
        NotInitialized, IdentityInvalid: the device has no identity, or a damaged one.
        DeviceLocked: a daemon or another command uses the device directory.
        AlreadyEnrolled: a release is installed.
        JournalUnreadable: a family's journal cannot be read.
    """
    check_label(label)
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    with device.acquire_lock():
        old = device.read_public_identity()
        if old.label == label:
            return old
        for one in config.family_configs():
            with open_for_reading(DeviceDirectory.for_family(one)) as journal:
                if journal.bundles():
                    raise AlreadyEnrolled(
                        f"device {old.label!r} has releases of family {one.family!r}, so its label is registered",
                        hint="keep the label; a new label needs a new identity: `device-agent init` in another folder",
                    )
        new = replace(old, label=label)
        write_durably(device.identity_directory / "device.json", new.as_bytes(), 0o644)
    return new
