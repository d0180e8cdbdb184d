"""Fire drills: releases that must fail on the device, to exercise probe and rollback.

Rules:
- A drill changes the model of an assembled variant, after gate and golden vectors. All earlier steps are those of any
  release.
- The signed provenance of the release records it (`drill`).
- `damaged-weights` computes wrong outputs for all inputs, so the probe must reject it. If the weights do not change the
  golden outputs, the outputs are inverted instead.
- `live-nan` computes the recorded outputs for the golden inputs, and NaN for all others (if no output is a float, a
  node fails), so only live requests reveal it.
- Only the graph is changed; the agent has no code for drills.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from bundle.errors import GoldenMismatch
from bundle.golden.comparison import GoldenVector, check_outputs
from packager.errors import DrillInvalid, ModelDoesNotRun
from packager.models.sessions import open_session, run_session

DRILLS: Final = ("damaged-weights", "live-nan")
FIXED_POINT_SCALE: Final = 65_536.0  # a power of two: scaling a float by it is exact
WEIGHT_PERIOD: Final = 8_191  # position weights are 1 to 8,191; a prime, so that shifted rows have another sum
NAME_PREFIX: Final = "airweights_drill_"
_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_NUMBERS: Final = (
    *_FLOATS,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.UINT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
)
INVERTIBLE_TYPES: Final = (*_FLOATS, onnx.TensorProto.INT32, onnx.TensorProto.INT64)  # types that every Sub supports
MAX_TOLERANCE_PPM: Final = 50_000  # largest tolerance of golden vectors (packager.models.golden_vectors)
MIN_OPSET: Final = 9  # first with NonZero and Where


def apply_drill(kind: str, model: Path, golden: tuple[GoldenVector, ...]) -> None:
    """Change the model file in place.

    Args:
        kind: one of DRILLS.
        model: an ONNX file; its external data, if any, is beside it.
        golden: the variant's golden vectors.

    Raises:
        DrillInvalid: the drill is unknown, or the model has nothing to break.
    """
    drills: dict[str, Callable[[onnx.ModelProto, tuple[GoldenVector, ...]], None]] = {
        "damaged-weights": lambda proto, _golden: damage_weights(proto),
        "live-nan": break_live_outputs,
    }
    if kind not in drills:
        raise DrillInvalid(f"found drill {kind!r}, expected one of {', '.join(DRILLS)}")
    proto = onnx.load(model, load_external_data=False)
    locations = {
        entry.value for tensor in _weight_tensors(proto) for entry in tensor.external_data if entry.key == "location"
    }
    proto = onnx.load(model)
    drills[kind](proto, golden)
    _save(proto, model, locations)
    if kind == "damaged-weights" and _gives_golden_outputs(model, golden):
        invert_outputs(proto)
        _save(proto, model, locations)


def _save(proto: onnx.ModelProto, model: Path, locations: set[str]) -> None:
    if locations:
        whole, proto = proto, onnx.ModelProto()
        proto.CopyFrom(whole)  # save_model moves tensors out of the proto that it saves
    for location in locations:
        (model.parent / location).unlink(missing_ok=True)
    onnx.save_model(
        proto,
        model,
        save_as_external_data=bool(locations),
        all_tensors_to_one_file=True,
        location=min(locations, default=None),
    )


def _gives_golden_outputs(model: Path, golden: tuple[GoldenVector, ...]) -> bool:
    """Return whether the golden outputs are unchanged, within the largest tolerance of a release."""
    try:
        session = open_session(model)
        for number, sample in enumerate(golden):
            names = [row.name for row in sample.rows]
            outputs = dict(zip(names, run_session(session, sample.inputs, names), strict=True))
            check_outputs(outputs, sample, tolerance_ppm=MAX_TOLERANCE_PPM, where=f"golden {number}")
    except (GoldenMismatch, ModelDoesNotRun):
        return False
    return True


def invert_outputs(proto: onnx.ModelProto) -> None:
    """Replace every numeric output x by 1 - x, for models whose outputs do not depend on their weights.

    Raises:
        DrillInvalid: no output is numeric.
    """
    graph = _GraphBuilder(proto.graph)
    numeric = [out for out in proto.graph.output if out.type.tensor_type.elem_type in INVERTIBLE_TYPES]
    if not numeric:
        raise DrillInvalid("found no weights to damage and no numeric output to invert")
    for out in numeric:
        graph.invert_output(out)


def damage_weights(proto: onnx.ModelProto) -> None:
    """Reverse the largest weight tensors, and negate floats, until half of all weight bytes are changed."""
    tensors = sorted(_weight_tensors(proto), key=lambda tensor: -len(tensor.raw_data))
    total = sum(len(tensor.raw_data) for tensor in tensors)
    done = 0
    for tensor in tensors:
        array = numpy_helper.to_array(tensor)
        if done * 2 > total or array.size < 2:
            break
        reversed_values = array.reshape(-1)[::-1]
        damaged = np.ascontiguousarray(-reversed_values if array.dtype.kind == "f" else reversed_values).reshape(
            array.shape
        )
        tensor.raw_data = numpy_helper.from_array(damaged, tensor.name).raw_data
        done += len(tensor.raw_data)


def break_live_outputs(proto: onnx.ModelProto, golden: tuple[GoldenVector, ...]) -> None:
    """Add nodes that recognize golden inputs by a checksum, and spoil the outputs for others.

    The checksum of a flattened input x is the sum over i of
    (1 + i mod WEIGHT_PERIOD) * int64(FIXED_POINT_SCALE * x[i]). It is computed in integers, so it is equal on every CPU
    and with any number of threads.

    Args:
        proto: the model; it is changed in place.
        golden: golden vectors to recognize.

    Raises:
        DrillInvalid: the opset is too old, or there is no numeric input or output.
    """
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    inputs = [
        value for value in _inputs_without_initializers(proto.graph) if value.type.tensor_type.elem_type in _NUMBERS
    ]
    if opset < MIN_OPSET or not inputs:
        raise DrillInvalid(f"found opset {opset} and {len(inputs)} numeric inputs, expected at least {MIN_OPSET} and 1")
    graph = _GraphBuilder(proto.graph)
    sums = [graph.add_weighted_sum(value.name, value.type.tensor_type.elem_type) for value in inputs]
    total = sums[0]
    for one in sums[1:]:
        total = graph.add_node("Add", total, one)
    known = np.unique([_golden_sum([sample.inputs[value.name] for value in inputs]) for sample in golden])
    hits = graph.add_node("Cast", graph.add_node("Equal", total, graph.add_constant(known.astype(np.int64))), to=_INT32)
    # ReduceSum, not ReduceMax: the latter supports int32 since opset 12 only
    is_golden = graph.add_node("Cast", graph.add_node("ReduceSum", hits, keepdims=0), to=onnx.TensorProto.BOOL)
    floats = [out for out in proto.graph.output if out.type.tensor_type.elem_type in _FLOATS]
    if floats:
        spoil = graph.add_node(
            "Where", is_golden, graph.add_constant(np.float32(0)), graph.add_constant(np.float32("nan"))
        )
    else:
        index = graph.add_node("Where", is_golden, graph.add_constant(np.int64(0)), graph.add_constant(np.int64(1)))
        spoil = graph.add_node("Gather", graph.add_constant(np.zeros(1, np.float32)), index)
    spoilt = [out for out in floats or proto.graph.output if out.type.tensor_type.elem_type in (*_NUMBERS,)]
    if not spoilt:
        raise DrillInvalid("found no numeric output to spoil")
    for out in spoilt:
        graph.spoil_output(out, spoil)


_INT32: Final = onnx.TensorProto.INT32
_INT64: Final = onnx.TensorProto.INT64


class _GraphBuilder:
    """Appends nodes with unused names to a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0

    def _unused_name(self) -> str:
        self._count += 1
        return f"{NAME_PREFIX}{self._count}"

    def add_node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = self._unused_name()
        node = self._graph.node.add(op_type=op, input=inputs, output=[name])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return name

    def add_constant(self, value: npt.ArrayLike) -> str:
        name = self._unused_name()
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add_weighted_sum(self, name: str, dtype: int) -> str:
        flat = self.add_node("Reshape", name, self.add_constant(np.array([-1], np.int64)))
        if dtype in _FLOATS:
            wide = self.add_node("Cast", flat, to=onnx.TensorProto.DOUBLE)
            flat = self.add_node("Mul", wide, self.add_constant(np.float64(FIXED_POINT_SCALE)))
        whole = self.add_node("Cast", flat, to=_INT64)
        ones = self.add_node(
            "ConstantOfShape",
            self.add_node("Shape", whole),
            value=helper.make_tensor("value", onnx.TensorProto.INT64, [1], [1]),
        )
        index = self.add_node("Reshape", self.add_node("NonZero", ones), self.add_constant(np.array([-1], np.int64)))
        period, one = self.add_constant(np.int64(WEIGHT_PERIOD)), self.add_constant(np.int64(1))
        turns = self.add_node("Mul", self.add_node("Div", index, period), period)
        weights = self.add_node("Add", self.add_node("Sub", index, turns), one)
        return self.add_node("ReduceSum", self.add_node("Mul", whole, weights), keepdims=0)

    def invert_output(self, out: onnx.ValueInfoProto) -> None:
        inner = self._rename_output(out)
        one = self.add_node("Cast", self.add_constant(np.float32(1)), to=out.type.tensor_type.elem_type)
        self._graph.node.append(helper.make_node("Sub", [one, inner], [out.name]))

    def _rename_output(self, out: onnx.ValueInfoProto) -> str:
        inner = self._unused_name()
        for node in self._graph.node:
            node.output[:] = [inner if name == out.name else name for name in node.output]
            node.input[:] = [inner if name == out.name else name for name in node.input]
        return inner

    def spoil_output(self, out: onnx.ValueInfoProto, spoil: str) -> None:
        inner = self._rename_output(out)
        dtype = out.type.tensor_type.elem_type
        if dtype == onnx.TensorProto.BOOL:
            whole = self.add_node("Cast", inner, to=_INT32)
            moved = self.add_node("Add", whole, self.add_node("Cast", spoil, to=_INT32))
            self._graph.node.append(helper.make_node("Cast", [moved], [out.name], to=dtype))
            return
        self._graph.node.append(helper.make_node("Add", [inner, self.add_node("Cast", spoil, to=dtype)], [out.name]))


def _golden_sum(arrays: list[npt.NDArray[np.generic]]) -> int:
    total = 0
    for array in arrays:
        flat = array.reshape(-1)
        if flat.dtype.kind == "f":
            flat = flat.astype(np.float64) * FIXED_POINT_SCALE
        weights = np.arange(flat.size) % WEIGHT_PERIOD + 1
        total += sum(int(x) * int(w) for x, w in zip(flat.astype(np.int64), weights, strict=True))
    return (total + 2**63) % 2**64 - 2**63


def _inputs_without_initializers(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _weight_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Iterate over all weight tensors, including those of Constant nodes, subgraphs and functions."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graph_tensors(graph)
