"""Lay out a model as a bundle that is also an ONNX Runtime model package.

    manifest.json                       the package: its name, version and one component
    <family>/component.json             the component: one variant, its execution provider and model file
    <family>/<variant>/model.onnx       the model or model.tflite, and its external data under the names that it uses
    golden/golden.bin                   golden vectors

Several models are several components: <model>/component.json, <model>/<variant>/model.onnx, golden/<model>.bin.
    labels/…  preprocessing/…  tokenizer/…  other/…    further files, in a folder named by their role

1. The role of a file follows from its path alone (`roles_of`), so a plain bundle needs no list of roles.
2. A model's external data is found by reading the model. Every name must be that of an existing file beside the model
   or in a folder below. The model is rewritten if a device could not open it as it is: files whose names a bundle
   cannot have become `weights-N.bin`, and tensors of nested graphs and functions move into the model, because the
   runtime reads external data from sealed memory in the main graph only.
3. The JSON files have one form: the same model and names give the same bytes.
4. A bundle is built in a temporary folder beside `out` and renamed at the end.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from bundle.files import MAX_PATH_CHARACTERS, PATH_PATTERN, ROLES, BundleDirectory, scan_directory
from packager.errors import BundleNameInvalid, FileNotFound, InputFileMissing, OutputExists
from packager.models.tflite_model import is_tflite

if TYPE_CHECKING:
    import onnx

PACKAGE_FILE: Final = "manifest.json"
COMPONENT_FILE: Final = "component.json"
MODEL_FILE: Final = "model.onnx"
TFLITE_FILE: Final = "model.tflite"
GOLDEN_PATH: Final = "golden/golden.bin"
FILE_ROLES: Final = ("labels", "preprocessing", "tokenizer", "other")  # roles of files that the user adds
FILES_ONLY_ROLES: Final = (*FILE_ROLES, "model")  # of files in a bundle without a model that the agent runs
RESERVED_ROLES: Final = (*FILE_ROLES, "golden")  # folders of the layout; no family can have such a name
SCHEMA_VERSION: Final = "1.0"  # format version of ONNX Runtime's model package; read by 1.31 and later


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A further model of a bundle.

    Attributes:
        name: its name.
        model: an ONNX or TFLite file with its external data beside it.
        golden: the file of golden vectors, or None.
    """

    name: str
    model: Path
    golden: Path | None


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """A file that ships with the model.

    Attributes:
        source: its path on this machine.
        role: one of FILES_ONLY_ROLES.
        name: its name in the bundle, below the folder of its role.
    """

    source: Path
    role: str
    name: str

    @property
    def path(self) -> str:
        """Path of the file in the bundle."""
        return f"{self.role}/{self.name}"


def build_package(
    model: Path,
    out: Path,
    *,
    family: str,
    version: str,
    variant: str,
    files: Sequence[ExtraFile] = (),
    golden: Path | None = None,
    name: str = "",
    further: Sequence[PackagedModel] = (),
) -> BundleDirectory:
    """Lay out one variant as a bundle folder.

    Args:
        model: an ONNX file with its external data beside it.
        out: the folder to make; must not exist.
        family: name of the family, for the package's own files.
        version: version of the release.
        variant: name of the variant.
        files: further files.
        golden: the file of golden vectors, or None.
        name: name of the model; unused if it is the only one.
        further: the other models.

    Raises:
        ModelUnreadable: the model is not an ONNX model.
        ExternalDataMissing: an external data file of the model is missing.
        BundleNameInvalid: a name cannot be in a bundle, or two files have one path.
        InputFileMissing: an extra file does not exist.
        OutputExists: `out` exists.
        FileNotFound: the parent folder of `out` does not exist.
    """
    _check_output(out)
    if family in RESERVED_ROLES:
        raise BundleNameInvalid(
            f"family {family!r} has the name of a folder of the bundle layout",
            hint=f"use a name other than {', '.join(RESERVED_ROLES)}",
        )
    from packager.models.model_files import save_model

    models = (PackagedModel(name if further else family, model, golden), *further)
    sources: dict[str, Path] = {}
    rewritten: dict[str, onnx.ModelProto] = {}
    for each in models:
        folder, model_file = f"{each.name}/{variant}", _model_file_of(each.model)
        portable, locations = (None, {}) if model_file == TFLITE_FILE else portable_model(each.model)
        sources[f"{folder}/{model_file}"] = each.model
        for location, source in locations.items():
            _add_source(sources, f"{folder}/{location}", source)
        if portable is not None:
            rewritten[f"{folder}/{model_file}"] = portable
        if each.golden is not None:
            sources[golden_path_of(each.name) if further else GOLDEN_PATH] = each.golden
    _add_extra_files(sources, files)
    with _new_bundle(out, sources) as root:
        for path, proto in rewritten.items():
            save_model(proto, root / path)
        _write_json(root / PACKAGE_FILE, _package_document(family, version, [each.name for each in models]))
        for each in models:
            _write_json(root / each.name / COMPONENT_FILE, _component_document(variant, _model_file_of(each.model)))
    return open_package(out)


