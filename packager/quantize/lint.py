"""Check a model for problems on devices, such as other numbers on other CPUs.

A finding is one line: what was found, where, and what to do. Nothing is repaired. A "warning" changes outputs or does
not load somewhere; a "note" costs speed or size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from packager.errors import InputUnsupported
from packager.models.graphs import (
    FLOAT_TYPES,
    QUANTIZED_OPS,
    STANDARD_DOMAINS,
    all_nodes,
    opset_version,
    scopes,
    weight_uses,
)
from packager.models.inputs import load_outline, make_tensor_info
from packager.models.model_package import is_bundle_path
from packager.models.tensor_data import chunks_of, external_entries, stored_tensors
from packager.models.tflite_model import is_tflite, read_facts
from packager.quantize.fold_constants import RANDOM_OPERATORS

Severity = Literal["warning", "note"]

SATURATING_LEVEL: Final = 64  # signed weight levels beyond it overflow 16-bit sums of CPUs without VNNI
PER_CHANNEL_OPSET: Final = 13  # first operator set with an axis in QuantizeLinear and DequantizeLinear
NEWEST_OPSET: Final = 23  # few runtimes have a higher operator set yet
CONTRIB_DOMAIN: Final = "com.microsoft"
FP16_MAX: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a model; `code` is its stable id."""

    severity: Severity
    code: str
    message: str

    def as_json(self) -> dict[str, str]:
        """Return plain values for `--json`."""
        return {"severity": self.severity, "code": self.code, "message": self.message}


def lint(path: Path) -> list[Finding]:
    """Return all findings, warnings first.

    Raises:
        ModelUnreadable: the file is neither an ONNX nor a TFLite model.
        Unavailable: the file cannot be read.
        RuntimeNotInstalled: the file is a TFLite model, and LiteRT is not installed.
    """
    if is_tflite(path):
        return _check_tflite(path)
    model = load_outline(path)
    found = [
        *_check_interface(model),
        *_check_external_data(model, path),
        *_check_portability(model),
        *_check_integer_kernels(model, path.parent),
        *_check_weights(model, path.parent),
    ]
    return sorted(found, key=lambda finding: finding.severity != "warning")


def _check_tflite(path: Path) -> list[Finding]:
    try:
        facts = read_facts(path)
    except InputUnsupported as error:
        return [Finding("warning", "unsupported-interface", error.message)]
    found = []
    if not facts.has_delegate:
        message = "no layer runs in the XNNPACK delegate, so runs are several times slower; convert the model again"
        found.append(Finding("warning", "no-delegate", message))
    if facts.is_stateful:
        message = "runs depend on the runs before: golden vectors are one sequence, and clients of an endpoint share it"
        found.append(Finding("note", "keeps-state", message))
    return found


def _check_interface(model: onnx.ModelProto) -> list[Finding]:
    """Find inputs and outputs that requests cannot carry."""
    found = []
    fixed = {tensor.name for tensor in model.graph.initializer}
    sides = [("input", value) for value in model.graph.input if value.name not in fixed]
    for role, value in (*sides, *(("output", value) for value in model.graph.output)):
        try:
            info = make_tensor_info(value, role)
        except InputUnsupported as error:
            remedy = f"; {error.hint}" if error.hint else ""
            found.append(Finding("warning", "unsupported-interface", f"{error.message}{remedy}"))
            continue
        if role == "input" and not info.is_ranked:
            message = f"input {info.name!r} does not declare its number of axes; export the model with them"
            found.append(Finding("warning", "unsupported-interface", message))
    for node in all_nodes(model):
        if node.op_type in RANDOM_OPERATORS and node.domain in ("", "ai.onnx"):
            message = (
                f"{node.op_type} gives other outputs in every run; remove it, or set golden = 0 in the release file"
            )
            found.append(Finding("warning", "random-outputs", message))
            break
    return found


def _check_external_data(model: onnx.ModelProto, path: Path) -> list[Finding]:
    """Find external data that a bundle stores under another name or inside the model."""
    names = {external_entries(tensor).get("location", "") for tensor in stored_tensors(model)} - {"", path.name}
    return [
        Finding("note", "external-data-name", f"external data {name!r} is stored under another name in a bundle")
        for name in sorted(names)
        if not is_bundle_path(name)
    ]


def _check_portability(model: onnx.ModelProto) -> list[Finding]:
    found = []
    domains = {node.domain for node in all_nodes(model)} - set(STANDARD_DOMAINS)
    if domains:
        found.append(
            Finding(
                "warning",
                "custom-domain",
                f"operators of {', '.join(sorted(domains))}: no stock runtime has them; replace them",
            )
        )
    if any(node.domain == CONTRIB_DOMAIN for node in all_nodes(model)):
        names = sorted({node.op_type for node in all_nodes(model) if node.domain == CONTRIB_DOMAIN})
        found.append(Finding("note", "contrib-operators", f"{', '.join(names)}: only onnxruntime has them"))
    version = opset_version(model)
    if version > NEWEST_OPSET:
        found.append(
            Finding(
                "warning",
                "new-operator-set",
                f"operator set {version}: older runtimes load at most {NEWEST_OPSET}; export with a lower one",
            )
        )
    per_channel = any(
        node.op_type in ("QuantizeLinear", "DequantizeLinear") and any(a.name == "axis" for a in node.attribute)
        for node in all_nodes(model)
        if node.domain != CONTRIB_DOMAIN
    )
    if per_channel and version < PER_CHANNEL_OPSET:
        found.append(
            Finding(
                "warning",
                "axis-too-early",
                f"per-channel scales in operator set {version}: they need {PER_CHANNEL_OPSET}; convert the model",
            )
        )
    for value in model.graph.input:
        if any(not dim.HasField("dim_value") and not dim.dim_param for dim in value.type.tensor_type.shape.dim):
            found.append(Finding("note", "unnamed-size", f"input {value.name!r} has sizes without name; name them"))
    return found


