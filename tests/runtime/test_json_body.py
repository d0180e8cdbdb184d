"""The JSON of requests: harmless dialects, and large bodies in bounded memory with the same result as small ones."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.errors import RequestInvalid
from device_agent.runtime import json_body
from device_agent.runtime.json_body import MAX_VALUES, MIN_LIST_BYTES, NumberList, parse_json
from device_agent.runtime.tensors import from_json

DATATYPES = ("FP32", "FP64", "INT64", "UINT8", "BOOL")


def parse(text: bytes | str) -> Any:
    return parse_json(memoryview(text.encode() if isinstance(text, str) else text))


def request(data: str, shape: list[int], datatype: str = "FP32") -> str:
    return json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": 0}]}).replace(
        '"data": 0', f'"data": {data}'
    )


def test_a_byte_order_mark_is_read() -> None:
    assert parse(b"\xef\xbb\xbf" + b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("datatype", ["BOOL", "FP32", "INT8", "UINT64", "BYTES"])
def test_an_empty_tensor_may_be_nested(datatype: str) -> None:
    pairs: list[tuple[list[Any], list[int]]] = [([], [0, 4]), ([[]], [0, 4]), ([[], []], [2, 0])]
    for data, shape in pairs:
        assert from_json(data, datatype, shape, "x").shape == tuple(shape)


def test_a_tensor_without_dimensions_may_be_a_bare_value() -> None:
    assert from_json(True, "BOOL", [], "x") == from_json([True], "BOOL", [], "x")
    assert from_json(2.5, "FP32", [], "x").shape == ()
    with pytest.raises(RequestInvalid, match="expected a list"):
        from_json(2.5, "FP32", [1], "x")


def test_null_is_nan_in_a_float_tensor_and_nowhere_else() -> None:
    for datatype in ("FP16", "FP32", "FP64"):
        found = from_json([[None, 1], [2.5, None]], datatype, [2, 2], "x")
        assert np.array_equal(np.isnan(found), [[True, False], [False, True]])
        assert np.isnan(from_json([None], datatype, [1], "x")).all()
    for datatype in ("INT32", "BOOL", "BYTES"):
        with pytest.raises(RequestInvalid):
            from_json([None], datatype, [1], "x")
    for wrong in ([None, "1"], [None, True], [None, [1]], [None, 1e999]):
        with pytest.raises(RequestInvalid):
            from_json(wrong, "FP32", [2], "x")


@given(
    datatype=st.sampled_from(DATATYPES),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    is_flat=st.booleans(),
    indent=st.sampled_from([None, 1]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_a_long_list_gives_the_same_array_as_a_short_one(
    datatype: str, shape: list[int], is_flat: bool, indent: int | None, seed: int
) -> None:
    random = np.random.default_rng(seed)
    count = math.prod(shape)
    values: Any = {
        "FP32": random.standard_normal(count) * 1e3,
        "FP64": random.integers(-9, 9, count),
        "INT64": random.integers(-(2**63), 2**63 - 1, count, dtype=np.int64),
        "UINT8": random.integers(0, 255, count),
        "BOOL": random.integers(0, 2, count).astype(bool),
    }[datatype]
    nested = (values if is_flat else values.reshape(shape)).tolist()
    if datatype.startswith("FP") and is_flat:
        nested[0] = None
    expected = from_json(nested, datatype, shape, "x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "MIN_LIST_BYTES", 1)
        patch.setattr(json_body, "CHUNK_BYTES", 5)
        [item] = parse(request(json.dumps(nested, indent=indent), shape, datatype))["inputs"]
        if isinstance(item["data"], NumberList):
            found = item["data"].to_array(datatype, shape, "x")
        else:
            found = from_json(item["data"], datatype, shape, "x")
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected, equal_nan=datatype.startswith("FP"))


MALFORMED = [
    *("[1,2,3,4,]", "[1,,3,4]", "[,1,2,3,4]", "[1 2,3,4]", "[1,2],[3,4]", "[[1,2],[3]]", "[[1,2],3,4]", "[1,[2,3],4]"),
    *("[[1,2],[3,4]", "[1,2,3,nul]", "[1,2,3,+4]", "[01,2,3,4]", "[1.,2,3,4]", "[1,2,3,1e999]", "[true,2,3,4]"),
    *("[[1],[2],[3,4]]", "[1,2]]", "[1[,2,3,4]]", "[[[1,2],[3,4]]", "[1,2,3]", "[1,2,3,4,5]", "[NaN,1,2,3]"),
]


@pytest.mark.parametrize("data", MALFORMED)
@pytest.mark.parametrize("chunk_bytes", [1, 5, 1000])
def test_a_long_list_that_is_malformed_is_refused(data: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MIN_LIST_BYTES", 1)
    monkeypatch.setattr(json_body, "CHUNK_BYTES", chunk_bytes)

    def convert() -> None:
        found = parse(request(data, [4]) + " " * MIN_LIST_BYTES)["inputs"][0]["data"]
        if isinstance(found, NumberList):
            found.to_array("FP32", [4], "x")
        else:
            from_json(found, "FP32", [4], "x")

    with pytest.raises(RequestInvalid):
        convert()


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs":[' + b"{}," * MAX_VALUES + b"{}]}",
        b'{"inputs":[{"data":[' + b'"a",' * MAX_VALUES + b'"a"]}]}',
        b'{"inputs":[{"data":[' + b'["a",[1,2,3]],' * (MAX_VALUES // 3) + b"1]}]}",
        b'{"other":[' + b"1," * MAX_VALUES + b"1]}",
        b'{"inputs":[{"data":' + b"[" * 2 * MAX_VALUES,
        b'{"inputs":[{"d\\u0061ta":[' + b"1," * MAX_VALUES + b"1]}]}",
        b"[" * 2 * MAX_VALUES,
        b'{"a":' * 2 * MAX_VALUES,
    ],
    ids=["objects", "strings", "mixed", "other-key", "brackets", "escaped-key", "only-brackets", "only-objects"],
)
def test_too_many_values_are_refused_before_they_are_parsed(text: bytes) -> None:
    with pytest.raises(RequestInvalid, match="values beside lists of numbers"):
        parse(text)


def test_brackets_and_commas_in_strings_are_no_values() -> None:
    text = json.dumps({"inputs": [], "id": '[{"data":[1,2,' * MAX_VALUES})
    assert parse(text) == json.loads(text)


def test_a_pause_comes_between_the_pieces_of_a_long_list() -> None:
    pauses: list[int] = []
    [item] = parse(request("[" + "0.25," * 400_000 + "0.5]", [400_001]))["inputs"]
    found = item["data"].to_array("FP32", [400_001], "x", lambda: pauses.append(1))
    assert (found[0], found[-1], found.size) == (0.25, 0.5, 400_001)
    assert len(pauses) >= 5
