"""Enroll and revoke devices, and rotate cohort keys: the tasks of the fleet officer.

- Enrolling adds the device to the registry, stores one envelope with its cohort's current private key in a shard of
  envelopes, and stages the fleet document with the new registry digest, for the fleet officer to sign.
- Rotating a cohort key creates the next epoch's key pair, seals its private key to each device of the cohort that is
  not revoked, and stages the fleet document. Later releases seal their content keys to the new epoch; earlier releases
  are not sealed again.
- A batch is enrolled completely or not at all.
- Revoking marks the device. It loses access at the cohort's next epoch, which the fleet officer starts.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.enrollment import EnrollmentRequest, parse_enrollment
from bundle.fleet import Cohort
from bundle.frames import Secret
from bundle.repository_paths import envelope_name
from keys.cohorts import create_next_epoch, load_private_key, seal_epoch
from keys.errors import CohortUnknown
from keys.registry import Device, Registry
from packager.repository.cohort_shards import CohortShards
from packager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class RotationReport:
    """The result of a key rotation.

    Attributes:
        cohort: name of the cohort.
        epoch: number of the new key pair.
        envelopes: number of envelopes written, one per device.
    """

    cohort: str
    epoch: int
    envelopes: int

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {"cohort": self.cohort, "epoch": self.epoch, "envelopes": self.envelopes}


def enroll_device(
    repository: Repository,
    request: bytes,
    fingerprint: str,
    cohort: str,
    key_dir: Path,
    passphrase: Secret | None,
) -> Device:
    """Enroll one device whose fingerprint a person confirmed, and stage the fleet document.

    Args:
        repository: the repository whose registry gets the device.
        request: content of the enrollment request file.
        fingerprint: as confirmed out of band.
        cohort: name of the cohort to add the device to.
        key_dir: the fleet officer's key folder, with the cohort's private key.
        passphrase: opens that key file.

    Raises:
        FingerprintMismatch: the fingerprint is not the request's.
        EnrollmentRefused: the request does not prove its keys, or its label or keys are registered with other values.
        Malformed, TooLarge: the request is not an enrollment request.
        CohortUnknown: there is no such cohort, or its private key is missing.
        WrongPassphrase, KeyDamaged, KeyUnreadable: the key file cannot be opened.
    """
    parsed = parse_enrollment(request)
    listed = _find_cohort(repository, cohort)
    registry = Registry(repository.registry_path)
    device = registry.enroll(parsed, cohort, fingerprint)
    private = load_private_key(key_dir, listed, passphrase)
    shards = _open_shards(repository, listed, [device.x_wing_public], is_synced=True)
    seal_epoch(private, listed, repository.repository_id, [device.x_wing_public], shards.add)
    changed = shards.close()
    registry.save()
    repository.stage_cohort(changed)
    return device


def enroll_batch(
    repository: Repository,
    requests: Sequence[EnrollmentRequest],
    cohort: str,
    key_dir: Path,
    passphrase: Secret | None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:
    """Enroll all devices of a verified batch, and stage the fleet document.

    Args:
        repository: the repository whose registry gets the devices.
        requests: the requests of a batch whose signature was verified (keys.enrollment_batch).
        cohort: name of the cohort to add the devices to.
        key_dir: the fleet officer's key folder, with the cohort's private key.
        passphrase: opens that key file.
        workers: number of processes that seal.
        progress: called with (devices done, devices in total).

    Returns:
        The number of devices that were not enrolled before.

    Raises:
        EnrollmentRefused: a label or key of the batch is registered with other values; then no device is enrolled.
        CohortUnknown: there is no such cohort, or its private key is missing.
        WrongPassphrase, KeyDamaged, KeyUnreadable: the key file cannot be opened.
    """
    listed = _find_cohort(repository, cohort)
    private = load_private_key(key_dir, listed, passphrase)
    registry = Registry(repository.registry_path)
    before = len(registry)
    devices = [registry.enroll_confirmed(request, cohort).x_wing_public for request in requests]
    shards = _open_shards(repository, listed, devices, is_synced=False)
    seal_epoch(private, listed, repository.repository_id, devices, shards.add, workers=workers, progress=progress)
    changed = shards.close()
    os.sync()
    registry.save()
    repository.stage_cohort(changed)
    return len(registry) - before


def rotate_cohort_key(
    repository: Repository,
    cohort: str,
    key_dir: Path,
    passphrase: Secret | None,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    insecure_plaintext: bool = False,
) -> RotationReport:
    """Start a cohort's next epoch, or a new cohort, and stage the fleet document.

    Args:
        repository: the repository of the cohort.
        cohort: name of the cohort; an unknown name creates a cohort with epoch 1.
        key_dir: the fleet officer's key folder.
        passphrase: encrypts the new private key; None only with `insecure_plaintext`.
        workers: number of processes that seal.
        progress: called with (devices done, devices in total).
        insecure_plaintext: write the key file without encryption.

    Raises:
        KeyExists: a key file of the next epoch exists.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
        StagingInvalid: the repository has no fleet document.
        RepositoryMissing: nothing is published yet.
    """
    repository_id, fleet = repository.repository_id, repository.fleet()  # both may raise: read before a key is created
    registry = Registry(repository.registry_path)
    current = create_next_epoch(
        key_dir, cohort, fleet.cohort(cohort), passphrase, insecure_plaintext=insecure_plaintext
    )
    private = load_private_key(key_dir, current, passphrase)
    devices = [device.x_wing_public for device in registry.members(cohort)]
    shards = _open_shards(repository, current, devices, is_new=True, is_synced=False)
    made = seal_epoch(private, current, repository_id, devices, shards.add, workers=workers, progress=progress)
    changed = shards.close()
    os.sync()
    repository.stage_cohort(changed)
    return RotationReport(cohort, current.epoch, made)


def revoke_device(repository: Repository, label_or_id: str) -> Device:
    """Mark a device as revoked, and stage the fleet document.

    Args:
        repository: the repository of the device.
        label_or_id: the device's label or id.

    Raises:
        DeviceUnknown: the registry has no such device.
    """
    registry = Registry(repository.registry_path)
    device = registry.revoke(label_or_id)
    registry.save()
    repository.stage_registry()
    return device


def _open_shards(
    repository: Repository, cohort: Cohort, devices: Sequence[bytes], *, is_new: bool = False, is_synced: bool
) -> CohortShards:
    names = [envelope_name(public, cohort.epoch) for public in devices]
    return CohortShards(repository, cohort, names, is_new=is_new, is_synced=is_synced)


def _find_cohort(repository: Repository, name: str) -> Cohort:
    fleet = repository.fleet()
    found = fleet.cohort(name)
    if found is None:
        known = ", ".join(cohort.name for cohort in fleet.cohorts) or "none"
        raise CohortUnknown(
            f"no cohort {name!r}, existing cohorts: {known}", hint="create it with `packager device rotate-cohort`"
        )
    return found