def _check_integer_kernels(model: onnx.ModelProto, folder: Path) -> list[Finding]:
    """Find integer kernels whose sums depend on the CPU.
    Those are signed weights of full range with unsigned activations.

    Args:
        model: the model, without its external data.
        folder: the folder of its external data.
    """
    found = []
    constants = {tensor.name: tensor for scope in scopes(model.graph) for tensor in scope.graph.initializer}
    wide = []
    for node in all_nodes(model):
        weight_input = {
            "MatMulInteger": 1,
            "ConvInteger": 1,
            "QLinearConv": 3,
            "QLinearMatMul": 3,
            "DequantizeLinear": 0,
        }
        if node.op_type not in weight_input or len(node.input) <= weight_input[node.op_type]:
            continue
        weight = constants.get(node.input[weight_input[node.op_type]])
        if weight is not None and weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) >= 2:
            parts = chunks_of(weight, folder)
            if any(int(np.abs(part.astype(np.int16)).max(initial=0)) > SATURATING_LEVEL for part in parts):
                wide.append(weight.name)
    activations_are_unsigned = any(
        tensor.data_type == onnx.TensorProto.UINT8 and not tensor.dims for tensor in constants.values()
    ) or any(node.op_type == "DynamicQuantizeLinear" for node in all_nodes(model))
    if wide and activations_are_unsigned:
        found.append(
            Finding(
                "warning",
                "saturates-without-vnni",
                f"{len(wide)} signed 8-bit weights of full range with unsigned activations (first: {wide[0]}): x86 "
                "CPUs without VNNI compute other numbers; use unsigned weights or --signed-weights (7 bits)",
            )
        )
    makers = {name: maker for maker in all_nodes(model) if maker.op_type == "DequantizeLinear" for name in maker.output}
    fused = [node.name for node in all_nodes(model) if _is_fused(node, makers, constants)]
    if fused:
        found.append(
            Finding(
                "warning",
                "fused-with-its-weights",
                f"{len(fused)} MatMul or Gemm read int8 weights by DequantizeLinear on axis 1 (first: {fused[0]!r}): "
                "newer versions of onnxruntime then quantize activations in the kernel; write the axis as -1",
            )
        )
    for node in all_nodes(model):
        if node.op_type == "MatMulNBits" and any(a.name == "accuracy_level" and a.i > 1 for a in node.attribute):
            found.append(
                Finding(
                    "warning",
                    "nbits-accuracy",
                    f"{node.name!r} quantizes activations in the kernel: set accuracy_level to 0",
                )
            )
            break
    return found


def _is_fused(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> bool:
    """Return whether newer runtimes (1.32) fuse this node with its int8 weight.

    The weight is read by DequantizeLinear on axis 1. They make MatMulNBits at accuracy level 4 of it, which quantizes
    activations inside the kernel, differently on each CPU (an error of 0.85 where the weights alone cost 0.01).

    Args:
        node: any node.
        makers: the DequantizeLinear nodes, by output.
        constants: initializers by name.
    """
    if node.op_type not in ("MatMul", "Gemm") or any(a.name == "transB" and a.i for a in node.attribute):
        return False
    weight = makers.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or not weight.input or node.input[0] in makers or weight.input[0] not in constants:
        return False
    return any(a.name == "axis" and a.i == 1 for a in weight.attribute) and len(constants[weight.input[0]].dims) == 2


def _check_weights(model: onnx.ModelProto, folder: Path) -> list[Finding]:
    found = []
    for scope in scopes(model.graph):
        for tensor in scope.graph.initializer:
            if tensor.data_type not in FLOAT_TYPES or not tensor.dims:
                continue
            has_nan, largest = _scan_floats(tensor, folder)
            if has_nan:
                found.append(Finding("warning", "nan-weights", f"{tensor.name!r} has NaN; export the model again"))
            elif len(tensor.dims) >= 2 and largest > FP16_MAX:
                found.append(
                    Finding("note", "beyond-half", f"{tensor.name!r} exceeds the range of fp16: it stays float32 there")
                )
    is_quantized = any(node.op_type in QUANTIZED_OPS for node in all_nodes(model))
    left = [use for use in weight_uses(model) if use.elements >= 65_536]
    if is_quantized and left:
        total = sum(use.elements for use in left) * 4
        found.append(Finding("note", "float-left", f"{len(left)} large weights are still float, {total:,} bytes"))
    nested = [use for use in weight_uses(model) if use.owner.depth]
    if nested:
        found.append(
            Finding("note", "nested-weights", f"{len(nested)} weights are in nested graphs: other quantizers skip them")
        )
    return found


def _scan_floats(tensor: onnx.TensorProto, folder: Path) -> tuple[bool, float]:
    """Return whether a float tensor has NaN, and its largest finite magnitude.

    Args:
        tensor: the tensor.
        folder: the folder of its external data.
    """
    has_nan, largest = False, 0.0
    for part in chunks_of(tensor, folder):
        values = part.astype(np.float32, copy=False)
        has_nan |= bool(np.isnan(values).any())
        largest = max(largest, float(np.abs(values).max(initial=0, where=np.isfinite(values))))
    return has_nan, largest
