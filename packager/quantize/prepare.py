"""Normalize a published float model so that it can be quantized, without changing its outputs.

Steps, in order:
1. Refuse a model that is quantized already or has weights that are not finite.
2. Replace the model's own functions by their nodes. Turn Constant nodes into initializers, in every graph. Initializers
   stop being overridable inputs. A weight stored in another type and cast to float32 on loading becomes float32.
3. Compute constant expressions where that saves bytes (`fold_constants`), and optimize at the level that does not
   depend on the hardware and adds no operator domains.
4. Give every node a unique name.
5. For integer arithmetic only: convert operator sets below 13, which have no per-channel scales, to 17 (else 15, else
   13), and do step 3 again. Float arithmetic keeps the operator set, because conversion adds nodes.

Each of steps 2, 3 and 5 must keep the outputs on one sample, and must not make the model larger once its weights are
int8 (`estimated_bytes`; step 5 may add MAX_CONVERSION_BYTES). Else, or if it fails in any way, it is left out, with a
note.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import onnx
import onnxruntime
from onnx import inliner, version_converter

from packager.errors import AlreadyQuantized, ModelDoesNotRun, WeightsNotFinite
from packager.models.graphs import (
    FLOAT_TYPES,
    QUANTIZED_OPS,
    all_nodes,
    all_tensors,
    array_of,
    is_quantized,
    names_in,
    opset_version,
    scopes,
    unused_name,
    weight_inputs,
)
from packager.models.inputs import Sample, load_proto
from packager.models.sessions import one_line_message, open_session_of, run_session
from packager.quantize.fold_constants import estimated_bytes, fold_constants

logger = logging.getLogger(__name__)

MIN_OPSET: Final = 13  # first with `axis` in QuantizeLinear and DequantizeLinear
PREFERRED_OPSETS: Final = (17, 15, 13)
MIN_IR_VERSION: Final = 8
MAX_GROWTH_BYTES: Final = 4096  # names and nodes that a step writes in another form
MAX_CONVERSION_BYTES: Final = 256 << 10  # nodes that newer operator sets need; most of them are folded again
Step: TypeAlias = tuple[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]]
HALF_PRECISION_TYPES: Final = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
MAX_OUTPUT_CHANGE: Final = (
    1e-3  # share of the output's largest magnitude; float kernels differ by rounding after fusions
)


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A float model ready to be quantized.

    Attributes:
        model: the model, for methods with float arithmetic.
        notes: the steps that were left out, and why.
        integer_model: the model for methods with integer arithmetic: `model`, or its conversion (step 5).
    """

    model: onnx.ModelProto
    notes: tuple[str, ...]
    integer_model: onnx.ModelProto

    def like(self, template: onnx.ModelProto) -> onnx.ModelProto:
        """Return the one of both models that `template` was made from, by its operator set."""
        return self.integer_model if opset_version(template) >= MIN_OPSET else self.model


def prepare_model(path: Path, sample: Sample, *, optimize: bool = True) -> PreparedModel:
    """Load and normalize a float model.

    Args:
        path: an ONNX file.
        sample: one input, on which outputs must stay.
        optimize: whether to do step 3.

    Raises:
        ModelUnreadable: the file is not an ONNX model.
        AlreadyQuantized: the model has quantized operators.
        WeightsNotFinite: a weight has NaN or infinity.
        ModelDoesNotRun: the model does not load, or does not run on the sample.
    """
    model = load_proto(path)
    check_quantizable(model, str(path))
    reference = run_session(open_session_of(model), sample, where=str(path))
    notes: list[str] = []
    steps: list[Step] = [
        ("inline functions", _inline_functions),
        ("constants to initializers", lift_constants),
        ("widen stored weights", _widen_stored_weights),
    ]
    simplify: list[Step] = [("fold constants", fold_constants), ("optimize graph", _optimize)] if optimize else []
    lift: Step = ("constants to initializers", lift_constants)

    def apply(steps: list[Step], model: onnx.ModelProto, max_growth: int = MAX_GROWTH_BYTES) -> onnx.ModelProto:
        for name, step in steps:
            model, trouble = _try_step(step, model, sample, reference, max_growth)
            if trouble:
                notes.append(f"skipped {name!r}: {trouble}")
        return model

    model = apply([*steps, *simplify, lift], model)
    name_nodes(model)
    if opset_version(model) >= MIN_OPSET:
        return PreparedModel(model, tuple(notes), model)
    converted = apply([("convert operator set", _raise_opset)], model, MAX_CONVERSION_BYTES)
    converted = apply([lift, *simplify, lift], converted)
    name_nodes(converted)
    return PreparedModel(model, tuple(dict.fromkeys(notes)), converted)


