"""Any kind of model without inputs is released, or refused with its reason."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.errors import AirweightsError
from packager.errors import InputUnsupported, NoVariantLeft
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.release.release_report import ReleaseReport
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.repository import Repository
from tests.support import tiny_models

FLOAT = TensorProto.FLOAT

RELEASE = """
family = "any"
version = "1.0.0"
channels = ["stable"]
model = "model.onnx"
samples = 8
[variants.fp32]
[variants.int8]
scheme = "int8"
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository to which nothing is published."""
    folder = tmp_path_factory.mktemp("any")
    return create_repository_with_new_keys(
        folder / "repo", folder / "keys", None, families=["any"], cohort="default", insecure_plaintext=True
    )


def release_until_diff(repository: Repository, folder: Path, model: onnx.ModelProto) -> ReleaseReport:
    """Run all release steps up to the diff."""
    onnx.save(model, folder / "model.onnx")
    (folder / "release.toml").write_text(RELEASE)
    return run_release(parse_release_file(folder / "release.toml"), repository, [], until="diff")


def make_one_node_model(op: str, output: onnx.ValueInfoProto, **attributes: int) -> onnx.ModelProto:
    """Return a model of one operator on x: float32 [n, 8]."""
    node = helper.make_node(op, ["x"], ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 8])], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def make_model_with_slashes() -> onnx.ModelProto:
    """Return a model with slashes and colons in its names, as some exporters write them."""
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["in/x:0", "w"], ["out/y:0"])],
        "g",
        [helper.make_tensor_value_info("in/x:0", FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("out/y:0", FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    "model",
    [tiny_models.recurrent("GRU"), tiny_models.branching(), tiny_models.mlp(opset=9), make_model_with_slashes()],
    ids=["state", "if", "old", "/"],
)
def test_models_with_weights_have_both_variants(repository: Repository, tmp_path: Path, model: onnx.ModelProto) -> None:
    assert set(release_until_diff(repository, tmp_path, model).variants) == {"fp32", "int8"}


@pytest.mark.parametrize(
    "model",
    [
        tiny_models.constant_output(),
        make_one_node_model(
            "Cast", helper.make_tensor_value_info("y", TensorProto.STRING, ["n", 8]), to=TensorProto.STRING
        ),
        make_one_node_model("NonZero", helper.make_tensor_value_info("y", TensorProto.INT64, None)),
    ],
    ids=["constant", "strings", "shape-of-its-own"],
)
def test_models_that_cannot_be_quantized_ship_as_they_are_with_the_reason(
    repository: Repository, tmp_path: Path, model: onnx.ModelProto
) -> None:
    report = release_until_diff(repository, tmp_path, model)
    assert set(report.variants) == {"fp32"}
    assert report.dropped["int8"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            make_one_node_model("SplitToSequence", helper.make_tensor_sequence_value_info("y", FLOAT, None)),
            InputUnsupported,
        ),
        (make_one_node_model("RandomUniformLike", helper.make_tensor_value_info("y", FLOAT, ["n", 8])), NoVariantLeft),
    ],
    ids=["sequence", "random"],
)
def test_models_that_cannot_be_released_are_told_why(
    repository: Repository, tmp_path: Path, model: onnx.ModelProto, expected: type[AirweightsError]
) -> None:
    with pytest.raises(expected, match=r"'y'|differ"):
        release_until_diff(repository, tmp_path, model)
