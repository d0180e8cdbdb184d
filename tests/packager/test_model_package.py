"""ONNX Runtime opens a bundle by its inner layout, and file roles follow from paths."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bundle.files import bundle_digest
from packager.errors import BundleNameInvalid, ExternalDataMissing, InputFileMissing, OutputExists
from packager.models.model_package import ExtraFile, build_package, external_data, open_package
from tests.support import tiny_models
from tests.support.packager_cli import read_all_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model with external data in a subfolder."""
    (tmp_path / "made").mkdir()
    path = tmp_path / "made" / "net.onnx"
    onnx.save(tiny_models.mlp(), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    return path


def write_test_package(model: Path, out: Path, *files: ExtraFile) -> str:
    built = build_package(model, out, family="kws", version="1.0.0", variant="fp32", files=files)
    return bundle_digest(built.files)


def test_the_runtimes_model_package_reader_opens_a_bundle_and_runs_it(model: Path, tmp_path: Path) -> None:
    write_test_package(model, tmp_path / "out")
    options = onnxruntime.SessionOptions()
    options.add_provider("CPUExecutionProvider", {})
    package = onnxruntime.ModelPackageContext(str(tmp_path / "out"))
    assert package.get_component_names() == ["kws"]
    chosen = package.select_component("kws", onnxruntime.ModelPackageOptions(options))
    assert chosen.get_selected_variant_name() == "fp32"
    sample = {"x": np.ones((1, 64), np.float32)}
    found = chosen.create_session().run(None, sample)
    wanted = onnxruntime.InferenceSession(str(model)).run(None, sample)
    np.testing.assert_array_equal(found[0], wanted[0])
    assert onnxruntime.ModelPackage.open(str(tmp_path / "out")).get_info()["package_version"] == "1.0.0"


def test_roles_follow_from_paths(model: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a\n")
    golden = tmp_path / "g"
    golden.write_bytes(b"g")
    files = [
        ExtraFile(tmp_path / "l.txt", role, f"{role}.txt") for role in ("labels", "preprocessing", "tokenizer", "other")
    ]
    built = build_package(model, tmp_path / "out", family="kws", version="1.0", variant="v", files=files, golden=golden)
    assert {file.path: file.role for file in built.files} == {
        "golden/golden.bin": "golden",
        "kws/component.json": "package",
        "kws/v/model.onnx": "model",
        "kws/v/net.bin": "external-data",
        "labels/labels.txt": "labels",
        "manifest.json": "package",
        "other/other.txt": "other",
        "preprocessing/preprocessing.txt": "preprocessing",
        "tokenizer/tokenizer.txt": "tokenizer",
    }
    assert open_package(tmp_path / "out").files == built.files


def test_the_same_model_gives_the_same_bundle(model: Path, tmp_path: Path) -> None:
    assert write_test_package(model, tmp_path / "a") == write_test_package(model, tmp_path / "b")


def test_external_data_is_found_in_nested_graphs(tmp_path: Path) -> None:
    for name, proto in (("if", tiny_models.branching()), ("loop", tiny_models.looping())):
        path = tmp_path / f"{name}.onnx"
        onnx.save(proto, path, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
        onnx.load(path)
        assert external_data(path) in ((f"{name}.bin",), ()), name


def test_missing_external_data_is_told_by_name(model: Path, tmp_path: Path) -> None:
    (model.parent / "net.bin").unlink()
    before = read_all_files(tmp_path)
    with pytest.raises(ExternalDataMissing, match=r"net\.bin"):
        write_test_package(model, tmp_path / "out")
    assert read_all_files(tmp_path) == before


def store_under(name: str, model: Path) -> None:
    """Store the external data of a model under another name."""
    proto = onnx.load(model, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    model.write_bytes(proto.SerializeToString())
    if not Path(name).is_absolute():
        (model.parent / "a").mkdir()
        (model.parent / name).write_bytes((model.parent / "net.bin").read_bytes())


@pytest.mark.parametrize("name", ["../net.bin", "/etc/passwd", "a/../net.bin"])
def test_external_data_outside_of_the_models_folder_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    store_under(name, model)
    with pytest.raises(ExternalDataMissing) as caught:
        write_test_package(model, tmp_path / "out")
    assert name in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [".hidden", "two words.bin", "./net.bin", "poids-été.bin"])
def test_external_data_with_another_kind_of_name_is_stored_under_one_that_bundles_have(
    model: Path, tmp_path: Path, name: str
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})[0]
    store_under(name, model)
    write_test_package(model, tmp_path / "out")
    bundle = open_package(tmp_path / "out")
    packed = next(bundle.root / file.path for file in bundle.files if file.role == "model")
    assert external_data(packed) == (("net.bin",) if name == "./net.bin" else ("weights-0.bin",))
    np.testing.assert_array_equal(onnxruntime.InferenceSession(str(packed)).run(None, {"x": x})[0], expected)


def test_a_name_in_a_bundle_is_not_that_of_other_external_data(model: Path, tmp_path: Path) -> None:
    """The second file is not named `weights-1.bin`, because the first one is."""
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})[0]
    proto = onnx.load(model, load_external_data=False)
    for number, tensor in enumerate(proto.graph.initializer):
        entries = {entry.key: entry for entry in tensor.external_data}
        entries["location"].value = "two words.bin" if number else "weights-1.bin"
    first = {entry.key: entry.value for entry in proto.graph.initializer[0].external_data}
    data = (model.parent / "net.bin").read_bytes()
    start, end = int(first["offset"]), int(first["offset"]) + int(first["length"])
    (model.parent / "weights-1.bin").write_bytes(data[:start] + data[start:end] + bytes(len(data) - end))
    (model.parent / "two words.bin").write_bytes(data[:start] + bytes(end - start) + data[end:])
    model.write_bytes(proto.SerializeToString())
    write_test_package(model, tmp_path / "out")
    bundle = open_package(tmp_path / "out")
    packed = next(bundle.root / file.path for file in bundle.files if file.role == "model")
    assert external_data(packed) == ("weights-1.bin", "weights-2.bin")
    np.testing.assert_array_equal(onnxruntime.InferenceSession(str(packed)).run(None, {"x": x})[0], expected)


