"""Golden vectors of models with large outputs cost few bytes of a download and of an update."""

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from bundle.golden.golden_file import read_golden_file
from packager.diff.bundle_folder import open_bundle
from packager.diff.write.make_patch import make_patch
from packager.models.golden_budget import download_budget
from packager.models.golden_vectors import record_golden
from packager.models.random_inputs import random_samples
from tests.support.large_output_models import LARGE_OUTPUT_MODELS


def change_few(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which 20 elements changed: the smallest update, and so the smallest budget."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensor = copy.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[:20] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def patch_bytes(base: Path | None, target: Path, folder: Path) -> int:
    with (folder / "patch").open("wb") as out:
        return make_patch(None if base is None else open_bundle(base), open_bundle(target), out).plain_size


@pytest.mark.parametrize("name", LARGE_OUTPUT_MODELS)
def test_an_update_costs_what_the_model_costs_and_a_kilobyte(name: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    proto = LARGE_OUTPUT_MODELS[name]()
    for folder, model in ((old, proto), (new, change_few(proto))):
        folder.mkdir()
        onnx.save(model, str(folder / "model.onnx"))
    samples = random_samples(old / "model.onnx", 8)
    record_golden(old / "model.onnx", samples, old / "golden.bin")
    earlier = read_golden_file((old / "golden.bin").read_bytes())
    record_golden(new / "model.onnx", samples, new / "golden.bin", earlier=earlier)
    alone = patch_bytes(old / "model.onnx", new / "model.onnx", tmp_path)
    assert patch_bytes(old, new, tmp_path) <= 1.1 * alone + 1024
    size = (new / "model.onnx").stat().st_size
    assert patch_bytes(None, new / "golden.bin", tmp_path) <= download_budget(size)
