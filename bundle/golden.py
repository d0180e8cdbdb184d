"""Golden vectors: recorded inputs and outputs of the released model, for the probe on the device.

Rules (docs/format.md section 8):
- The file has the safetensors layout: u64 little-endian header length ‖ JSON header ‖ tensors, without alignment gaps.
  Tensors are named `<sample>.in.<input>` and `<sample>.out.<output>` with four-digit sample numbers from 0000. Any
  safetensors reader opens the file, and the typed patch codec sees its tensors.
- A float output passes if it has the golden output's dtype and shape, is finite at the same positions, and its relative
  RMS error, RMS(output - golden) / max(RMS(golden), MIN_GOLDEN_RMS), is at most the tolerance. Integer and bool outputs
  must be equal.
- The layout has no strings: a model with a string input or output has no golden vectors.
"""

import json
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import GoldenMismatch, Malformed, TooLarge
from bundle.strict_json import JSON, StrictObject, decode

Array = npt.NDArray[np.generic]

MAX_GOLDEN_BYTES: Final = 64 * 1024 * 1024
MAX_HEADER_BYTES: Final = 1024 * 1024
MAX_SAMPLES: Final = 1000
# float32 rounding of activations around 1 leaves errors of this size; a golden output with a smaller RMS is noise
MIN_GOLDEN_RMS: Final = 1e-6

