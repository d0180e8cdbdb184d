"""Datatype names, model metadata and request sizes of the Open Inference Protocol v2.

This module does not import numpy, because the supervisor uses it.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from bundle.contract import Contract, TensorSpec
from bundle.tensor_types import BY_NAME

MAX_HEAD_BYTES: Final = 64 * 1024  # of a request body: everything beside the tensors' data
MAX_VALUE_BYTES: Final = 64  # of one number in JSON: 24 characters, and white space of a nested, indented list
MAX_NAME_BYTES: Final = 6  # of one character of a tensor's name, as a JSON escape


def served_names(family: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return the names under which the endpoint serves the models of a bundle, in order.

    The only model has the name of the family; each of several is FAMILY.MODEL.

    Args:
        family: name of the family.
        models: names of the models in the bundle.
    """
    return (family,) if len(models) == 1 else tuple(f"{family}.{name}" for name in models)


# runtime of a manifest -> platform in the metadata of a model
PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx", "litert": "litert_tflite"}


def oip_datatype_name(spec: TensorSpec) -> str:
    """Return the protocol's name of a tensor's dtype; the dtype itself if requests cannot carry it."""
    row = BY_NAME.get(spec.dtype)
    return row.protocol if row is not None and row.is_served else spec.dtype


def model_metadata(contract: Contract | None, variant: str) -> dict[str, Any]:
    """Return `inputs` and `outputs` of the model metadata, with -1 for a free size, and the variant.

    Args:
        contract: inputs and outputs of the model; None if unknown.
        variant: name of the variant of the release.
    """
    return {
        "inputs": [_tensor_metadata(spec) for spec in contract.inputs] if contract else [],
        "outputs": [_tensor_metadata(spec) for spec in contract.outputs] if contract else [],
        "parameters": {"variant": variant},
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": oip_datatype_name(spec), "shape": shape}


def max_request_bytes(contract: Contract | None, configured: int) -> int:
    """Return the size that no sensible request body for a model exceeds, in bytes.

    It follows from the contract if all inputs have fixed shapes and no strings: their size as indented JSON.

    Args:
        contract: the model's contract; None if unknown.
        configured: the limit for other models, and the upper limit for all.
    """
    if contract is None:
        return configured
    total = MAX_HEAD_BYTES + MAX_NAME_BYTES * sum(len(spec.name) for spec in (*contract.inputs, *contract.outputs))
    for spec in contract.inputs:
        sizes = [size for size in spec.shape if isinstance(size, int)]
        if spec.dtype == "string" or len(sizes) < len(spec.shape):
            return configured
        total += MAX_VALUE_BYTES * math.prod(sizes)
    return min(total, configured)
