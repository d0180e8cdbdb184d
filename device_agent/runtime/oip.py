"""Datatype names and model metadata of the Open Inference Protocol v2.

This module does not import numpy, because the supervisor uses it.
"""

from typing import Any, Protocol

from bundle.contract import Contract, TensorSpec


class DescribedModel(Protocol):
    """A model that has metadata; GenerationSpec implements it."""

    @property
    def contract(self) -> Contract | None:
        """Inputs and outputs of the model; None if unknown."""
        ...

    @property
    def variant(self) -> str:
        """Name of the variant of the release."""
        ...


def oip_datatype_name(spec: TensorSpec) -> str:
    """Return the protocol's name of a tensor's dtype; BF16 for bfloat16, which requests cannot carry."""
    if spec.dtype in ("string", "bool"):
        return {"string": "BYTES", "bool": "BOOL"}[spec.dtype]
    if spec.dtype == "bfloat16":
        return "BF16"
    return spec.dtype.upper().replace("FLOAT", "FP")


def model_metadata(described: DescribedModel) -> dict[str, Any]:
    """Return `inputs` and `outputs` of the model metadata, with -1 for a free size, and the variant."""
    contract = described.contract
    return {
        "inputs": [_tensor_metadata(spec) for spec in contract.inputs] if contract else [],
        "outputs": [_tensor_metadata(spec) for spec in contract.outputs] if contract else [],
        "parameters": {"variant": described.variant},
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": oip_datatype_name(spec), "shape": shape}
