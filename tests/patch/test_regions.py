"""Arrays are found in every format, and no content of a file makes a parser fail."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.files import BundleDirectory
from packager.tensors.find_regions import find_file_regions, find_regions
from packager.tensors.region import ELEMENT_BYTES
from tests.support import model_formats
from tests.support.memory_bundles import make_file_table, write_bundle

ARRAYS = model_formats.make_weights(1)
NAMES = {"float32": "f32", "float16": "f16", "int8": "i8", "int64": "i64"}


def _regions(root: Path, data: bytes) -> list[Any]:
    return find_regions(write_bundle(root, {"m": data}))["m"]


@pytest.mark.parametrize("name", model_formats.FORMATS)
def test_every_array_is_found_where_it_is(tmp_path: Path, name: str) -> None:
    data = model_formats.FORMATS[name](ARRAYS)
    found = {region.name.strip("/").removesuffix(".npy"): region for region in _regions(tmp_path, data)}
    for key, array in ARRAYS.items():
        region = found[key]
        assert data[region.offset : region.offset + region.size] == array.tobytes()
        assert (region.dtype, region.shape) == (NAMES[array.dtype.name], array.shape)


def test_onnx_subgraphs_constants_functions_sparse_and_packed_fields_are_found(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    parts = {name: rng.normal(size=40).astype(np.float32) for name in ("inner", "constant", "function", "sparse")}
    packed = rng.normal(size=40)
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [40])
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(parts["constant"], "k"))
    inner = helper.make_graph([constant], "inner", [], [value], [numpy_helper.from_array(parts["inner"], "w")])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    index = numpy_helper.from_array(np.arange(40, dtype=np.int64), "")
    sparse = helper.make_sparse_tensor(numpy_helper.from_array(parts["sparse"], "s"), index, [100])
    double = helper.make_tensor("packed", TensorProto.DOUBLE, [40], packed.tolist())
    graph = helper.make_graph([branch], "g", [], [value], [double], sparse_initializer=[sparse])
    step = helper.make_node("Constant", [], ["o"], value=numpy_helper.from_array(parts["function"], "w"))
    function = helper.make_function("d", "F", [], ["o"], [step], [helper.make_opsetid("", 17)])
    data = helper.make_model(graph, functions=[function]).SerializeToString()
    found = {data[r.offset : r.offset + r.size] for r in _regions(tmp_path, data)}
    for name, array in parts.items():
        assert array.tobytes() in found, name
    assert packed.tobytes() in found
    assert np.arange(40, dtype=np.int64).tobytes() in found


def test_text_and_unknown_files_have_no_regions(tmp_path: Path) -> None:
    for data in (b'{"model": "text"}' * 50, b"\x7fELF" + bytes(500), np.random.default_rng(0).bytes(5000), b""):
        assert _regions(tmp_path, data) == []


DAMAGE = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(model_formats.FORMATS)), DAMAGE, st.one_of(st.none(), st.integers(0, 3000)))
def test_whatever_is_damaged_regions_stay_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, damage: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(_cached(name)[:cut])
    for position, value in damage:
        if data:
            # Most damage goes where the structure is: at the start, or in the last kilobyte.
            at = position % min(len(data), 2000) if position % 3 else len(data) - 1 - position % min(len(data), 1000)
            data[at] = value
    root = tmp_path_factory.mktemp("damaged")
    (root / "m").write_bytes(data)
    find_file_regions(root / "m") if data else None
    directory = BundleDirectory(root, make_file_table({"m": bytes(data)}))
    end = 0
    for region in find_regions(directory)["m"]:
        assert end <= region.offset
        assert region.size % ELEMENT_BYTES[region.dtype] == 0
        end = region.offset + region.size
        assert end <= len(data)


_CACHE: dict[str, bytes] = {}


def _cached(name: str) -> bytes:
    if name not in _CACHE:
        _CACHE[name] = model_formats.FORMATS[name](ARRAYS)
    return _CACHE[name]