# numpy's dtypes by their safetensors names
DTYPES: Final[dict[str, str]] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}
_DTYPE_NAMES: Final = {numpy: name for name, numpy in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """A recorded request and its response.

    Attributes:
        inputs: input tensors by name.
        outputs: output tensors by name.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]


def write_golden(samples: tuple[GoldenSample, ...]) -> bytes:
    """Return the bytes of a golden file.

    Raises:
        ValueError: a tensor has a dtype that DTYPES does not list.
    """
    header: dict[str, object] = {}
    chunks = []
    offset = 0
    for number, sample in enumerate(samples):
        for side, tensors in (("in", sample.inputs), ("out", sample.outputs)):
            for name, tensor in tensors.items():
                if tensor.dtype.name not in _DTYPE_NAMES:
                    raise ValueError(f"{name!r} is {tensor.dtype}, which golden vectors do not support")
                data = np.ascontiguousarray(tensor).tobytes()
                header[f"{number:04d}.{side}.{name}"] = {
                    "dtype": _DTYPE_NAMES[tensor.dtype.name],
                    "shape": list(tensor.shape),
                    "data_offsets": [offset, offset + len(data)],
                }
                chunks.append(data)
                offset += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(head)) + head + b"".join(chunks)


def read_golden(data: bytes | memoryview) -> tuple[GoldenSample, ...]:
    """Parse a golden file strictly and return its samples; the arrays are views of `data`.

    Raises:
        Malformed: the file does not follow the layout, or tensors overlap, leave gaps or exceed the file.
        TooLarge: the file is longer than MAX_GOLDEN_BYTES.
    """
    data = memoryview(data)
    if len(data) > MAX_GOLDEN_BYTES:
        raise TooLarge(f"golden vectors are {len(data)} bytes, at most {MAX_GOLDEN_BYTES} are allowed")
    if len(data) < 8:
        raise Malformed(f"golden vectors: found {len(data)} bytes, expected a header")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        raise Malformed(f"golden vectors: found a header of {length} bytes in a file of {len(data)}")
    header = decode(bytes(data[8 : 8 + length]), what="golden vectors", max_bytes=MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise Malformed("golden vectors: expected a JSON object as header")
    body = data[8 + length :]
    samples: dict[int, GoldenSample] = {}
    expected = 0
    for key, value in header.items():
        if key == "__metadata__":
            continue
        number, side, name = _split_tensor_name(key)
        tensor, expected = _read_tensor(StrictObject(value, f"golden vectors.{key}"), body, expected)
        sample = samples.setdefault(number, GoldenSample({}, {}))
        (sample.inputs if side == "in" else sample.outputs)[name] = tensor
    if expected != len(body):
        raise Malformed(f"golden vectors: {len(body) - expected} bytes after the last tensor")
    if not samples or sorted(samples) != list(range(len(samples))):
        raise Malformed(f"golden vectors: found {len(samples)} samples, expected numbers from 0000 without gaps")
    return tuple(samples[number] for number in range(len(samples)))


def relative_rms(output: Array, golden: Array) -> float:
    """Return RMS(output - golden) / max(RMS(golden), MIN_GOLDEN_RMS) over finite golden elements.

    Args:
        output: output of the model, any float dtype.
        golden: the golden output, of the same shape.
    """
    a, g = output.astype(np.float64), golden.astype(np.float64)
    finite = np.isfinite(g)
    if not finite.any():
        return 0.0
    error = float(np.sqrt(np.mean((a[finite] - g[finite]) ** 2)))
    return error / max(float(np.sqrt(np.mean(g[finite] ** 2))), MIN_GOLDEN_RMS)


def check_outputs(outputs: dict[str, Array], sample: GoldenSample, *, tolerance_ppm: int, where: str) -> float:
    """Compare a model's outputs with one golden sample.

    Args:
        outputs: outputs of the model by name.
        sample: the golden sample.
        tolerance_ppm: maximum relative RMS error, in parts per million.
        where: name of the sample in error messages.

    Returns:
        The largest relative RMS error of the float outputs.

    Raises:
        GoldenMismatch: an output is missing, has another dtype or shape, or exceeds the tolerance.
    """
    worst = 0.0
    for name, golden in sample.outputs.items():
        output = outputs.get(name)
        if output is None:
            raise GoldenMismatch(f"{where}: output {name!r} is missing, found {', '.join(sorted(outputs)) or 'none'}")
        if output.dtype != golden.dtype or output.shape != golden.shape:
            raise GoldenMismatch(
                f"{where}: output {name!r} is {output.dtype}{list(output.shape)}, "
                f"expected {golden.dtype}{list(golden.shape)}"
            )
        if golden.dtype.kind != "f":
            if not np.array_equal(output, golden):
                raise GoldenMismatch(f"{where}: output {name!r} differs from the golden output, expected equality")
            continue
        if not np.array_equal(np.isfinite(output), np.isfinite(golden)):
            raise GoldenMismatch(f"{where}: output {name!r} has NaN or infinity at other places than the golden output")
        error = relative_rms(output, golden)
        if error * 1_000_000 > tolerance_ppm:
            raise GoldenMismatch(
                f"{where}: output {name!r} has relative RMS error {error:.6f},"
                f" expected at most {tolerance_ppm / 1e6:.6f}"
            )
        worst = max(worst, error)
    return worst


def _split_tensor_name(key: str) -> tuple[int, str, str]:
    number, side, name = [*key.split(".", 2), "", ""][:3]
    if len(number) != 4 or not number.isdecimal() or side not in ("in", "out") or not name:
        raise Malformed(f"golden vectors: found tensor {key[:80]!r}, expected 0000.in.NAME or 0000.out.NAME")
    return int(number), side, name


def _read_tensor(row: StrictObject, body: memoryview, expected: int) -> tuple[Array, int]:
    dtype = np.dtype(DTYPES[row.choice("dtype", tuple(DTYPES))])
    shape, offsets = row.value("shape"), row.value("data_offsets")
    row.reject_unknown()
    sizes = _check_integers(shape, row.where)
    start, end = (*_check_integers(offsets, row.where), -1, -1)[:2]
    # Python integers, because numpy's product would overflow and accept a short tensor with a huge shape
    size = dtype.itemsize
    for n in sizes:
        size *= n
    if start != expected or end - start != size or end > len(body):
        raise Malformed(f"{row.where}: bytes {start} to {end}, expected {expected} to {expected + size} of {len(body)}")
    return np.frombuffer(body[start:end], dtype).reshape(sizes), end


def _check_integers(value: JSON, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 16:
        raise Malformed(f"{where}: expected a list of sizes")
    out = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= 0)
    if len(out) != len(value):
        raise Malformed(f"{where}: expected sizes of zero or more")
    return out
