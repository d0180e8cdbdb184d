"""Devices and cohorts of a repository: what the fleet officer does.

Rules:
1. Admitting a device: the registry learns it, one envelope with its cohort's current key is put in place, and the fleet
   document with the new registry digest is staged. It is the officer's to sign.
2. A new epoch: a new key pair, an envelope for every device of the cohort that is not revoked, the fleet document
   staged. Content keys of later releases are sealed to it; those of earlier ones are not sealed again.
3. A factory's list is admitted like its devices one by one, but whole or not at all.
4. Revoking marks the device; it loses access with the next epoch, which the officer begins.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.enrollment import EnrollmentRequest, parse_enrollment
from bundle.fleet import Cohort
from bundle.frames import Secret
from keys.cohorts import create_next_epoch, load_private_key, seal_epoch
from keys.errors import CohortUnknown
from keys.registry import Device, Registry
from packager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class RotationReport:
    """A new epoch: its number and how many envelopes were made."""

    cohort: str
    epoch: int
    envelopes: int

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"cohort": self.cohort, "epoch": self.epoch, "envelopes": self.envelopes}


def enroll_device(
    repository: Repository,
    request: bytes,
    fingerprint: str,
    cohort: str,
    key_dir: Path,
    passphrase: Secret | None,
) -> Device:
    """Rule 1.

    Args:
        repository: whose registry it is.
        request: content of the request file.
        fingerprint: as it was confirmed out of band.
        cohort: to admit the device to.
        key_dir: the officer's key folder, with the cohort's private half.
        passphrase: of that key file.

    Raises:
        FingerprintMismatch, CohortUnknown, EnrollmentRefused, MalformedRefused, and errors of key files.
    """
    parsed = parse_enrollment(request)
    listed = _find_cohort(repository, cohort)
    registry = Registry(repository.registry_path)
    device = registry.enroll(parsed, cohort, fingerprint)
    private = load_private_key(key_dir, listed, passphrase)
    seal_epoch(private, listed, repository.repository_id, [device.x_wing_public], repository.put_envelope)
    registry.save()
    repository.stage_registry()
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
    """Rule 3. Returns how many devices are new.

    Args:
        repository: whose registry it is.
        requests: of a list whose signature was checked (keys.enrollment_batch).
        cohort, key_dir, passphrase: as `admit_device`.
        workers: processes that seal.
        progress: called with (done, total).

    Raises:
        EnrollmentRefused: a label or key of the list is registered otherwise; nothing is admitted then.
        CohortUnknown, and errors of key files.
    """
    listed = _find_cohort(repository, cohort)
    private = load_private_key(key_dir, listed, passphrase)
    registry = Registry(repository.registry_path)
    before = len(registry)
    devices = [registry.enroll_confirmed(request, cohort).x_wing_public for request in requests]
    seal_epoch(
        private,
        listed,
        repository.repository_id,
        devices,
        lambda relative, envelope: repository.put_envelope(relative, envelope, is_synced=False),
        workers=workers,
        progress=progress,
    )
    os.sync()
    registry.save()
    repository.stage_registry()
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
    """Rule 2; also makes a new cohort. Raises KeyExists, PlaintextKey, StagingInvalid."""
    repository_id, fleet = repository.repository_id, repository.fleet()  # before a key is made
    registry = Registry(repository.registry_path)
    current = create_next_epoch(
        key_dir, cohort, fleet.cohort(cohort), passphrase, insecure_plaintext=insecure_plaintext
    )
    private = load_private_key(key_dir, current, passphrase)
    devices = [device.x_wing_public for device in registry.members(cohort)]
    made = seal_epoch(
        private,
        current,
        repository_id,
        devices,
        lambda relative, envelope: repository.put_envelope(relative, envelope, is_synced=False),
        workers=workers,
        progress=progress,
    )
    os.sync()
    repository.stage_cohort(current)
    return RotationReport(cohort, current.epoch, made)


def revoke_device(repository: Repository, label_or_id: str) -> Device:
    """Rule 4. Raises DeviceUnknown."""
    registry = Registry(repository.registry_path)
    device = registry.revoke(label_or_id)
    registry.save()
    repository.stage_registry()
    return device


def _find_cohort(repository: Repository, name: str) -> Cohort:
    fleet = repository.fleet()
    found = fleet.cohort(name)
    if found is None:
        known = ", ".join(cohort.name for cohort in fleet.cohorts) or "none"
        raise CohortUnknown(f"no cohort {name!r}, found {known}", hint="`packager device epoch` begins one")
    return found
