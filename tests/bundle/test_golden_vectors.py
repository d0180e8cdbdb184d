"""Golden vectors are written and read back, and every difference of an output is reported."""

import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bundle.errors import GoldenMismatch, Malformed, Refused, TooLarge
from bundle.golden.comparison import GoldenVector, check_outputs
from bundle.golden.golden_file import (
    MAGIC,
    GoldenSample,
    describe_outputs,
    read_golden,
    read_golden_file,
    write_golden,
    write_golden_file,
)
from bundle.golden.inputs import (
    INPUT_DTYPES,
    NOISE_LEVELS,
    Array,
    StoredInput,
    draw_noise,
    encode_integers,
    encode_noise,
    encode_raw,
)
from bundle.golden.relative_error import relative_rms
from bundle.golden.scales import channel_axis
from bundle.strict_json import JSON, encode

SAMPLE = GoldenSample(
    {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"y": np.ones(4, np.float32), "n": np.array([3], np.int64)}
)


def read_one(sample: GoldenSample) -> GoldenVector:
    return read_golden(write_golden([sample]))[0]


def large_outputs(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Return a detector's outputs: strong boxes and weak classes in one tensor, and a map."""
    rng = np.random.default_rng(seed)
    detections = rng.standard_normal((1, 24, 600)).astype(np.float32)
    detections[:, :4] = 300 + 150 * detections[:, :4]
    detections[:, 4:] *= 0.002
    return {"detections": detections, "map": rng.standard_normal((1, 3, 40, 40)).astype(np.float32)}


@given(st.lists(st.sampled_from(INPUT_DTYPES), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_inputs_of_every_dtype_and_shape_come_back(dtypes: list[str], samples: int) -> None:
    inputs: dict[str, Array] = {f"t.{n}": np.arange(2 * n).reshape(n, 2).astype(d) for n, d in enumerate(dtypes)}
    inputs |= {"s": np.array(1, np.int8), "nan": np.array([np.nan, 1], np.float32)}
    found = read_golden(write_golden([GoldenSample(inputs, {"y": np.ones(2, np.float32)})] * samples))
    assert len(found) == samples
    for sample in found:
        for name, tensor in inputs.items():
            assert sample.inputs[name].dtype == tensor.dtype
            np.testing.assert_array_equal(sample.inputs[name], tensor)


def test_input_codes_come_back() -> None:
    image = (np.arange(256).reshape(1, 16, 16) / 255).astype(np.float32)
    stored = {
        "image": encode_integers(image, np.arange(256), "u8", (0.0, 1 / 255)),
        "ids": encode_integers(np.zeros(3, np.int64), np.array([-1, 0, 7]), "i8", None),
        "mask": encode_raw(np.ones(9, np.int64)),
        "noise": encode_noise(image),
        "bytes": encode_noise(np.arange(256, dtype=np.uint8)),
    }
    same = {**stored, "image": StoredInput("float32", image.shape, "same", b"")}
    outputs: list[dict[str, Array]] = [{"y": np.ones(2, np.float32)}] * 2
    first, second = read_golden(write_golden_file([stored, same], outputs, describe_outputs(outputs)))
    assert np.abs(first.inputs["image"].astype(float) - image).max() < 1e-6
    assert first.inputs["ids"].tolist() == [-1, 0, 7]
    assert stored["mask"].code == "constant"
    assert first.inputs["mask"].tolist() == [1] * 9
    assert first.inputs["noise"].dtype == np.float32
    assert 0 <= first.inputs["noise"].min() < first.inputs["noise"].max() <= 1.000001
    assert first.inputs["bytes"].dtype == np.uint8
    np.testing.assert_array_equal(first.inputs["image"], second.inputs["image"])
    assert not np.array_equal(first.inputs["noise"], second.inputs["noise"])


def test_noise_has_coarse_structure() -> None:
    noise = draw_noise(0, "x", (2, 64, 64)).astype(np.float64)
    assert 0 <= noise.min() < 100
    assert NOISE_LEVELS - 100 < noise.max() < NOISE_LEVELS
    neighbors = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
    assert 0.6 < neighbors < 0.95
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2


def change_header(**fields: JSON) -> bytes:
    """Return a file with one empty sample, whose header has other fields."""
    header: dict[str, JSON] = {"outputs": [], "samples": [{"inputs": [], "outputs": []}]}
    head = encode(header | fields)
    return MAGIC + struct.pack("<I", len(head)) + head


INPUT: dict[str, JSON] = {"name": "x", "code": "raw", "dtype": "float32", "shape": [1]}
FLOAT: dict[str, JSON] = {"name": "y", "dtype": "float32", "axis": None, "channels": 0, "whole": True}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        MAGIC,
        MAGIC + struct.pack("<I", 2**31) + b"{}",
        MAGIC + struct.pack("<I", 2) + b"[]",
        change_header(samples=[]),
        change_header(more=1),
        change_header(outputs=[FLOAT]),
        change_header(outputs=[{**FLOAT, "dtype": "object"}], samples=[{"inputs": [], "outputs": [[1]]}]),
        change_header(outputs=[{**FLOAT, "channels": 2}], samples=[{"inputs": [], "outputs": [[1]]}]),
        change_header(outputs=[{**FLOAT, "channels": 2, "axis": 0}], samples=[{"inputs": [], "outputs": [[2]]}]),
        change_header(outputs=[FLOAT], samples=[{"inputs": [], "outputs": [[65]]}]) + bytes(1000),
        change_header(samples=[{"inputs": [INPUT], "outputs": []}]),
        change_header(samples=[{"inputs": [INPUT], "outputs": []}]) + b"12345",
        change_header(samples=[{"inputs": [INPUT, INPUT], "outputs": []}]) + b"12341234",
        change_header(samples=[{"inputs": [{**INPUT, "code": "zip"}], "outputs": []}]),
        change_header(samples=[{"inputs": [{**INPUT, "code": "same"}], "outputs": []}]),
        change_header(samples=[{"inputs": [{**INPUT, "shape": [-1]}], "outputs": []}]),
        change_header(samples=[{"inputs": [{**INPUT, "shape": [2**32] * 3}], "outputs": []}]),
        change_header(samples=[{"inputs": [{**INPUT, "shape": [2**31], "code": "noise"}], "outputs": []}]) + bytes(16),
        change_header(samples=[{"inputs": [{**INPUT, "code": "noise"}], "outputs": []}]) + b"\xff" * 16,
    ],
)
def test_a_malformed_file_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        read_golden(data)


def test_truncation_and_extension_anywhere_are_refused() -> None:
    whole = write_golden([SAMPLE, SAMPLE])
    for length in range(len(whole)):
        with pytest.raises(Malformed):
            read_golden(whole[:length])
    with pytest.raises(Malformed, match="1 bytes after the last sample"):
        read_golden(whole + b"\0")
    with pytest.raises(TooLarge):
        read_golden(bytes(64 * 1024 * 1024 + 1))


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_or_finds_a_mismatch(patch: bytes, place: int) -> None:
    whole = bytearray(write_golden([GoldenSample(SAMPLE.inputs, dict(large_outputs()))]))
    place %= len(whole) - len(patch)
    whole[place : place + len(patch)] = patch
    try:
        for vector in read_golden(bytes(whole)):
            check_outputs(large_outputs(), vector, tolerance_ppm=1000, where="golden")
    except (Refused, GoldenMismatch):
        pass


@pytest.mark.parametrize("outputs", [SAMPLE.outputs, dict(large_outputs())])
def test_equal_outputs_pass_with_zero_error(outputs: dict[str, Array]) -> None:
    vector = read_one(GoldenSample(SAMPLE.inputs, outputs))
    assert check_outputs(outputs, vector, tolerance_ppm=1, where="golden") < 1e-6


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("y", None, "golden 0000: output 'y' is missing, found n"),
        ("y", np.ones(5, np.float32), r"golden 0000: output 'y' is float32\[5\], expected float32\[4\]"),
        ("y", np.ones(4, np.float64), r"golden 0000: output 'y' is float64\[4\], expected float32\[4\]"),
        ("y", np.array([1, 1, 1, np.nan], np.float32), "golden 0000: output 'y' has NaN or infinity"),
        ("y", np.full(4, 1.01, np.float32), "golden 0000: output 'y' has relative RMS error 0.0100"),
        ("n", np.array([4], np.int64), "golden 0000: output 'n' differs from the golden output"),
    ],
)
def test_a_wrong_output_is_named(name: str, output: np.ndarray | None, message: str) -> None:
    found = {key: value for key, value in (SAMPLE.outputs | {name: output}).items() if value is not None}
    with pytest.raises(GoldenMismatch, match=message):
        check_outputs(found, read_one(SAMPLE), tolerance_ppm=1000, where="golden 0000")