def golden_path_of(model: str) -> str:
    """Return the path of the golden vectors of one of several models."""
    return f"golden/{model}.bin"


def _model_file_of(model: Path) -> str:
    return TFLITE_FILE if is_tflite(model) else MODEL_FILE


def portable_model(model: Path) -> tuple["onnx.ModelProto | None", dict[str, Path]]:
    """Return a model as a bundle stores it, and the sources of its external data by their names there.

    Args:
        model: an ONNX file with its external data beside it.

    Returns:
        The rewritten model, or None if the file can be stored unchanged.

    Raises:
        ModelUnreadable: the model is not an ONNX model.
        ExternalDataMissing: a file is missing.
    """
    import onnx

    from packager.models.inputs import load_proto
    from packager.models.tensor_data import external_entries, stored_tensors

    proto = load_proto(model, external_data=False)
    main = list(proto.graph.initializer)
    found = [(tensor, external_entries(tensor).get("location", "")) for tensor in stored_tensors(proto)]
    names: dict[str, str] = {}
    taken = {PurePosixPath(location).as_posix() for _, location in found}
    is_changed = False
    for tensor, location in found:
        if not location:
            continue
        if all(tensor is not other for other in main):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(model.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
            is_changed = True
            continue
        if location not in names:
            plain = PurePosixPath(location).as_posix()
            free = (name for number in count(len(names)) if (name := f"weights-{number}.bin") not in taken)
            names[location] = plain if is_bundle_path(plain) else next(free)
            taken.add(names[location])
        if names[location] != location:
            entry = next(entry for entry in tensor.external_data if entry.key == "location")
            entry.value = names[location]
            is_changed = True
    return (proto if is_changed else None), {name: model.parent / location for location, name in names.items()}


def build_files_bundle(files: Sequence[ExtraFile], out: Path) -> BundleDirectory:
    """Lay out a release without a model that the agent runs: each file in a folder named by its role.

    Args:
        files: the files; at least one.
        out: the folder to make; must not exist.

    Raises:
        BundleNameInvalid: a name cannot be in a bundle, or two files have one path.
        InputFileMissing: a file does not exist.
        OutputExists: `out` exists.
        FileNotFound: the parent folder of `out` does not exist.
    """
    _check_output(out)
    sources: dict[str, Path] = {}
    _add_extra_files(sources, files)
    with _new_bundle(out, sources):
        pass
    return open_package(out)


def external_data(model: Path) -> tuple[str, ...]:
    """Return the names of the files beside `model` that contain its external data, sorted.

    Raises:
        ModelUnreadable: the model is not an ONNX model.
        ExternalDataMissing: a file is missing.
    """
    from packager.models.inputs import load_outline

    if is_tflite(model):
        return ()
    return tuple(sorted(_external_locations(load_outline(model)) - {model.name}))


def roles_of(root: Path) -> dict[str, str]:
    """Return the role of every file of a plain bundle by path; of any other folder, "other" for all files."""
    model_folders = _model_folders(root)
    described = {PACKAGE_FILE, *(f"{folder.split('/', 1)[0]}/{COMPONENT_FILE}" for folder in model_folders)}
    out = {}
    for file in root.rglob("*"):
        path = file.relative_to(root).as_posix()
        first = path.split("/", 1)[0]
        folder = next((folder for folder in model_folders if path.startswith(f"{folder}/")), None)
        if model_folders and path in described:
            out[path] = "package"
        elif folder is not None:
            is_model = path.removeprefix(f"{folder}/") in (MODEL_FILE, TFLITE_FILE)
            out[path] = "model" if is_model else "external-data"
        elif first in (RESERVED_ROLES if model_folders else FILES_ONLY_ROLES) and "/" in path:
            out[path] = first
        else:
            out[path] = "other"
    assert all(role in ROLES for role in out.values())
    return out


def open_package(root: Path) -> BundleDirectory:
    """Scan a plain bundle, with the roles of its layout.

    Raises:
        FileNotFound: `root` is not a folder.
        Invalid: a path in it cannot be in a bundle.
    """
    if not root.is_dir():
        raise FileNotFound(
            f"bundle folder {root} is not a folder", hint="give a folder made by `packager bundle build`"
        )
    return scan_directory(root, roles_of(root))


def _check_output(out: Path) -> None:
    if out.exists():
        raise OutputExists(f"output {out} exists already", hint="remove it, or give another path")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise FileNotFound(f"output {out}: the folder {parent} does not exist")


@contextmanager
def _new_bundle(out: Path, sources: dict[str, Path]) -> Iterator[Path]:
    """Yield a temporary folder with copies of `sources`, and rename it to `out` at the end."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.absolute().parent) as partial:
        root = Path(partial) / "bundle"
        for path, source in sources.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / path)
        yield root
        scan_directory(root, {})
        root.rename(out)


def _add_extra_files(sources: dict[str, Path], files: Sequence[ExtraFile]) -> None:
    for extra in files:
        if not extra.source.is_file():
            raise InputFileMissing(f"{extra.role} file {extra.source} does not exist", hint="correct the path")
        _add_source(sources, extra.path, extra.source)


def _external_locations(model: "onnx.ModelProto") -> set[str]:
    from packager.models.tensor_data import external_entries, stored_tensors

    return {external_entries(tensor).get("location", "") for tensor in stored_tensors(model)} - {""}


def _add_source(sources: dict[str, Path], path: str, source: Path) -> None:
    if not is_bundle_path(path):
        raise BundleNameInvalid(
            f"{source}: {path!r} is not allowed as a path in a bundle",
            hint="use letters, digits, '.', '_' and '-', starting with a letter, digit or '_'",
        )
    if path in sources:
        raise BundleNameInvalid(
            f"{source}: the bundle already has a file {path!r}", hint="give one of them another name"
        )
    sources[path] = source


def is_bundle_path(path: str) -> bool:
    """Return whether a bundle can have a file with this path."""
    return PATH_PATTERN.fullmatch(path) is not None and len(path) <= MAX_PATH_CHARACTERS


def _model_folders(root: Path) -> tuple[str, ...]:
    """Return `<component>/<variant>` of each component if `root` has this layout, else ()."""
    try:
        package = json.loads((root / PACKAGE_FILE).read_text())
        folders = []
        for component in package["components"].values():
            (variant,) = json.loads((root / component / COMPONENT_FILE).read_text())["variants"]
            folders.append(f"{component}/{variant}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    return tuple(folders)


def _package_document(family: str, version: str, components: Sequence[str]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "package_name": family,
        "package_version": version,
        "components": {name: name for name in components},
    }


def _component_document(variant: str, model_file: str) -> dict[str, object]:
    is_onnx = model_file == MODEL_FILE
    executor = {"ort" if is_onnx else "litert": {"model_file": model_file}}
    provider = "CPUExecutionProvider" if is_onnx else "XNNPACK"
    return {"variants": {variant: {"ep": provider, "device": "cpu", "executor_info": executor}}}


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