def check_quantizable(model: onnx.ModelProto, where: str) -> None:
    """Refuse a model that is quantized already, or has weights that are not finite.

    Args:
        model: the model to check.
        where: its name in messages.

    Raises:
        AlreadyQuantized: the model has quantized operators.
        WeightsNotFinite: a weight has NaN or infinity, or another constant NaN.
    """
    if is_quantized(model):
        found = sorted({node.op_type for node in all_nodes(model)} & QUANTIZED_OPS) or ["integer weights"]
        raise AlreadyQuantized(
            f"{where}: already quantized (it has {', '.join(found)}), expected a float model",
            hint="quantize the float model that it was made from, or ship it unchanged with scheme fp32",
        )
    weights = {node.input[i] for node in all_nodes(model) for i in weight_inputs(node) if i < len(node.input)}
    for name, tensor in _constants(model):
        if tensor.data_type not in FLOAT_TYPES:
            continue
        values = array_of(tensor)
        # infinity outside of weights can be intended: the -inf of an attention mask, the start of a running maximum
        bad = int((np.isnan(values) if name not in weights or len(tensor.dims) < 2 else ~np.isfinite(values)).sum())
        if bad:
            raise WeightsNotFinite(
                f"{where}: {bad} of {values.size} numbers of {name!r} are not finite",
                hint="export the model from a checkpoint without NaN or infinity",
            )


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield initializers and Constant nodes of every graph, with the names under which they are read."""
    for scope in scopes(model.graph):
        yield from ((tensor.name, tensor) for tensor in scope.graph.initializer)
        for node in scope.graph.node:
            yield from ((", ".join(node.output), a.t) for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which Constant nodes with a tensor are initializers of their graph."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.ir_version = max(changed.ir_version, MIN_IR_VERSION)
    for scope in scopes(changed.graph):
        kept = []
        for node in scope.graph.node:
            value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
            if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or value is None:
                kept.append(node)
                continue
            tensor = scope.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        _replace_items(scope.graph.node, kept)
    fixed = {tensor.name for tensor in changed.graph.initializer}
    _replace_items(changed.graph.input, [value for value in changed.graph.input if value.name not in fixed])
    return changed


def _inline_functions(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Replace the model's own functions by their nodes; return None if there are none."""
    return inliner.inline_local_functions(model) if model.functions else None


