"""A personal adapter: an ONNX Runtime LoRA file that belongs to the device's user and not to any release.

    adapter/adapter.json    what is known of it; no content
    adapter/<sha256>.sealed the file and its golden answers, sealed under the storage key

Rules:
1. One adapter a family. It is attached to a bundle only where the golden-with-adapter check passed on it: the bundle's
   golden inputs, asked with the adapter, give what they gave when the user attached it, within a tolerance.
2. So an update keeps it, or loses it for as long as that release serves: it stays here and is back after a rollback, or
   with a later release that it fits.
3. The check runs in a jailed child, as every trial does: an adapter is bytes that somebody else wrote.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from bundle import strict_json
from bundle.contract import PPM
from bundle.errors import Bug, Malformed, Unavailable, Unfit
from bundle.files import BundleDigest
from bundle.manifest import Variant
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject
from device_agent.errors import AdapterIncompatible, AdapterMissing, WorkerCrashed
from device_agent.process.channel import Message
from device_agent.process.child import ChildProcess
from device_agent.process.jail import JailPolicy
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.probe_runner import PROBE_NICENESS
from device_agent.storage.bundle_store import write_durably
from device_agent.storage.device_directory import DeviceDirectory

SCHEMA: Final = "airweights.adapter/1"
ADAPTER_DIRECTORY_NAME: Final = "adapter"
RECORD_FILE_NAME: Final = "adapter.json"
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_ADAPTER_BYTES: Final = 1 << 30
DEFAULT_TOLERANCE_PPM: Final = 100_000
MAX_KNOWN_BUNDLES: Final = 32
PROBE_MODULE: Final = "device_agent.workers.probe"


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
                    "wanted": adapter.is_enabled,
                    "fits_active": None if digest is None else adapter.check_results.get(digest),
                }
            )
        return {"adapters": rows}


def with_adapter(fds: BundleFds, adapter_fd: int) -> BundleFds:
    """A bundle that is loaded with an adapter; the descriptor is the bundle's from here on."""
    return replace(fds, files={**fds.files, ADAPTER_DIRECTORY_NAME: adapter_fd}, adapter=ADAPTER_DIRECTORY_NAME)


def record_golden_answers(fds: BundleFds, variant: Variant, *, allow_unjailed: bool) -> int:
    """Ask a bundle's golden questions with its adapter.

    Args:
        fds: of `with_adapter`.

    Returns:
        a descriptor of golden vectors with the adapter's answers; the caller closes it.

    Raises:
        AdapterUnfit: it does not fit the model, or there are no golden questions.
    """
    return _call_probe(fds, variant, (), 0, allow_unjailed).fds[0]


def check_adapter(
    fds: BundleFds, golden_fd: int, tolerance_ppm: int, variant: Variant, *, allow_unjailed: bool
) -> None:
    """Rule 1.

    Args:
        fds: of `with_adapter`.
        golden_fd: of `golden_answers`, from the bundle that the adapter was attached to.

    Raises:
        AdapterUnfit: it does not pass.
        Unavailable: nothing was learned.
    """
    _call_probe(fds, variant, (golden_fd,), tolerance_ppm, allow_unjailed)


def _call_probe(
    fds: BundleFds, variant: Variant, golden: tuple[int, ...], tolerance_ppm: int, allow_unjailed: bool
) -> Message:
    deadline_s = variant.health.probe_deadline_s
    jail = JailPolicy(nice=PROBE_NICENESS, cpu_s=4 * deadline_s + 60, allow_unjailed=allow_unjailed)
    value, files = fds.to_message()
    request = {"bundle": value, "tolerance_ppm": tolerance_ppm}
    try:
        with ChildProcess.start(PROBE_MODULE, jail) as child:
            return child.call("adapter", request, (*files, *golden), deadline_s=deadline_s)
    except WorkerCrashed as error:
        raise AdapterIncompatible(f"the trial with the adapter died: {error.message}") from error
    except (Bug, Unavailable):
        raise
    except (Unfit, Malformed) as error:
        raise AdapterIncompatible(f"the adapter does not fit this release: {error.message}") from error
