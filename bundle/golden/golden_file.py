"""The file of golden vectors (docs/format.md section 8.1).

magic ‖ header length (u32) ‖ header (JSON) ‖ inputs ‖ scales ‖ expected outputs, without gaps. The header has no number
that changes with the weights, and the inputs stay the same from release to release, so a patch copies both.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import Malformed, TooLarge
from bundle.golden.comparison import GoldenVector
from bundle.golden.inputs import (
    CODES,
    INPUT_DTYPES,
    Array,
    StoredInput,
    count_elements,
    decode_input,
    encode_raw,
    stored_size,
)
from bundle.golden.scales import (
    EXACT_DTYPES,
    FLOAT_DTYPES,
    MAX_CHANNELS,
    channel_axis,
    decode_scale,
    measure_scale,
    scale_size,
)
from bundle.golden.sketch import (
    BUCKETS,
    DIGEST_BYTES,
    FACTS,
    NO_POSITION,
    OutputFacts,
    OutputRow,
    Summary,
    choose_step,
    summarize,
    to_levels,
)
from bundle.strict_json import JSON, StrictObject, decode, encode

MAGIC: Final = b"airweights golden 2\n"
MAX_GOLDEN_BYTES: Final = 64 * 1024 * 1024
MAX_HEADER_BYTES: Final = 1024 * 1024
MAX_SAMPLES: Final = 1000
MAX_INPUT_BYTES: Final = 256 * 1024 * 1024  # of all decoded inputs
MAX_AXES: Final = 16
WHOLE_ELEMENTS: Final = 64  # of one output
MAX_WHOLE_ELEMENTS: Final = 128  # of all whole outputs of a sample


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """A request and its response, to make golden vectors of.

    Attributes:
        inputs: input tensors by name.
        outputs: output tensors by name.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """A parsed file of golden vectors.

    Attributes:
        inputs: the stored inputs of each sample, by name.
        rows: the outputs, with their scales.
        samples: the samples.
    """

    inputs: tuple[dict[str, StoredInput], ...]
    rows: tuple[OutputRow, ...]
    samples: tuple[GoldenVector, ...]


def write_golden(samples: Sequence[GoldenSample]) -> bytes:
    """Return the golden file of requests and responses, with inputs as they are.

    Raises:
        ValueError: a tensor has a dtype that golden vectors do not support, or a float output is not finite.
    """
    outputs = [sample.outputs for sample in samples]
    for tensors in outputs:
        for name, output in tensors.items():
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise ValueError(f"output {name!r} has NaN or infinity, which golden vectors do not support")
    inputs = [{name: encode_raw(np.asarray(a)) for name, a in sample.inputs.items()} for sample in samples]
    return write_golden_file(inputs, outputs, describe_outputs(outputs))


def describe_outputs(
    outputs: Sequence[Mapping[str, Array]],
    noise: Mapping[str, npt.NDArray[np.float64]] | None = None,
    *,
    noise_limit: float = 1e-3,
) -> tuple[OutputRow, ...]:
    """Choose how each output is kept, and its scale.

    Args:
        outputs: finite outputs of each sample, by name.
        noise: RMS by which honest runs differ, float64 [channels], by output.
        noise_limit: relative RMS of all channels' noise that the scales leave.

    Raises:
        ValueError: an output has a dtype that golden vectors do not support.
    """
    rows = []
    left = MAX_WHOLE_ELEMENTS
    for name, first in outputs[0].items():
        dtype = "string" if first.dtype.kind in "OUS" else first.dtype.name
        if dtype in EXACT_DTYPES:
            rows.append(OutputRow(name, dtype))
            continue
        if dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name!r} is {dtype}, which golden vectors do not support")
        values = [np.asarray(sample[name]) for sample in outputs]
        largest = max(value.size for value in values)
        is_whole = largest <= min(WHOLE_ELEMENTS, left)
        left -= largest if is_whole else 0
        axis = None if is_whole else channel_axis([value.shape for value in values])
        scale = measure_scale(values, axis, (noise or {}).get(name), is_whole=is_whole, noise_limit=noise_limit)
        rows.append(OutputRow(name, dtype, is_whole, axis, scale))
    return tuple(rows)


def write_golden_file(
    inputs: Sequence[Mapping[str, StoredInput]],
    outputs: Sequence[Mapping[str, Array]],
    rows: Sequence[OutputRow],
    steady: Mapping[tuple[int, str], bool] | None = None,
) -> bytes:
    """Return the bytes of a golden file.

    Args:
        inputs: stored inputs of each sample, by name.
        outputs: finite outputs of each sample, by name.
        rows: the outputs with their scales.
        steady: by sample and output, whether the largest element is at one position in all honest runs; default: it is.
    """
    summaries = [summarize(tensors, rows, number) for number, tensors in enumerate(outputs)]
    header: dict[str, JSON] = {
        "outputs": [_row_as_json(row) for row in rows],
        "samples": [
            {
                "inputs": [
                    {"code": i.code, "dtype": i.dtype, "name": name, "shape": list(i.shape)}
                    for name, i in sample.items()
                ],
                "outputs": [list(np.shape(tensors[row.name])) for row in rows],
            }
            for sample, tensors in zip(inputs, outputs, strict=True)
        ],
    }
    head = encode(header)
    parts = [MAGIC, struct.pack("<I", len(head)), head]
    parts += [stored.data for sample in inputs for stored in sample.values()]
    parts += [row.scale.encode() for row in rows if row.scale is not None]
    for number, summary in enumerate(summaries):
        parts.append(encode_expected(summary, number, steady or {}))
    return b"".join(parts)


