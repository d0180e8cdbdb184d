"""Check that each constant of a model has as many bytes as its shape and type need.

Rules:
- The check runs before an array is made of a constant, so a header of some bytes cannot ask for gigabytes, and
  multiplications are exact: Python's integers do not wrap.
- External data must lie inside of its file.
- Constants of strings, and of types whose packing the format leaves open, are not checked.
"""

import errno
import math
from pathlib import Path, PurePosixPath
from typing import Final

import onnx

from packager.errors import ExternalDataMissing, ModelUnreadable
from packager.models.tensor_data import external_entries, stored_tensors

MAX_MODEL_FILE_BYTES: Final = onnx.checker.MAXIMUM_PROTOBUF  # 2 GiB: larger constants are external data
SUB_BYTE_BITS: Final = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
WITHOUT_SIZE: Final = ("STRING", "UNDEFINED", "FLOAT6E2M3", "FLOAT6E3M2")


def check_tensor_sizes(model: onnx.ModelProto, path: Path) -> None:
    """Check the constants of every graph and function.

    Args:
        model: the parsed model, with its external data not loaded.
        path: its file; external data is stored beside it.

    Raises:
        ModelUnreadable: a constant has more or fewer bytes than its shape and type need, or is a segment.
        ExternalDataMissing: external data is missing, or does not lie inside of its file.
    """
    for tensor in stored_tensors(model):
        kind = _type_name(tensor)
        if kind in WITHOUT_SIZE:
            continue
        shape = list(tensor.dims)
        where = f"{path}: tensor {tensor.name!r} of shape {shape}"
        if tensor.HasField("segment"):
            raise ModelUnreadable(
                f"{where} is one segment of a tensor, expected a whole tensor", hint="save the model with whole tensors"
            )
        if any(size < 0 for size in shape):
            raise ModelUnreadable(f"{where}: a size is negative")
        expected = _byte_count(math.prod(shape), kind)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, expected, path, where)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != expected:
                raise ModelUnreadable(f"{where} needs {expected:,} bytes, found {len(tensor.raw_data):,}")
        elif kind not in SUB_BYTE_BITS:
            _check_typed_field(tensor, math.prod(shape), where)


def _check_external(tensor: onnx.TensorProto, expected: int, path: Path, where: str) -> None:
    entries = external_entries(tensor)
    location = entries.get("location", "")
    if not location or PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
        raise ExternalDataMissing(
            f"{where} is stored in {location!r}, expected a file beside the model or in a folder below",
            hint="save the model again with a plain file name for its external data",
        )
    file = path.parent / location
    if not _is_file(file):
        raise ExternalDataMissing(
            f"{where} is stored in {location!r}, found no such file beside the model",
            hint="put the model's data files beside it",
        )
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or expected)
    except ValueError as error:
        raise ModelUnreadable(f"{where}: offset or length of its external data is not a number") from error
    if length != expected:
        holder = "found" if location == path.name else "its external data has"
        raise ModelUnreadable(f"{where} needs {expected:,} bytes, {holder} {length:,}")
    size = file.stat().st_size
    if offset < 0 or offset + length > size:
        raise ExternalDataMissing(
            f"{where} is stored at bytes {offset:,} to {offset + length:,} of {location!r}, which has {size:,} bytes",
            hint="copy the model together with its data files",
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _check_typed_field(tensor: onnx.TensorProto, elements: int, where: str) -> None:
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    found = len(getattr(tensor, field))
    expected = (
        2 * elements if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else elements
    )
    if found != expected:
        raise ModelUnreadable(f"{where} needs {expected:,} numbers, found {found:,}")


def _byte_count(elements: int, kind: str) -> int:
    bits = SUB_BYTE_BITS.get(kind)
    if bits is not None:
        return -(-elements * bits // 8)
    number = onnx.TensorProto.DataType.Value(kind)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(number).itemsize)


def _type_name(tensor: onnx.TensorProto) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return "UNDEFINED"  # of a newer format; its reader refuses it
