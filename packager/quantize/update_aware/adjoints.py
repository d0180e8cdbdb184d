"""Adjoints of float operators in numpy: from the gradient at an output to those at the inputs.

For a node y = f(x_0, ..., x_n) and g = the gradient at y (float32, shape of y), an adjoint returns for each input the
gradient (df/dx_i)' g (float, shape of x_i), or None if the input is a constant, an integer, or left out.

1. An operator without an entry in ADJOINTS ends a gradient; values before it have none (`gradients`).
2. Operators that only move elements (Slice, Gather, Pad, Expand ...) share one adjoint: the operator itself, run on the
   flat positions of its input, gives the origin of each output element.

Source: the operators' definitions, https://onnx.ai/onnx/operators/.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.models.sessions import open_session_of, run_session

MAX_EXACT_POSITIONS: Final = 2**24  # integers that float32 represents exactly
ERF_GAIN: Final = 2.0 / np.sqrt(np.pi)  # derivative of erf at 0
EPSILON: Final = 1e-12

Gradients = list[np.ndarray | None]


@dataclass(slots=True)
class NodeRun:
    """One node with its values in one run.

    Attributes:
        node: the node that was run.
        inputs: its inputs; None for those left out.
        outputs: its outputs; None for those left out.
        needs_gradient: whether the gradient of each input is used.
        opset: version of the standard operator set.
        sessions: cache of single-node sessions, shared by all nodes of a model.
    """

    node: onnx.NodeProto
    inputs: list[np.ndarray | None]
    outputs: list[np.ndarray | None]
    needs_gradient: list[bool]
    opset: int
    sessions: dict[tuple[object, ...], onnxruntime.InferenceSession] = field(repr=False)

    def float_attribute(self, name: str, default: float) -> float:
        """Return a float attribute of the node.

        Args:
            name: name of the attribute.
            default: value if the node does not have the attribute.
        """
        return next((float(a.f) for a in self.node.attribute if a.name == name), default)

    def int_attribute(self, name: str, default: int) -> int:
        """Return an integer attribute of the node.

        Args:
            name: name of the attribute.
            default: value if the node does not have the attribute.
        """
        return next((int(a.i) for a in self.node.attribute if a.name == name), default)

    def ints_attribute(self, name: str) -> list[int] | None:
        """Return an attribute with several integers, or None if the node does not have it."""
        return next((list(a.ints) for a in self.node.attribute if a.name == name), None)

    def x(self, index: int = 0) -> np.ndarray:
        """Return input number `index`, which must not be left out."""
        value = self.inputs[index]
        assert value is not None
        return value

    def y(self) -> np.ndarray:
        """Return the first output."""
        value = self.outputs[0]
        assert value is not None
        return value


Adjoint = Callable[[NodeRun, np.ndarray], Gradients]


def adjoint_of(node: onnx.NodeProto) -> Adjoint | None:
    """Return the adjoint of a node's first output, or None if there is no entry."""
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    return ADJOINTS.get(node.op_type)


