"""Compute constant expressions in advance, where the result is not larger than what it replaces.

Words: a constant node reads only constants and always gives the same; a frontier value is an output of a constant node
that another node, or the graph's output, reads; its cone is the constant nodes that it needs.

1. A frontier value becomes an initializer if its bytes are at most those of the initializers and nodes that its cone
   alone needs, plus SLACK_BYTES. A weight counts one byte for each element, since it will be stored in int8.
2. So the transpose of a weight is computed, and the transpose of a table that is also looked up, or a mask that is made
   from its size, is not: the runtime computes these while it loads the model.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx

from packager.models.graphs import FLOAT_TYPES, Scope, scopes, weight_inputs
from packager.models.sessions import RunSettings, open_session_of
from packager.quantize.weight_only import MIN_ELEMENTS

SLACK_BYTES: Final = 64  # a small shape or scalar may take a few bytes more than its expression
STANDARD: Final = ("", "ai.onnx")
RANDOM_OPERATORS: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)


@dataclass(slots=True)
class _Expressions:
    """The constant expressions of one graph.

    Attributes:
        scope: the graph.
        nodes: constant nodes, in graph order.
        frontier: names of the frontier values.
        cones: numbers of the constant nodes of each frontier value.
    """

    scope: Scope
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    frontier: list[str] = field(default_factory=list)
    cones: dict[str, set[int]] = field(default_factory=dict)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy with constant expressions computed; None if there is nothing to gain.

    Raises:
        ModelDoesNotRun: the runtime cannot compute an expression.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    is_changed = False
    for scope in list(scopes(folded.graph)):
        found = _find_expressions(scope)
        if found.frontier:
            is_changed |= _fold_scope(folded, found)
    return folded if is_changed else None


def _find_expressions(scope: Scope) -> _Expressions:
    found = _Expressions(scope)
    maker: dict[str, int] = {}
    for node in scope.graph.node:
        if _is_constant(node, scope, maker):
            maker.update((name, len(found.nodes)) for name in node.output if name)
            found.nodes.append(node)
    constant = {id(node) for node in found.nodes}
    read = {name for node in scope.graph.node if id(node) not in constant for name in _names_read(node)}
    read |= {value.name for value in scope.graph.output}
    found.frontier = [name for node in found.nodes for name in node.output if name in read]
    for name in found.frontier:
        cone, stack = set(), [maker[name]]
        while stack:
            number = stack.pop()
            if number not in cone:
                cone.add(number)
                stack.extend(maker[source] for source in found.nodes[number].input if source in maker)
        found.cones[name] = cone
    return found


def _is_constant(node: onnx.NodeProto, scope: Scope, maker: dict[str, int]) -> bool:
    has_graph = any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
    if node.domain not in STANDARD or node.op_type in RANDOM_OPERATORS or has_graph:
        return False
    return all(not name or name in maker or scope.find(name) is not None for name in node.input)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, those of its nested graphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in scopes(graph):
                names |= {name for nested in inner.graph.node for name in nested.input}
                names |= {value.name for value in inner.graph.output}
    return names


def _fold_scope(model: onnx.ModelProto, found: _Expressions) -> bool:
    values = _compute(model, found)
    scope = found.scope
    weights = {
        node.input[i] for node in scope.graph.node for i in weight_inputs(node) if i < len(node.input)
    }  # nested readers are rare, and only the estimate of a size depends on them
    count = _reader_counts(scope)
    cones = Counter(number for cone in found.cones.values() for number in cone)
    alone = {name: {number for number in cone if cones[number] == 1} for name, cone in found.cones.items()}
    chosen = [
        name
        for name in found.frontier
        if values[name].dtype.kind in "biuf"
        and _stored_bytes(values[name], name in weights) <= _freed_bytes(found, alone[name], count) + SLACK_BYTES
    ]
    outputs = {value.name for value in scope.graph.output}
    for name in chosen:
        scope.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values[name], order="C"), name))
    made = set(chosen)
    kept_cones = set().union(*(found.cones[name] for name in found.frontier if name not in made), set())
    unneeded = {id(found.nodes[i]) for name in chosen for i in found.cones[name] - kept_cones}
    if not chosen:
        return False
    # a value that is folded may still be made by a node that another, unfolded value needs
    for node in scope.graph.node:
        if id(node) not in unneeded:
            for i, name in enumerate(node.output):
                if name in made:
                    node.output[i] = f"{name}_unfolded"
    sources = {name for node in scope.graph.node if id(node) in unneeded for name in node.input}
    for i in reversed([i for i, node in enumerate(scope.graph.node) if id(node) in unneeded]):
        del scope.graph.node[i]
    read = set().union(*(_names_read(node) for node in scope.graph.node), outputs)
    for i in reversed(range(len(scope.graph.initializer))):
        name = scope.graph.initializer[i].name
        if name in sources and name not in read:
            del scope.graph.initializer[i]
    return True


def _compute(model: onnx.ModelProto, found: _Expressions) -> dict[str, np.ndarray]:
    """Return the frontier values, which the runtime computes without optimization."""
    needed = {name for node in found.nodes for name in node.input if name}
    behind = {name: found.scope.find(name) for name in needed}
    graph = onnx.helper.make_graph(
        found.nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in found.frontier],
        [tensor[1] for tensor in behind.values() if tensor is not None],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    running = open_session_of(alone, RunSettings(threads=1, optimize=False))
    return dict(zip(found.frontier, map(np.asarray, running.run(None, {})), strict=True))


def _reader_counts(scope: Scope) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in scope.graph.node:
        for name in _names_read(node):
            counts[name] = counts.get(name, 0) + 1
    for value in scope.graph.output:
        counts[value.name] = counts.get(value.name, 0) + 1
    return counts


def _freed_bytes(found: _Expressions, alone: set[int], count: dict[str, int]) -> int:
    """Return the bytes of constant nodes, and of the initializers that only they read.

    Args:
        found: the expressions of the graph.
        alone: numbers of the constant nodes that one frontier value alone needs.
        count: number of readers of each name.
    """
    freed: int = sum(found.nodes[i].ByteSize() for i in alone)
    readers = Counter(source for i in alone for source in set(found.nodes[i].input))
    for source, number in readers.items():
        tensor = found.scope.initializers.get(source)
        if tensor is not None and count.get(source, 0) == number:
            freed += tensor.ByteSize()
    return freed


def _stored_bytes(array: np.ndarray, is_weight: bool) -> int:
    is_quantizable = is_weight and array.dtype.kind == "f" and array.ndim >= 2 and array.size >= MIN_ELEMENTS
    return array.size if is_quantizable else array.nbytes


def estimated_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes that a model would take with its weights in int8; steps are compared by it."""
    saved: dict[tuple[int, str], int] = {}
    everywhere = list(scopes(model.graph))  # kept, so that the ids of graphs stay unique
    for scope in everywhere:
        for node in scope.graph.node:
            for index in weight_inputs(node):
                behind = scope.find(node.input[index]) if index < len(node.input) else None
                if behind is None or behind[1].data_type not in FLOAT_TYPES or len(behind[1].dims) < 2:
                    continue
                elements = math.prod(behind[1].dims)
                if elements >= MIN_ELEMENTS:
                    itemsize = onnx.helper.tensor_dtype_to_np_dtype(behind[1].data_type).itemsize
                    saved[id(behind[0].graph), behind[1].name] = (itemsize - 1) * elements
    return int(model.ByteSize()) - sum(saved.values())
