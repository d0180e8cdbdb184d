"""The contract of a model, and the runtime that it needs, for the manifest.

1. Inputs and outputs are those that the runtime reports: callers on the device meet the same.
2. The runtime version is the first that has the model's operators (packager.models.oldest_runtime), and not below the
   oldest that an agent supports.
"""

from pathlib import Path
from typing import Final

import onnxruntime

from bundle.contract import MAX_RANK, MAX_TENSORS, Contract, TensorSpec
from bundle.providers import CPU
from bundle.requirements import Runtime
from bundle.tensor_types import NAME_BY_RUNTIME
from packager.errors import InputUnsupported
from packager.models.inputs import ModelInterface, load_outline, unsupported_type
from packager.models.oldest_runtime import oldest_runtime, parse_version
from packager.models.provider_session import ON_CPU, Provider
from packager.models.sessions import open_session
from packager.models.tflite_model import is_tflite, tflite_contract, tflite_runtime

MAX_NAME_CHARACTERS: Final = 64  # name of a dynamic size (bundle.manifest.TensorSpec)


def contract_of(model: Path) -> Contract:
    """Return the inputs and outputs of a model as the runtime reports them.

    Raises:
        ModelDoesNotRun: the model does not load.
        InputUnsupported: an input or output is not a tensor of a known type, has too many axes, or there are too many.
    """
    if is_tflite(model):
        return tflite_contract(model)
    for info in ModelInterface.from_file(model).inputs:
        if not info.is_ranked:
            raise InputUnsupported(
                f"{model}: input {info.name!r} does not declare its number of axes, so no request can be checked",
                hint="export the model with the input's axes; sizes may stay free",
            )
    running = open_session(model)
    inputs, outputs = running.get_inputs(), running.get_outputs()
    if max(len(inputs), len(outputs)) > MAX_TENSORS:
        raise InputUnsupported(
            f"{model}: found {len(inputs)} inputs and {len(outputs)} outputs, at most {MAX_TENSORS} of each are allowed"
        )
    return Contract(
        tuple(_tensor_spec(node, model) for node in inputs), tuple(_tensor_spec(node, model) for node in outputs)
    )


def runtime_of(model: Path, provider: Provider = ON_CPU) -> Runtime:
    """Return the model's runtime: ONNX Runtime from the version on that has the operators, or LiteRT.

    The version is at least the agent's minimum. But the builds of a provider can be older: for a variant on one, the
    installed version counts as the minimum if it is older.

    Args:
        model: a model file.
        provider: execution provider and session options of the variant.

    Raises:
        ModelUnreadable: the file is not an ONNX model.
    """
    if is_tflite(model):
        return tflite_runtime()
    needed, oldest = oldest_runtime(load_outline(model)), Runtime()
    assert oldest.min_version is not None
    installed = onnxruntime.__version__.split("+")[0]
    if provider.name != CPU and parse_version(installed) < parse_version(oldest.min_version):
        oldest = Runtime(min_version=".".join(map(str, parse_version(installed))))
    return oldest if needed.version <= parse_version(oldest.min_version or "0") else Runtime(min_version=str(needed))


def _tensor_spec(node: onnxruntime.NodeArg, model: Path) -> TensorSpec:
    dtype = NAME_BY_RUNTIME.get(node.type)
    if dtype is None:
        raise unsupported_type(f"{model}: {node.name!r}", node.type)
    shape = node.shape or ()
    if len(shape) > MAX_RANK:
        raise InputUnsupported(f"{model}: {node.name!r} has {len(shape)} axes, at most {MAX_RANK} are allowed")
    return TensorSpec(node.name, dtype, tuple(_axis_size(size, node.name, axis) for axis, size in enumerate(shape)))


def _axis_size(size: object, name: str, axis: int) -> int | str:
    if isinstance(size, int) and size >= 0:
        return size
    named = size if isinstance(size, str) and size else f"{name}.{axis}"
    return "".join(c if c.isprintable() else "_" for c in named)[:MAX_NAME_CHARACTERS]
