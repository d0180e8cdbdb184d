"""Devices that sign reports and vitals, and a registry of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.device_report import DeviceReport
from bundle.enrollment import derive_device_id
from bundle.key_sizes import PUBLIC_BYTES
from bundle.vital import Vital
from fleet.database import Database
from fleet.device_index import fill_devices
from keys.registry import Device, Registry
from tests.support.device_reports import REPOSITORY, make_report, make_vital


class SigningDevice:
    """A device with a key and one log of reports and vitals.

    Args:
        name: its label; the keys follow from it.
        cohort: its cohort.
    """

    def __init__(self, name: str, cohort: str = "default") -> None:
        seed = hashlib.sha256(name.encode()).digest()
        self.label, self.cohort, self.log = name, cohort, seed.hex()[:32]
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.ed25519_public = self.private.public_key().public_bytes_raw()
        self.x_wing_public = (seed * (PUBLIC_BYTES // 32 + 1))[:PUBLIC_BYTES]
        self.device_id = derive_device_id(self.x_wing_public, self.ed25519_public)
        self.reports: list[DeviceReport] = []
        self.vitals = 0

    def registered(self, *, is_revoked: bool = False) -> Device:
        """Return the device's row of the registry."""
        keys = (self.x_wing_public, self.ed25519_public)
        return Device(self.device_id, self.label, self.cohort, *keys, is_revoked=is_revoked)

    def sign(self, content: DeviceReport | Vital) -> bytes:
        """Return the signed line of a report or vital."""
        return content.encode(self.device_id, self.private.sign(content.signed_bytes(self.device_id)))

    def report(self, **changes: Any) -> bytes:
        """Return the signed line of the next report of the log, with some fields changed."""
        before = self.reports[-1] if self.reports else None
        place = {
            "log": self.log,
            "sequence": 1 if before is None else before.sequence + 1,
            "previous": None if before is None else before.digest(),
        }
        self.reports.append(make_report(**(place | changes)))
        return self.sign(self.reports[-1])

    def vital(self, **changes: Any) -> bytes:
        """Return the signed line of the next vital of the log, with some fields changed."""
        self.vitals += 1
        place = {"log": self.log, "number": self.vitals, "reports": len(self.reports)}
        return self.sign(make_vital(**(place | changes)))

    def copy_of_disk(self) -> "SigningDevice":
        """Return a clone: a device with the same keys and the same log so far."""
        clone = SigningDevice(self.label, self.cohort)
        clone.reports, clone.vitals = list(self.reports), self.vitals
        return clone


def write_registry(path: Path, devices: Sequence[Device]) -> str:
    """Write a registry and return its digest.

    Args:
        path: the file.
        devices: its devices, in any order.
    """
    registry = Registry(path.with_name("no registry"))
    registry.path = path
    for device in devices:
        registry._add(device)  # the tests need no enrollment requests
    registry.save()
    return registry.digest()


def open_store(folder: Path, devices: Sequence[SigningDevice], url: str | None = None) -> Database:
    """Open a store that knows some devices.

    Args:
        folder: gets the registry, and the store unless `url` is given.
        devices: the devices.
        url: URL of the store.
    """
    digest = write_registry(folder / "registry.jsonl", [device.registered() for device in devices])
    database = Database(url or f"sqlite:{folder / 'fleet.db'}", REPOSITORY)
    fill_devices(database, folder / "registry.jsonl", digest)
    return database


def with_revoked(device: SigningDevice) -> Device:
    """Return the row of a revoked device."""
    return replace(device.registered(), is_revoked=True)
