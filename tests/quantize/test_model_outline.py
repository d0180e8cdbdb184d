"""A model is read without its large constants: they stay in the file, and nothing else changes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from packager.errors import ModelUnreadable
from packager.models.inputs import load_outline, load_proto
from packager.models.tensor_data import chunks_of, external_entries, stored_tensors

LARGE = np.arange(20_000, dtype=np.float32).reshape(100, 200)
PEAK = """
import resource, sys
from pathlib import Path
from packager.models import tensor_data
from packager.quantize.lint import lint
tensor_data.CHUNK_BYTES = 1 << 20
small, large = (Path(name) for name in sys.argv[1:])
lint(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert lint(large) == []
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def tensor(name: str = "w", array: np.ndarray = LARGE) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def model_of(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def product(weight: str = "w") -> onnx.NodeProto:
    return helper.make_node("MatMul", ["x", weight], ["y"], name="product")


def constant(array: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=array)


def in_branch() -> onnx.ModelProto:
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "branch", [], [out], [tensor()])
    condition = numpy_helper.from_array(np.array(True), "c")
    return model_of([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], [condition])


def in_function() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Weight", [], ["w"], [constant(tensor())], opsets)
    return model_of([helper.make_node("Weight", [], ["w"], domain="own"), product()], [], [function])


def sparse() -> onnx.ModelProto:
    model = model_of([product()], [])
    indices = numpy_helper.from_array(np.arange(LARGE.size, dtype=np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("w"), indices, [100, 200]))
    return model


def in_typed_field(dtype: int, kind: type[np.generic]) -> onnx.ModelProto:
    return model_of([product()], [helper.make_tensor("w", dtype, [100, 200], LARGE.astype(kind).reshape(-1).tolist())])


PLACES: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    "initializer": (lambda: model_of([product()], [tensor(), tensor("small", LARGE[0, :5])]), 1),
    "constant": (lambda: model_of([constant(tensor()), product()], []), 1),
    "branches": (in_branch, 2),
    "function": (in_function, 1),
    "sparse": (sparse, 2),
    "floats": (lambda: in_typed_field(TensorProto.FLOAT, np.float32), 1),
    "doubles": (lambda: in_typed_field(TensorProto.DOUBLE, np.float64), 1),
    "integers": (lambda: in_typed_field(TensorProto.INT64, np.int64), 0),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_outline_is_the_model_with_its_large_constants_in_the_file(tmp_path: Path, place: str) -> None:
    make, left_in_file = PLACES[place]
    path = tmp_path / "modèle.onnx"
    path.write_bytes(make().SerializeToString())
    outline, whole = load_outline(path), load_proto(path)
    found = list(zip(stored_tensors(outline), stored_tensors(whole), strict=True))
    outside = [(left, right) for left, right in found if external_entries(left)]
    assert len(outside) == left_in_file
    assert all(external_entries(left)["location"] == path.name for left, _ in outside)
    for left, right in found:
        assert np.array_equal(np.concatenate(list(chunks_of(left, tmp_path))), numpy_helper.to_array(right).reshape(-1))
        left.CopyFrom(right)
    assert outline == whole


def test_a_damaged_file_has_the_same_reason_in_both_readers(tmp_path: Path) -> None:
    whole = PLACES["initializer"][0]().SerializeToString()
    path = tmp_path / "model.onnx"
    for end in (70_000, len(whole) // 2 + 70_000 // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        messages = set()
        for load in (load_outline, load_proto):
            with pytest.raises(ModelUnreadable) as caught:
                load(path)
            messages.add(caught.value.message)
        assert len(messages) == 1


def test_a_constant_with_too_few_bytes_is_refused(tmp_path: Path) -> None:
    model = PLACES["initializer"][0]()
    model.graph.initializer[0].dims[0] = 101
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelUnreadable, match=r"'w' of shape \[101, 200\] needs 80,800 bytes, found 80,000"):
        load_outline(path)


def test_lint_takes_memory_for_a_part_of_a_constant(tmp_path: Path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(model_of([product()], [tensor()]).SerializeToString())
    array = np.ones((100, 80_000), np.float32)
    large.write_bytes(model_of([product()], [tensor("w", array)]).SerializeToString())
    run = subprocess.run([sys.executable, "-c", PEAK, str(small), str(large)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) * 1024 < array.nbytes // 2
