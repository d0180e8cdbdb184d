"""The tensors of a model: find all of them, and read their numbers in parts of bounded size."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from packager.models.graphs import array_of, scopes

CHUNK_BYTES: Final = 16 << 20  # of a tensor in memory at a time
PACKED_TYPES: Final = (
    "INT4",
    "UINT4",
    "FLOAT4E2M1",
    "INT2",
    "UINT2",
    "STRING",
)  # elements share bytes, or vary in size


def stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of the model: of graphs, attributes, functions and sparse initializers."""
    for scope in scopes(model.graph):
        yield from scope.graph.initializer
        for sparse in scope.graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in scope.graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    for scope in scopes(graph):
                        yield from scope.graph.initializer
                        for nested in scope.graph.node:
                            yield from _attribute_tensors(nested)


def external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """Return the entries of a tensor's external data ("location", "offset", "length"); empty without any."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}


def chunks_of(tensor: onnx.TensorProto, folder: Path) -> Iterator[np.ndarray]:
    """Yield the elements of a tensor in flat parts of at most CHUNK_BYTES.

    Args:
        tensor: a tensor that packager.models.tensor_sizes accepted.
        folder: the folder of its external data.
    """
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    is_packed = onnx.TensorProto.DataType.Name(tensor.data_type) in PACKED_TYPES
    entries = external_entries(tensor)
    if entries and not is_packed:
        left, step = math.prod(tensor.dims), CHUNK_BYTES // dtype.itemsize
        with (folder / entries["location"]).open("rb") as stream:
            stream.seek(int(entries.get("offset", 0)))
            while left > 0:
                part = np.fromfile(stream, dtype, min(left, step))
                if not part.size:
                    return
                left -= part.size
                yield part
    elif tensor.HasField("raw_data") and not is_packed:
        step = CHUNK_BYTES // dtype.itemsize * dtype.itemsize
        view = memoryview(tensor.raw_data)
        for start in range(0, len(view), step):
            yield np.frombuffer(view[start : start + step], dtype)
    else:
        if entries:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
            tensor = copy
        yield array_of(tensor).reshape(-1)


def _attribute_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