def test_strings_are_compared() -> None:
    outputs: dict[str, Array] = {"label": np.array([["cat", "dög"]], object)}
    vector = read_one(GoldenSample({}, outputs))
    check_outputs(outputs, vector, tolerance_ppm=0, where="golden")
    with pytest.raises(GoldenMismatch, match="'label' differs"):
        check_outputs({"label": np.array([["cat", "dog"]], object)}, vector, tolerance_ppm=0, where="golden")


def damaged(change: str) -> dict[str, npt.NDArray[np.float32]]:
    outputs = large_outputs()
    detections, image = outputs["detections"], outputs["map"]
    if change == "dead class":
        detections[:, 9] = 0
    elif change == "flipped class":
        detections[:, 9] *= -1
    elif change == "shifted classes":
        detections[:, 4:] += 0.001
    elif change == "scale":
        image *= 1.01
    elif change == "shift":
        image += np.float32(0.01)
    elif change == "noise":
        image += 0.01 * np.random.default_rng(1).standard_normal(image.shape).astype(np.float32)
    elif change == "rolled":
        outputs["map"] = np.roll(image, 1, axis=3)
    elif change == "boxes":
        detections[:, 1] *= 1.01
    elif change == "huge":
        image[0, 0, 0, 0] = 3e38
    return outputs


