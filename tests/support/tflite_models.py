"""Small TFLite models: a layer with weights, and a model that adds its inputs up over its runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def dense(seed: int, inputs: int = 16, outputs: int = 8, *, batch: int | None = 1, scale: float = 1.0) -> bytes:
    """Return a model of one layer: y [batch, outputs] from x [batch, inputs], float32.

    Args:
        seed: of the weights.
        inputs: size of x.
        outputs: size of y.
        batch: first size of x and y; None for a free one.
        scale: factor of the weights.
    """
    s = _schema()
    random = np.random.default_rng(seed)
    weights = (scale * random.standard_normal((outputs, inputs))).astype(np.float32)
    buffers: list[Any] = [s.BufferT()]
    shape = [batch or 1]
    tensors = [
        _tensor(s, "x", [*shape, inputs], s.TensorType.FLOAT32, batch=batch),
        _tensor(s, "w", [outputs, inputs], s.TensorType.FLOAT32, buffers, weights),
        _tensor(s, "b", [outputs], s.TensorType.FLOAT32, buffers, np.zeros(outputs, np.float32)),
        _tensor(s, "y", [*shape, outputs], s.TensorType.FLOAT32, batch=batch),
    ]
    options = s.FullyConnectedOptionsT()
    layer = _operator(s, 0, [0, 1, 2], [3], s.BuiltinOptions.FullyConnectedOptions, options)
    graph = _graph(s, tensors, [layer], [0], [3])
    return _pack(s, [s.BuiltinOperator.FULLY_CONNECTED], [graph], buffers)


def halves() -> bytes:
    """Return a model that splits x into two rows, float32. It runs with an even size of x, its file says 1."""
    s = _schema()
    buffers: list[Any] = [s.BufferT()]
    tensors = [
        _tensor(s, "x", [1], s.TensorType.FLOAT32, batch=None),
        _tensor(s, "shape", [2], s.TensorType.INT32, buffers, np.array([2, -1], np.int32)),
        _tensor(s, "y", [2, 1], s.TensorType.FLOAT32),
    ]
    tensors[2].shapeSignature = [2, -1]
    reshape = _operator(s, 0, [0, 1], [2], s.BuiltinOptions.ReshapeOptions, s.ReshapeOptionsT())
    return _pack(s, [s.BuiltinOperator.RESHAPE], [_graph(s, tensors, [reshape], [0], [2])], buffers)


def counter(size: int = 4, step: float = 1.0) -> bytes:
    """Return a streaming model: y is the sum of step times x over all runs, float32 [1, size].

    Args:
        size: of x and y.
        step: factor.
    """
    s = _schema()
    buffers: list[Any] = [s.BufferT()]
    float32, resource = s.TensorType.FLOAT32, s.TensorType.RESOURCE
    factor = np.full((1, size), step, np.float32)
    main = [
        _tensor(s, "x", [1, size], float32),
        _tensor(s, "variable", [], resource),
        _tensor(s, "before", [1, size], float32),
        _tensor(s, "factor", [1, size], float32, buffers, factor),
        _tensor(s, "scaled", [1, size], float32),
        _tensor(s, "y", [1, size], float32),
    ]
    variable = s.VarHandleOptionsT()
    variable.container, variable.sharedName = "", "sum"
    once = s.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    kinds = s.BuiltinOptions
    operators = [
        _operator(s, 0, [], [], kinds.CallOnceOptions, once),
        _operator(s, 1, [], [1], kinds.VarHandleOptions, variable),
        _operator(s, 2, [1], [2], kinds.ReadVariableOptions, s.ReadVariableOptionsT()),
        _operator(s, 4, [0, 3], [4], kinds.MulOptions, s.MulOptionsT()),
        _operator(s, 3, [2, 4], [5], kinds.AddOptions, s.AddOptionsT()),
        _operator(s, 5, [1, 5], [], kinds.AssignVariableOptions, s.AssignVariableOptionsT()),
    ]
    start = [
        _tensor(s, "variable", [], resource),
        _tensor(s, "zeros", [1, size], float32, buffers, np.zeros((1, size), np.float32)),
    ]
    initialize = [
        _operator(s, 1, [], [0], kinds.VarHandleOptions, variable),
        _operator(s, 5, [0, 1], [], kinds.AssignVariableOptions, s.AssignVariableOptionsT()),
    ]
    codes = s.BuiltinOperator
    names = [codes.CALL_ONCE, codes.VAR_HANDLE, codes.READ_VARIABLE, codes.ADD, codes.MUL, codes.ASSIGN_VARIABLE]
    graphs = [_graph(s, main, operators, [0], [5]), _graph(s, start, initialize, [], [])]
    return _pack(s, names, graphs, buffers)


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def _tensor(
    s: Any,
    name: str,
    shape: Sequence[int],
    kind: int,
    buffers: list[Any] | None = None,
    values: np.ndarray | None = None,
    batch: int | None = 1,
) -> Any:
    out = s.TensorT()
    out.name, out.shape, out.type, out.buffer = name, list(shape), kind, 0
    if batch is None:
        out.shapeSignature = [-1, *shape[1:]]
    if buffers is not None and values is not None:
        data = s.BufferT()
        data.data = list(values.tobytes())
        buffers.append(data)
        out.buffer = len(buffers) - 1
    return out


def _operator(s: Any, code: int, inputs: Sequence[int], outputs: Sequence[int], kind: int, options: Any) -> Any:
    out = s.OperatorT()
    out.opcodeIndex, out.inputs, out.outputs = code, list(inputs), list(outputs)
    out.builtinOptionsType, out.builtinOptions = kind, options
    return out


def _graph(
    s: Any, tensors: Sequence[Any], operators: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int]
) -> Any:
    out = s.SubGraphT()
    out.tensors, out.operators, out.inputs, out.outputs = list(tensors), list(operators), list(inputs), list(outputs)
    return out


def _pack(s: Any, names: Sequence[int], graphs: Sequence[Any], buffers: Sequence[Any]) -> bytes:
    import flatbuffers

    model = s.ModelT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, list(graphs), list(buffers), []
    for name in names:
        code = s.OperatorCodeT()
        code.builtinCode = name
        code.deprecatedBuiltinCode = min(name, 127)
        code.version = 1
        model.operatorCodes.append(code)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
