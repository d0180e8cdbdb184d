"""The device registry: the enrolled devices and their public keys.

The registry stays with the release team; the fleet document signs its digest.

- It is a text file with one canonical JSON object per line, sorted by device id. Its digest is the SHA-256 of the file.
- A label belongs to one pair of keys forever: the same label with other keys is refused. Enrolling the same request
  again changes nothing and is not an error.
- A device is enrolled only if a person confirmed its fingerprint, or from a batch that an enrollment key signed.
- A revoked device stays in the registry, so that its keys cannot be enrolled again under another label.
"""

import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.enrollment import EnrollmentRequest, derive_device_id
from bundle.errors import EnrollmentRefused, Refused
from bundle.local_files import normalize_text
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject
from keys.errors import DeviceUnknown, FingerprintMismatch, RegistryDamaged

MAX_LINE_BYTES: Final = 16 * 1024
RESTORE_HINT: Final = "restore the registry from a backup"


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device, one line of the registry.

    Attributes:
        device_id: SHA-256 of its public keys, hexadecimal (bundle.enrollment).
        label: unique among all devices, revoked ones included.
        cohort: name of the cohort that it belongs to.
        x_wing_public, ed25519_public: its public keys, which open envelopes and sign reports.
        attributes: (name, value) pairs of its enrollment request, sorted by name.
        is_revoked: it gets no envelope for later epochs.
    """

    device_id: str
    label: str
    cohort: str
    x_wing_public: bytes
    ed25519_public: bytes
    attributes: tuple[tuple[str, str], ...] = ()
    is_revoked: bool = False

    def as_json(self) -> dict[str, JSON]:
        """Return the JSON object of the device's line in the file."""
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
        """Parse a line of the file.

        Args:
            line: one line, without its line end.
            where: file and line number, for error messages.

        Raises:
            Malformed, TooLarge: the line does not describe a device.
            RegistryDamaged: the keys are not hexadecimal, or the device id is not that of the keys.
        """
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
            raise RegistryDamaged(
                f"{where}: device id {out.device_id[:16]}… is not that of the device's keys", hint=RESTORE_HINT
            )
        return out


class Registry:
    """The registry, read into memory; `save` writes it back.

    Args:
        path: the registry file; a missing file is an empty registry.

    Raises:
        RegistryDamaged: a line does not describe a device, is out of order, or repeats a device id or label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._devices: dict[str, Device] = {}
        self._labels: dict[str, str] = {}
        for device in read_devices(path):
            if device.device_id in self._devices or device.label in self._labels:
                raise RegistryDamaged(f"{path}: device {device.label!r} is listed twice", hint=RESTORE_HINT)
            self._add(device)

    def __len__(self) -> int:
        return len(self._devices)

    def devices(self) -> Iterator[Device]:
        """Iterate over all devices, sorted by device id."""
        return (self._devices[key] for key in sorted(self._devices))

    def members(self, cohort: str) -> tuple[Device, ...]:
        """Return the devices of a cohort that are not revoked, sorted by device id."""
        return tuple(device for device in self.devices() if device.cohort == cohort and not device.is_revoked)

    def find(self, label_or_id: str) -> Device:
        """Find a device by its label or device id.

        Raises:
            DeviceUnknown: there is no such device.
        """
        found = self._devices.get(self._labels.get(label_or_id, label_or_id))
        if found is None:
            raise DeviceUnknown(
                f"no device {label_or_id!r} in {self.path}", hint="take a label from `packager device list`"
            )
        return found

    def digest(self) -> str:
        """Return the SHA-256 of the file that `save` writes, hexadecimal."""
        out = hashlib.sha256()
        for device in self.devices():
            out.update(strict_json.encode(device.as_json()) + b"\n")
        return out.hexdigest()

    def enroll(self, request: EnrollmentRequest, cohort: str, fingerprint: str) -> Device:
        """Add a device whose fingerprint a person confirmed.

        Args:
            request: the device's enrollment request, its proof verified.
            cohort: name of the cohort to add it to.
            fingerprint: as confirmed out of band; spaces and case do not matter.

        Returns:
            The device; if it was enrolled before, with its earlier cohort.

        Raises:
            FingerprintMismatch: the fingerprint is not the request's.
            EnrollmentRefused: the device was revoked, or the label or the keys are registered with other values.
        """
        confirmed = "".join(fingerprint.split()).lower()
        if not hmac.compare_digest(confirmed.encode(), request.fingerprint.replace(" ", "").encode()):
            raise FingerprintMismatch(
                f"the request of {request.label!r} has fingerprint {request.fingerprint}, confirmed: {fingerprint}",
                hint="compare it with the output of `device-agent enroll` on the device itself",
            )
        return self.enroll_confirmed(request, cohort)

    def enroll_confirmed(self, request: EnrollmentRequest, cohort: str) -> Device:
        """Add a device of a batch whose signature was verified.

        Args:
            request: the device's enrollment request, its proof verified.
            cohort: name of the cohort to add it to.

        Returns:
            The device; if it was enrolled before, with its earlier cohort.

        Raises:
            EnrollmentRefused: the device was revoked, or the label or the keys are registered with other values.
        """
        known = self._devices.get(request.device_id)
        if known is not None and known.is_revoked:
            raise EnrollmentRefused(
                f"device {known.label!r} was revoked; its keys cannot be enrolled again",
                hint="create a new identity on the device with `device-agent init`",
            )
        if known is not None and known.label != request.label:
            raise EnrollmentRefused(
                f"the keys of {request.label!r} are registered under label {known.label!r}",
                hint=f"run `device-agent relabel {known.label}` on the device, or create a new identity there with"
                " `device-agent init`",
            )
        if known is not None:
            return known
        if request.label in self._labels:
            raise EnrollmentRefused(
                f"label {request.label!r} is registered with other keys",
                hint="give the device another label with `device-agent relabel`; a label cannot move to other keys",
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
        """Mark a device as revoked; it stays in the registry.

        Raises:
            DeviceUnknown: there is no device with this label or id.
        """
        device = replace(self.find(label_or_id), is_revoked=True)
        self._add(device)
        return device

    def save(self) -> None:
        """Write the whole file atomically, synced."""
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


def read_devices(path: Path) -> Iterator[Device]:
    """Iterate over the devices of a registry file, without reading all of it into memory.

    Raises:
        RegistryDamaged: a line does not describe a device, or is out of order.
    """
    if not path.exists():
        return
    before = ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            if number == 1:
                line = normalize_text(line, where=str(path))  # an editor can add a byte order mark
            try:
                device = Device.parse(line.rstrip(b"\r\n"), where)
            except Refused as error:
                raise RegistryDamaged(error.message, hint=RESTORE_HINT) from error
            if device.device_id <= before:
                raise RegistryDamaged(f"{where}: the lines are not sorted by device id", hint=RESTORE_HINT)
            before = device.device_id
            yield device


def _parse_hex(text: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise RegistryDamaged(f"{where}: a key is not hexadecimal", hint=RESTORE_HINT) from error
