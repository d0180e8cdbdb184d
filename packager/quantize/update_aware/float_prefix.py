"""Run the float model once from front to back, with the levels chosen so far in its weights.

Theory of operation. The model's nodes are numbered 0..n-1. The walk stands before node k:

    alive(k)          values made by nodes < k that nodes >= k or the outputs read; on disk, sample by sample
    walk(k', names)   runs nodes k..k'-1 on alive(k), stores alive(k'), deletes alive(k), and yields `names`

Each node therefore runs once per solution, not once per layer: 45 s instead of 320 s (docs/benchmarks.md).

1. Activations stay in float. Levels that compensate for the rounding of activations shrink the layer's output, as a
   Wiener filter does: that costs bits, and the rounding noise of other inputs is another one.
2. A value that is not a tensor cannot be stored: the walk then stays where it is, and runs the nodes from there again.
3. Samples run side by side, with one runtime thread each.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from packager.models.graphs import array_of, scopes, set_array
from packager.models.inputs import Sample
from packager.models.ordered_map import ordered_map
from packager.models.samples import Samples
from packager.models.sessions import ONE_THREAD_SETTINGS, open_session_of, run_session
from packager.quantize.update_aware.template import QuantizedWeight

Values = dict[str, np.ndarray]


class FloatPrefix:
    """A copy of the float model that is run node by node.

    Args:
        prepared: the new float model.
        samples: inputs to run the model on.
        folder: directory of the stored values.
    """

    def __init__(self, prepared: onnx.ModelProto, samples: Samples, folder: Path) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(prepared)
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._nested = [scope.initializers for scope in scopes(self._model.graph)]
        self._exact = {tensor.name: tensor for tensor in prepared.graph.initializer}
        self._inputs = {value.name for value in prepared.graph.input}
        self._samples, self._folder = samples, folder
        self._reads = [names_read(node) for node in self._model.graph.node]
        self._next_node = self._file_number = 0
        self._alive_names: list[str] = []
        # for each sample, the dtype and shape of its values, in the order of `_alive_names`
        self._value_forms: list[list[tuple[np.dtype[Any], tuple[int, ...]]]] = []

    def set_weight(self, weight: QuantizedWeight, values: np.ndarray) -> None:
        """Replace a weight of the float model by the numbers of its chosen levels.

        Args:
            weight: a weight of the template.
            values: float64 in the layout of its levels.
        """
        values = values / weight.factor
        tensor = self._nested[weight.graph][weight.float_tensor.name]
        set_array(tensor, (values.T if weight.is_flipped else values).astype(array_of(tensor).dtype))

    def correct_bias(self, name: str, correction: np.ndarray) -> None:
        """Add a correction to a bias of the float model.

        Args:
            name: name of the bias.
            correction: float64, as many elements as the bias.
        """
        exact = array_of(self._exact[name])
        set_array(self._tensors[name], (exact + correction.reshape(exact.shape)).astype(exact.dtype))

    def walk(self, before_node: int, names: Sequence[str]) -> Iterator[Values]:
        """Yield the values `names` of each sample with all nodes before `before_node` run.
        The walk stands there afterwards.

        Nodes from `before_node` on may run to compute the values, but run again later. A value that none of these nodes
        reads is not available any more.

        Args:
            before_node: number of a node, not below that of the last call.
            names: names of values.
        """
        names = list(names)
        self._advance(before_node)
        made = {name: i for i, node in enumerate(self._model.graph.node) for name in node.output}
        last = max((made[name] + 1 for name in names if name in made), default=0)
        computed_names = sorted({name for name in names if name not in self._inputs and name not in self._alive_names})
        running = self._open_part(self._next_node, last, computed_names) if computed_names else None

        def select(state: tuple[Sample, Values]) -> Values:
            values = {**state[0], **state[1]}
            if running is not None:
                values.update(
                    zip(
                        computed_names,
                        run_session(running, _select_inputs(running, values), computed_names),
                        strict=True,
                    )
                )
            return {name: values[name] for name in names}

        yield from ordered_map(select, self._alive_values())

    def _advance(self, before_node: int) -> None:
        """Move the walk to the node numbered `before_node`; stay if a value there cannot be stored."""
        if before_node <= self._next_node:
            return
        nodes = self._model.graph.node
        made_now = {name for node in nodes[self._next_node : before_node] for name in node.output if name}
        read_later = set().union(*self._reads[before_node:]) | {value.name for value in self._model.graph.output}
        alive = sorted((made_now | set(self._alive_names)) & read_later)
        made = [name for name in alive if name in made_now]
        running = self._open_part(self._next_node, before_node, made)
        path = self._values_path(self._file_number + 1)
        forms: list[list[tuple[np.dtype[Any], tuple[int, ...]]]] = []

        def run_nodes(state: tuple[Sample, Values]) -> dict[str, Any]:
            sample, old = state
            outputs = running.run(made, _select_inputs(running, {**sample, **old})) if made else []
            return {**old, **dict(zip(made, outputs, strict=True))}

        with path.open("wb") as stream:
            for values in ordered_map(run_nodes, self._alive_values()):
                arrays = [values[name] for name in alive]
                if not all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays):
                    return
                forms.append([(array.dtype, array.shape) for array in arrays])
                for array in arrays:
                    stream.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        self._values_path(self._file_number).unlink(missing_ok=True)
        self._file_number, self._next_node, self._alive_names, self._value_forms = (
            self._file_number + 1,
            before_node,
            alive,
            forms,
        )

    def _alive_values(self) -> Iterator[tuple[Sample, Values]]:
        """Yield each sample with the values that are alive where the walk stands."""
        if not self._alive_names:
            for sample in self._samples:
                yield sample, {}
            return
        with self._values_path(self._file_number).open("rb") as stream:
            for sample, forms in zip(self._samples, self._value_forms, strict=True):
                found: Values = {}
                for name, (dtype, shape) in zip(self._alive_names, forms, strict=True):
                    content = stream.read(dtype.itemsize * math.prod(shape))
                    found[name] = np.frombuffer(content, dtype).reshape(shape)
                yield sample, found

    def _values_path(self, number: int) -> Path:
        return self._folder / f"{number}.prefix"

    def _open_part(self, first: int, last: int, outputs: Sequence[str]) -> onnxruntime.InferenceSession:
        """Open a session of the nodes from `first` up to `last` that `outputs` need.
        Its inputs are the values that these nodes read.
        """
        needed, numbers = set(outputs), []
        nodes = self._model.graph.node
        for number in range(last - 1, first - 1, -1):
            if needed & set(nodes[number].output):
                numbers.append(number)
                needed |= self._reads[number]
        chosen = [nodes[number] for number in reversed(numbers)]
        made = {name for node in chosen for name in node.output}
        tensors = [tensor for name, tensor in self._tensors.items() if name in needed]
        given = sorted(needed - made - set(self._tensors) - {""})
        part = onnx.ModelProto()
        part.CopyFrom(_without_graph(self._model))
        part.graph.name = "prefix"
        part.graph.node.extend(chosen)
        part.graph.initializer.extend(tensors)
        part.graph.input.extend(self._input_info(name) for name in given)
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return open_session_of(part, ONE_THREAD_SETTINGS)

    def _input_info(self, name: str) -> onnx.ValueInfoProto:
        value: onnx.ValueInfoProto
        for value in self._model.graph.input:
            if value.name == name:
                return value
        _, alive = next(self._alive_values())
        element = onnx.helper.np_dtype_to_tensor_dtype(alive[name].dtype)
        value = onnx.helper.make_tensor_value_info(name, element, None)
        return value


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads from its own graph, also from inside its subgraphs."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs):
            made = {value.name for value in (*graph.input, *graph.initializer)}
            made |= {name for inner in graph.node for name in inner.output}
            inside = {value.name for value in graph.output}.union(*(names_read(inner) for inner in graph.node))
            found |= inside - made
    return found - {""}


def _select_inputs(running: onnxruntime.InferenceSession, values: Values) -> Values:
    return {value.name: values[value.name] for value in running.get_inputs()}


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    return bare
