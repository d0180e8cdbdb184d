"""Regions of TFLite flatbuffers. Slot numbers are those of tensorflow/lite/schema.fbs."""

import struct
from typing import Final

from packager.tensors.region import MalformedFile, Region

MODEL_SUBGRAPHS: Final = 2
MODEL_BUFFERS: Final = 4
SUBGRAPH_TENSORS: Final = 0
TENSOR_SHAPE: Final = 0
TENSOR_TYPE: Final = 1
TENSOR_BUFFER: Final = 2
TENSOR_NAME: Final = 3
BUFFER_DATA: Final = 0
BUFFER_OFFSET: Final = 1  # for buffers outside the flatbuffer, in models above 2 GB
BUFFER_SIZE: Final = 2
MAX_ENTRIES: Final = 1 << 20
DTYPES: Final = {0: "f32", 1: "f16", 2: "i32", 3: "u8", 4: "i64", 6: "u8", 7: "i16", 9: "i8", 10: "f64", 12: "u64",
                 15: "u32", 16: "u16", 17: "u8", 18: "bf16"}  # fmt: skip


class _Flatbuffer:
    def __init__(self, data: memoryview) -> None:
        self.data = data

    def read_number(self, layout: str, position: int) -> int:
        if position < 0:
            raise MalformedFile(f"offset {position}")
        try:
            return int(struct.unpack_from(layout, self.data, position)[0])
        except struct.error as error:
            raise MalformedFile(f"offset {position}") from error

    def find_field(self, table: int, slot: int) -> int:
        """Return the position of a table's field, or 0 if it is absent."""
        vtable = table - self.read_number("<i", table)
        if 4 + 2 * slot + 2 > self.read_number("<H", vtable):
            return 0
        offset = self.read_number("<H", vtable + 4 + 2 * slot)
        return table + offset if offset else 0

    def read_vector(self, position: int) -> tuple[int, int]:
        """Return the position of a vector's first item, and the number of items."""
        start = position + self.read_number("<I", position)
        return start + 4, self.read_number("<I", start)

    def read_tables(self, position: int) -> list[int]:
        if not position:
            return []
        start, count = self.read_vector(position)
        if count > min(MAX_ENTRIES, len(self.data) // 4):
            raise MalformedFile(f"vector of {count} tables")
        return [start + 4 * i + self.read_number("<I", start + 4 * i) for i in range(count)]

    def read_scalar(self, table: int, slot: int, layout: str) -> int:
        position = self.find_field(table, slot)
        return self.read_number(layout, position) if position else 0


def find_tflite(data: memoryview) -> list[Region]:
    """Find the regions of a TFLite file.

    Raises:
        MalformedFile: the flatbuffer does not parse.
    """
    flat = _Flatbuffer(data)
    model = flat.read_number("<I", 0)
    buffers = [_buffer_range(flat, table) for table in flat.read_tables(flat.find_field(model, MODEL_BUFFERS))]
    found: dict[int, Region] = {}
    for graph in flat.read_tables(flat.find_field(model, MODEL_SUBGRAPHS)):
        for tensor in flat.read_tables(flat.find_field(graph, SUBGRAPH_TENSORS)):
            index = flat.read_scalar(tensor, TENSOR_BUFFER, "<I")
            if index >= len(buffers) or not buffers[index][1]:
                continue
            start, size = buffers[index]
            dtype = DTYPES.get(flat.read_scalar(tensor, TENSOR_TYPE, "<B"), "u8")
            found.setdefault(start, Region(start, size, dtype, _tensor_name(flat, tensor), _tensor_shape(flat, tensor)))
    return list(found.values())


def _buffer_range(flat: _Flatbuffer, table: int) -> tuple[int, int]:
    position = flat.find_field(table, BUFFER_DATA)
    if position:
        return flat.read_vector(position)
    return flat.read_scalar(table, BUFFER_OFFSET, "<Q"), flat.read_scalar(table, BUFFER_SIZE, "<Q")


def _tensor_name(flat: _Flatbuffer, tensor: int) -> str:
    position = flat.find_field(tensor, TENSOR_NAME)
    if not position:
        return ""
    start, length = flat.read_vector(position)
    return bytes(flat.data[start : start + min(length, 1024)]).decode("utf-8", "replace")


def _tensor_shape(flat: _Flatbuffer, tensor: int) -> tuple[int, ...]:
    position = flat.find_field(tensor, TENSOR_SHAPE)
    if not position:
        return ()
    start, count = flat.read_vector(position)
    if count > 16:
        return ()
    shape = tuple(flat.read_number("<i", start + 4 * i) for i in range(count))
    return shape if all(dimension >= 0 for dimension in shape) else ()
