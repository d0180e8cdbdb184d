"""Gradients of the float model's outputs at inner values: how much an error there matters.

Theory of operation. For one sample, each float output o (shape F_o) is multiplied by random signs and scaled:

    r_o = signs / (spread_o * sqrt(size of o)),  float32 F_o,  spread_o = RMS distance from the mean output

g(v) = gradient of sum_o <r_o, o> at an inner value v, float32 of the shape of v. Over the signs,

    E[g(v)^2] = relative error energy of the outputs that a small independent error of unit energy at v adds

The model runs in onnxruntime with its inner values as outputs; numpy computes the way back (`adjoints`).

1. A value has no gradient if one of its paths to the outputs passes an operator without adjoint: a part of the
   influence would mislead.
2. Only the top graph is walked. The signs come from a fixed seed.
3. A model that fails, or gives gradients that are not finite, has none: influence refines a result that exists anyway.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.errors import ModelDoesNotRun
from packager.models.graphs import array_of, opset_version, scopes
from packager.models.inputs import Sample
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, run_session
from packager.quantize.sensitivity import with_outputs
from packager.quantize.update_aware.adjoints import NodeRun, adjoint_of, join_gradients

logger = logging.getLogger(__name__)

SPREAD_SAMPLES: Final = 32  # samples from which the outputs' spread is measured
# errors of numpy and of the adjoints on a model with an unusual graph: it has no gradients then
WALK_ERRORS: Final = (ArithmeticError, AssertionError, LookupError, MemoryError, TypeError, ValueError, ModelDoesNotRun)
INTEGER_TYPES: Final = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.UINT8)
# operators whose outputs do not change with small changes of their inputs
FLAT_OPERATORS: Final = frozenset(
    {
        *("Shape", "Size", "ArgMax", "ArgMin", "ConstantOfShape", "NonZero", "Range", "IsNaN", "IsInf"),
        *("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or"),
        *("Sign", "Floor", "Ceil", "Round"),
    }
)


@dataclass(slots=True)
class GradientWalk:
    """Computes gradients of a model's outputs at some of its values.

    Attributes:
        model: a float model.
        requested_names: node outputs or initializers at which gradients are wanted.
        known_names: those of them that have a gradient.
    """

    model: onnx.ModelProto
    requested_names: frozenset[str]
    known_names: frozenset[str] = field(init=False)
    _nodes: list[onnx.NodeProto] = field(init=False)
    _names_between: set[str] = field(init=False)
    _names: list[str] = field(init=False)
    _running: onnxruntime.InferenceSession = field(init=False, repr=False)
    _constants: dict[str, np.ndarray] = field(init=False, repr=False)
    _sessions: dict[tuple[object, ...], onnxruntime.InferenceSession] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        output_names = {value.name for value in graph.output}
        self._constants = {tensor.name: array_of(tensor) for tensor in graph.initializer}
        dependents = _dependents(graph, self.requested_names)
        dependencies = _dependencies(graph, output_names & dependents)
        self._names_between = dependents & dependencies
        self._nodes = [node for node in graph.node if self._names_between & set(node.output)]
        blocked = _blocked_values(self._nodes, self._names_between)
        self.known_names = frozenset((self.requested_names & dependencies & dependents) - blocked)
        if not self.known_names:
            self._nodes = []
        inner = {name for node in self._nodes for name in (*node.input, *node.output) if name}
        input_names = {value.name for value in graph.input}
        self._names = sorted((inner - self._constants.keys() - input_names) | output_names)
        try:
            self._running = open_session_of(with_outputs(self.model, self._names))
        except ModelDoesNotRun as error:
            logger.info("no gradients: %s", error.message)
            self.known_names, self._nodes, self._names = frozenset(), [], sorted(output_names)
            self._running = open_session_of(self.model)

    def count_inner_floats(self, sample: Sample) -> int:
        """Return the number of inner values of one run, to which the cost of a gradient is proportional."""
        return sum(int(value.size) for value in run_session(self._running, sample, self._names))

    def gradients(self, samples: Samples, spreads: dict[str, float]) -> Iterator[dict[str, np.ndarray]]:
        """Yield for each sample the gradients at `known_names`, float32 of the shape of each value.

        Args:
            samples: inputs to run the model on.
            spreads: spread of each float output, by name (`spreads_of`).
        """
        for _, slopes in self.gradients_with_values(samples, spreads):
            yield slopes

    def gradients_with_values(
        self, samples: Samples, spreads: dict[str, float]
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Yield for each sample its inner values by name, and the gradients as `gradients` does.

        Args:
            samples: inputs to run the model on.
            spreads: spread of each float output, by name (`spreads_of`).
        """
        rng = np.random.default_rng(0)
        version = opset_version(self.model)
        for sample in samples:
            values = {**self._constants, **sample}
            values.update(zip(self._names, run_session(self._running, sample, self._names), strict=True))
            found: dict[str, np.ndarray] = {}
            for value in self.model.graph.output:
                output, spread = values[value.name], spreads.get(value.name, 0.0)
                if output.dtype.kind == "f" and spread > 0:
                    signs = rng.integers(0, 2, output.shape) * 2 - 1
                    # the mean over an output's elements, as in its relative RMS
                    found[value.name] = (signs / (spread * np.sqrt(max(1, output.size)))).astype(np.float32)
            try:
                with np.errstate(all="ignore"):
                    self._walk_back(values, found, version)
            except WALK_ERRORS as error:
                logger.info("no gradients: %s: %s", type(error).__name__, error)
                found = {}
            slopes = {name: found[name] for name in self.known_names if name in found}
            yield values, {name: slope for name, slope in slopes.items() if np.isfinite(slope).all()}

    def _walk_back(self, values: dict[str, np.ndarray], found: dict[str, np.ndarray], version: int) -> None:
        for node in reversed(self._nodes):
            parts = [found.get(name) for name in node.output]
            adjoint = adjoint_of(node)
            needs_gradient = [name in self._names_between for name in node.input]
            if adjoint is None or all(part is None for part in parts) or not any(needs_gradient):
                continue  # such as a look-up in a table: no gradient before it is needed
            step = NodeRun(
                node,
                [values.get(name) if name else None for name in node.input],
                [values.get(name) if name else None for name in node.output],
                needs_gradient,
                version,
                self._sessions,
            )
            first = parts[0]
            gradients = join_gradients(step, parts) if node.op_type == "Split" else []
            if node.op_type != "Split" and first is not None:
                gradients = adjoint(step, first)
            for name, gradient in zip(node.input, gradients, strict=False):
                if gradient is not None and name in self._names_between and values[name].dtype.kind == "f":
                    gradient = np.asarray(gradient, np.float32)
                    found[name] = gradient if name not in found else found[name] + gradient


