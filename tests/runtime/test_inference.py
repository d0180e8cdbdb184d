"""Inference requests and responses: every dtype in JSON and in bytes, and the error of each client mistake."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from bundle.contract import Contract
from device_agent.errors import ContractMismatch, InferenceFailed, InputsRejected, RequestInvalid
from device_agent.runtime import content_coding, inference, tensors
from device_agent.runtime.inference import Inference
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.tensors import DATATYPES, Array
from device_agent.runtime.wire import NO_JSON
from tests.support.memfd_bundles import DTYPES, create_memfd_bundle, floats, make_graph_model, make_scale_model

NUMERIC = [name for name in DATATYPES if name != "BYTES"]


@contextmanager
def model_of(model: Any, **settings: Any) -> Iterator[Inference]:
    with create_memfd_bundle(model) as bundle:
        loaded = OnnxModel.load(bundle.fds, threads=1)
        loaded.check_contract(bundle.contract)
        yield Inference(loaded, bundle.contract, "toy", "1.0.0", **settings)


def echo(dtype: str) -> Any:
    """Return a model x [n] -> y [n] that copies its input; two nodes, because the optimizer removes one Identity."""
    nodes = [helper.make_node("Identity", ["x"], ["h"]), helper.make_node("Identity", ["h"], ["y"])]
    return make_graph_model(nodes, [("x", dtype, ["n"])], [("y", dtype, ["n"])])


def ask(model: Inference, head: Mapping[str, Any], raw: bytes = b"") -> tuple[dict[str, Any], bytes, bool]:
    text = json.dumps(head).encode()
    response = model.handle_request(memoryview(text + raw), len(text) if raw else NO_JSON)
    body = b"".join(response.parts)
    length = len(body) if response.json_bytes == NO_JSON else response.json_bytes
    return json.loads(body[:length]), body[length:], response.has_nan


def x(data: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return the input object of `scale`, with further fields."""
    given_data = {} if data is None else {"data": data}
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], **given_data, **fields}]}


@pytest.mark.parametrize("dtype", sorted(set(DTYPES.values()) - {"string"}))
def test_every_dtype_goes_in_and_out_as_json_and_as_bytes(dtype: str) -> None:
    values = np.array([0, 1, 1], dtype) if dtype == "bool" else np.array([0, 1, 100], dtype)
    with model_of(echo(dtype)) as model:
        name = tensors.datatype_name(values.dtype)
        for as_bytes in (False, True):
            for out_bytes in (False, True):
                fields: dict[str, Any] = {"name": "x", "datatype": name, "shape": [3]}
                raw = values.tobytes() if as_bytes else b""
                fields |= {"parameters": {"binary_data_size": len(raw)}} if as_bytes else {"data": values.tolist()}
                head = {"inputs": [fields], "id": "a", "parameters": {"binary_data_output": out_bytes}}
                response, data, _ = ask(model, head, raw)
                output = response["outputs"][0]
                assert (response["id"], output["datatype"], output["shape"]) == ("a", name, [3])
                if out_bytes:
                    assert output["parameters"]["binary_data_size"] == len(data)
                    assert data == values.tobytes()
                else:
                    assert output["data"] == values.tolist()


def test_strings_go_in_and_out_as_json_and_as_bytes() -> None:
    words = ["", "straße", "a\nb"]
    raw = b"".join(len(w.encode()).to_bytes(4, "little") + w.encode() for w in words)
    with model_of(echo("string")) as model:
        fields = {"name": "x", "datatype": "BYTES", "shape": [3]}
        assert ask(model, {"inputs": [{**fields, "data": words}]})[0]["outputs"][0]["data"] == words
        sized = {**fields, "parameters": {"binary_data_size": len(raw)}}
        wanted = [{"name": "y", "parameters": {"binary_data": True}}]
        assert ask(model, {"inputs": [sized], "outputs": wanted}, raw)[1] == raw
        for cut in (raw[:-1], raw + b"\1", raw[:2]):
            sized = {**fields, "parameters": {"binary_data_size": len(cut)}}
            with pytest.raises(RequestInvalid, match=r"BYTES data ends|3 elements|4 elements|2 elements"):
                ask(model, {"inputs": [sized]}, cut)


