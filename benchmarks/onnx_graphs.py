"""Build ONNX graphs node by node, with names that are unique and the same in every build."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

IR_VERSION = 8


class GraphBuilder:
    """Collects nodes and initializers; float initializers get the type `dtype` of the graph."""

    def __init__(self, dtype: int) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def add_node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its only output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def add_constant(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Add a float initializer and return its name."""
        typed = np.asarray(array, helper.tensor_dtype_to_np_dtype(self.dtype), order="C")
        self.initializers[name] = numpy_helper.from_array(typed, name)
        return name

    def add_scalar(self, name: str, value: float) -> str:
        """Add a float initializer without dimensions and return its name; adding it again changes nothing."""
        return self.add_constant(name, np.array(value, np.float32))

    def add_integers(self, name: str, value: list[int]) -> str:
        """Add a one-dimensional int64 initializer and return its name."""
        self.initializers[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def build(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], opset: int
    ) -> onnx.ModelProto:
        """Return the model with all nodes and initializers."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
