"""Regions of formats with a table of arrays: safetensors, GGUF, NumPy .npy and .npz."""

import ast
import json
import math
import struct
from typing import Final, TypeGuard

from packager.tensors.region import MalformedFile, Region

MAX_SAFETENSORS_HEADER_BYTES: Final = 100 << 20  # the limit of the format's own reader
SAFETENSORS_DTYPES: Final = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "U8": "u8", "I8": "i8", "U16": "u16", "I16": "i16",
    "U32": "u32", "I32": "i32", "U64": "u64", "I64": "i64", "BOOL": "u8", "F8_E4M3": "u8", "F8_E5M2": "u8",
}  # fmt: skip


def find_safetensors(data: memoryview) -> list[Region]:
    """Find the regions of a safetensors file.

    Raises:
        MalformedFile: the header does not parse.
    """
    length = _unpack_integer("<Q", data, 0)
    if length > min(len(data) - 8, MAX_SAFETENSORS_HEADER_BYTES):
        raise MalformedFile("safetensors header longer than the file")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise MalformedFile("safetensors header is not JSON") from error
    if not isinstance(header, dict):
        raise MalformedFile("safetensors header is not an object")
    out = []
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        offsets, shape, dtype = entry.get("data_offsets"), entry.get("shape"), entry.get("dtype")
        if not (_is_integers(offsets) and len(offsets) == 2 and _is_integers(shape) and isinstance(dtype, str)):
            raise MalformedFile(f"safetensors entry {name!r}")
        out.append(
            Region(
                8 + length + offsets[0],
                offsets[1] - offsets[0],
                SAFETENSORS_DTYPES.get(dtype, "u8"),
                name,
                tuple(shape),
            )
        )
    return out


# ggml_type → (our type, elements in a block, bytes in a block). Quantized blocks mix scales and levels, so they are
# bytes here, in rows of one block: the position in the row then separates scales from levels.
GGUF_TYPES: Final = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("u8", 32, 18), 3: ("u8", 32, 20), 6: ("u8", 32, 22), 7: ("u8", 32, 24),
    8: ("u8", 32, 34), 9: ("u8", 32, 36), 10: ("u8", 256, 84), 11: ("u8", 256, 110), 12: ("u8", 256, 144),
    13: ("u8", 256, 176), 14: ("u8", 256, 210), 15: ("u8", 256, 292), 24: ("i8", 1, 1), 25: ("i16", 1, 2),
    26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 30: ("bf16", 1, 2),
}  # fmt: skip
GGUF_SCALAR_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
GGUF_STRING_TYPE: Final = 8
GGUF_ARRAY_TYPE: Final = 9
MAX_GGUF_ENTRIES: Final = 1 << 20


