"""Input codes: how the input arrays of golden samples are stored (docs/format.md section 8.2).

Codes:
    raw                   the bytes of the array
    constant              one element, which fills the array
    same                  no bytes: the input of this name in the sample before, which has the same dtype and shape
    u8 i8 u16 i16 i32     small integers. An integer input has these values. A float input has the values
                          offset + step * integer, computed in float64 and rounded to its dtype.
    noise                 no bytes but offset and step: integers that SHAKE-128 draws, as above; an integer input is
                          rounded to the nearest integer, halves to even

Rules:
- Noise is the sum of three patterns with cells of 1, 4 and 16 elements, weighted 1, 2 and 2, so that it has coarse and
  fine structure. An axis of fewer than MIN_PATTERN_SIZE elements has cells of one element.
- Nothing is allocated before the sizes of all arrays were checked.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.errors import Malformed
from bundle.tensor_types import GOLDEN_INPUTS

Array = npt.NDArray[np.generic]

NOISE_LABEL: Final = b"airweights golden noise v1"
NOISE_CELLS: Final = ((1, 1), (4, 2), (16, 2))  # elements of a cell along an axis, weight
NOISE_LEVELS: Final = 1 + 255 * sum(weight for _, weight in NOISE_CELLS)
MIN_PATTERN_SIZE: Final = 16
INTEGER_CODES: Final[dict[str, str]] = {"u8": "<u1", "i8": "<i1", "u16": "<u2", "i16": "<i2", "i32": "<i4"}
CODES: Final = ("raw", "constant", "same", "noise", *INTEGER_CODES)
INPUT_DTYPES: Final = GOLDEN_INPUTS
_AFFINE: Final = struct.Struct("<dd")


@dataclass(frozen=True, slots=True)
class StoredInput:
    """One input of one sample, as it is stored.

    Attributes:
        dtype: numpy's name of the model's dtype, one of INPUT_DTYPES.
        shape: sizes of the axes.
        code: one of CODES.
        data: the stored bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    code: str
    data: bytes

    @property
    def elements(self) -> int:
        """Number of elements of the array."""
        return count_elements(self.shape)


def count_elements(shape: Sequence[int]) -> int:
    """Return the product of the sizes, as a Python integer that cannot overflow."""
    total = 1
    for size in shape:
        total *= size
    return total


def stored_size(dtype: str, shape: Sequence[int], code: str) -> int:
    """Return the bytes that an input takes in the file.

    Args:
        dtype: numpy's name of the model's dtype.
        shape: sizes of the axes.
        code: one of CODES.
    """
    if code == "same":
        return 0
    if code == "constant":
        return np.dtype(dtype).itemsize
    if code == "raw":
        return count_elements(shape) * np.dtype(dtype).itemsize
    affine = _AFFINE.size if code == "noise" or np.dtype(dtype).kind == "f" else 0
    return affine + (0 if code == "noise" else count_elements(shape) * np.dtype(INTEGER_CODES[code]).itemsize)


def decode_input(stored: StoredInput, sample: int, name: str, before: Array | None) -> Array:
    """Return the array of an input.

    Args:
        stored: the input as it is stored.
        sample: number of the sample.
        name: name of the input.
        before: the input of this name in the sample before, or None.

    Raises:
        Malformed: the code is "same" and there is no such input before, or the step is not finite.
    """
    dtype = np.dtype(stored.dtype).newbyteorder("<")
    if stored.code == "same":
        if before is None or before.dtype != np.dtype(stored.dtype) or before.shape != stored.shape:
            raise Malformed(f"golden vectors: sample {sample} repeats input {name!r}, which the one before lacks")
        return before
    if stored.code == "raw":
        return np.frombuffer(stored.data, dtype).reshape(stored.shape).astype(stored.dtype, copy=False)
    if stored.code == "constant":
        return np.full(stored.shape, np.frombuffer(stored.data, dtype)[0], stored.dtype)
    if stored.code == "noise":
        return _scale_integers(draw_noise(sample, name, stored.shape), stored.data, stored.dtype)
    integers = np.dtype(INTEGER_CODES[stored.code])
    if dtype.kind != "f":
        return np.frombuffer(stored.data, integers).reshape(stored.shape).astype(stored.dtype)
    values = np.frombuffer(stored.data, integers, offset=_AFFINE.size).reshape(stored.shape)
    return _scale_integers(values, stored.data, stored.dtype)


def encode_raw(array: Array) -> StoredInput:
    """Store an array as it is, or as one element if all bytes of its elements are equal.

    Raises:
        ValueError: the dtype is not one of INPUT_DTYPES.
    """
    if array.dtype.name not in INPUT_DTYPES:
        raise ValueError(f"golden inputs cannot be {array.dtype}")
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    first = data[: array.itemsize]
    if array.size > 1 and first * array.size == data:
        return StoredInput(array.dtype.name, array.shape, "constant", first)
    return StoredInput(array.dtype.name, array.shape, "raw", data)


def encode_integers(array: Array, integers: Array, code: str, affine: tuple[float, float] | None) -> StoredInput:
    """Store an array as small integers.

    Args:
        array: the input; only its dtype and shape are used.
        integers: values that the code can hold, of the same shape.
        code: one of INTEGER_CODES.
        affine: offset and step of a float input; None for an integer input.
    """
    data = np.ascontiguousarray(integers, INTEGER_CODES[code]).tobytes()
    head = b"" if affine is None else _AFFINE.pack(*affine)
    return StoredInput(array.dtype.name, array.shape, code, head + data)


def encode_noise(array: Array) -> StoredInput:
    """Return noise of the dtype and shape of an array, between its smallest and largest element."""
    low, high = float(array.min()), float(array.max())
    return StoredInput(array.dtype.name, array.shape, "noise", _AFFINE.pack(low, (high - low) / (NOISE_LEVELS - 1)))


def draw_noise(sample: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Return integers from 0 to NOISE_LEVELS - 1 (docs/format.md section 8.2).

    Args:
        sample: number of the sample.
        name: name of the input.
        shape: sizes of the axes.
    """
    total = np.zeros(shape, np.uint16)
    for cell, weight in NOISE_CELLS:
        cells = [cell if size >= MIN_PATTERN_SIZE else 1 for size in shape]
        grid = [-(-size // width) for size, width in zip(shape, cells, strict=True)]
        seed = NOISE_LABEL + encode_place(sample, name, shape) + struct.pack("<I", cell)
        drawn = np.frombuffer(hashlib.shake_128(seed).digest(count_elements(grid)), np.uint8).reshape(grid)
        for axis, width in enumerate(cells):
            if width > 1:
                drawn = drawn.repeat(width, axis=axis)
        total += drawn[tuple(slice(size) for size in shape)] * np.uint16(weight)
    return total


def encode_place(sample: int, name: str, shape: Sequence[int]) -> bytes:
    """Return the bytes that seed a stream for one tensor of one sample.

    Args:
        sample: number of the sample.
        name: name of the input or output.
        shape: sizes of the axes.
    """
    text = name.encode()
    return struct.pack(f"<IH{len(text)}sB{len(shape)}Q", sample, len(text), text, len(shape), *shape)


def _scale_integers(values: Array, data: bytes, dtype: str) -> Array:
    offset, step = _AFFINE.unpack_from(data)
    if not (np.isfinite(offset) and np.isfinite(step)):
        raise Malformed("golden vectors: found an input with an infinite step, expected a finite one")
    with np.errstate(all="ignore"):
        scaled: npt.NDArray[np.float64] = offset + step * values.astype(np.float64)
        return (scaled if np.dtype(dtype).kind == "f" else np.rint(scaled)).astype(dtype)
