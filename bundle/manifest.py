"""The manifest: the signed JSON that describes one release of a family.

Rules:
1. At most 256 KiB, read by the strict reader; the target `bundles/<family>/<version>.json` of the release role.
2. Everything on the wire is a patch: each variant names at least one patch, its `from` is a bundle digest or null (from
   nothing), and no two patches of a variant have the same `from` and codec.
3. The identity of a release is the digest of the canonical manifest without its `patches`: patches can be added later
   and nothing else can change.
4. Ratios are parts per million or percent, times and sizes have their unit in the name. No floats.
"""

import re
from dataclasses import dataclass, replace
from typing import Final

from bundle import strict_json
from bundle.contract import PPM, Contract, Health
from bundle.errors import Malformed
from bundle.files import MAX_FILE_BYTES, MAX_FILES, BundleDigest, BundleFile, bundle_digest, check_files, parse_files
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, TIMESTAMP_PATTERN, StrictObject

SCHEMA: Final = "airweights.manifest/1"
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_VARIANTS: Final = 32
MAX_PATCHES: Final = 64

NUMERIC_VERSION_PATTERN: Final = re.compile(r"(?:0|[1-9][0-9]{0,5})(?:\.(?:0|[1-9][0-9]{0,5})){0,3}")
FEATURE_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a device must have for a variant; an empty tuple or None asks nothing.

    Attributes:
        arch: `uname -m` names, one of them.
        cpu_features: Linux cpuinfo flags, all of them.
        onnxruntime_min: first version that loads it, inclusive.
        onnxruntime_below: first version that is no longer allowed, or None.
        memory_bytes: resident bytes while serving.
        storage_bytes: free bytes in the device's store.
    """

    arch: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    onnxruntime_min: str = "1.31"
    onnxruntime_below: str | None = None
    memory_bytes: int = 0
    storage_bytes: int = 0

    def as_json(self) -> dict[str, JSON]:
        """The `requires` object."""
        return {
            "arch": list(self.arch),
            "cpu_features": list(self.cpu_features),
            "onnxruntime_min": self.onnxruntime_min,
            "onnxruntime_below": self.onnxruntime_below,
            "memory_bytes": self.memory_bytes,
            "storage_bytes": self.storage_bytes,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Requirements":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(
            arch=fields.texts("arch", FEATURE_PATTERN, max_items=16),
            cpu_features=fields.texts("cpu_features", FEATURE_PATTERN, max_items=64),
            onnxruntime_min=fields.text("onnxruntime_min", NUMERIC_VERSION_PATTERN),
            onnxruntime_below=fields.optional_text("onnxruntime_below", NUMERIC_VERSION_PATTERN),
            memory_bytes=fields.integer("memory_bytes"),
            storage_bytes=fields.integer("storage_bytes"),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class PatchEntry:
    """One way to make the bundle.

    Attributes:
        base: digest of the bundle it starts from, or None (from nothing).
        codec: "zstd", "bsdiff4" or "typed" (docs/format.md, Patches).
        features: decoder features it needs beyond the base set.
        blob: SHA-256 of the ciphertext, which is also the blob's name.
        size: bytes of the ciphertext.
        plain_size: bytes of the patch inside.
        peak_memory: bytes that applying it takes at the most.
    """

    base: BundleDigest | None
    codec: str
    features: tuple[str, ...]
    blob: str
    size: int
    plain_size: int
    peak_memory: int

    def as_json(self) -> dict[str, JSON]:
        """An object of the `patches` list."""
        return {
            "from": self.base,
            "codec": self.codec,
            "features": list(self.features),
            "blob": self.blob,
            "size": self.size,
            "plain_size": self.plain_size,
            "peak_memory": self.peak_memory,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "PatchEntry":
        """Inverse of `as_json`. Raises MalformedRefused."""
        base = fields.optional_text("from", SHA256_HEX_PATTERN)
        out = cls(
            base=None if base is None else BundleDigest(base),
            codec=fields.text("codec", FEATURE_PATTERN),
            features=fields.texts("features", FEATURE_PATTERN, max_items=32),
            blob=fields.text("blob", SHA256_HEX_PATTERN),
            size=fields.integer("size", 1, MAX_FILE_BYTES),
            plain_size=fields.integer("plain_size", 1, MAX_FILE_BYTES),
            peak_memory=fields.integer("peak_memory"),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a variant's weights were made.

    Attributes:
        scheme: "none", or the quantizer's name for it, for example "int8-dynamic".
        stability: "exact" where every CPU gives the same integers, else what it depends on.
        calibration: SHA-256 of the calibration samples, or None.
        verdict: of the fidelity gate: "pass", or "none" where no gate applies.
        relative_rms_ppm: worst output's RMS error over spread against the float model, or None.
        top1_agreement_ppm: share of samples with the float model's top class, or None.
    """

    scheme: str = "none"
    stability: str = "exact"
    calibration: str | None = None
    verdict: str = "none"
    relative_rms_ppm: int | None = None
    top1_agreement_ppm: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """The `quantization` object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Quantization":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(
            scheme=fields.text("scheme", NAME_PATTERN),
            stability=fields.text("stability", max_length=64),
            calibration=fields.optional_text("calibration", SHA256_HEX_PATTERN),
            verdict=fields.choice("verdict", ("pass", "none", "overridden")),
            relative_rms_ppm=fields.optional_integer("relative_rms_ppm"),
            top1_agreement_ppm=fields.optional_integer("top1_agreement_ppm", 0, PPM),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class Variant:
    """One build of a release for a kind of device.

    Attributes:
        files: of the plain bundle, sorted by path.
        patches: ways to make it, sorted as published.
        key_commitment: of the content key (bundle.envelope).
        provenance: printable strings by name: source digest, tools and their versions, warnings.
    """

    requires: Requirements
    files: tuple[BundleFile, ...]
    patches: tuple[PatchEntry, ...]
    key_commitment: str
    contract: Contract
    health: Health
    quantization: Quantization
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> BundleDigest:
        """The bundle digest (bundle.files rule 3)."""
        return bundle_digest(self.files)

    @property
    def plain_size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def require_single_file(self, role: str) -> BundleFile:
        """The one file of a role. Raises MalformedRefused for none or several."""
        found = [file for file in self.files if file.role == role]
        if len(found) != 1:
            raise Malformed(f"bundle files: found {len(found)} of role {role!r}, expected one")
        return found[0]

    def as_json(self, *, has_patches: bool = True) -> dict[str, JSON]:
        """The variant's object; without `patches` for the release's identity (rule 3)."""
        out: dict[str, JSON] = {
            "requires": self.requires.as_json(),
            "files": [file.as_json() for file in self.files],
            "key_commitment": self.key_commitment,
            "contract": self.contract.as_json(),
            "health": self.health.as_json(),
            "quantization": self.quantization.as_json(),
            "provenance": dict(self.provenance),
        }
        if has_patches:
            out["patches"] = [patch.as_json() for patch in self.patches]
        return out

    @classmethod
    def parse(cls, fields: StrictObject) -> "Variant":
        """Inverse of `as_json`. Raises MalformedRefused."""
        files = parse_files(fields.objects("files", max_items=MAX_FILES))
        check_files(files)
        provenance = fields.object("provenance")
        names = sorted(provenance.remaining_names())
        out = cls(
            requires=Requirements.parse(fields.object("requires")),
            files=files,
            patches=tuple(PatchEntry.parse(row) for row in fields.objects("patches", max_items=MAX_PATCHES)),
            key_commitment=fields.text("key_commitment", SHA256_HEX_PATTERN),
            contract=Contract.parse(fields.object("contract")),
            health=Health.parse(fields.object("health")),
            quantization=Quantization.parse(fields.object("quantization")),
            provenance=tuple((name, provenance.text(name, max_length=512)) for name in names),
        )
        fields.reject_unknown()
        out.require_single_file("model")
        kinds = [(patch.base, patch.codec) for patch in out.patches]
        if not kinds or len(set(kinds)) != len(kinds):
            raise Malformed(f"{fields.where}.patches: expected at least one, and no `from` and codec twice")
        return out


@dataclass(frozen=True, slots=True)
class Manifest:
    """One release.

    Attributes:
        family, version: of the release.
        counter: grows with every release of the family; compared below the counter epoch of the delegation.
        min_counter: the floor that the release raises devices to; at most `counter`.
        channels: that a rollout may select it for.
        min_agent: first agent version that can take it.
        created: UTC, for people.
        variants: by name, sorted.
    """

    family: str
    version: str
    counter: int
    min_counter: int
    channels: tuple[str, ...]
    min_agent: str
    created: str
    variants: tuple[tuple[str, Variant], ...]

    def variant(self, name: str) -> Variant | None:
        """The variant of that name, or None."""
        return dict(self.variants).get(name)

    def as_json(self, *, has_patches: bool = True) -> dict[str, JSON]:
        """The manifest's object."""
        return {
            "schema": SCHEMA,
            "family": self.family,
            "version": self.version,
            "counter": self.counter,
            "min_counter": self.min_counter,
            "channels": list(self.channels),
            "min_agent": self.min_agent,
            "created": self.created,
            "variants": {name: variant.as_json(has_patches=has_patches) for name, variant in self.variants},
        }

    def as_bytes(self) -> bytes:
        """Canonical bytes, as published."""
        return strict_json.encode(self.as_json())

    def digest_without_patches(self) -> str:
        """The identity of the release (rule 3): SHA-256, hexadecimal."""
        return strict_json.digest(self.as_json(has_patches=False))

    def with_patches(self, name: str, patches: tuple[PatchEntry, ...]) -> "Manifest":
        """The same release with other patches for one variant."""
        variants = tuple((n, replace(v, patches=patches) if n == name else v) for n, v in self.variants)
        return replace(self, variants=variants)


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest strictly. Raises MalformedRefused, TooLargeRefused."""
    fields = StrictObject(strict_json.decode(data, what="manifest", max_bytes=MAX_MANIFEST_BYTES), "manifest")
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"manifest.schema: found {schema!r}, expected {SCHEMA!r}")
    variants = fields.mapping("variants", NAME_PATTERN, max_items=MAX_VARIANTS)
    out = Manifest(
        family=fields.text("family", NAME_PATTERN),
        version=fields.text("version", strict_json.VERSION_PATTERN),
        counter=fields.integer("counter", 1),
        min_counter=fields.integer("min_counter", 0),
        channels=fields.texts("channels", NAME_PATTERN, max_items=64),
        min_agent=fields.text("min_agent", NUMERIC_VERSION_PATTERN),
        created=fields.text("created", TIMESTAMP_PATTERN),
        variants=tuple((name, Variant.parse(variants[name])) for name in sorted(variants)),
    )
    fields.reject_unknown()
    if not out.variants:
        raise Malformed("manifest.variants: found none, expected at least one")
    if out.min_counter > out.counter:
        raise Malformed(f"manifest.min_counter: found {out.min_counter}, expected at most counter {out.counter}")
    return out
