"""Functions of `packager bundle`: build a bundle, diff two, verify one against a manifest.

Rules:
- An output appears complete or not at all, and never replaces an existing file.
- No function needs a repository, a key or the network.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bundle.contract import Contract
from bundle.errors import Unavailable
from bundle.files import BundleDirectory, BundleFile, bundle_digest
from bundle.local_files import read_local_file
from bundle.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from bundle.strict_json import NAME_PATTERN, VERSION_PATTERN
from packager.diff.bundle_folder import open_bundle
from packager.diff.write.patch_report import PatchReport
from packager.errors import (
    BundleMismatch,
    FileNotFound,
    InputFileMissing,
    InvalidUsage,
    OutputExists,
    UnknownFormat,
    VariantUnknown,
)
from packager.models.model_package import (
    FILE_ROLES,
    FILES_ONLY_ROLES,
    ExtraFile,
    build_files_bundle,
    build_package,
    external_data,
    open_package,
    roles_of,
)
from packager.models.tflite_model import is_tflite

if TYPE_CHECKING:
    from packager.models.samples import Samples

DEFAULT_GOLDEN: Final = 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The arguments of `packager bundle build`.

    Attributes:
        model: the model file; None for a bundle of files.
        out: folder to write.
        family, version, variant: names that the bundle records.
        files: further files, as ROLE=PATH.
        inputs: an `.npz` or a folder of them; None draws random inputs.
        golden: number of golden vectors; 0 records none, None DEFAULT_GOLDEN of a model that the agent runs.
        seed: seed of the random inputs.
        runtime: what runs the bundle, as in a release file; None follows from the model.
    """

    model: Path | None
    out: Path
    family: str
    version: str
    variant: str
    files: tuple[str, ...]
    inputs: Path | None
    golden: int | None
    seed: int
    runtime: str | None = None

    @property
    def is_of_files(self) -> bool:
        """Return whether the bundle has no model that the agent runs."""
        return self.runtime in ("app", "none") or (self.runtime is None and self.model is None)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """The bundle that was built, as `packager bundle build` prints it.

    Attributes:
        root: its folder.
        files: its files.
        contract: of the model that the agent runs, else None.
        tolerance_ppm: of its golden vectors, else None.
    """

    root: Path
    files: tuple[BundleFile, ...]
    contract: Contract | None
    tolerance_ppm: int | None

    def as_json(self) -> dict[str, object]:
        """Return the object that `--json` prints (docs/schemas/bundle-build.json)."""
        return {
            "bundle": bundle_digest(self.files),
            "plain_size": sum(file.size for file in self.files),
            "files": [file.as_json() for file in self.files],
            "contract": None if self.contract is None else self.contract.as_json(),
            "golden_tolerance_ppm": self.tolerance_ppm,
        }

    def as_lines(self) -> list[str]:
        """Return lines for a terminal."""
        return [f"{self.root}: bundle digest {bundle_digest(self.files)}", *files_table(self.files)]