def spreads_of(model: onnx.ModelProto, samples: Samples) -> dict[str, float]:
    """Return the spread of each float output over at most SPREAD_SAMPLES samples, by name.

    Args:
        model: a float model.
        samples: inputs to run the model on.
    """
    running = open_session_of(model)
    names = [value.name for value in model.graph.output]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for sample in samples.take(SPREAD_SAMPLES):
        for name, output in zip(names, run_session(running, sample), strict=True):
            found[name].append(output)
    return {name: spread(outputs) for name, outputs in found.items() if outputs and outputs[0].dtype.kind == "f"}


def spread(outputs: list[np.ndarray]) -> float:
    """Return the RMS distance of float arrays from their mean.
    The mean is taken element by element if the shapes agree, else over all elements.
    """
    if any(output.shape != outputs[0].shape for output in outputs):
        flat = np.concatenate([output.ravel() for output in outputs]).astype(np.float64)
        return float(flat.std()) if flat.size else 0.0
    return float(np.sqrt(np.stack(outputs).astype(np.float64).var(axis=0).mean()))


def _dependents(graph: onnx.GraphProto, starts: frozenset[str]) -> set[str]:
    """Return the values that depend on `starts`, and `starts` themselves."""
    reached = set(starts)
    for node in graph.node:
        if not _is_flat(node) and reached & _names_read(node):
            reached |= {name for name in node.output if name}
    return reached


def _dependencies(graph: onnx.GraphProto, ends: set[str]) -> set[str]:
    """Return the values that `ends` depend on, and `ends` themselves."""
    reached = set(ends)
    for node in reversed(graph.node):
        if reached & set(node.output):
            reached |= _names_read(node)
    return reached


def _blocked_values(nodes: list[onnx.NodeProto], between: set[str]) -> set[str]:
    """Return the values that reach the outputs through an operator without adjoint."""
    blocked: set[str] = set()
    for node in reversed(nodes):
        makes_other = node.op_type != "Split" and any(name in between for name in list(node.output)[1:])
        if adjoint_of(node) is None or makes_other or blocked & set(node.output):
            blocked |= _names_read(node)
    return blocked


def _is_flat(node: onnx.NodeProto) -> bool:
    to = next((a.i for a in node.attribute if a.name == "to"), onnx.TensorProto.FLOAT)
    return node.op_type in FLAT_OPERATORS or (node.op_type == "Cast" and to in INTEGER_TYPES)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, in its subgraphs too."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            names |= {name for scope in scopes(graph) for inner in scope.graph.node for name in inner.input if name}
    return names
