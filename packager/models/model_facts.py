"""What the manifest says about a model that the runtime itself can tell: its contract, and what a device must have.

Rules:
1. Inputs and outputs are those that the runtime reports, since they are what a caller of the device will meet.
2. Memory is measured (packager.models.peak_memory), with the runtime that is here.
3. A model asks for the runtime that its operators came with (packager.models.oldest_runtime), and never for one that
   is older than the first that an agent takes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import onnxruntime

from bundle.contract import MAX_RANK, MAX_TENSORS, Contract, TensorSpec
from bundle.frames import sealed_size
from bundle.manifest import Requirements
from packager.errors import InputUnsupported
from packager.models.inputs import load_proto
from packager.models.oldest_runtime import oldest_runtime, parse_version
from packager.models.peak_memory import measure_peak_memory
from packager.models.samples import Samples
from packager.models.sessions import open_session

MAX_NAME_CHARACTERS: Final = 64  # of a dynamic size (bundle.manifest.TensorSpec)

# onnxruntime's names of element types; the others (sequences, maps, 4-bit and 8-bit floats) have no place in a contract
DTYPES: Final = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "string",
}


def contract_of(model: Path) -> Contract:
    """What goes in and what comes out. Raises ModelDoesNotRun, InputUnsupported."""
    running = open_session(model)
    inputs, outputs = running.get_inputs(), running.get_outputs()
    if max(len(inputs), len(outputs)) > MAX_TENSORS:
        raise InputUnsupported(
            f"{model}: found {len(inputs)} inputs and {len(outputs)} outputs, at most {MAX_TENSORS} of each are allowed"
        )
    return Contract(
        tuple(_tensor_spec(node, model) for node in inputs), tuple(_tensor_spec(node, model) for node in outputs)
    )


def requirements_of(model: Path, samples: Samples, plain_bytes: int) -> Requirements:
    """What a device must have.

    Args:
        model: the variant's model, with its external data beside it.
        samples: inputs to run it on.
        plain_bytes: of the whole bundle.

    Raises:
        ModelUnreadable, ModelDoesNotRun, ModelCrashes.
    """
    asked = Requirements()
    return replace(
        asked,
        onnxruntime_min=onnxruntime_min(model, asked.onnxruntime_min),
        memory_bytes=measure_peak_memory(model, samples),
        storage_bytes=sealed_size(plain_bytes),
    )


def onnxruntime_min(model: Path, oldest: str) -> str:
    """Rule 3: the newer one of `oldest` and what the operators ask for."""
    asked = oldest_runtime(load_proto(model, external_data=False))
    return oldest if asked.version <= parse_version(oldest) else str(asked)


def _tensor_spec(node: onnxruntime.NodeArg, model: Path) -> TensorSpec:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        raise InputUnsupported(f"{model}: {node.name!r} is {node.type}, expected a tensor of a type that numpy has")
    shape = node.shape or ()
    if len(shape) > MAX_RANK:
        raise InputUnsupported(f"{model}: {node.name!r} has {len(shape)} axes, at most {MAX_RANK} are allowed")
    return TensorSpec(node.name, dtype, tuple(_axis_size(size, node.name, axis) for axis, size in enumerate(shape)))


def _axis_size(size: object, name: str, axis: int) -> int | str:
    if isinstance(size, int) and size >= 0:
        return size
    named = size if isinstance(size, str) and size else f"{name}.{axis}"
    return "".join(c if c.isprintable() else "_" for c in named)[:MAX_NAME_CHARACTERS]