def build_bundle(request: BuildRequest) -> BuildReport:
    """Build a bundle folder from a model or from files.

    Raises:
        InvalidUsage: a name or a ROLE=PATH is invalid, or model, runtime and options do not fit together.
        OutputExists: the output folder exists.
        FileNotFound: the parent of the output folder does not exist.
        InputFileMissing: a further file does not exist.
        BundleNameInvalid: a file name is not allowed in a bundle.
        ModelUnreadable: the model is not an ONNX model.
        ExternalDataMissing: a file with the model's external weights is missing.
        ModelDoesNotRun: the model does not run on an input.
        ModelCrashes: the model crashes its process.
        GoldenUnstable: the outputs differ from run to run.
        Invalid: the inputs cannot be read, or do not fit the model (packager.models.inputs).
    """
    _check_names(request)
    if request.out.exists():
        raise OutputExists(f"output {request.out} already exists", hint="name another folder, or remove this one")
    if not request.out.absolute().parent.is_dir():
        raise FileNotFound(f"output {request.out}: the folder {request.out.absolute().parent} does not exist")
    roles = FILES_ONLY_ROLES if request.is_of_files else FILE_ROLES
    extras = tuple(_parse_extra_file(word, roles) for word in request.files)
    if request.is_of_files:
        return BuildReport(request.out, build_files_bundle(_all_files(request, extras), request.out).files, None, None)
    from packager.models.golden_vectors import record_golden  # slow to import, like the next three
    from packager.models.inputs import ModelInterface
    from packager.models.model_facts import contract_of
    from packager.models.trial_run import run_trial

    model, golden = _require_model(request), DEFAULT_GOLDEN if request.golden is None else request.golden
    external_data(model)
    ModelInterface.from_file(model)  # refuses inputs that are no numbers
    samples = _load_samples(model, request.inputs, golden, request.seed)
    run_trial(model, samples)
    contract = contract_of(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golden.bin"
        report = None
        if golden:
            report = record_golden(model, samples, path, golden)
        built = build_package(
            model,
            request.out,
            family=request.family,
            version=request.version,
            variant=request.variant,
            files=extras,
            golden=path if report is not None else None,
        )
    return BuildReport(request.out, built.files, contract, report.tolerance_ppm if report is not None else None)


def diff_bundles(
    base: Path | None, target: Path, out: Path, *, codec: str = "auto", on_progress: Progress | None = None
) -> PatchReport:
    """Write the unencrypted patch from one folder or file to another.

    Args:
        base: folder or file to start from; None creates a full download.
        target: folder or file to reach.
        out: patch to write.
        codec: codec to use; "auto" keeps the smallest result.
        on_progress: is called with (done, total).

    Raises:
        OutputExists: `out` exists.
        InvalidUsage: one of `base` and `target` is a file, the other a folder.
        FileNotFound: `base`, `target` or the folder of `out` does not exist.
    """
    from packager.diff.write.make_patch import make_patch

    if out.exists():
        raise OutputExists(f"output {out} already exists", hint="name another file, or remove this one")
    if base is not None and base.exists() and target.exists() and base.is_file() != target.is_file():
        raise InvalidUsage(f"{base} and {target}: found a file and a folder, expected two files or two folders")
    old = None if base is None else open_bundle_or_file(base)
    new = open_bundle_or_file(target)
    partial = out.with_name(f".{out.name}.partial")
    if not out.absolute().parent.is_dir():
        raise FileNotFound(f"output {out}: the folder {out.absolute().parent} does not exist")
    try:
        with partial.open("wb") as stream:
            report = make_patch(old, new, stream, codec=codec, progress=on_progress)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return report


def verify_bundle(folder: Path, manifest_path: Path, variant: str) -> dict[str, object]:
    """Verify a plain bundle against a manifest, and return the object that `--json` prints.

    Args:
        folder: the bundle folder.
        manifest_path: the manifest file; its signatures are not verified.
        variant: variant that the bundle should be.

    Raises:
        VariantUnknown: the manifest has no such variant.
        BundleMismatch: a file is missing, differs or is not listed.
        Malformed: the manifest is malformed.
        UnknownFormat: the manifest does not exist.
    """
    manifest = read_manifest(manifest_path)
    expected = manifest.variant(variant)
    if expected is None:
        names = ", ".join(name for name, _ in manifest.variants)
        raise VariantUnknown(f"{manifest_path}: found no variant {variant!r}, expected one of {names}")
    found = open_package(folder)
    compare_files(expected.files, found.files, str(folder))
    return {
        "family": manifest.family,
        "version": manifest.version,
        "counter": manifest.counter,
        "variant": variant,
        "bundle": expected.digest,
        "files": len(expected.files),
        "plain_size": expected.plain_size,
    }


def compare_files(expected: tuple[BundleFile, ...], actual: tuple[BundleFile, ...], where: str) -> None:
    """Compare path, size and digest of all files.

    Args:
        expected: files of the manifest.
        actual: files of the bundle.
        where: name of the bundle, for messages.

    Raises:
        BundleMismatch: a file is missing, differs or is not listed.
    """
    unmatched = {file.path: file for file in actual}
    for file in expected:
        found = unmatched.pop(file.path, None)
        if found is None:
            raise BundleMismatch(f"{where}: file {file.path!r} of the manifest is missing")
        if (found.size, found.sha256) != (file.size, file.sha256):
            raise BundleMismatch(
                f"{where}: {file.path!r}: found {found.size} bytes, SHA-256 {found.sha256}, "
                f"expected {file.size} bytes, {file.sha256}"
            )
    for path in unmatched:
        raise BundleMismatch(f"{where}: found {path!r}, which the manifest does not list")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file.

    Raises:
        UnknownFormat: the file does not exist.
        Malformed: it is not a valid manifest.
        TooLarge: it exceeds MAX_MANIFEST_BYTES.
        Unavailable: it cannot be read.
    """
    try:
        return parse_manifest(read_local_file(path, MAX_MANIFEST_BYTES))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UnknownFormat(f"manifest {path}: found no such file") from error
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror or error}") from error


def open_bundle_or_file(path: Path) -> BundleDirectory:
    """Open a bundle folder with the roles of its files, or a single file. Raises FileNotFound."""
    if not path.exists():
        raise FileNotFound(
            f"{path}: no such file or folder", hint='correct the path, or use "-" as BASE for a full download'
        )
    return open_bundle(path) if path.is_file() else open_bundle(path, roles_of(path))


def files_table(files: tuple[BundleFile, ...]) -> list[str]:
    """Return one line per file: size in bytes, role, path."""
    return [f"  {file.size:>14,}  {file.role:<13}  {file.path}" for file in files]


def _check_names(request: BuildRequest) -> None:
    for option, value in (("--family", request.family), ("--variant", request.variant)):
        if not NAME_PATTERN.fullmatch(value):
            raise InvalidUsage(f"{option}: found {value!r}, expected {NAME_PATTERN.pattern}")
    if not VERSION_PATTERN.fullmatch(request.version):
        raise InvalidUsage(f"--version: found {request.version!r}, expected a version like 1.2.0")


def _require_model(request: BuildRequest) -> Path:
    """Return the model that the agent runs. Raises InvalidUsage if it is missing or of another runtime."""
    if request.model is None:
        raise InvalidUsage(f"--runtime {request.runtime}: found no MODEL, expected the model that it runs")
    if request.runtime is not None and is_tflite(request.model) != (request.runtime == "litert"):
        kind = "is" if is_tflite(request.model) else "is not"
        raise InvalidUsage(f"--runtime {request.runtime}: {request.model} {kind} a TFLite model")
    return request.model


def _all_files(request: BuildRequest, extras: tuple[ExtraFile, ...]) -> tuple[ExtraFile, ...]:
    """Return the files of a bundle without a model that the agent runs. Raises InvalidUsage."""
    runtime = request.runtime or "none"
    for option, is_given in (("--inputs", request.inputs is not None), ("--golden", bool(request.golden))):
        if is_given:
            raise InvalidUsage(f"{option}: has no effect for runtime {runtime}, whose files the agent does not run")
    if request.model is None:
        if not extras:
            raise InvalidUsage("found neither MODEL nor --file, expected at least one file")
        return extras
    if runtime == "none":
        raise InvalidUsage(
            f"--runtime none: found MODEL {request.model}, expected none",
            hint="name its role as in --file labels=PATH, or use --runtime app for a model that an application runs",
        )
    if not request.model.is_file():
        raise InputFileMissing(f"{request.model}: no such file")
    return (ExtraFile(request.model, "model", request.model.name), *extras)


def _load_samples(model: Path, inputs: Path | None, golden: int, seed: int) -> "Samples":
    from packager.models.missing_values import load_inputs
    from packager.models.random_inputs import random_samples

    return random_samples(model, max(1, golden), seed) if inputs is None else load_inputs(model, inputs)


def _parse_extra_file(text: str, roles: tuple[str, ...]) -> ExtraFile:
    role, separator, path = text.partition("=")
    if not separator or role not in roles:
        raise InvalidUsage(f"--file: found {text!r}, expected ROLE=PATH with ROLE one of {', '.join(roles)}")
    if not Path(path).is_file():
        raise InputFileMissing(f"--file {text}: {path} does not exist")
    return ExtraFile(Path(path), role, Path(path).name)


__all__ = ["BuildReport", "BuildRequest", "build_bundle", "diff_bundles", "read_manifest", "verify_bundle"]