@pytest.mark.parametrize(
    "change",
    [
        *("dead class", "flipped class", "shifted classes", "scale", "shift", "noise"),
        *("rolled", "boxes", "huge"),
    ],
)
def test_damage_of_large_outputs_is_found(change: str) -> None:
    vector = read_one(GoldenSample({}, dict(large_outputs())))
    with pytest.raises(GoldenMismatch):
        check_outputs(damaged(change), vector, tolerance_ppm=5_000, where="golden")


def test_the_place_of_the_largest_element_counts_where_it_leads_clearly() -> None:
    golden = np.random.default_rng(0).standard_normal((1, 5000)) * 0.1
    golden[0, [7, 8]] = 4.0, 3.98
    moved = {"y": golden.copy()}
    moved["y"][0, [7, 8]] = 3.98, 4.0
    vector = read_one(GoldenSample({}, {"y": golden}))
    check_outputs(moved, vector, tolerance_ppm=50_000, where="golden")
    with pytest.raises(GoldenMismatch, match="the largest element of output 'y' is at 8, expected 7"):
        check_outputs(moved, vector, tolerance_ppm=5_000, where="golden")


@given(st.integers(0, 10_000), st.integers(65, 5_000), st.sampled_from(["dense", "sparse", "scale", "block"]))
@settings(max_examples=150, deadline=None)
def test_damage_of_1_25_tolerances_is_found_and_half_a_tolerance_passes(seed: int, size: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    golden = rng.standard_normal(size) * 10.0 ** rng.uniform(-6, 6) + rng.uniform(-1, 1)
    error = {
        "dense": rng.standard_normal(size),
        "sparse": np.where(rng.random(size) < 3 / size, 1.0, 0.0) + (np.arange(size) == seed % size),
        "scale": golden - golden.mean(),
        "block": (np.arange(size) < size // 10) * 1.0,
    }[kind]
    unit = np.sqrt(np.mean((golden - golden.mean()) ** 2))
    error *= max(unit, abs(golden.mean()) / 32, 1e-6) / np.sqrt(np.mean(error**2))
    assume(np.argmax(golden + 0.005 * error) == np.argmax(golden))  # where the largest element is has its own rule
    vectors = read_golden(write_golden([GoldenSample({}, {"y": golden})] * 4))
    for vector in vectors:
        check_outputs({"y": golden + 0.005 * error}, vector, tolerance_ppm=10_000, where="golden")
    misses = 0
    for vector in vectors:
        try:
            check_outputs({"y": golden + 0.0125 * error}, vector, tolerance_ppm=10_000, where="golden")
            misses += 1
        except GoldenMismatch:
            pass
    assert misses < 4


def test_squares_of_the_largest_numbers_do_not_overflow() -> None:
    values = np.linspace(-1, 1, 500) * 1.7e308
    vector = read_one(GoldenSample({}, {"y": values}))
    check_outputs({"y": values}, vector, tolerance_ppm=1, where="golden")
    with pytest.raises(GoldenMismatch):
        check_outputs({"y": values * 0.99}, vector, tolerance_ppm=5_000, where="golden")
    small = read_one(GoldenSample({}, {"y": np.zeros(500)}))
    check_outputs({"y": np.full(500, 1e-10)}, small, tolerance_ppm=1_000, where="golden")
    with pytest.raises(GoldenMismatch):
        check_outputs({"y": values}, small, tolerance_ppm=50_000, where="golden")


def test_a_constant_output_is_compared_with_its_value() -> None:
    vector = read_one(GoldenSample({}, {"y": np.full(500, 5.0, np.float32)}))
    check_outputs({"y": np.full(500, 5.00001, np.float32)}, vector, tolerance_ppm=1_000, where="golden")
    with pytest.raises(GoldenMismatch):
        check_outputs({"y": np.full(500, 5.01, np.float32)}, vector, tolerance_ppm=1_000, where="golden")


def test_large_outputs_take_few_bytes() -> None:
    outputs: dict[str, Array] = {"y": np.random.default_rng(0).standard_normal((1, 264, 2000)).astype(np.float32)}
    assert len(write_golden([GoldenSample({}, outputs)])) < 500
    assert len(write_golden([GoldenSample({}, dict(large_outputs()))])) < 700


def test_channels_are_the_smallest_suitable_axis() -> None:
    assert channel_axis([(1, 84, 8400)]) == 1
    assert channel_axis([(1, 8400, 85)]) == 2
    assert channel_axis([(1, 3, 64, 64), (1, 3, 32, 32)]) == 1
    assert channel_axis([(1, 384)]) is None
    assert channel_axis([(1, 200, 264)]) is None
    assert channel_axis([(1, 16, 384), (1, 32, 384)]) is None


def test_non_finite_outputs_cannot_be_golden() -> None:
    with pytest.raises(ValueError, match="'y' has NaN"):
        write_golden([GoldenSample({}, {"y": np.array([np.nan])})])
    assert read_golden_file(write_golden([SAMPLE])).rows[0].name == "y"


def test_relative_rms_of_a_golden_that_is_all_zero_is_not_a_division_by_zero() -> None:
    assert relative_rms(np.zeros(3, np.float32), np.zeros(3, np.float32)) == 0.0
    assert relative_rms(np.ones(3, np.float32), np.zeros(3, np.float32)) > 1e5
    assert relative_rms(np.full(3, 1e-9, np.float32), np.zeros(3, np.float32)) < 0.01