@given(
    name=st.sampled_from(NUMERIC),
    shape=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_tensor_survives_json_and_bytes(name: str, shape: list[int], seed: int) -> None:
    dtype = DATATYPES[name]
    count = math.prod(shape)
    raw = np.random.default_rng(seed).integers(0, 2 if name == "BOOL" else 256, count * dtype.itemsize, np.uint8)
    array: Array = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    assert tensors.from_bytes(tensors.to_bytes(array), name, shape, "x").tobytes() == array.tobytes()
    if dtype.kind != "f" or np.isfinite(array).all():
        text = json.loads(json.dumps(tensors.to_json(array)))
        assert np.array_equal(tensors.from_json(text, name, shape, "x"), array)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({}, "inputs: x missing"),
        ([], "not a JSON object"),
        ({"inputs": 3}, "inputs: expected a list of objects"),
        (x([1, 2, 3]), "3 elements of data, expected 4"),
        (x([1, 2, 3, "4"]), "data has values that are not FP32"),
        (x([1, 2, 3, "x", None]), "data has values that are not FP32"),
        (x([[1, 2], [3]]), "ragged"),
        (x([True, False, True, True]), "data has values that are not FP32"),
        (x("1234"), "data is str, expected a list"),  # type: ignore[arg-type]
        (x([1, 2, 3, 4], name="z"), "input 'z' is unknown, expected x"),
        (x([1, 2, 3, 4], datatype="FP64"), "datatype is 'FP64', expected 'FP32'"),
        (x([1, 2, 3, 4], shape=[2, 2]), r"shape is \[2, 2\], expected \[4\]"),
        (x([1, 2, 3, 4], shape=[-4]), "has a size that is not a whole number"),
        (x([1, 2, 3, 4], shape="4"), "shape is not a list"),
        (x(parameters={"binary_data_size": 16}), "binary_data_size is 16, 0 bytes are left"),
        (x(parameters={"binary_data_size": True}), "binary_data_size is True"),
        (x(parameters={"shared_memory_region": "r"}), "shared memory is not supported"),
        (x([1, 2, 3, 4], parameters={"binary_data_size": 0}), "both data and binary_data_size"),
        ({**x([1, 2, 3, 4]), "outputs": [{"name": "q"}]}, "output 'q' is unknown, expected one of y"),
        ({**x([1, 2, 3, 4]), "id": 7}, "id: expected a string"),
        ({"inputs": x([1, 2, 3, 4])["inputs"] * 2}, "a name is given twice"),
        ({**x([1, 2, 3, 4]), "parameters": {"binary_data_output": 1}}, "expected true or false"),
        *(
            ({**x([1, 2, 3, 4]), "parameters": {name: 1}}, f"parameter '{name}' is not supported")
            for name in ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout")
        ),
        (x([1, 2, 3, 4], parameters={"sequence_id": 1}), "parameter 'sequence_id' is not supported"),
    ],
)
def test_a_mistake_of_the_client_is_named(head: Any, words: str) -> None:
    with model_of(make_scale_model(2.0)) as model, pytest.raises(RequestInvalid, match=words):
        ask(model, head)


@pytest.mark.parametrize(
    ("body", "json_bytes", "words"),
    [
        (b'{"inputs": [', NO_JSON, "not JSON at character"),
        (b"\xff\xfe", NO_JSON, "not JSON"),
        (b'{"inputs": NaN}', NO_JSON, "NaN is not JSON"),
        (b"[" * 100_000, NO_JSON, "not JSON"),
        (b"{}", 9, "Inference-Header-Content-Length is 9, the body has 2 bytes"),
        (
            json.dumps(x([1, 2, 3, 4])).encode() + b"12",
            len(json.dumps(x([1, 2, 3, 4]))),
            "2 bytes of binary data follow",
        ),
    ],
)
def test_a_body_that_is_no_request_is_named(body: bytes, json_bytes: int, words: str) -> None:
    with model_of(make_scale_model(2.0)) as model, pytest.raises(RequestInvalid, match=words):
        model.handle_request(memoryview(body), json_bytes)