def encode_expected(summary: Summary, sample: int, steady: Mapping[tuple[int, str], bool]) -> bytes:
    """Return the expected outputs of one sample as they are stored.

    Args:
        summary: the outputs, summarized.
        sample: number of the sample.
        steady: as for `write_golden_file`.
    """
    parts = list(summary.digests.values())
    for name, facts in summary.facts.items():
        if not steady.get((sample, name), True) or not facts.lead > 0:
            facts = OutputFacts(facts.mean, facts.rms, NO_POSITION, 0.0)
        parts.append(facts.encode())
    values = summary.values()
    if summary.whole or summary.facts:
        step = choose_step(values)
        parts.append(struct.pack("<f", step) + to_levels(values, step).astype("<i2").tobytes())
    return b"".join(parts)


def expected_size(rows: Sequence[OutputRow], shapes: Sequence[Sequence[int]]) -> int:
    """Return the bytes that the expected outputs of one sample take.

    Args:
        rows: the outputs.
        shapes: shape of each output.
    """
    floats = [row for row in rows if row.scale is not None or row.dtype in FLOAT_DTYPES]
    sketched = sum(row.is_sketched for row in rows)
    size = DIGEST_BYTES * (len(rows) - len(floats)) + FACTS.size * sketched
    return size + (4 + 2 * count_levels(rows, shapes) if floats else 0)


def count_levels(rows: Sequence[OutputRow], shapes: Sequence[Sequence[int]]) -> int:
    """Return the number of 16-bit integers of one sample.

    Args:
        rows: the outputs.
        shapes: shape of each output.
    """
    whole = sum(count_elements(shape) for row, shape in zip(rows, shapes, strict=True) if row.is_whole)
    return whole + (BUCKETS if any(row.is_sketched for row in rows) else 0)


def read_golden(data: bytes | memoryview) -> tuple[GoldenVector, ...]:
    """Parse a golden file strictly and return its samples.

    Raises:
        Malformed: the file does not follow the format.
        TooLarge: the file or its decoded inputs are larger than allowed.
    """
    return read_golden_file(data).samples


def read_golden_file(data: bytes | memoryview) -> GoldenFile:
    """Parse a golden file strictly.

    Raises:
        Malformed: the file does not follow the format.
        TooLarge: the file or its decoded inputs are larger than allowed.
    """
    if len(data) > MAX_GOLDEN_BYTES:
        raise TooLarge(f"golden vectors are {len(data)} bytes, at most {MAX_GOLDEN_BYTES} are allowed")
    reader = _Reader(bytes(data))
    if reader.take(len(MAGIC), "magic") != MAGIC:
        raise Malformed("golden vectors: found no file of golden vectors, format 2")
    (length,) = struct.unpack("<I", reader.take(4, "header length"))
    if length > MAX_HEADER_BYTES:
        raise TooLarge(f"golden vectors have a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    header = StrictObject(
        decode(reader.take(length, "header"), what="golden vectors", max_bytes=MAX_HEADER_BYTES), "golden vectors"
    )
    drafts = [_read_row(StrictObject(value, "golden vectors.outputs")) for value in _read_list(header, "outputs")]
    samples = [StrictObject(value, "golden vectors.samples") for value in _read_list(header, "samples")]
    header.reject_unknown()
    names = [row.name for row, _ in drafts]
    if not 1 <= len(samples) <= MAX_SAMPLES or len(set(names)) != len(names):
        raise Malformed(
            f"golden vectors: found {len(samples)} samples of outputs {names[:9]}, expected 1 to {MAX_SAMPLES}"
        )
    forms = [_read_sample(sample, len(drafts)) for sample in samples]
    total = sum(
        count_elements(shape) * np.dtype(dtype).itemsize for inputs, _ in forms for _, _, dtype, shape in inputs
    )
    if total > MAX_INPUT_BYTES:
        raise TooLarge(f"golden inputs are {total} bytes, at most {MAX_INPUT_BYTES} are allowed")
    stored = tuple(
        {
            name: StoredInput(dtype, shape, code, reader.take(stored_size(dtype, shape, code), f"input {name!r}"))
            for name, code, dtype, shape in inputs
        }
        for inputs, _ in forms
    )
    rows = tuple(_read_scale(reader, row, channels) for row, channels in drafts)
    vectors: list[GoldenVector] = []
    for number, (inputs, (_, shapes)) in enumerate(zip(stored, forms, strict=True)):
        before = vectors[-1].inputs if vectors else {}
        arrays = {name: decode_input(item, number, name, before.get(name)) for name, item in inputs.items()}
        vectors.append(_read_expected(reader, number, arrays, rows, shapes))
    reader.finish()
    return GoldenFile(stored, rows, tuple(vectors))


