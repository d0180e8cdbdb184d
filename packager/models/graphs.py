"""Walk over ONNX graphs, nested ones included: where constants are, and which node reads which weight.

1. A name is looked up from the innermost graph outwards, as ONNX scopes it.
2. A weight is a float initializer with at least two axes that a node reads as its weight input (`weight_inputs`).
3. New nodes and tensors get names that occur nowhere in the model, in any graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

FLOAT_TYPES: Final = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)
WEIGHT_INPUTS: Final[dict[str, tuple[int, ...]]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Einsum": (0, 1),
}
# the same for onnxruntime's own operators, which its exporters and optimizers write
CONTRIB_WEIGHT_INPUTS: Final[dict[str, tuple[int, ...]]] = {
    "FusedMatMul": (0, 1),
    "FusedGemm": (1,),
    "FusedConv": (1,),
    "Attention": (1,),
    "EmbedLayerNormalization": (2, 3, 4),
}
INTEGER_WEIGHT_TYPES: Final = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
METADATA_KEY: Final = "airweights.quantization"
QUANTIZED_OPS: Final = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
        "QGemm",
        "QAttention",
        "MatMulNBits",
        "MatMulBnb4",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "GatherBlockQuantized",
    }
)
STANDARD_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(slots=True)
class Scope:
    """One graph with the graphs around it; `depth` is 0 for the model's own graph."""

    graph: onnx.GraphProto
    outer: "Scope | None"
    depth: int
    initializers: dict[str, onnx.TensorProto]

    def find(self, name: str) -> "tuple[Scope, onnx.TensorProto] | None":
        """Return the initializer of that name and the scope that has it, innermost first; None without one."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.initializers:
                return scope, scope.initializers[name]
            scope = scope.outer
        return None


@dataclass(frozen=True, slots=True)
class WeightUse:
    """One node that reads one weight.

    Attributes:
        scope: graph of the node.
        node: the node that reads the weight.
        input_index: number of the node's input.
        owner: graph of the weight.
        tensor: the weight.
    """

    scope: Scope
    node: onnx.NodeProto
    input_index: int
    owner: Scope
    tensor: onnx.TensorProto

    @property
    def elements(self) -> int:
        """Number of elements of the weight."""
        return int(np.prod(self.tensor.dims, dtype=np.int64))


def quantization_of(model: onnx.ModelProto) -> str:
    """Return "METHOD NUMERICS" ("static u8u8") from the model's metadata; "" if we did not quantize it."""
    return next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), "")


def scopes(graph: onnx.GraphProto, outer: Scope | None = None) -> Iterator[Scope]:
    """Yield `graph` and every graph inside it, outermost first.

    Args:
        graph: the graph to start at.
        outer: the scope around it, if any.
    """
    here = Scope(graph, outer, 0 if outer is None else outer.depth + 1, {t.name: t for t in graph.initializer})
    yield here
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from scopes(attribute.g, here)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for nested in attribute.graphs:
                    yield from scopes(nested, here)


def weight_inputs(node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the numbers of the node's inputs that can be weights."""
    if node.domain == "com.microsoft":
        return CONTRIB_WEIGHT_INPUTS.get(node.op_type, ())
    return WEIGHT_INPUTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()


def weight_uses(model: onnx.ModelProto) -> list[WeightUse]:
    """Return every use of a weight, in graph order."""
    found = []
    for scope in scopes(model.graph):
        for node in scope.graph.node:
            for index in weight_inputs(node):
                behind = scope.find(node.input[index]) if index < len(node.input) else None
                if behind is not None and behind[1].data_type in FLOAT_TYPES and len(behind[1].dims) >= 2:
                    found.append(WeightUse(scope, node, index, behind[0], behind[1]))
    return found


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of every graph."""
    for scope in scopes(model.graph):
        yield from scope.graph.node


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant of every graph: initializers and tensor attributes."""
    for scope in scopes(model.graph):
        yield from scope.graph.initializer
        for node in scope.graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t


def names_in(model: onnx.ModelProto) -> set[str]:
    """Return every name of a node or value, in any graph."""
    names: set[str] = set()
    for scope in scopes(model.graph):
        names.update(scope.initializers)
        names.update(value.name for value in (*scope.graph.input, *scope.graph.output))
        for node in scope.graph.node:
            names.add(node.name)
            names.update(node.output)
            names.update(node.input)
    return names


def unused_name(preferred: str, taken: set[str]) -> str:
    """Return `preferred`, with a number if it is taken, and add the result to `taken`.

    Args:
        preferred: the wanted name.
        taken: names in use.
    """
    name, number = preferred, 1
    while name in taken:
        number += 1
        name = f"{preferred}_{number}"
    taken.add(name)
    return name


def opset_version(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """Return the elements of an initializer as an array."""
    return np.asarray(numpy_helper.to_array(tensor))


def is_quantized(model: onnx.ModelProto) -> bool:
    """Return whether the model has quantized operators or integer weights, in any graph or function."""
    return has_quantized_operators(model) or has_integer_weights(model)


def has_quantized_operators(model: onnx.ModelProto) -> bool:
    """Return whether the model has an operator of QUANTIZED_OPS, in any graph or function."""
    functions = (node for function in model.functions for node in function.node)
    return any(node.op_type in QUANTIZED_OPS for node in (*all_nodes(model), *functions))


def has_integer_weights(model: onnx.ModelProto) -> bool:
    """Return whether an 8-bit constant is cast and multiplied by a constant scale.

    Rows that are looked up in a constant count too. This is the form of packager.quantize.weight_only.
    """
    for scope in scopes(model.graph):
        integers: set[str] = set()
        products: set[str] = set()
        for node in scope.graph.node:
            behind = scope.find(node.input[0]) if node.op_type in ("Cast", "Gather") and node.input else None
            if node.op_type == "Cast" and node.input and (behind is not None or node.input[0] in integers):
                is_integer = behind is None or behind[1].data_type in INTEGER_WEIGHT_TYPES
                products.update(node.output if is_integer else ())
            elif node.op_type == "Gather" and behind is not None and behind[1].data_type in INTEGER_WEIGHT_TYPES:
                integers.update(node.output)
            elif node.op_type == "Mul" and len(node.input) == 2:
                left, right = node.input
                if (left in products and scope.find(right)) or (right in products and scope.find(left)):
                    return True
    return False


def float_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all float constants."""
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in all_tensors(model)
        if tensor.data_type in FLOAT_TYPES
    )


def set_array(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    """Replace the elements of an initializer in place; its name stays.
    Dtype and shape are those of `values`.

    Args:
        tensor: the initializer.
        values: the new elements.
    """
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, order="C"), name))
