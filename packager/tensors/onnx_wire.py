"""Regions of ONNX files, at the level of protocol buffers.

Covers raw_data and the packed float_data and double_data; initializers, sparse initializers, attributes (Constant
nodes, tensors, float lists), subgraphs at any depth, functions, and external data by its file and offset. The constants
below are field numbers of onnx.proto3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from packager.tensors.region import MIN_REGION_BYTES, MalformedFile, Region

Buffer = memoryview

MODEL_GRAPH: Final = 7
MODEL_FUNCTIONS: Final = 25
GRAPH_NODE: Final = 1
GRAPH_INITIALIZER: Final = 5
GRAPH_SPARSE: Final = 15
NODE_ATTRIBUTE: Final = 5
NODE_OUTPUT: Final = 2
FUNCTION_NODE: Final = 7
ATTRIBUTE_NAME: Final = 1
ATTRIBUTE_TENSOR: Final = (5, 10)
ATTRIBUTE_GRAPH: Final = (6, 11)
ATTRIBUTE_FLOATS: Final = 7
ATTRIBUTE_SPARSE: Final = (22, 23)
SPARSE_TENSORS: Final = (1, 2)
TENSOR_DIMS: Final = 1
TENSOR_TYPE: Final = 2
TENSOR_FLOATS: Final = 4
TENSOR_NAME: Final = 8
TENSOR_RAW: Final = 9
TENSOR_DOUBLES: Final = 10
TENSOR_EXTERNAL: Final = 13
MAX_DEPTH: Final = 32
LENGTH_DELIMITED: Final = 2  # wire type of messages, texts and packed numbers

DTYPES: Final = {
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 9: "u8", 10: "f16", 11: "f64", 12: "u32",
    13: "u64", 16: "bf16", 17: "u8", 18: "u8", 19: "u8", 20: "u8", 21: "u8", 22: "u8", 23: "u8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExternalRegion:
    """An array in another file, as the model names it.

    Attributes:
        location: path relative to the model.
        region: place of the array in that file.
    """

    location: str
    region: Region


@dataclass(frozen=True, slots=True)
class WireField:
    """One field of a message.

    Attributes:
        number: number of the field.
        wire_type: form of its content.
        start: first byte of the content.
        end: byte after the content.
        value: the number of a field of wire type 0.
    """

    number: int
    wire_type: int
    start: int
    end: int
    value: int


class WireReader:
    """Reads the fields of messages."""

    def __init__(self, data: Buffer) -> None:
        self.data = data

    def read_varint(self, position: int, end: int) -> tuple[int, int]:
        """Return a number of variable length, and the position after it.

        Args:
            position: its first byte.
            end: byte after its message.

        Raises:
            MalformedFile: the number does not end.
        """
        number = shift = 0
        while position < end and shift < 70:
            byte = self.data[position]
            position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, position
            shift += 7
        raise MalformedFile(f"number at {position}")

    def read_fields(self, start: int, end: int) -> Iterator[WireField]:
        """Yield the fields of a message.

        Args:
            start: first byte of the message.
            end: byte after the message.

        Raises:
            MalformedFile: the bytes are not a message.
        """
        position = start
        while position < end:
            key, position = self.read_varint(position, end)
            number, wire = key >> 3, key & 7
            value = 0
            begin = position
            if wire == 0:
                value, position = self.read_varint(position, end)
            elif wire == 1:
                position += 8
            elif wire == 5:
                position += 4
            elif wire == 2:
                length, begin = self.read_varint(position, end)
                position = begin + length
            else:
                raise MalformedFile(f"wire type {wire} at {position}")
            if position > end or number == 0:
                raise MalformedFile(f"field {number} ends at {position}, its message at {end}")
            yield WireField(number, wire, begin, position, value)


class _Finder(WireReader):
    def __init__(self, data: Buffer) -> None:
        super().__init__(data)
        self.regions: list[Region] = []
        self.external: list[ExternalRegion] = []

    def read_text(self, field: WireField) -> str:
        return bytes(self.data[field.start : min(field.end, field.start + 1024)]).decode("utf-8", "replace")

    def visit_model(self) -> None:
        for field in self.read_fields(0, len(self.data)):
            if field.number == MODEL_GRAPH and field.wire_type == 2:
                self.visit_graph(field, "", 0)
            elif field.number == MODEL_FUNCTIONS and field.wire_type == 2:
                for i, inner in enumerate(self.read_fields(field.start, field.end)):
                    if inner.number == FUNCTION_NODE and inner.wire_type == 2:
                        self.visit_node(inner, f"function/{i}", 0)

    def visit_graph(self, graph: WireField, path: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise MalformedFile(f"graphs nested {depth} deep")
        nodes = 0
        for field in self.read_fields(graph.start, graph.end):
            if field.wire_type != 2:
                continue
            if field.number == GRAPH_NODE:
                self.visit_node(field, f"{path}/{nodes}" if path else "", depth)
                nodes += 1
            elif field.number == GRAPH_INITIALIZER:
                self.visit_tensor(field, path)
            elif field.number == GRAPH_SPARSE:
                self.visit_sparse_tensor(field, path)

    def visit_node(self, node: WireField, path: str, depth: int) -> None:
        fields = list(self.read_fields(node.start, node.end))
        # Output names are unique in a graph, and exporters change them less often than node names.
        name = next((self.read_text(f) for f in fields if f.number == NODE_OUTPUT and f.wire_type == 2), "")
        for field in fields:
            if field.number == NODE_ATTRIBUTE and field.wire_type == 2:
                self.visit_attribute(field, f"{path}/{name}", depth)

    def visit_attribute(self, attribute: WireField, path: str, depth: int) -> None:
        fields = [field for field in self.read_fields(attribute.start, attribute.end) if field.wire_type == 2]
        name = f"{path}@" + next((self.read_text(field) for field in fields if field.number == ATTRIBUTE_NAME), "")
        for field in fields:
            if field.number in ATTRIBUTE_TENSOR:
                self.visit_tensor(field, name)
            elif field.number in ATTRIBUTE_GRAPH:
                self.visit_graph(field, name, depth + 1)
            elif field.number in ATTRIBUTE_SPARSE:
                self.visit_sparse_tensor(field, name)
            elif field.number == ATTRIBUTE_FLOATS:
                self.add_region(field, "f32", name, ())

    def visit_sparse_tensor(self, sparse: WireField, path: str) -> None:
        for field in self.read_fields(sparse.start, sparse.end):
            if field.number in SPARSE_TENSORS and field.wire_type == 2:
                self.visit_tensor(field, f"{path}/sparse{field.number}")

    def visit_tensor(self, tensor: WireField, path: str) -> None:
        code = 0
        name = ""
        shape: list[int] = []
        data: list[tuple[WireField, str | None]] = []
        external: dict[str, str] = {}
        for field in self.read_fields(tensor.start, tensor.end):
            if field.number == TENSOR_DIMS:
                shape += self.read_dimensions(field)
            elif field.number == TENSOR_TYPE:
                code = field.value
            elif field.number == TENSOR_NAME and field.wire_type == 2:
                name = self.read_text(field)
            elif field.number == TENSOR_RAW and field.wire_type == 2:
                data.append((field, None))
            elif field.number == TENSOR_FLOATS and field.wire_type == 2:
                data.append((field, "f32"))
            elif field.number == TENSOR_DOUBLES and field.wire_type == 2:
                data.append((field, "f64"))
            elif field.number == TENSOR_EXTERNAL and field.wire_type == 2:
                external.update(self.read_entry(field))
        full = f"{path}/{name}"
        for field, dtype in data:
            self.add_region(field, dtype or DTYPES.get(code, "u8"), full, tuple(shape))
        if "location" in external:
            self.add_external_region(external, DTYPES.get(code, "u8"), full, tuple(shape))

    def read_dimensions(self, field: WireField) -> list[int]:
        if field.wire_type == 0:
            return [field.value]
        out = []
        position = field.start
        while position < field.end:
            value, position = self.read_varint(position, field.end)
            out.append(value)
        return out

    def read_entry(self, entry: WireField) -> dict[str, str]:
        fields = {
            field.number: self.read_text(field)
            for field in self.read_fields(entry.start, entry.end)
            if field.wire_type == 2
        }
        return {fields.get(1, ""): fields.get(2, "")}

    def add_region(self, field: WireField, dtype: str, name: str, shape: tuple[int, ...]) -> None:
        if field.end - field.start >= MIN_REGION_BYTES:
            self.regions.append(Region(field.start, field.end - field.start, dtype, name, shape))

    def add_external_region(self, entry: dict[str, str], dtype: str, name: str, shape: tuple[int, ...]) -> None:
        offset, length = entry.get("offset", "0"), entry.get("length", "0")
        if offset.isdecimal() and length.isdecimal() and max(len(offset), len(length)) < 16:
            region = Region(int(offset), int(length), dtype, name, shape)
            self.external.append(ExternalRegion(entry["location"], region))


def find_onnx(data: Buffer) -> tuple[list[Region], list[ExternalRegion]]:
    """Find the regions of an ONNX file, and those that it says are in other files.

    Raises:
        MalformedFile: the file is not an ONNX model.
    """
    finder = _Finder(data)
    finder.visit_model()
    return finder.regions, finder.external