def find_gguf(data: memoryview) -> list[Region]:
    """Find the regions of a GGUF file of version 2 or 3, little-endian.

    Raises:
        MalformedFile: the header does not parse.
    """
    if _unpack_integer("<I", data, 4) not in (2, 3):
        raise MalformedFile("GGUF version")
    tensors, pairs = _unpack_integer("<Q", data, 8), _unpack_integer("<Q", data, 16)
    if max(tensors, pairs) > MAX_GGUF_ENTRIES:
        raise MalformedFile("GGUF counts")
    position = 24
    alignment = 32
    for _ in range(pairs):
        key, position = _read_gguf_string(data, position)
        kind = _unpack_integer("<I", data, position)
        if key == "general.alignment" and kind == 4:
            alignment = _unpack_integer("<I", data, position + 4) or 32
        position = _skip_gguf_value(data, position + 4, kind, 0)
    entries = []
    for _ in range(tensors):
        name, position = _read_gguf_string(data, position)
        axes = _unpack_integer("<I", data, position)
        if axes > 8:
            raise MalformedFile("GGUF dimensions")
        shape = [_unpack_integer("<Q", data, position + 4 + 8 * i) for i in range(axes)]
        position += 4 + 8 * axes
        entries.append((name, shape, _unpack_integer("<I", data, position), _unpack_integer("<Q", data, position + 4)))
        position += 12
    start = -(-position // alignment) * alignment
    out = []
    for name, shape, code, offset in entries:
        if code not in GGUF_TYPES:
            continue
        dtype, elements, size = GGUF_TYPES[code]
        blocks = math.prod(shape) // elements
        # GGUF writes the fastest dimension first; ours comes last.
        dimensions = tuple(reversed(shape)) if elements == 1 else (blocks, size)
        out.append(Region(start + offset, blocks * size, dtype, name, dimensions))
    return out


def find_npz(data: memoryview) -> list[Region]:
    """Find the regions of the members of an .npz file that are stored, not deflated.

    Raises:
        MalformedFile: the archive or a member's header does not parse.
    """
    import io
    import zipfile

    out = []
    try:
        with zipfile.ZipFile(_MemoryFile(data)) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
                    continue
                name_bytes, extra_bytes = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
                start = info.header_offset + 30 + name_bytes + extra_bytes
                out += _npy_regions(data, start, info.file_size, info.filename)
    except (
        zipfile.BadZipFile,
        struct.error,
        ValueError,
        OSError,
        NotImplementedError,
        io.UnsupportedOperation,
    ) as error:
        raise MalformedFile("npz") from error
    return out


def find_npy(data: memoryview) -> list[Region]:
    """Find the region of an .npy file.

    Raises:
        MalformedFile: the header does not parse.
    """
    return _npy_regions(data, 0, len(data), "")


def _npy_regions(data: memoryview, start: int, size: int, name: str) -> list[Region]:
    if bytes(data[start : start + 6]) != b"\x93NUMPY":
        return []
    is_long = data[start + 6] >= 2
    length = _unpack_integer("<I" if is_long else "<H", data, start + 8)
    begin = start + (12 if is_long else 10)
    if length > 1 << 16:
        raise MalformedFile("npy header")
    try:
        header = ast.literal_eval(bytes(data[begin : begin + length]).decode("latin-1"))
        descr, shape, is_fortran = header["descr"], tuple(header["shape"]), header["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise MalformedFile("npy header") from error
    if not (isinstance(descr, str) and len(descr) > 2 and descr[0] in "<|" and _is_integers(list(shape))):
        return []
    dtype = {"f": "f", "i": "i", "u": "u", "b": "u"}.get(descr[1], "") + str(
        8 * int(descr[2:] if descr[2:].isdecimal() else 0)
    )
    if dtype not in SAFETENSORS_DTYPES.values():
        return []
    used = begin + length - start
    return [Region(begin + length, size - used, dtype, name, tuple(reversed(shape)) if is_fortran else shape)]


class _MemoryFile:
    """A seekable file over a memoryview, so that a mapped file is not copied."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, len(self._data))[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else self._position + size
        piece = bytes(self._data[self._position : end])
        self._position += len(piece)
        return piece


def _unpack_integer(layout: str, data: memoryview, position: int) -> int:
    try:
        return int(struct.unpack_from(layout, data, position)[0])
    except (struct.error, OverflowError) as error:
        raise MalformedFile(f"number at {position}") from error


def _read_gguf_string(data: memoryview, position: int) -> tuple[str, int]:
    length = _unpack_integer("<Q", data, position)
    if length > len(data) - position - 8:
        raise MalformedFile("GGUF string")
    text = bytes(data[position + 8 : position + 8 + min(length, 1024)]).decode("utf-8", "replace")
    return text, position + 8 + length


def _skip_gguf_value(data: memoryview, position: int, kind: int, depth: int) -> int:
    if kind in GGUF_SCALAR_BYTES:
        return position + GGUF_SCALAR_BYTES[kind]
    if kind == GGUF_STRING_TYPE:
        return _read_gguf_string(data, position)[1]
    if kind != GGUF_ARRAY_TYPE or depth > 4:
        raise MalformedFile(f"GGUF value type {kind}")
    inner, count = _unpack_integer("<I", data, position), _unpack_integer("<Q", data, position + 4)
    position += 12
    if inner in GGUF_SCALAR_BYTES:
        return position + count * GGUF_SCALAR_BYTES[inner]
    if count > len(data):
        raise MalformedFile("GGUF array")
    for _ in range(count):
        position = _skip_gguf_value(data, position, inner, depth + 1)
    return position


def _is_integers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 1 << 50 for item in value)
