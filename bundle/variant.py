"""The variants of a release: files, models, patches and requirements (docs/format.md section 3)."""

from dataclasses import dataclass
from typing import Final

from bundle.contract import PPM, Contract, Health
from bundle.errors import Malformed
from bundle.files import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_PATH_CHARACTERS,
    PATH_PATTERN,
    BundleDigest,
    BundleFile,
    bundle_digest,
    check_files,
    parse_files,
)
from bundle.requirements import FEATURE_PATTERN, Requirements, Runtime
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

MAX_PATCHES: Final = 64
MAX_MODELS: Final = 16
AT_REST: Final = ("sealed", "plain")
MAX_PLAIN_FILES: Final = 100  # of a bundle at rest in plain: two bundles' files are sent in one message to a worker


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of a bundle that the agent runs.

    Attributes:
        name: name of the model in its variant, unique there.
        file: path of its file, of the role "model".
        golden: path of its golden vectors, of the role "golden", or None if it has none.
        contract: its inputs and outputs.
    """

    name: str
    file: str
    golden: str | None
    contract: Contract

    def as_json(self) -> dict[str, JSON]:
        """Return the model as an object of the `models` list."""
        return {"name": self.name, "file": self.file, "golden": self.golden, "contract": self.contract.as_json()}

    @classmethod
    def parse(cls, fields: StrictObject) -> "ModelEntry":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
        out = cls(
            name=fields.text("name", NAME_PATTERN),
            file=fields.text("file", PATH_PATTERN, max_length=MAX_PATH_CHARACTERS),
            golden=fields.optional_text("golden", PATH_PATTERN),
            contract=Contract.parse(fields.object("contract")),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures that were measured on the build machine, which another machine does not reproduce.

    Attributes:
        cpu: model name of the build machine's processor; "" if nothing was measured.
        runtime: version of the runtime that was measured, or "".
        float_ratio_ppm: median latency over that of the float model, one thread, in parts per million, or None.
        reference_ratio_ppm: median latency over that of the reference graph, one thread, in parts per million, or
            None. A device measures the same ratio, so that a first install has an expectation.
        load_memory_bytes: peak memory above that of an empty process while the variant loads, in bytes, or None.
    """

    cpu: str = ""
    runtime: str = ""
    float_ratio_ppm: int | None = None
    reference_ratio_ppm: int | None = None
    load_memory_bytes: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """Return the `measured` object of a variant."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(cls, fields: StrictObject) -> "Measured":
        """Parse the object that `as_json` returns.

        Raises:
            Malformed: the object does not follow its schema.
        """
        out = cls(
            cpu=fields.text("cpu", max_length=128),
            runtime=fields.text("runtime", max_length=64),
            float_ratio_ppm=fields.optional_integer("float_ratio_ppm", 1),
            reference_ratio_ppm=fields.optional_integer("reference_ratio_ppm", 1),
            load_memory_bytes=fields.optional_integer("load_memory_bytes"),
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
        runtime: what runs the variant.
        requires: properties that a device must have.
        at_rest: "sealed" if a device keeps the files encrypted, "plain" if they may be files that applications map;
            plain needs the device owner's consent too.
        files: files of the bundle, sorted by path.
        models: the models that the agent runs; empty if the runtime is "app" or "none".
        patches: patches that create the bundle, in published order.
        key_commitment: commitment to the content key (`bundle.envelope.compute_commitment`), hexadecimal.
        health: limits for probe, shadow mode and probation.
        quantization: how the weights were quantized.
        measured: figures of the build machine.
        provenance: printable strings by name: source digest, tools with versions, warnings.
    """

    runtime: Runtime
    requires: Requirements
    at_rest: str
    files: tuple[BundleFile, ...]
    models: tuple[ModelEntry, ...]
    patches: tuple[PatchEntry, ...]
    key_commitment: str
    health: Health
    quantization: Quantization
    measured: Measured = Measured()
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> BundleDigest:
        """The bundle digest (`bundle.files.bundle_digest`)."""
        return bundle_digest(self.files)

    @property
    def plain_size(self) -> int:
        """The uncompressed size of all files, in bytes."""
        return sum(file.size for file in self.files)

    def require_model(self) -> ModelEntry:
        """Return the only model that the agent runs.

        Raises:
            Malformed: the variant has no such model, or several.
        """
        if len(self.models) != 1:
            raise Malformed(f"variant.models: found {len(self.models)}, expected one")
        return self.models[0]

    def file(self, path: str) -> BundleFile:
        """Return the file with a path that the variant names.

        Raises:
            Malformed: the variant has no such file.
        """
        for file in self.files:
            if file.path == path:
                return file
        raise Malformed(f"bundle files: found no {path!r}")

    def as_json(self, *, has_patches: bool = True) -> dict[str, JSON]:
        """Return the variant as a JSON object; without `patches` for the release digest."""
        out: dict[str, JSON] = {
            "runtime": self.runtime.as_json(),
            "requires": self.requires.as_json(),
            "at_rest": self.at_rest,
            "files": [file.as_json() for file in self.files],
            "models": [model.as_json() for model in self.models],
            "key_commitment": self.key_commitment,
            "health": self.health.as_json(),
            "quantization": self.quantization.as_json(),
            "measured": self.measured.as_json(),
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
            runtime=Runtime.parse(fields.object("runtime")),
            requires=Requirements.parse(fields.object("requires")),
            at_rest=fields.choice("at_rest", AT_REST),
            files=files,
            models=tuple(ModelEntry.parse(row) for row in fields.objects("models", max_items=MAX_MODELS)),
            patches=tuple(PatchEntry.parse(row) for row in fields.objects("patches", max_items=MAX_PATCHES)),
            key_commitment=fields.text("key_commitment", SHA256_HEX_PATTERN),
            health=Health.parse(fields.object("health")),
            quantization=Quantization.parse(fields.object("quantization")),
            measured=Measured.parse(fields.object("measured")),
            provenance=tuple((name, provenance.text(name, max_length=512)) for name in names),
        )
        fields.reject_unknown()
        _check_models(out, f"{fields.where}.models")
        if out.at_rest == "plain" and not 1 <= len(out.files) <= MAX_PLAIN_FILES:
            raise Malformed(
                f"{fields.where}.files: found {len(out.files)}, expected 1 to {MAX_PLAIN_FILES} if at_rest is plain"
            )
        kinds = [(patch.base, patch.codec) for patch in out.patches]
        if not kinds or len(set(kinds)) != len(kinds):
            raise Malformed(f"{fields.where}.patches: expected at least one, and each `from` and codec once")
        return out


def _check_models(variant: Variant, where: str) -> None:
    roles = {file.path: file.role for file in variant.files}
    names = [model.name for model in variant.models]
    named = [model.file for model in variant.models]
    if bool(named) != variant.runtime.is_run_by_agent:
        expected = "at least one" if variant.runtime.is_run_by_agent else "none"
        raise Malformed(f"{where}: found {len(named)} for runtime {variant.runtime.name!r}, expected {expected}")
    if len(set(names)) != len(names) or len(set(named)) != len(named):
        raise Malformed(f"{where}: expected each name and each file once")
    for model in variant.models:
        if roles.get(model.file) != "model":
            raise Malformed(f"{where}: {model.file!r} is not a file of role 'model'")
        if model.golden is not None and roles.get(model.golden) != "golden":
            raise Malformed(f"{where}: {model.golden!r} is not a file of role 'golden'")
    unnamed = [path for path, role in roles.items() if role == "model" and path not in named]
    if unnamed and variant.runtime.is_run_by_agent:
        raise Malformed(f"{where}: no entry has the file {unnamed[0]!r} of role 'model'")
