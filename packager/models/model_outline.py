"""Parse an ONNX file without its large constants, so that reading a model needs little memory.

1. A constant of at least MIN_DETACHED_BYTES becomes external data whose location is the model file itself: the bytes
   stay in the file, and `packager.models.tensor_data.chunks_of` reads them in parts.
2. Only `raw_data` and packed floats are detached, because their bytes in the file are those of the array. The others
   (integers as variable-length numbers, strings) are parsed.
3. The file is mapped and walked at the level of protocol buffers. Messages that are too small to contain a large
   constant are copied unread. What is not understood is left to the parser of protocol buffers, which names the defect.
4. An outline is for reading. It must not be saved.
"""

import mmap
import sys
from pathlib import Path
from typing import Final

import onnx

from packager.tensors import onnx_wire as wire
from packager.tensors.region import MalformedFile

MIN_DETACHED_BYTES: Final = 64 << 10
EXTERNAL: Final = 1  # TensorProto.DataLocation
TENSOR_LOCATION: Final = 14
PACKED_FLOATS: Final = {
    (wire.TENSOR_FLOATS, onnx.TensorProto.FLOAT),
    (wire.TENSOR_DOUBLES, onnx.TensorProto.DOUBLE),
}
# kind of message → field → kind of the message in it
NESTED: Final[dict[str, dict[int, str]]] = {
    "model": {wire.MODEL_GRAPH: "graph", wire.MODEL_FUNCTIONS: "function"},
    "graph": {wire.GRAPH_NODE: "node", wire.GRAPH_INITIALIZER: "tensor", wire.GRAPH_SPARSE: "sparse"},
    "function": {wire.FUNCTION_NODE: "node"},
    "node": {wire.NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        **dict.fromkeys(wire.ATTRIBUTE_TENSOR, "tensor"),
        **dict.fromkeys(wire.ATTRIBUTE_GRAPH, "graph"),
        **dict.fromkeys(wire.ATTRIBUTE_SPARSE, "sparse"),
    },
    "sparse": dict.fromkeys(wire.SPARSE_TENSORS, "tensor"),
}


def parse_outline(path: Path) -> onnx.ModelProto:
    """Return the model with its large constants left in the file.

    Args:
        path: a regular file.

    Raises:
        google.protobuf.message.DecodeError: the file is not a model.
        OSError: the file cannot be read.
    """
    return onnx.load_model_from_string(_outline_bytes(path), format="protobuf")


def _outline_bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        if path.stat().st_size < MIN_DETACHED_BYTES or not _is_text(path.name):
            return stream.read()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            try:
                return _Outliner(data, path.name).copy_message("model", 0, len(data), 0)
            except MalformedFile:
                return bytes(data)


def _is_text(name: str) -> bool:
    """Return whether a file name can stand in a model: names of files may be any bytes, texts are UTF-8."""
    return name.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8", "replace") == name


class _Outliner:
    """Copies messages without their large constants."""

    def __init__(self, data: memoryview, location: str) -> None:
        self.data, self.location = data, location
        self.reader = wire.WireReader(data)

    def copy_message(self, kind: str, start: int, end: int, depth: int) -> bytes:
        """Return the outline of one message.

        Args:
            kind: a key of NESTED, or "tensor".
            start: first byte of the message.
            end: byte after the message.
            depth: number of messages around it.

        Raises:
            MalformedFile: the bytes are not such a message, or are nested too deeply.
        """
        if depth > wire.MAX_DEPTH * len(NESTED):
            raise MalformedFile(f"messages nested {depth} deep")
        if kind == "tensor":
            return self.copy_tensor(start, end)
        parts: list[bytes | memoryview] = []
        copied = position = start
        for field in self.reader.read_fields(start, end):
            inner = NESTED[kind].get(field.number) if field.wire_type == wire.LENGTH_DELIMITED else None
            if inner is not None and field.end - field.start >= MIN_DETACHED_BYTES:
                parts.append(self.data[copied:position])
                parts.append(_field(field.number, self.copy_message(inner, field.start, field.end, depth + 1)))
                copied = field.end
            position = field.end
        return b"".join([*parts, self.data[copied:end]])

    def copy_tensor(self, start: int, end: int) -> bytes:
        """Return a tensor whose large array is external data in this file.

        Args:
            start: first byte of the message.
            end: byte after the message.

        Raises:
            MalformedFile: the bytes are not a message.
        """
        fields = list(self.reader.read_fields(start, end))
        dtype = next((field.value for field in reversed(fields) if field.number == wire.TENSOR_TYPE), 0)
        arrays = [
            field
            for field in fields
            if field.wire_type == wire.LENGTH_DELIMITED
            and (field.number == wire.TENSOR_RAW or (field.number, dtype) in PACKED_FLOATS)
        ]
        is_external = any(field.number in (wire.TENSOR_EXTERNAL, TENSOR_LOCATION) for field in fields)
        if is_external or len(arrays) != 1 or arrays[0].end - arrays[0].start < MIN_DETACHED_BYTES:
            return bytes(self.data[start:end])
        array = arrays[0]
        before = start
        for field in fields:
            if field.start == array.start:
                break
            before = field.end
        entries = {"location": self.location, "offset": array.start, "length": array.end - array.start}
        tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        return b"".join([self.data[start:before], tensor.SerializeToString(), self.data[array.end : end]])


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer.

    Args:
        number: its number.
        content: its bytes.
    """
    return b"".join([_varint(number << 3 | wire.LENGTH_DELIMITED), _varint(len(content)), content])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
