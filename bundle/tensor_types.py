"""The types of tensors: what each is called, and whether models may have it as input or output.

This is the only list. The packager's checks and `packager lint`, the contract in the manifest, the device's runtime and
endpoint, golden vectors and docs/quantization.md use it.

1. A served type can be in requests, responses and samples. Golden vectors have all of them, but no inputs of strings.
2. Any other type of an input or output is refused before a model is quantized or released, with its remedy. Inside a
   model, every type is allowed that the runtime supports.
"""

from dataclasses import dataclass
from typing import Final

FLOAT_REMEDY: Final = "export the model with float32 there, and a Cast to the other type inside the model"
COMPLEX_REMEDY: Final = "export real and imaginary parts as two tensors"
INTEGER_REMEDY: Final = "export the model with int8 or uint8 there, and a Cast inside the model"


@dataclass(frozen=True, slots=True)
class TensorType:
    """One type of tensor elements.

    Attributes:
        name: name in a contract; numpy's name of the dtype, or "string".
        onnx: name in an ONNX file (TensorProto.DataType).
        runtime: name that onnxruntime reports.
        protocol: name in the Open Inference Protocol; "" if it is not served.
        remedy: what to do if a model has it as input or output; "" if it is served.
    """

    name: str
    onnx: str
    runtime: str
    protocol: str = ""
    remedy: str = ""

    @property
    def is_served(self) -> bool:
        """True if inputs and outputs may have the type."""
        return not self.remedy

    @property
    def is_golden_input(self) -> bool:
        """True if golden vectors can have inputs of the type; outputs of all served types can be golden."""
        return self.is_served and self.name != "string"


TENSOR_TYPES: Final = (
    TensorType("bool", "BOOL", "tensor(bool)", "BOOL"),
    TensorType("uint8", "UINT8", "tensor(uint8)", "UINT8"),
    TensorType("int8", "INT8", "tensor(int8)", "INT8"),
    TensorType("uint16", "UINT16", "tensor(uint16)", "UINT16"),
    TensorType("int16", "INT16", "tensor(int16)", "INT16"),
    TensorType("uint32", "UINT32", "tensor(uint32)", "UINT32"),
    TensorType("int32", "INT32", "tensor(int32)", "INT32"),
    TensorType("uint64", "UINT64", "tensor(uint64)", "UINT64"),
    TensorType("int64", "INT64", "tensor(int64)", "INT64"),
    TensorType("float16", "FLOAT16", "tensor(float16)", "FP16"),
    TensorType("float32", "FLOAT", "tensor(float)", "FP32"),
    TensorType("float64", "DOUBLE", "tensor(double)", "FP64"),
    TensorType("string", "STRING", "tensor(string)", "BYTES"),
    TensorType("bfloat16", "BFLOAT16", "tensor(bfloat16)", remedy=FLOAT_REMEDY),
    TensorType("float8_e4m3fn", "FLOAT8E4M3FN", "tensor(float8e4m3fn)", remedy=FLOAT_REMEDY),
    TensorType("float8_e4m3fnuz", "FLOAT8E4M3FNUZ", "tensor(float8e4m3fnuz)", remedy=FLOAT_REMEDY),
    TensorType("float8_e5m2", "FLOAT8E5M2", "tensor(float8e5m2)", remedy=FLOAT_REMEDY),
    TensorType("float8_e5m2fnuz", "FLOAT8E5M2FNUZ", "tensor(float8e5m2fnuz)", remedy=FLOAT_REMEDY),
    TensorType("float8_e8m0fnu", "FLOAT8E8M0", "tensor(float8e8m0)", remedy=FLOAT_REMEDY),
    TensorType("float4_e2m1fn", "FLOAT4E2M1", "tensor(float4e2m1)", remedy=FLOAT_REMEDY),
    TensorType("int4", "INT4", "tensor(int4)", remedy=INTEGER_REMEDY),
    TensorType("uint4", "UINT4", "tensor(uint4)", remedy=INTEGER_REMEDY),
    TensorType("int2", "INT2", "tensor(int2)", remedy=INTEGER_REMEDY),
    TensorType("uint2", "UINT2", "tensor(uint2)", remedy=INTEGER_REMEDY),
    TensorType("complex64", "COMPLEX64", "tensor(complex64)", remedy=COMPLEX_REMEDY),
    TensorType("complex128", "COMPLEX128", "tensor(complex128)", remedy=COMPLEX_REMEDY),
)
SERVED_TYPES: Final = tuple(row for row in TENSOR_TYPES if row.is_served)
BY_ONNX: Final = {row.onnx: row for row in TENSOR_TYPES}
BY_NAME: Final = {row.name: row for row in TENSOR_TYPES}
NAME_BY_RUNTIME: Final = {row.runtime: row.name for row in SERVED_TYPES}
FLOAT_TYPES: Final = tuple(row.name for row in SERVED_TYPES if row.name.startswith("float"))
GOLDEN_INPUTS: Final = tuple(row.name for row in TENSOR_TYPES if row.is_golden_input)

# kinds of values that are not tensors -> what to do
OTHER_KINDS: Final = {
    "sequence": "output one tensor: with ConcatFromSequence, or zipmap=False in exporters of scikit-learn and LightGBM",
    "map": "output keys and values as two tensors; scikit-learn and LightGBM exporters do with zipmap=False",
    "optional": "output the value itself",
    "sparse_tensor": "output a dense tensor",
    "opaque": "output a tensor",
}
