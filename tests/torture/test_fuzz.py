"""Every parser of untrusted bytes reads its corpus, and a few hundred changed cases end as expected.

`make torture` runs many more.
"""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from packager.errors import ModelUnreadable
from packager.models.inputs import load_proto
from tests.support.memory_bundles import apply_to_memory
from torture.fuzz import patch
from torture.fuzz.run import ALL_TARGETS, fuzz

RUNS = 150


@pytest.mark.parametrize("name", ALL_TARGETS)
def test_changed_bytes_are_refused_with_a_reason_or_are_harmless(name: str) -> None:
    outcome = fuzz(name, RUNS, seed=1)
    assert sum(outcome.values()) == RUNS
    assert len(outcome) >= 2, "the changes reach a refusal only, or none"


def test_the_patches_of_the_corpus_apply() -> None:
    base, _ = patch.sides()
    patches = sorted(patch.CORPUS.glob("*.patch"))
    assert len(patches) >= 9
    for path in patches:
        assert apply_to_memory(path.read_bytes(), base) == patch.target_of(path)


@pytest.mark.parametrize("field", ["node", "input", "tensor", "location", "domain"])
def test_a_name_that_is_not_utf_8_is_refused(field: str, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])
    tensor = TensorProto(name="tensor", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="location")
    nodes = [helper.make_node("Identity", ["input"], ["y"], name="node", domain="domain")]
    graph = helper.make_graph(
        nodes, "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])], [tensor]
    )
    data = helper.make_model(graph).SerializeToString()
    place = tmp_path / "model.onnx"
    place.write_bytes(data.replace(field.encode(), b"\xff" * len(field)))
    with pytest.raises(ModelUnreadable, match=r"expected UTF-8"):
        load_proto(place)
    model = onnx.load_from_string(data)
    model.doc_string = "description"
    place.write_bytes(model.SerializeToString().replace(b"description", b"\xff" * 11))
    with pytest.raises(Exception, match="location"):
        load_proto(place)
