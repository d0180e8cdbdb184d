"""ONNX graphs written node by node: names are unique and the same in every build."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

IR_VERSION = 8


class GraphBuilder:
    """Nodes and initializers as they come; float initializers get the graph's one type, `dtype`."""

    def __init__(self, dtype: int) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add_node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node; the name of its one output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def add_constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """A float initializer."""
        typed = np.asarray(array, helper.tensor_dtype_to_np_dtype(self.dtype), order="C")
        self.initializers[name] = numpy_helper.from_array(typed, name)
        return name

    def add_scalar(self, name: str, value: float) -> str:
        """A float initializer without dimensions; asking again is harmless."""
        return self.add_constant(name, np.array(value, np.float32))

    def add_integers(self, name: str, value: list[int]) -> str:
        """An int64 initializer of one dimension."""
        self.initializers[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def build(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], opset: int
    ) -> onnx.ModelProto:
        """The whole file."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