@pytest.mark.parametrize(("dtype", "bad"), [("uint8", 256), ("uint8", -1), ("int64", 2**63), ("int32", 1.5)])
def test_a_number_beyond_its_datatype_is_refused(dtype: str, bad: float) -> None:
    with model_of(echo(dtype)) as model, pytest.raises(RequestInvalid, match=r"beyond|data has values|out of range"):
        ask(model, {"inputs": [{"name": "x", "datatype": dtype.upper(), "shape": [1], "data": [bad]}]})


def test_nan_is_flagged_only_where_the_model_made_it() -> None:
    root = make_graph_model([helper.make_node("Sqrt", ["x"], ["y"])], [("x", "float32", [2])], [("y", "float32", [2])])
    with model_of(root) as model:
        fields = {"name": "x", "datatype": "FP32", "shape": [2]}
        response, _, has_nan = ask(model, {"inputs": [{**fields, "data": [4, -1]}]})
        assert has_nan
        assert response["outputs"][0]["data"] == [2.0, None]
        assert not ask(model, {"inputs": [{**fields, "data": [4, 1]}]})[2]
        raw = np.array([np.nan, 4], np.float32).tobytes()
        assert not ask(model, {"inputs": [{**fields, "parameters": {"binary_data_size": 8}}]}, raw)[2]


def test_a_request_that_is_handled_while_a_response_is_written_does_not_change_the_flag_for_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "VALUES_PER_PIECE", 1)
    head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 64)  # the array of an aligned input is a view of the body
    body = bytearray(text + np.array([np.nan, 4], np.float32).tobytes())

    def overwrite() -> None:
        body[len(text) :] = bytes(8)

    with model_of(echo("float32"), on_pause=overwrite) as model:
        response = model.handle_request(memoryview(body), len(text))
        assert body.endswith(bytes(8))
        assert not response.has_nan


def test_a_large_sum_is_not_taken_for_infinity() -> None:
    assert not tensors.has_non_finite(np.full(1000, 3e38, np.float32))
    assert not tensors.has_non_finite(np.full(100_000, 60_000, np.float16))
    assert tensors.has_non_finite(np.array([1, np.inf, -np.inf], np.float16))


FREE_X = [("x", "float32", ["n"])]


@pytest.mark.parametrize(
    ("nodes", "inputs", "output", "constants", "arrays"),
    [
        ([("Reshape", "x shape", "y")], FREE_X, "float32", {"shape": [2, 2]}, {"x": floats(1, 2, 3)}),
        ([("ArgMax", "x", "y")], FREE_X, "int64", {}, {"x": floats()}),
        ([("TopK", "x k", "v y")], FREE_X, "int64", {"k": [5]}, {"x": floats(1, 2)}),
        ([("Expand", "x s", "z"), ("ReduceSum", "z", "y")], FREE_X, "float32", {"s": [2**34, 1]}, {"x": floats(1, 2)}),
        ([("Gather", "t x", "y")], [("x", "int64", [1])], "int64", {"t": [1, 2]}, {"x": np.array([2**62])}),
        (
            [("ConstantOfShape", "x", "z"), ("ReduceMean", "z", "y")],
            [("x", "int64", [2])],
            "float32",
            {},
            {"x": np.array([2**40, 2**40])},
        ),
    ],
)
def test_inputs_that_the_model_cannot_run_on_are_rejected_by_name(
    nodes: list[tuple[str, str, str]],
    inputs: list[tuple[str, str, list[int | str]]],
    output: str,
    constants: dict[str, list[int]],
    arrays: dict[str, Array],
) -> None:
    model = make_graph_model(
        [helper.make_node(kind, given.split(), made.split()) for kind, given, made in nodes],
        inputs,
        [("y", output, [])],
        [helper.make_tensor(name, 7, [len(values)], values) for name, values in constants.items()],
    )
    rows = [
        {
            "name": name,
            "datatype": tensors.datatype_name(array.dtype),
            "shape": list(array.shape),
            "data": array.tolist(),
        }
        for name, array in arrays.items()
    ]
    with create_memfd_bundle(model) as bundle:
        loaded = OnnxModel.load(bundle.fds, threads=1)
        served = Inference(loaded, Contract(loaded.inputs, loaded.outputs), "toy", "1.0.0")
        with pytest.raises(InputsRejected, match=r"cannot run on input 'x' of shape \["):
            ask(served, {"inputs": rows})


