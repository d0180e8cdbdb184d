"""The device registry: which devices there are, by their keys. It stays with the release team; its digest is signed.

Rules:
1. A text file, one canonical JSON object a line, sorted by device id; its digest is the SHA-256 of the file.
2. A label belongs to one pair of keys for good: the same label with other keys is refused, the same request again is
   not an error and changes nothing.
3. A device is admitted only with its fingerprint confirmed, or from a list that an enrollment key signed.
4. A revoked device stays in the registry, so that its keys never come back under another label.
"""

import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.enrollment import EnrollmentRequest, derive_device_id
from bundle.errors import EnrollmentRefused, Refused
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject
from keys.errors import DeviceUnknown, FingerprintMismatch, RegistryDamaged

MAX_LINE_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes:
        device_id: bundle.enrollment rule 1.
        label: unique among all devices, revoked ones included.
        cohort: that it belongs to.
        x_wing_public, ed25519_public: its keys.
        attributes: as in its request.
        is_revoked: absent from the next epoch.
    """

    device_id: str
    label: str
    cohort: str
    x_wing_public: bytes
    ed25519_public: bytes
    attributes: tuple[tuple[str, str], ...] = ()
    is_revoked: bool = False

    def as_json(self) -> dict[str, JSON]:
        """The device's line."""
        return {
            "device_id": self.device_id,
            "label": self.label,
            "cohort": self.cohort,
            "x_wing_public": self.x_wing_public.hex(),
            "ed25519_public": self.ed25519_public.hex(),
            "attributes": dict(self.attributes),
            "revoked": self.is_revoked,
        }

    @classmethod
    def parse(cls, line: bytes, where: str) -> "Device":
        """Inverse of `as_json`. Raises MalformedRefused, TooLargeRefused."""
        fields = StrictObject(strict_json.decode(line, what=where, max_bytes=MAX_LINE_BYTES), where)
        attributes = fields.object("attributes")
        out = cls(
            device_id=fields.text("device_id", SHA256_HEX_PATTERN),
            label=fields.text("label", NAME_PATTERN),
            cohort=fields.text("cohort", NAME_PATTERN),
            x_wing_public=_parse_hex(fields.text("x_wing_public", max_length=4096), where),
            ed25519_public=_parse_hex(fields.text("ed25519_public"), where),
            attributes=tuple((name, attributes.text(name)) for name in sorted(attributes.remaining_names())),
            is_revoked=fields.flag("revoked"),
        )
        fields.reject_unknown()
        if derive_device_id(out.x_wing_public, out.ed25519_public) != out.device_id:
            raise RegistryDamaged(f"{where}: device id {out.device_id[:16]}… is not that of its keys")
        return out


class Registry:
    """The registry file, held in memory.

    Args:
        path: of the file; a missing one is an empty registry.

    Raises:
        RegistryDamaged: a line that is not a device's, out of order, or twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._devices: dict[str, Device] = {}
        self._labels: dict[str, str] = {}
        for device in _read_devices(path):
            if device.device_id in self._devices or device.label in self._labels:
                raise RegistryDamaged(f"{path}: device {device.label!r} is there twice")
            self._add(device)

    def __len__(self) -> int:
        return len(self._devices)

    def devices(self) -> Iterator[Device]:
        """All, sorted by device id."""
        return (self._devices[key] for key in sorted(self._devices))

    def members(self, cohort: str) -> tuple[Device, ...]:
        """Those of a cohort that are not revoked."""
        return tuple(device for device in self.devices() if device.cohort == cohort and not device.is_revoked)

    def find(self, label_or_id: str) -> Device:
        """By label, or by id. Raises DeviceUnknown."""
        found = self._devices.get(self._labels.get(label_or_id, label_or_id))
        if found is None:
            raise DeviceUnknown(f"no device {label_or_id!r} in {self.path}", hint="`packager device list` shows all")
        return found

    def digest(self) -> str:
        """SHA-256 of the file (rule 1), hexadecimal."""
        out = hashlib.sha256()
        for device in self.devices():
            out.update(strict_json.encode(device.as_json()) + b"\n")
        return out.hexdigest()

    def enroll(self, request: EnrollmentRequest, cohort: str, fingerprint: str) -> Device:
        """Add a device whose fingerprint a person confirmed (rules 2 and 3).

        Raises:
            FingerprintMismatch, EnrollmentRefused.
        """
        confirmed = "".join(fingerprint.split()).lower()
        if not hmac.compare_digest(confirmed.encode(), request.fingerprint.replace(" ", "").encode()):
            raise FingerprintMismatch(
                f"the request of {request.label!r} has fingerprint {request.fingerprint}, confirmed was {fingerprint}",
                hint="compare with what `device-agent enroll` shows on the device itself",
            )
        return self.enroll_confirmed(request, cohort)

    def enroll_confirmed(self, request: EnrollmentRequest, cohort: str) -> Device:
        """Add a device from a list whose signature was checked. Raises EnrollmentRefused."""
        known = self._devices.get(request.device_id)
        if known is not None and known.is_revoked:
            raise EnrollmentRefused(
                f"device {known.label!r} was revoked; its keys are not admitted again",
                hint="make a new identity on the device: `device-agent init`",
            )
        if known is not None and known.label != request.label:
            raise EnrollmentRefused(f"the keys of {request.label!r} are registered as {known.label!r}")
        if known is not None:
            return known
        if request.label in self._labels:
            raise EnrollmentRefused(
                f"label {request.label!r} is registered with other keys",
                hint="choose another label; a label is never given to other keys",
            )
        device = Device(
            request.device_id,
            request.label,
            cohort,
            request.x_wing_public,
            request.ed25519_public,
            request.attributes,
        )
        self._add(device)
        return device

    def revoke(self, label_or_id: str) -> Device:
        """Mark a device (rule 4). Raises DeviceUnknown."""
        device = replace(self.find(label_or_id), is_revoked=True)
        self._add(device)
        return device

    def save(self) -> None:
        """Write the file whole, atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".registry-")
        try:
            with open(descriptor, "wb") as file:
                for device in self.devices():
                    file.write(strict_json.encode(device.as_json()) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _add(self, device: Device) -> None:
        self._devices[device.device_id] = device
        self._labels[device.label] = device.device_id


def cohorts_of(devices: Iterable[Device]) -> dict[str, int]:
    """How many devices that are not revoked each cohort has."""
    out: dict[str, int] = {}
    for device in devices:
        out[device.cohort] = out.get(device.cohort, 0) + (not device.is_revoked)
    return out


def _read_devices(path: Path) -> Iterator[Device]:
    if not path.exists():
        return
    before = ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            try:
                device = Device.parse(line.removesuffix(b"\n"), where)
            except Refused as error:
                raise RegistryDamaged(error.message) from error
            if device.device_id <= before:
                raise RegistryDamaged(f"{where}: device ids are not in order")
            before = device.device_id
            yield device


def _parse_hex(text: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise RegistryDamaged(f"{where}: a key is not hexadecimal") from error