def _widen_stored_weights(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Turn weights behind a Cast to float32 into float32; return None if there are none.

    Other constants stay as they are stored: they would not become smaller again.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    is_changed = False
    for scope in scopes(changed.graph):
        kept, stored = [], set()
        output_names = {value.name for value in scope.graph.output}
        weights = {node.input[i] for node in scope.graph.node for i in weight_inputs(node) if i < len(node.input)}
        for node in scope.graph.node:
            behind = scope.find(node.input[0]) if node.op_type == "Cast" and node.input and not node.domain else None
            to = next((a.i for a in node.attribute if a.name == "to"), None)
            is_weight = (
                behind is not None
                and behind[1].data_type in FLOAT_TYPES
                and node.output[0] in weights - output_names
                and len(behind[1].dims) >= 2
            )
            if behind is None or not is_weight or to != onnx.TensorProto.FLOAT:
                kept.append(node)
                continue
            values = array_of(behind[1]).astype(np.float32)
            scope.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
            stored.add(node.input[0])
        if stored:
            is_changed = True
            _replace_items(scope.graph.node, kept)
            still_read = {name for node in all_nodes(changed) for name in node.input} | output_names
            unread = {name for name in stored if name not in still_read}
            _replace_items(scope.graph.initializer, [t for t in scope.graph.initializer if t.name not in unread])
    return changed if is_changed else None


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of every graph a unique name, in place: nodes are kept in float by name."""
    taken = names_in(model)
    seen: set[str] = set()
    for number, node in enumerate(all_nodes(model)):
        if not node.name or node.name in seen:
            node.name = unused_name(f"{node.name or node.op_type}_{number}", taken)
        seen.add(node.name)


def _try_step(
    step: Callable[[onnx.ModelProto], onnx.ModelProto | None],
    model: onnx.ModelProto,
    sample: Sample,
    reference: list[np.ndarray],
    max_growth: int,
) -> tuple[onnx.ModelProto, str | None]:
    try:
        changed = step(model)
        if changed is None:
            return model, None
        growth = estimated_bytes(changed) - estimated_bytes(model)
        if growth > max_growth:
            return model, f"it would make the model {growth:,} bytes larger"
        outputs = run_session(open_session_of(changed), sample)
    except Exception as error:  # noqa: BLE001  # the step is optional, and published models break it in many ways
        return model, one_line_message(error)
    if not _is_same_output(reference, outputs):
        return model, "it changed the outputs"
    return changed, None


def _is_same_output(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    if [a.shape for a in left] != [a.shape for a in right]:
        return False
    for a, b in zip(left, right, strict=True):
        if a.dtype.kind == "f":
            scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a))) or 1.0
            if not np.allclose(a, b, rtol=0.0, atol=MAX_OUTPUT_CHANGE * scale, equal_nan=True):
                return False
        elif not np.array_equal(a, b):
            return False
    return True


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    if opset_version(model) >= MIN_OPSET:
        return None
    trouble: Exception | None = None
    for version in PREFERRED_OPSETS:
        try:
            converted = version_converter.convert_version(model, version)
            onnx.checker.check_model(converted)
        except (RuntimeError, onnx.checker.ValidationError, version_converter.ConvertError) as error:
            trouble = trouble or error
            continue
        return converted
    raise ModelDoesNotRun(
        f"operator set {opset_version(model)} cannot be raised to {MIN_OPSET}: "
        f"{one_line_message(trouble or ValueError())}"
    )


def _optimize(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Apply onnxruntime's basic level; None if the model exceeds one protobuf or is half precision.

    A half-precision model would come back with a Cast behind every weight: the CPU has few half-precision kernels.
    """
    is_half = any(tensor.data_type in HALF_PRECISION_TYPES for tensor in all_tensors(model))
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF or is_half:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],  # it enlarges models; `fold_constants` does what saves bytes
        )
        optimized = onnx.load(str(path))
    before = {node.domain for node in all_nodes(model)}
    after = {node.domain for node in all_nodes(optimized)}
    if not after <= before | {"", "ai.onnx"}:
        raise ModelDoesNotRun(f"it adds operators of {sorted(after - before)}")
    versions = {entry.domain: entry.version for entry in model.opset_import}
    kept = [entry for entry in optimized.opset_import if entry.domain in after | before | {""}]
    for entry in kept:
        entry.version = versions.get(entry.domain, entry.version)
    _replace_items(optimized.opset_import, kept)
    optimized.ir_version = max(model.ir_version, MIN_IR_VERSION)
    return optimized


def _replace_items(field: object, items: list[object]) -> None:
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)  # type: ignore[attr-defined]  # protobuf messages carry no types
        copies.append(copy)
    del field[:]  # type: ignore[attr-defined]  # as above
    field.extend(copies)  # type: ignore[attr-defined]  # as above
