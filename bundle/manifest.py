"""The manifest: the signed JSON that describes one release of a family (docs/format.md section 3).

Rules:
- It has at most 256 KiB and is the target `bundles/<family>/<version>.json` of the release role.
- Every download is a patch. A variant lists at least one; the field `from` is the digest of the patch's base bundle, or
  null for a full download. No two patches of a variant have the same `from` and codec.
- The release digest is the digest of the canonical manifest without `patches`: patches can be added to a release later,
  and nothing else can change.
- All numbers are integers: ratios are parts per million or percent, and times and sizes have their unit in the name.
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
    """The properties that a device must have for a variant.

    Attributes:
        arch: architectures as `uname -m` names them, of which the device must have one; empty means any.
        cpu_features: flags of /proc/cpuinfo, of which the device must have all.
        onnxruntime_min: first version of ONNX Runtime that loads the variant.
        onnxruntime_below: first version of ONNX Runtime that is no longer supported, or None.
        memory_bytes: resident memory while serving, in bytes.
        storage_bytes: required free space in the device's bundle store, in bytes.
    """

    arch: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    onnxruntime_min: str = "1.31"
    onnxruntime_below: str | None = None
    memory_bytes: int = 0
    storage_bytes: int = 0

    def as_json(self) -> dict[str, JSON]:
        """Return the `requires` object of a variant."""
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
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
    """One published patch of a variant.

    Attributes:
        base: digest of the base bundle, or None for a full download.
        codec: "zstd", "bsdiff4" or "typed" (docs/format.md section 9).
        features: required decoder features beyond the basic ones.
        blob: SHA-256 of the ciphertext, which is also the blob's name.
        size: size of the ciphertext, in bytes.
        plain_size: size of the decrypted patch, in bytes.
        peak_memory: maximum memory while the patch is applied, in bytes.
    """

    base: BundleDigest | None
    codec: str
    features: tuple[str, ...]
    blob: str
    size: int
    plain_size: int
    peak_memory: int

    def as_json(self) -> dict[str, JSON]:
        """Return the patch as an object of the `patches` list."""
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
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
    """The quantization scheme of a variant, and the verdict of its gate.

    Attributes:
        scheme: "none", or the name of the quantization scheme, for example "int8-dynamic".
        stability: "exact" if every CPU computes the same integers, else a description of the dependence.
        calibration: SHA-256 of the calibration samples, or None.
        verdict: verdict of the gate: "pass", "overridden", or "none" if no gate was applied.
        relative_rms_ppm: RMS error of the worst output over its spread, against the reference model, in parts per
            million, or None.
        top1_agreement_ppm: share of samples with the reference model's top class, in parts per million, or None.
    """

    scheme: str = "none"
    stability: str = "exact"
    calibration: str | None = None
    verdict: str = "none"
    relative_rms_ppm: int | None = None
    top1_agreement_ppm: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the `quantization` object of a variant."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Quantization":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
        requires: properties that a device must have.
        files: files of the bundle, sorted by path.
        patches: patches that create the bundle, in published order.
        key_commitment: commitment to the content key (`bundle.envelope.compute_commitment`), hexadecimal.
        contract: inputs and outputs of the model.
        health: limits for probe, shadow mode and probation.
        quantization: how the weights were quantized.
        provenance: printable strings by name: source digest, tools with versions, warnings.
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
        """The bundle digest (`bundle.files.bundle_digest`)."""
        return bundle_digest(self.files)

    @property
    def plain_size(self) -> int:
        """The uncompressed size of all files, in bytes."""
        return sum(file.size for file in self.files)

    def require_single_file(self, role: str) -> BundleFile:
        """Return the only file of a role.

        Raises:
            Malformed: the variant has no such file, or several.
        """
        found = [file for file in self.files if file.role == role]
        if len(found) != 1:
            raise Malformed(f"bundle files: found {len(found)} of role {role!r}, expected one")
        return found[0]

    def as_json(self, *, has_patches: bool = True) -> dict[str, JSON]:
        """Return the variant as a JSON object; without `patches` for the release digest."""
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
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
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
            raise Malformed(f"{fields.where}.patches: expected at least one, and each `from` and codec once")
        return out


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of one release.

    Attributes:
        family: family of the release.
        version: version of the release.
        counter: grows with every release of the family; devices compare (counter epoch, counter).
        min_counter: rollback floor of a device after this release; at most `counter`.
        channels: channels whose rollouts may select the release.
        min_agent: first version of the agent that can install the release.
        created: time of creation in UTC, for people.
        variants: pairs of name and variant, sorted by name.
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
        """Return the variant with a name, or None if the release has none."""
        return dict(self.variants).get(name)

    def as_json(self, *, has_patches: bool = True) -> dict[str, JSON]:
        """Return the manifest as a JSON object; without `patches` for the release digest."""
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
        """Return the canonical bytes, as they are published."""
        return strict_json.encode(self.as_json())

    def digest_without_patches(self) -> str:
        """Return the release digest: the SHA-256 of the canonical manifest without patches, in hexadecimal."""
        return strict_json.digest(self.as_json(has_patches=False))

    def with_patches(self, name: str, patches: tuple[PatchEntry, ...]) -> "Manifest":
        """Return the same release with other patches for one variant.

        Args:
            name: name of the variant.
            patches: its patches, which replace the present ones.
        """
        variants = tuple((n, replace(v, patches=patches) if n == name else v) for n, v in self.variants)
        return replace(self, variants=variants)


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest strictly.

    Raises:
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_MANIFEST_BYTES.
    """
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
