"""Check a model for problems on devices, such as other numbers on other CPUs.

A finding is one line: what was found, where, and what to do. Nothing is repaired. A "warning" changes outputs or does
not load somewhere; a "note" costs speed or size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx

from packager.models.graphs import (
    FLOAT_TYPES,
    QUANTIZED_OPS,
    STANDARD_DOMAINS,
    all_nodes,
    array_of,
    opset_version,
    scopes,
    weight_uses,
)
from packager.models.inputs import load_proto

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
        ModelUnreadable: the file is not an ONNX model.
        Unavailable: the file cannot be read.
    """
    model = load_proto(path)
    found = [*_check_portability(model), *_check_integer_kernels(model), *_check_weights(model)]
    return sorted(found, key=lambda finding: finding.severity != "warning")


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


def _check_integer_kernels(model: onnx.ModelProto) -> list[Finding]:
    """Find integer kernels whose sums depend on the CPU.
    Those are signed weights of full range with unsigned activations.
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
            levels = array_of(weight).astype(np.int16)
            if int(np.abs(levels).max(initial=0)) > SATURATING_LEVEL:
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
    fused = [node.name for node in all_nodes(model) if _is_fused(node, model, constants)]
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


def _is_fused(node: onnx.NodeProto, model: onnx.ModelProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Return whether newer runtimes fuse this node with its int8 weight.
    The form is rule 4 of packager.quantize.weight_only.
    """
    if node.op_type not in ("MatMul", "Gemm") or any(a.name == "transB" and a.i for a in node.attribute):
        return False
    makers = {name: maker for maker in all_nodes(model) if maker.op_type == "DequantizeLinear" for name in maker.output}
    weight = makers.get(node.input[1])
    if weight is None or node.input[0] in makers or weight.input[0] not in constants:
        return False
    return any(a.name == "axis" and a.i == 1 for a in weight.attribute) and len(constants[weight.input[0]].dims) == 2


def _check_weights(model: onnx.ModelProto) -> list[Finding]:
    found = []
    for scope in scopes(model.graph):
        for tensor in scope.graph.initializer:
            if tensor.data_type not in FLOAT_TYPES or not tensor.dims:
                continue
            values = array_of(tensor).astype(np.float32, copy=False)
            if np.isnan(values).any():
                found.append(Finding("warning", "nan-weights", f"{tensor.name!r} has NaN; export the model again"))
            elif len(tensor.dims) >= 2 and float(np.abs(values[np.isfinite(values)]).max(initial=0)) > FP16_MAX:
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
