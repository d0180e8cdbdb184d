"""Tensors of the Open Inference Protocol v2: JSON lists and raw bytes to numpy arrays and back.

Sources: the protocol's "Tensor Data" and Triton's binary tensor data extension. Rules:
1. No value is converted silently. An integer tensor accepts only integers in its range, BOOL only Booleans, BYTES only
   strings. A float tensor accepts any number, and null for NaN; NaN and infinity are not JSON.
2. JSON data may be nested or flat, in row-major order. Its number of elements must be that of the shape. A tensor
   without dimensions may be a bare value.
3. Raw data is little-endian and row-major, and has exactly the shape's bytes. A BYTES element is a u32 length followed
   by UTF-8.
4. In a JSON response, NaN and infinity, which JSON does not have, are null.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from device_agent.errors import RequestInvalid

Array = npt.NDArray[Any]

DATATYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_DATATYPE_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}
MAX_ELEMENTS: Final = 2**40


def datatype_name(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a dtype.

    Raises:
        KeyError: the protocol has no name for it.
    """
    return _DATATYPE_NAMES[dtype]


def count_elements(shape: Sequence[int], name: str) -> int:
    """Return the number of elements of a shape.

    Args:
        shape: sizes of the dimensions.
        name: the input, for the error message.

    Raises:
        RequestInvalid: there are more than MAX_ELEMENTS; sizes of 0 count as 1, because libraries multiply the others.
    """
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise RequestInvalid(f"input {name!r}: shape {str(list(shape))[:80]} has more than {MAX_ELEMENTS} elements")
    return math.prod(shape)


def from_json(data: object, datatype: str, shape: Sequence[int], name: str) -> Array:
    """Convert the `data` of an input to an array (rules 1 and 2).

    Args:
        data: the parsed JSON value.
        datatype: a name in DATATYPES.
        shape: sizes of the dimensions.
        name: the input, for error messages.

    Raises:
        RequestInvalid: the data does not fit datatype and shape.
    """
    count = count_elements(shape, name)
    if not isinstance(data, list) and not shape:
        data = [data]
    if not isinstance(data, list):
        raise RequestInvalid(f"input {name!r}: data is {type(data).__name__}, expected a list")
    if datatype == "BYTES":
        flat = list(_flat_strings(data, name))
        _check_count(len(flat), count, shape, name)
        array: Array = np.empty(count, object)
        array[:] = flat
        return array.reshape(tuple(shape))
    found = numbers_from_list(data, datatype, name)
    _check_count(found.size, count, shape, name)
    # not ascontiguousarray: it converts a scalar to an array with one dimension
    return np.asarray(found.reshape(tuple(shape)), order="C")


def numbers_from_list(data: list[Any], datatype: str, name: str) -> Array:
    """Convert a list, flat or nested, to an array of the same nesting (rule 1).

    Args:
        data: the parsed JSON list.
        datatype: a name in DATATYPES other than BYTES.
        name: the input, for error messages.

    Raises:
        RequestInvalid: the data is ragged or does not fit the datatype.
    """
    dtype = DATATYPES[datatype]
    try:
        found = np.array(data) if data else np.empty(0, dtype)
        if found.dtype.kind == "f" and datatype == "UINT64":
            # numpy converts integers to floats if some are below and some above 2^63
            exact = np.array(data, object)
            if all(type(value) is int for value in exact.reshape(-1)):
                found = np.array(data, np.uint64)
        elif found.dtype.kind == "O" and dtype.kind == "f":
            found = _floats_with_null(data)
    except (ValueError, OverflowError) as error:
        raise RequestInvalid(f"input {name!r}: data is ragged, or a number is out of range") from error
    if not found.size:
        found = found.astype(dtype)  # numpy gives [] and [[]] the dtype float64
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if found.dtype.kind not in allowed or (dtype.kind != "b" and _has_boolean(data)):
        # numpy makes objects of integers beyond 64 bits and of null, and numbers of Booleans among numbers
        raise RequestInvalid(f"input {name!r}: data has values that are not {datatype}")
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        if found.min() < limits.min or found.max() > limits.max:
            raise RequestInvalid(f"input {name!r}: data has a value beyond {datatype}")
    with np.errstate(over="ignore"):
        array = found.astype(dtype, order="C", copy=False)
    if has_non_finite(array) and np.isinf(array).any():
        raise RequestInvalid(f"input {name!r}: data has a value beyond {datatype}")
    return array