class _Reader:
    """Reads the file from its start; every read is checked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int, what: str) -> bytes:
        part = self._data[self._position : self._position + size]
        if len(part) != size:
            raise Malformed(f"golden vectors: found {len(part)} bytes of the {what}, expected {size}")
        self._position += size
        return part

    def finish(self) -> None:
        if self._position != len(self._data):
            raise Malformed(f"golden vectors: {len(self._data) - self._position} bytes after the last sample")


def _row_as_json(row: OutputRow) -> JSON:
    out: dict[str, JSON] = {"dtype": row.dtype, "name": row.name}
    if row.scale is not None:
        out |= {"axis": row.axis, "channels": row.scale.channels, "whole": row.is_whole}
    return out


def _read_list(row: StrictObject, name: str) -> list[JSON]:
    value = row.value(name)
    if not isinstance(value, list):
        raise Malformed(f"{row.where}: {name}: expected a list")
    return value


def _read_row(row: StrictObject) -> tuple[OutputRow, int]:
    """Return an output without its scale, and its number of channels."""
    name, dtype = row.text("name"), row.choice("dtype", (*EXACT_DTYPES, *FLOAT_DTYPES))
    axis, channels, is_whole = None, 0, False
    if dtype in FLOAT_DTYPES:
        axis = None if (value := row.value("axis")) is None else _check_sizes([value], row.where)[0]
        channels, is_whole = row.integer("channels", 0, MAX_CHANNELS), row.flag("whole")
        if (axis is None) != (channels == 0) or (is_whole and channels):
            raise Malformed(f"{row.where}: output {name!r}: found {channels} channels at axis {axis}")
    row.reject_unknown()
    return OutputRow(name, dtype, is_whole, axis), channels


def _read_sample(
    row: StrictObject, outputs: int
) -> tuple[list[tuple[str, str, str, tuple[int, ...]]], tuple[tuple[int, ...], ...]]:
    """Return (name, code, dtype, shape) of each input, and the shape of each output."""
    inputs = []
    for value in _read_list(row, "inputs"):
        part = StrictObject(value, f"{row.where}.inputs")
        name, code, dtype = part.text("name"), part.choice("code", CODES), part.choice("dtype", INPUT_DTYPES)
        inputs.append((name, code, dtype, _check_sizes(part.value("shape"), part.where)))
        part.reject_unknown()
    shapes = tuple(_check_sizes(value, f"{row.where}.outputs") for value in _read_list(row, "outputs"))
    row.reject_unknown()
    if len({name for name, *_ in inputs}) != len(inputs) or len(shapes) != outputs:
        raise Malformed(f"{row.where}: expected unique inputs and the shapes of {outputs} outputs")
    return inputs, shapes


def _read_scale(reader: _Reader, row: OutputRow, channels: int) -> OutputRow:
    if row.dtype not in FLOAT_DTYPES:
        return row
    where = f"golden vectors: output {row.name!r}"
    scale = decode_scale(reader.take(scale_size(channels), f"scale of {row.name!r}"), channels, where)
    return OutputRow(row.name, row.dtype, row.is_whole, row.axis, scale)


def _read_expected(
    reader: _Reader,
    number: int,
    inputs: dict[str, Array],
    rows: tuple[OutputRow, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> GoldenVector:
    for row, shape in zip(rows, shapes, strict=True):
        is_wrong = row.axis is not None and (row.axis >= len(shape) or shape[row.axis] != _channels(row))
        if is_wrong or (row.is_whole and count_elements(shape) > WHOLE_ELEMENTS):
            raise Malformed(f"golden vectors: sample {number}: output {row.name!r} cannot have shape {list(shape)}")
    digests = {row.name: reader.take(DIGEST_BYTES, "digest") for row in rows if row.scale is None}
    facts = {row.name: OutputFacts(*FACTS.unpack(reader.take(FACTS.size, "facts"))) for row in rows if row.is_sketched}
    step, levels = 0.0, np.zeros(0, np.int16)
    if any(row.scale is not None for row in rows):
        (step,) = struct.unpack("<f", reader.take(4, "step"))
        levels = np.frombuffer(reader.take(2 * count_levels(rows, shapes), "levels"), "<i2").astype(np.int16)
    is_finite = all(np.isfinite((fact.mean, fact.rms, fact.lead)).all() for fact in facts.values())
    if not is_finite or not np.isfinite(step) or (levels.size and step <= 0):
        raise Malformed(f"golden vectors: sample {number}: found a number that is not finite")
    return GoldenVector(number, inputs, rows, shapes, digests, facts, step, levels)


def _channels(row: OutputRow) -> int:
    return row.scale.channels if row.scale is not None else 0


def _check_sizes(value: JSON, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_AXES:
        raise Malformed(f"{where}: expected a list of at most {MAX_AXES} sizes")
    out = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= 0)
    if len(out) != len(value):
        raise Malformed(f"{where}: expected sizes of zero or more")
    return out
