"""The personal adapter of a family: its record and its sealed file.

adapter/adapter.json    the record; no content
adapter/<sha256>.sealed the file and its golden outputs, sealed under the storage key
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
    """What is known of the adapter.

    Attributes:
        name: of the file that it came as.
        sha256, size: of its content.
        tolerance_ppm: of rule 1.
        is_wanted: False after `detach`: kept, and attached to nothing.
        fits: by bundle digest, whether the check passed; the last MAX_KNOWN_BUNDLES.
    """

    name: str
    sha256: str
    size: int
    tolerance_ppm: int
    is_enabled: bool = True
    check_results: dict[BundleDigest, bool] = field(default_factory=dict)

    def is_attached_to(self, digest: BundleDigest) -> bool:
        """Rule 1."""
        return self.is_enabled and self.check_results.get(digest, False)

    def with_check_result(self, digest: BundleDigest, *, is_compatible: bool) -> "Adapter":
        """With the outcome of a check."""
        known = {**{d: found for d, found in self.check_results.items() if d != digest}, digest: is_compatible}
        return replace(self, check_results=dict(list(known.items())[-MAX_KNOWN_BUNDLES:]))

    def as_json(self) -> dict[str, JSON]:
        """The record."""
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
        """Inverse of `as_json`. Raises MalformedRefused."""
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
    """The folder `adapter/` of a family's part of a device directory."""

    def __init__(self, device: DeviceDirectory) -> None:
        self._folder = device.family_directory / ADAPTER_DIRECTORY_NAME

    def read(self) -> Adapter | None:
        """What lies here; None where nothing does, or its record is damaged: a model serves without it then."""
        with suppress(FileNotFoundError, Malformed):
            data = (self._folder / RECORD_FILE_NAME).read_bytes()
            return Adapter.parse(
                StrictObject(
                    strict_json.decode(data, what=RECORD_FILE_NAME, max_bytes=MAX_RECORD_BYTES), RECORD_FILE_NAME
                )
            )
        return None

    def find_attached(self, digest: BundleDigest) -> Adapter | None:
        """The adapter, where it is attached to this bundle."""
        adapter = self.read()
        return adapter if adapter is not None and adapter.is_attached_to(digest) else None

    def write(self, adapter: Adapter) -> None:
        """Replace the record; sealed files that it does not name go."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._folder / RECORD_FILE_NAME, strict_json.encode(adapter.as_json()))
        for path in self._folder.glob("*.sealed*"):
            if path != self.sealed_path(adapter.sha256):
                path.unlink(missing_ok=True)

    def sealed_path(self, sha256: str) -> Path:
        """Where the content lies."""
        return self._folder / f"{sha256}.sealed"

    def incoming_path(self) -> Path:
        """Where a content is written to, before its name is known."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return self._folder / "incoming.sealed.new"

    def detach(self) -> Adapter:
        """Keep it and attach it to nothing. Raises NoAdapter."""
        adapter = self.read()
        if adapter is None:
            raise AdapterMissing("no adapter is held", hint="`device-agent adapter attach FILE` brings one")
        self.write(replace(adapter, is_enabled=False))
        return replace(adapter, is_enabled=False)

    def as_listing(self, digest: BundleDigest | None) -> dict[str, Any]:
        """For `adapter list`; `digest` of the active bundle."""
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
