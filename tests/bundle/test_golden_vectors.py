"""Golden vectors are written and read back, and every difference of an output is reported."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import GoldenMismatch, Malformed, Refused
from bundle.golden import DTYPES, GoldenSample, check_outputs, read_golden, relative_rms, write_golden

SAMPLE = GoldenSample(
    {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"y": np.ones(4, np.float32), "n": np.array([3], np.int64)}
)


@given(st.lists(st.sampled_from(sorted(DTYPES.values())), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_every_dtype_and_shape_comes_back(dtypes: list[str], samples: int) -> None:
    tensors = {f"t.{n}": np.ones((n, 2), dtype) for n, dtype in enumerate(dtypes)} | {"s": np.array(1, np.int8)}
    wanted = tuple(GoldenSample(tensors, tensors) for _ in range(samples))
    found = read_golden(write_golden(wanted))
    assert len(found) == samples
    for sample in found:
        for name, tensor in tensors.items():
            assert sample.inputs[name].dtype == tensor.dtype
            np.testing.assert_array_equal(sample.outputs[name], tensor)


def replace_header(header: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        replace_header("[]"),
        replace_header("{}"),
        replace_header('{"a":{}}'),
        replace_header('{"0001.in.x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        replace_header('{"0000.in.x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"123"),
        replace_header('{"0000.in.x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"12345"),
        replace_header('{"0000.in.x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"),
        replace_header('{"0000.in.x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234"),
        replace_header('{"0000.in.x":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        replace_header(
            '{"0000.in.x":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}',
        ),
    ],
)
def test_a_malformed_file_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_golden(data)


def test_truncation_anywhere_is_refused() -> None:
    whole = write_golden((SAMPLE,))
    for length in range(len(whole)):
        with pytest.raises(Malformed):
            read_golden(whole[:length])


def test_equal_answers_pass_with_zero_error() -> None:
    assert check_outputs(SAMPLE.outputs, SAMPLE, tolerance_ppm=0, where="golden 0000") == 0.0


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("y", None, "golden 0000: output 'y' is missing, found n"),
        ("y", np.ones(5, np.float32), r"golden 0000: output 'y' is float32\[5\], expected float32\[4\]"),
        ("y", np.ones(4, np.float64), r"golden 0000: output 'y' is float64\[4\], expected float32\[4\]"),
        ("y", np.array([1, 1, 1, np.nan], np.float32), "golden 0000: output 'y' has NaN or infinity at other places"),
        ("y", np.full(4, 1.01, np.float32), "golden 0000: output 'y' has relative RMS error 0.0100"),
        ("n", np.array([4], np.int64), "golden 0000: output 'n' differs from the golden output"),
    ],
)
def test_a_wrong_answer_is_named(name: str, answer: np.ndarray | None, message: str) -> None:
    answers = {key: value for key, value in (SAMPLE.outputs | {name: answer}).items() if value is not None}
    with pytest.raises(GoldenMismatch, match=message):
        check_outputs(answers, SAMPLE, tolerance_ppm=1000, where="golden 0000")


def test_relative_rms_of_a_golden_that_is_all_zero_is_not_a_division_by_zero() -> None:
    assert relative_rms(np.zeros(3, np.float32), np.zeros(3, np.float32)) == 0.0
    assert relative_rms(np.ones(3, np.float32), np.zeros(3, np.float32)) > 1e5
    assert relative_rms(np.full(3, 1e-9, np.float32), np.zeros(3, np.float32)) < 0.01
