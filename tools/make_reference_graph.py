"""Write the reference graph of the agent: a convolution and a matrix product.

Its weights are computed while it is loaded, so that the file is small.

    python -m tools.make_reference_graph

The file is committed, so that every agent of a version measures the same graph; tests compare it with this program.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PATH: Final = Path(__file__).parents[1] / "device_agent" / "runtime" / "reference.onnx"
CHANNELS: Final = 32
SIZE: Final = 56  # pixels
WIDTH: Final = 256
ROWS: Final = 128
OPSET: Final = 13
IR_VERSION: Final = 7


def make_reference_graph() -> onnx.ModelProto:
    """Return the graph; its input is `image`: float32 [1, 32, 56, 56]."""
    nodes = [
        *_weight("kernel", (CHANNELS, CHANNELS, 3, 3)),
        *_weight("matrix", (WIDTH, WIDTH)),
        *_weight("rows", (ROWS, WIDTH)),
        helper.make_node("Conv", ["image", "kernel"], ["convolved"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("ReduceMean", ["positive"], ["mean"], keepdims=0),
        helper.make_node("Add", ["rows", "mean"], ["left"]),  # so that the product is not folded
        helper.make_node("MatMul", ["left", "matrix"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["result"], axes=[1], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, [ROWS])
    graph = helper.make_graph(nodes, "reference", [image], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _weight(name: str, shape: tuple[int, ...]) -> list[onnx.NodeProto]:
    """Return nodes that compute a weight from a range of numbers, so that the file has no weights."""
    count = 1
    for size in shape:
        count *= size
    constants = {
        f"{name}_start": numpy_helper.from_array(np.array(np.float32(0))),
        f"{name}_end": numpy_helper.from_array(np.array(np.float32(count))),
        f"{name}_step": numpy_helper.from_array(np.array(np.float32(1))),
    }
    nodes = [helper.make_node("Constant", [], [key], value=value) for key, value in constants.items()]
    shape_tensor = helper.make_tensor(f"{name}_shape_value", TensorProto.INT64, [len(shape)], shape)
    return [
        *nodes,
        helper.make_node("Constant", [], [f"{name}_shape"], value=shape_tensor),
        helper.make_node("Range", list(constants), [f"{name}_range"]),
        helper.make_node("Sin", [f"{name}_range"], [f"{name}_flat"]),
        helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [name]),
    ]


if __name__ == "__main__":
    PATH.write_bytes(make_reference_graph().SerializeToString(deterministic=True))
