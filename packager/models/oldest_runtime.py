"""Find the oldest onnxruntime that has all operators of a model.

1. An operator set and an IR version came with one release of onnxruntime and stay in all later ones (onnxruntime's
   documentation, "Compatibility": ONNX opset support).
2. Operators of onnxruntime's own domain came one by one; those that the quantizer writes are listed.
3. A version newer than the tables requires the installed runtime.
"""

from dataclasses import dataclass
from typing import Final

import onnx
import onnxruntime

from packager.models.graphs import all_nodes, opset_version, scopes

Version = tuple[int, int]

OPERATOR_SETS: Final[dict[int, Version]] = {
    13: (1, 7), 14: (1, 8), 15: (1, 10), 16: (1, 11), 17: (1, 12), 18: (1, 14), 19: (1, 15), 20: (1, 17),
    21: (1, 18), 22: (1, 21), 23: (1, 22),
}  # fmt: skip
IR_VERSIONS: Final[dict[int, Version]] = {7: (1, 7), 8: (1, 10), 9: (1, 15), 10: (1, 18), 11: (1, 22)}
CONTRIB_DOMAIN: Final = "com.microsoft"
CONTRIB_OPERATORS: Final[dict[str, Version]] = {"MatMulNBits": (1, 17)}
# first with 16-bit levels in onnxruntime's own QuantizeLinear and DequantizeLinear
SIXTEEN_BIT_VERSION: Final[Version] = (1, 16)
SIXTEEN_BIT_TYPES: Final = (onnx.TensorProto.UINT16, onnx.TensorProto.INT16)


@dataclass(frozen=True, slots=True)
class OldestRuntime:
    """Major and minor version of onnxruntime, and the part of the model that requires it."""

    version: Version
    explanation: str

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def oldest_runtime(model: onnx.ModelProto) -> OldestRuntime:
    """Return the first version of onnxruntime that loads the model."""
    installed = _installed_version()
    number, ir = opset_version(model), int(model.ir_version)
    required = [
        OldestRuntime(_first_version(OPERATOR_SETS, number, installed), f"operator set {number}"),
        OldestRuntime(_first_version(IR_VERSIONS, ir, installed), f"IR version {ir}"),
    ]
    has_wide = any(t.data_type in SIXTEEN_BIT_TYPES for scope in scopes(model.graph) for t in scope.graph.initializer)
    for node in all_nodes(model):
        if node.domain != CONTRIB_DOMAIN:
            continue
        if node.op_type in CONTRIB_OPERATORS:
            required.append(OldestRuntime(CONTRIB_OPERATORS[node.op_type], node.op_type))
        elif has_wide and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            required.append(OldestRuntime(SIXTEEN_BIT_VERSION, f"16-bit {node.op_type}"))
    return max(required, key=lambda oldest: oldest.version)


def parse_version(version: str) -> Version:
    """Return major and minor number of "1.31" or "1.31.2"."""
    parts = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    return parts[0] if parts else 0, parts[1] if len(parts) > 1 else 0


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime here, whatever distribution it is from."""
    return str(onnxruntime.__version__)


def _first_version(table: dict[int, Version], number: int, installed: Version) -> Version:
    if number > max(table):
        return installed
    return table.get(number, min(table.values()))


def _installed_version() -> Version:
    return parse_version(onnxruntime_version())
