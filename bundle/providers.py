"""Names of the execution providers of ONNX Runtime (docs/providers.md).

Rules:
1. A file names a provider without the ending "ExecutionProvider" of ONNX Runtime's own name.
2. A variant is for one provider. ONNX Runtime runs the nodes that the provider does not take on the CPU.
"""

from typing import Final

CPU: Final = "CPU"
SUFFIX: Final = "ExecutionProvider"
KNOWN_PROVIDERS: Final = (CPU, "OpenVINO", "XNNPACK", "CUDA", "CoreML", "QNN")
RUNTIME_NAMES: Final = {"XNNPACK": "XnnpackExecutionProvider"}  # where only the ending would not do
# the option of a provider that has threads of its own
THREAD_OPTIONS: Final = {"OpenVINO": "num_of_threads", "XNNPACK": "intra_op_num_threads"}


def runtime_name(provider: str) -> str:
    """Return ONNX Runtime's name of a provider, for example "OpenVINOExecutionProvider"."""
    return RUNTIME_NAMES.get(provider, f"{provider}{SUFFIX}")


def short_name(name: str) -> str:
    """Return the name in files of a provider that ONNX Runtime names."""
    known = {value: key for key, value in RUNTIME_NAMES.items()}
    return known.get(name, name.removesuffix(SUFFIX))
