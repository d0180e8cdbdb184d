"""The Open Inference Protocol's words for a model: datatypes and metadata. No numpy: the supervisor says them too."""

from typing import Any, Protocol

from bundle.contract import Contract, TensorSpec


class DescribedModel(Protocol):
    """What metadata is made of."""

    @property
    def contract(self) -> Contract | None: ...

    @property
    def variant(self) -> str: ...


def oip_datatype_name(spec: TensorSpec) -> str:
    """The protocol's name of a tensor's dtype; bfloat16 is BF16, which requests cannot carry here."""
    if spec.dtype in ("string", "bool"):
        return {"string": "BYTES", "bool": "BOOL"}[spec.dtype]
    if spec.dtype == "bfloat16":
        return "BF16"
    return spec.dtype.upper().replace("FLOAT", "FP")


def model_metadata(described: DescribedModel) -> dict[str, Any]:
    """`inputs` and `outputs` of the model metadata, a size that varies as -1; the variant as a parameter."""
    contract = described.contract
    return {
        "inputs": [_tensor_metadata(spec) for spec in contract.inputs] if contract else [],
        "outputs": [_tensor_metadata(spec) for spec in contract.outputs] if contract else [],
        "parameters": {"variant": described.variant},
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": oip_datatype_name(spec), "shape": shape}