def sum_to_shape(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo a broadcast: sum over the axes along which an array of `shape` was repeated.

    Args:
        gradient: float array of the broadcast shape.
        shape: shape of the array before the broadcast.
    """
    extra = gradient.ndim - len(shape)
    if extra:
        gradient = gradient.sum(axis=tuple(range(extra)))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient


def _elementwise(slope: Callable[[NodeRun], np.ndarray]) -> Adjoint:
    return lambda step, g: [g * slope(step)]


def _add(step: NodeRun, g: np.ndarray) -> Gradients:
    return [sum_to_shape(g, step.x(i).shape) for i in range(len(step.inputs))]


def _subtract(step: NodeRun, g: np.ndarray) -> Gradients:
    return [sum_to_shape(g, step.x(0).shape), sum_to_shape(-g, step.x(1).shape)]


def _multiply(step: NodeRun, g: np.ndarray) -> Gradients:
    return [sum_to_shape(g * step.x(1), step.x(0).shape), sum_to_shape(g * step.x(0), step.x(1).shape)]


def _divide(step: NodeRun, g: np.ndarray) -> Gradients:
    down = g / step.x(1)
    return [sum_to_shape(down, step.x(0).shape), sum_to_shape(-down * step.y(), step.x(1).shape)]


def _power(step: NodeRun, g: np.ndarray) -> Gradients:
    exponent = step.x(1).astype(np.float32)
    return [sum_to_shape(g * exponent * np.power(step.x(0), exponent - 1), step.x(0).shape), None]


def _choose(step: NodeRun, g: np.ndarray) -> Gradients:
    condition = step.x(0).astype(bool)
    return [
        None,
        sum_to_shape(np.where(condition, g, 0), step.x(1).shape),
        sum_to_shape(np.where(condition, 0, g), step.x(2).shape),
    ]


def _extreme(step: NodeRun, g: np.ndarray) -> Gradients:
    found: Gradients = []
    for value in step.inputs:
        found.append(None if value is None else sum_to_shape(np.where(value == step.y(), g, 0), value.shape))
    return found


def _clip(step: NodeRun, g: np.ndarray) -> Gradients:
    return [np.where(step.x() == step.y(), g, 0)]


def _softmax(step: NodeRun, g: np.ndarray) -> Gradients:
    y = step.y()
    axis = step.int_attribute("axis", -1 if step.opset >= 13 else 1)
    axes: int | tuple[int, ...] = axis if step.opset >= 13 else tuple(range(axis % y.ndim, y.ndim))
    return [y * (g - (g * y).sum(axis=axes, keepdims=True))]


def _log_softmax(step: NodeRun, g: np.ndarray) -> Gradients:
    axis = step.int_attribute("axis", -1)
    return [g - np.exp(step.y()) * g.sum(axis=axis, keepdims=True)]


def _layer_norm(step: NodeRun, g: np.ndarray) -> Gradients:
    x, scale = step.x(0), step.x(1)
    axis = step.int_attribute("axis", -1) % x.ndim
    axes = tuple(range(axis, x.ndim))
    inverse = 1.0 / np.sqrt(x.var(axis=axes, keepdims=True) + step.float_attribute("epsilon", 1e-5))
    normal = (x - x.mean(axis=axes, keepdims=True)) * inverse
    inner = g * scale
    mean, along = inner.mean(axis=axes, keepdims=True), (inner * normal).mean(axis=axes, keepdims=True)
    found: Gradients = [inverse * (inner - mean - normal * along), sum_to_shape(g * normal, scale.shape)]
    return [*found, sum_to_shape(g, scale.shape)][: len(step.inputs)]


def _batch_norm(step: NodeRun, g: np.ndarray) -> Gradients:
    shape = (1, -1) + (1,) * (g.ndim - 2)
    scale, mean, variance = (step.x(i).reshape(shape) for i in (1, 3, 4))
    inverse = 1.0 / np.sqrt(variance + step.float_attribute("epsilon", 1e-5))
    axes = tuple(i for i in range(g.ndim) if i != 1)
    normal = (step.x(0) - mean) * inverse
    return [g * scale * inverse, (g * normal).sum(axis=axes), g.sum(axis=axes), None, None]


def _matmul(step: NodeRun, g: np.ndarray) -> Gradients:
    a, b = step.x(0), step.x(1)
    if a.ndim == 1 or b.ndim == 1:
        return [None, None]
    left = sum_to_shape(np.matmul(g, np.swapaxes(b, -1, -2)), a.shape) if step.needs_gradient[0] else None
    right = sum_to_shape(np.matmul(np.swapaxes(a, -1, -2), g), b.shape) if step.needs_gradient[1] else None
    return [left, right]


def _gemm(step: NodeRun, g: np.ndarray) -> Gradients:
    alpha, beta = step.float_attribute("alpha", 1.0), step.float_attribute("beta", 1.0)
    a, b = step.x(0), step.x(1)
    left, right = None, None
    if step.needs_gradient[0]:
        left = alpha * (g @ (b if step.int_attribute("transB", 0) else b.T))
        left = left.T if step.int_attribute("transA", 0) else left
    if step.needs_gradient[1]:
        right = alpha * ((a if step.int_attribute("transA", 0) else a.T) @ g)
        right = right.T if step.int_attribute("transB", 0) else right
    found: Gradients = [left, right]
    if len(step.inputs) > 2 and step.inputs[2] is not None:
        found.append(sum_to_shape(beta * g, step.x(2).shape))
    return found


def _conv(step: NodeRun, g: np.ndarray) -> Gradients:
    """Compute the input gradient by a ConvTranspose with the same weight.
    Output padding makes up for strides that leave a rest.
    """
    x, weight = step.x(0), step.x(1).astype(np.float32, copy=False)
    rank = x.ndim - 2
    auto = next((a.s for a in step.node.attribute if a.name == "auto_pad"), b"NOTSET")
    strides, dilations = step.ints_attribute("strides") or [1] * rank, step.ints_attribute("dilations") or [1] * rank
    pads = step.ints_attribute("pads") or [0] * (2 * rank)
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        total = [
            max(0, (o - 1) * s + e - n) for o, s, e, n in zip(g.shape[2:], strides, spans, x.shape[2:], strict=True)
        ]
        first = [t // 2 if auto == b"SAME_UPPER" else -(-t // 2) for t in total]
        pads = [*first, *[t - f for t, f in zip(total, first, strict=True)]]
    whole = [(o - 1) * s + e for o, s, e in zip(g.shape[2:], strides, spans, strict=True)]
    key = ("conv", step.node.name, g.shape, x.shape)
    if key not in step.sessions:
        node = onnx.helper.make_node(
            "ConvTranspose",
            ["g", "w"],
            ["y"],
            strides=strides,
            dilations=dilations,
            group=step.int_attribute("group", 1),
        )
        step.sessions[key] = _single_node_session(node, {"g": g, "w": weight}, 13)
    full = run_session(step.sessions[key], {"g": g, "w": weight})[0]
    # `full` covers the padded input as far as the windows reached: cut off the padding, zero what no window covered
    padded = np.zeros((*x.shape[:2], *[n + pads[i] + pads[i + rank] for i, n in enumerate(x.shape[2:])]), np.float32)
    seen = tuple(slice(0, min(n, size)) for n, size in zip(whole, padded.shape[2:], strict=True))
    padded[(slice(None), slice(None), *seen)] = full[(slice(None), slice(None), *seen)]
    inner = tuple(slice(pads[i], pads[i] + n) for i, n in enumerate(x.shape[2:]))
    found: Gradients = [padded[(slice(None), slice(None), *inner)], None]
    if len(step.inputs) > 2 and step.inputs[2] is not None:
        found.append(g.sum(axis=(0, *range(2, g.ndim))))
    return found


def _reduce(step: NodeRun, g: np.ndarray, *, is_mean: bool) -> Gradients:
    x = step.x()
    axes = step.ints_attribute("axes")
    if axes is None and len(step.inputs) > 1 and step.inputs[1] is not None:
        axes = [int(axis) for axis in step.x(1).ravel()]
    if not axes:
        axes = list(range(x.ndim))
    kept = [1 if i in {a % x.ndim for a in axes} else size for i, size in enumerate(x.shape)]
    share = x.size / max(1, int(np.prod(kept))) if is_mean else 1.0
    return [np.broadcast_to(g.reshape(kept) / share, x.shape)]


def _global_average(step: NodeRun, g: np.ndarray) -> Gradients:
    return [np.broadcast_to(g / np.prod(step.x().shape[2:]), step.x().shape)]


def _undo_reshape(step: NodeRun, g: np.ndarray) -> Gradients:
    return [g.reshape(step.x().shape)]


def _transpose(step: NodeRun, g: np.ndarray) -> Gradients:
    order = step.ints_attribute("perm") or list(range(g.ndim))[::-1]
    return [g.transpose(np.argsort(order))]


def _concat(step: NodeRun, g: np.ndarray) -> Gradients:
    axis = step.int_attribute("axis", 0)
    ends = np.cumsum([step.x(i).shape[axis] for i in range(len(step.inputs))])[:-1]
    return list(np.split(g, ends, axis=axis))


def _undo_move(step: NodeRun, g: np.ndarray) -> Gradients:
    """Undo an operator that only moves elements.
    Positions start at 1, since the operator fills in zeros.
    """
    x = step.x()
    if x.size >= MAX_EXACT_POSITIONS or not step.needs_gradient[0]:
        return [None]
    positions = np.arange(1, x.size + 1, dtype=np.float32).reshape(x.shape)
    feeds = {f"i{n}": value for n, value in enumerate(step.inputs) if value is not None}
    feeds["i0"] = positions
    if step.node.op_type == "Pad" and "i2" in feeds:
        feeds["i2"] = np.zeros_like(feeds["i2"])
    key = ("moved", step.node.name, *(value.shape for value in feeds.values()))
    if key not in step.sessions:
        node = onnx.NodeProto()
        node.CopyFrom(step.node)
        del node.input[:], node.output[:]
        node.input.extend(f"i{n}" if f"i{n}" in feeds else "" for n in range(len(step.inputs)))
        node.output.append("y")
        step.sessions[key] = _single_node_session(node, feeds, step.opset)
    origin = run_session(step.sessions[key], feeds)[0].astype(np.int64).ravel()
    found = np.bincount(origin, g.ravel(), minlength=x.size + 1)[1:]
    return [found.reshape(x.shape).astype(np.float32)]


def _max_pool(step: NodeRun, g: np.ndarray) -> Gradients:
    x = step.x()
    key = ("pool", step.node.name, x.shape)
    if key not in step.sessions:
        node = onnx.NodeProto()
        node.CopyFrom(step.node)
        del node.input[:], node.output[:]
        node.input.append("i0")
        node.output.extend(["values", "y"])
        step.sessions[key] = _single_node_session(node, {"i0": x}, step.opset, onnx.TensorProto.INT64)
    origin = run_session(step.sessions[key], {"i0": x})[0].ravel()
    return [np.bincount(origin, g.ravel(), minlength=x.size).reshape(x.shape).astype(np.float32)]


def _split(step: NodeRun, g: np.ndarray) -> Gradients:
    raise NotImplementedError  # `gradients` calls `join_gradients` instead


def join_gradients(step: NodeRun, parts: list[np.ndarray | None]) -> Gradients:
    """Return the adjoint of a Split from the gradients of all its outputs.

    Args:
        step: the Split.
        parts: gradient of each output, or None.
    """
    axis = step.int_attribute("axis", 0)
    full = [np.zeros_like(y) if part is None else part for part, y in zip(parts, step.outputs, strict=True)]
    return [np.concatenate([part for part in full if part is not None], axis=axis)]


def _single_node_session(
    node: onnx.NodeProto, feeds: dict[str, np.ndarray], opset: int, result: int = onnx.TensorProto.FLOAT
) -> onnxruntime.InferenceSession:
    make = onnx.helper.make_tensor_value_info
    inputs = [make(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim) for n, v in feeds.items()]
    graph = onnx.helper.make_graph([node], "single_node", inputs, [make("y", result, None)])
    return open_session_of(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    )


def _gelu_slope(step: NodeRun) -> np.ndarray:
    x = step.x()
    normal = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    # Phi(x) = gelu(x) / x, except near 0 where it is a half
    below = np.where(np.abs(x) > 1e-3, step.y() / np.where(x == 0, 1.0, x), 0.5)
    return np.asarray(below + x * normal)


def _hard_swish_slope(step: NodeRun) -> np.ndarray:
    x = step.x()
    return np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, x / 3 + 0.5))


ADJOINTS: Final[dict[str, Adjoint]] = {
    "Add": _add,
    "Sum": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Pow": _power,
    "Where": _choose,
    "Max": _extreme,
    "Min": _extreme,
    "Neg": _elementwise(lambda s: np.float32(-1.0) * np.ones_like(s.x())),
    "Abs": _elementwise(lambda s: np.sign(s.x())),
    "Sqrt": _elementwise(lambda s: 0.5 / np.maximum(s.y(), EPSILON)),
    "Reciprocal": _elementwise(lambda s: -np.square(s.y())),
    "Exp": _elementwise(lambda s: s.y()),
    "Log": _elementwise(lambda s: 1.0 / s.x()),
    "Erf": _elementwise(lambda s: ERF_GAIN * np.exp(-np.square(s.x()))),
    "Tanh": _elementwise(lambda s: 1.0 - np.square(s.y())),
    "Sigmoid": _elementwise(lambda s: s.y() * (1.0 - s.y())),
    "Softplus": _elementwise(lambda s: 1.0 - np.exp(-s.y())),
    "Relu": _elementwise(lambda s: (s.x() > 0).astype(np.float32)),
    "LeakyRelu": _elementwise(lambda s: np.where(s.x() > 0, 1.0, s.float_attribute("alpha", 0.01))),
    "Elu": _elementwise(lambda s: np.where(s.x() > 0, 1.0, s.y() + s.float_attribute("alpha", 1.0))),
    "HardSigmoid": _elementwise(lambda s: np.where((s.y() > 0) & (s.y() < 1), s.float_attribute("alpha", 0.2), 0.0)),
    "HardSwish": _elementwise(_hard_swish_slope),
    "Gelu": _elementwise(_gelu_slope),
    "Clip": _clip,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ReduceMean": partial(_reduce, is_mean=True),
    "ReduceSum": partial(_reduce, is_mean=False),
    "GlobalAveragePool": _global_average,
    "MaxPool": _max_pool,
    "Reshape": _undo_reshape,
    "Flatten": _undo_reshape,
    "Squeeze": _undo_reshape,
    "Unsqueeze": _undo_reshape,
    "Identity": _undo_reshape,
    "Dropout": _undo_reshape,
    "Cast": _undo_reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    **dict.fromkeys(("Slice", "Gather", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"), _undo_move),
}