def test_external_data_of_a_nested_graph_moves_into_the_model(tmp_path: Path) -> None:
    made = tiny_models.branching()
    path = tmp_path / "float.onnx"
    for node in made.graph.node:
        for attribute in node.attribute:
            for tensor in attribute.g.initializer:
                data = tensor.raw_data
                (tmp_path / f"{tensor.name}.bin").write_bytes(data)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=f"{tensor.name}.bin")
    path.write_bytes(made.SerializeToString())
    write_test_package(path, tmp_path / "out")
    bundle = open_package(tmp_path / "out")
    packed = next(bundle.root / file.path for file in bundle.files if file.role == "model")
    assert external_data(path)
    assert external_data(packed) == ()
    onnxruntime.InferenceSession(packed.read_bytes())


def test_extra_files_must_be_there_have_a_plain_name_and_not_meet(model: Path, tmp_path: Path) -> None:
    labels = tmp_path / "l.txt"
    labels.write_text("a\n")
    before = read_all_files(tmp_path)
    with pytest.raises(InputFileMissing, match=r"none\.txt"):
        write_test_package(model, tmp_path / "out", ExtraFile(tmp_path / "none.txt", "labels", "none.txt"))
    with pytest.raises(BundleNameInvalid, match=r"\.\./l\.txt"):
        write_test_package(model, tmp_path / "out", ExtraFile(labels, "labels", "../l.txt"))
    with pytest.raises(BundleNameInvalid, match="already"):
        write_test_package(model, tmp_path / "out", *[ExtraFile(labels, "labels", "l.txt")] * 2)
    assert read_all_files(tmp_path) == before


def test_what_is_there_is_not_written_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists, match="out"):
        write_test_package(model, tmp_path / "out")


def test_a_family_with_the_name_of_a_folder_of_the_layout_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleNameInvalid, match="'labels'"):
        build_package(model, tmp_path / "out", family="labels", version="1.0", variant="v")
