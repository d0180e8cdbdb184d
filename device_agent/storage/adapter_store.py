"""The personal adapter of a family: its record and its sealed file.

adapter/adapter.json      the record
adapter/<sha256>.sealed   the adapter and its golden outputs, sealed under the storage key
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bundle import strict_json
from bundle.contract import PPM
from bundle.errors import Malformed
from bundle.files import BundleDigest
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject
from device_agent.errors import AdapterMissing
from device_agent.storage.bundle_store import write_durably
from device_agent.storage.device_directory import DeviceDirectory

MAX_ADAPTER_BYTES: Final = 1 << 30
DEFAULT_TOLERANCE_PPM: Final = 100_000

SCHEMA: Final = "airweights.adapter/1"
ADAPTER_DIRECTORY_NAME: Final = "adapter"
RECORD_FILE_NAME: Final = "adapter.json"
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_KNOWN_BUNDLES: Final = 32


@dataclass(frozen=True, slots=True)
class Adapter:
    """The record of an adapter.

    Attributes:
        name: name of the file that the user attached.
        sha256: digest of its content, hexadecimal.
        size: bytes of its content.
        tolerance_ppm: allowed relative RMS error of the golden outputs with the adapter, in parts per million.
        is_enabled: False after `detach`: the adapter stays stored and is attached to no bundle.
        check_results: whether the adapter check passed, by bundle digest; the last MAX_KNOWN_BUNDLES.
    """

    name: str
    sha256: str
    size: int
    tolerance_ppm: int
    is_enabled: bool = True
    check_results: dict[BundleDigest, bool] = field(default_factory=dict)

    def is_attached_to(self, digest: BundleDigest) -> bool:
        """Return whether the model of this bundle is loaded with the adapter."""
        return self.is_enabled and self.check_results.get(digest, False)

    def with_check_result(self, digest: BundleDigest, *, is_compatible: bool) -> "Adapter":
        """Return a copy with the result of an adapter check.

        Args:
            digest: digest of the bundle.
            is_compatible: whether the check passed.
        """
        known = {**{d: found for d, found in self.check_results.items() if d != digest}, digest: is_compatible}
        return replace(self, check_results=dict(list(known.items())[-MAX_KNOWN_BUNDLES:]))

    def as_json(self) -> dict[str, JSON]:
        """Return the content of adapter.json."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "sha256": self.sha256,
            "size": self.size,
            "tolerance_ppm": self.tolerance_ppm,
            "is_wanted": self.is_enabled,
            "fits": [d for d, found in self.check_results.items() if found],
            "misfits": [d for d, found in self.check_results.items() if not found],
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Adapter":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        fields.choice("schema", (SCHEMA,))
        good, bad = (
            fields.texts(name, SHA256_HEX_PATTERN, max_items=MAX_KNOWN_BUNDLES) for name in ("fits", "misfits")
        )
        out = cls(
            fields.text("name", max_length=256),
            fields.text("sha256", SHA256_HEX_PATTERN),
            fields.integer("size", 1, MAX_ADAPTER_BYTES),
            fields.integer("tolerance_ppm", 0, PPM),
            fields.flag("is_wanted"),
            {**{BundleDigest(d): False for d in bad}, **{BundleDigest(d): True for d in good}},
        )
        fields.reject_unknown()
        return out


class AdapterStore:
    """The directory `adapter/` of one family."""

    def __init__(self, device: DeviceDirectory) -> None:
        self._folder = device.family_directory / ADAPTER_DIRECTORY_NAME

    def read(self) -> Adapter | None:
        """Return the adapter, or None if none is stored or its record is damaged: the model serves without it."""
        with suppress(FileNotFoundError, Malformed):
            data = (self._folder / RECORD_FILE_NAME).read_bytes()
            return Adapter.parse(
                StrictObject(
                    strict_json.decode(data, what=RECORD_FILE_NAME, max_bytes=MAX_RECORD_BYTES), RECORD_FILE_NAME
                )
            )
        return None

    def find_attached(self, digest: BundleDigest) -> Adapter | None:
        """Return the adapter if it is attached to this bundle, else None."""
        adapter = self.read()
        return adapter if adapter is not None and adapter.is_attached_to(digest) else None

    def write(self, adapter: Adapter) -> None:
        """Replace the record, and delete all sealed files except the one that it names."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._folder / RECORD_FILE_NAME, strict_json.encode(adapter.as_json()))
        for path in self._folder.glob("*.sealed*"):
            if path != self.sealed_path(adapter.sha256):
                path.unlink(missing_ok=True)

    def sealed_path(self, sha256: str) -> Path:
        """Return the path of the sealed file with this digest."""
        return self._folder / f"{sha256}.sealed"

    def incoming_path(self) -> Path:
        """Return the path for a sealed file whose digest is not known yet."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder / "incoming.sealed.new"

    def detach(self) -> Adapter:
        """Disable the adapter; it stays stored.

        Raises:
            AdapterMissing: no adapter is stored.
        """
        adapter = self.read()
        if adapter is None:
            raise AdapterMissing("no adapter is stored", hint="attach one with `device-agent adapter attach FILE`")
        self.write(replace(adapter, is_enabled=False))
        return replace(adapter, is_enabled=False)

    def as_listing(self, digest: BundleDigest | None) -> dict[str, Any]:
        """Return the object that `adapter list` prints; `digest` is the active bundle's or None."""
        adapter = self.read()
        rows = []
        if adapter is not None:
            state = "attached" if digest is not None and adapter.is_attached_to(digest) else "kept"
            rows.append(
                {
                    "name": adapter.name,
                    "sha256": adapter.sha256,
                    "bytes": adapter.size,
                    "tolerance_ppm": adapter.tolerance_ppm,
                    "state": state,
                    "enabled": adapter.is_enabled,
                    "compatible_with_active": None if digest is None else adapter.check_results.get(digest),
                }
            )
        return {"adapters": rows}
