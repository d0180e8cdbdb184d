"""Signed JSON has one canonical form, and its reader is strict."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import strict_json
from bundle.errors import Malformed, TooLarge
from bundle.strict_json import JSON, MAX_INTEGER, StrictObject

values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(values)
@settings(max_examples=100)
def test_what_is_written_is_read_back_whatever_the_white_space(value: JSON) -> None:
    data = strict_json.encode(value)
    assert strict_json.decode(data, what="it", max_bytes=10_000) == value
    spaced = json.dumps(json.loads(data), indent=3).encode()
    assert strict_json.encode(strict_json.decode(spaced, what="it", max_bytes=100_000)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":1,"a":2}', "it: duplicate key 'a'"),
        (b'{"a":1.0}', "it: number 1.0 is not an integer"),
        (b"[1e3]", "it: number 1e3 is not an integer"),
        (b"[NaN]", "it: NaN is not JSON"),
        (b"[-Infinity]", "it: -Infinity is not JSON"),
        (b"[9007199254740993]", "it: integer 9007199254740993 is outside of ±2^53"),
        (b"[1] ", None),
        (b"[1]x", "it: Extra data at byte 3"),
        (b"", "it: Expecting value at byte 0"),
        (b"\xff", "it: not UTF-8 at byte 0"),
        (b"[" * 17 + b"]" * 17, "it: nested too deep, at most 16 levels"),
        (b"[" * 100_000, "it: nested too deep, at most 16 levels"),
        (b"[" + b"9" * 5000 + b"]", "it: integer 99999999999999999999 is outside of ±2^53"),
    ],
)
def test_a_document_that_is_not_plain_is_refused(data: bytes, message: str | None) -> None:
    if message is None:
        strict_json.decode(data, what="it", max_bytes=200_000)
        return
    with pytest.raises(Malformed) as caught:
        strict_json.decode(data, what="it", max_bytes=200_000)
    assert caught.value.message == message
    assert caught.value.reason == "malformed"


def test_a_document_above_its_limit_is_not_parsed() -> None:
    with pytest.raises(TooLarge, match="it is 11 bytes, at most 10 are allowed"):
        strict_json.decode(b"x" * 11, what="it", max_bytes=10)


@pytest.mark.parametrize("value", [1.5, {1: 2}, float("nan"), b"bytes", 2**53 + 1, {"a": [2.0]}])
def test_what_has_no_canonical_form_is_not_written(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        strict_json.encode(value)  # type: ignore[arg-type]  # that is the point


def test_every_field_refusal_names_place_finding_and_expectation() -> None:
    fields = StrictObject(
        {"n": -1, "t": "A b", "b": 1, "l": ["x", "x"], "m": {"Ä": {}}, "o": [], "long": "y" * 2000}, "doc.part"
    )
    cases = {
        "doc.part.n: found -1, expected an integer from 0 to 9": lambda: fields.integer("n", 0, 9),
        "doc.part.t: found 'A b', expected a match of [a-z]+": lambda: fields.text("t", re.compile("[a-z]+")),
        "doc.part.b: found 1, expected true or false": lambda: fields.flag("b"),
        "doc.part.l: found the same entry twice, expected distinct ones": lambda: fields.texts("l"),
        "doc.part.m: found key 'Ä', expected a match of [a-z]+": lambda: fields.mapping(
            "m", re.compile("[a-z]+"), max_items=3
        ),
        "doc.part.o: found a list of 0, expected an object": lambda: fields.object("o"),
        "doc.part: field 'gone' is missing": lambda: fields.value("gone"),
        "doc.part: unknown field 'long'": fields.reject_unknown,
    }
    for message, call in cases.items():
        with pytest.raises(Malformed) as caught:
            call()
        assert caught.value.message == message


def test_a_boolean_is_not_an_integer() -> None:
    with pytest.raises(Malformed, match="found true, expected an integer"):
        StrictObject({"n": True}, "doc").integer("n")