def test_a_lack_of_memory_in_a_model_with_fixed_sizes_is_the_models_failure() -> None:
    from tests.support.hostile_models import make_64_gib_model

    with model_of(make_64_gib_model()) as served, pytest.raises(InferenceFailed, match="Expand"):
        ask(served, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]})


def test_a_dimension_name_has_one_size_unless_the_golden_inputs_show_otherwise() -> None:
    sides: list[tuple[str, str, list[int | str]]] = [(name, "float32", ["n"]) for name in "ab"]
    model = make_graph_model([helper.make_node("Add", ["a", "b"], ["y"])], sides, [("y", "float32", ["m"])])
    head = {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [size], "data": [1] * size}
            for name, size in (("a", 1), ("b", 3))
        ]
    }
    with (
        model_of(model) as served,
        pytest.raises(RequestInvalid, match="input 'b': dimension 'n' has size 3, but size 1"),
    ):
        ask(served, head)
    with model_of(model, golden_inputs=[{"a": floats(1), "b": floats(1, 2)}]) as served:
        assert ask(served, head)[0]["outputs"][0]["shape"] == [3]


@pytest.mark.parametrize("shape", [[0, 2**63], [2**63, 0], [0, 2**40, 2**40]])
def test_a_shape_that_no_library_can_multiply_is_refused(shape: list[int]) -> None:
    with pytest.raises(RequestInvalid, match=f"input 'x': shape .* has more than {tensors.MAX_ELEMENTS} elements"):
        tensors.from_json([], "FP32", shape, "x")
    with pytest.raises(RequestInvalid, match="input 'x'"):
        tensors.from_bytes(memoryview(b""), "FP32", shape, "x")


def test_a_response_beyond_the_limit_is_refused_instead_of_sent() -> None:
    with model_of(echo("float32"), max_response_bytes=1000) as model:
        fields = {"name": "x", "datatype": "FP32", "shape": [1000], "data": [0.5] * 1000}
        with pytest.raises(InputsRejected, match=r"'x' of shape \[1000\]: the response has \d+ bytes, at most 1000"):
            ask(model, {"inputs": [fields]})


def test_a_model_is_held_to_its_contract() -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0)) as promised,
        create_memfd_bundle(make_scale_model(2.0, size=5)) as other,
    ):
        with pytest.raises(ContractMismatch, match=r"'x' is float32\[5\], expected float32\[4\]"):
            OnnxModel.load(other.fds).check_contract(promised.contract)
    with create_memfd_bundle(make_scale_model(2.0)) as promised, create_memfd_bundle(echo("int32")) as other:
        with pytest.raises(ContractMismatch, match=r"'x' is int32\['n'\], expected float32\[4\]"):
            OnnxModel.load(other.fds).check_contract(promised.contract)


def test_external_data_comes_from_memory() -> None:
    from onnx import TensorProto, external_data_helper

    weights = np.arange(1, 5, dtype=np.float32)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], weights.tobytes(), raw=True)
    external_data_helper.set_external_data(tensor, "w.bin", 0, 16)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    model = make_graph_model(
        [helper.make_node("Mul", ["x", "w"], ["y"])], [("x", "float32", [4])], [("y", "float32", [4])], [tensor]
    )
    with create_memfd_bundle(model, external={"w.bin": weights.tobytes()}) as bundle:
        assert OnnxModel.load(bundle.fds).run({"x": floats(1, 1, 1, 1)})["y"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("encoding", "module"), [("gzip", gzip), ("deflate", zlib)])
def test_compressed_bodies_are_bounded(encoding: str, module: Any) -> None:
    plain_body = b"x" * 10_000
    packed = module.compress(plain_body)
    assert bytes(content_coding.decompress(memoryview(packed), encoding, 10_000)) == plain_body
    for bad in (packed[:-1], packed + b"x", b"nonsense"):
        with pytest.raises(RequestInvalid, match=r"gzip|deflate|incomplete"):
            content_coding.decompress(memoryview(bad), encoding, 10_000)
    with pytest.raises(RequestInvalid, match="more than 9999 bytes"):
        content_coding.decompress(memoryview(packed), encoding, 9_999)
    assert module.decompress(content_coding.compress([b"ab", memoryview(b"cd")], encoding)) == b"abcd"