def from_bytes(data: memoryview, datatype: str, shape: Sequence[int], name: str) -> Array:
    """Convert the raw bytes of an input to an array (rule 3), without a copy if they are aligned.

    Args:
        data: the bytes.
        datatype: a name in DATATYPES.
        shape: sizes of the dimensions.
        name: the input, for error messages.

    Raises:
        RequestInvalid: the data does not fit datatype and shape.
    """
    count = count_elements(shape, name)
    if datatype == "BYTES":
        return _strings_from_bytes(data, count, shape, name)
    dtype = DATATYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise RequestInvalid(
            f"input {name!r}: {len(data)} bytes of data, expected {count * dtype.itemsize} for {datatype} {list(shape)}"
        )
    if datatype == "BOOL" and count and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise RequestInvalid(f"input {name!r}: BOOL data has a byte other than 0 and 1")
    array = np.frombuffer(data, dtype).reshape(tuple(shape))
    return array if array.flags.aligned else array.copy()


def to_json(array: Array) -> list[Any]:
    """Convert an output to the flat list for `data` (rule 4)."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        flat = array.astype(np.float64).reshape(-1)
        return [float(value) if np.isfinite(value) else None for value in flat]
    if array.dtype.kind == "O":
        return [_text(value) for value in array.reshape(-1)]
    return list(array.reshape(-1).tolist())


def to_bytes(array: Array) -> memoryview:
    """Convert an output to raw data (rule 3), without a copy if it is contiguous."""
    if array.dtype.kind == "O":
        encoded = [_text(value).encode() for value in array.reshape(-1)]
        return memoryview(b"".join(struct.pack("<I", len(item)) + item for item in encoded))
    # viewed as bytes: memoryview supports neither float16 nor empty shapes
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def is_text(value: str) -> bool:
    """Return whether a string has a UTF-8 encoding: JSON's escapes can write half of a surrogate pair."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def has_non_finite(array: Array) -> bool:
    """Return whether a float array has NaN or infinity in it."""
    if array.dtype.kind != "f" or not array.size:
        return False
    # fast path without a temporary array: a sum is finite only if all its terms are
    with np.errstate(all="ignore"):
        total = array.sum(dtype=np.float32 if array.dtype.itemsize < 4 else None)
    return not np.isfinite(total) and not bool(np.isfinite(array).all())


def _has_boolean(data: list[Any]) -> bool:
    kinds = set(map(type, data))
    return bool in kinds or (list in kinds and any(_has_boolean(item) for item in data if type(item) is list))


def _floats_with_null(data: list[Any]) -> Array:
    values = np.array(data, object)
    flat = values.reshape(-1).tolist()
    if not all(value is None or type(value) in (int, float) for value in flat):
        return values
    return np.array([math.nan if value is None else value for value in flat], np.float64).reshape(values.shape)


def _flat_strings(data: list[object], name: str) -> "list[str]":
    flat: list[str] = []
    for item in data:
        if isinstance(item, list):
            flat.extend(_flat_strings(item, name))
        elif isinstance(item, str) and is_text(item):
            flat.append(item)
        elif isinstance(item, str):
            raise RequestInvalid(f"input {name!r}: data has a string with half of a surrogate pair")
        else:
            raise RequestInvalid(f"input {name!r}: data has a {type(item).__name__}, expected strings")
    return flat


def _strings_from_bytes(data: memoryview, count: int, shape: Sequence[int], name: str) -> Array:
    found: list[str] = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < 4:
            raise RequestInvalid(f"input {name!r}: BYTES data ends within a length")
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if length > len(data) - offset:
            raise RequestInvalid(f"input {name!r}: BYTES data ends within an element of {length} bytes")
        try:
            found.append(str(data[offset : offset + length], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestInvalid(f"input {name!r}: BYTES element {len(found)} is not UTF-8") from error
        offset += length
        if len(found) > count:
            break
    _check_count(len(found), count, shape, name)
    array: Array = np.empty(count, object)
    array[:] = found
    return array.reshape(tuple(shape))


def _check_count(found: int, expected: int, shape: Sequence[int], name: str) -> None:
    if found != expected:
        raise RequestInvalid(f"input {name!r}: {found} elements of data, expected {expected} for shape {list(shape)}")


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
