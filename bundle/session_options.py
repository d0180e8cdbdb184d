"""The session options of ONNX Runtime that a variant may set (docs/providers.md).

Rules:
1. SESSION_OPTIONS is the complete list. None of them names a file, a library or a device node.
2. An option of a provider has the provider's name in front, and is for variants of this provider only.
3. An option has one of a few values, so that nothing else gets into the runtime.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from bundle.providers import THREAD_OPTIONS

FLAG: Final = ("0", "1")
GRAPH_OPTIMIZATION: Final = "graph_optimization"
# value of that option -> name in onnxruntime.GraphOptimizationLevel
OPTIMIZATION_LEVELS: Final = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class SessionOption(NamedTuple):
    """An option that a variant may set.

    Attributes:
        provider: the provider that has it, or "" for ONNX Runtime itself.
        target: its name in ONNX Runtime.
        values: the allowed values.
    """

    provider: str
    target: str
    values: tuple[str, ...]


SESSION_OPTIONS: Final = {
    GRAPH_OPTIMIZATION: SessionOption("", "", tuple(OPTIMIZATION_LEVELS)),
    "disable_quant_qdq": SessionOption("", "session.disable_quant_qdq", FLAG),
    "disable_prepacking": SessionOption("", "session.disable_prepacking", FLAG),
    "denormal_as_zero": SessionOption("", "session.set_denormal_as_zero", FLAG),
    "gelu_approximation": SessionOption("", "optimization.enable_gelu_approximation", FLAG),
    "fastmath_bfloat16": SessionOption("", "mlas.enable_gemm_fastmath_arm64_bfloat16", FLAG),
    "openvino.device_type": SessionOption("OpenVINO", "device_type", ("CPU", "GPU", "NPU")),
    "openvino.precision": SessionOption("OpenVINO", "precision", ("FP32", "FP16", "ACCURACY")),
    "cuda.use_tf32": SessionOption("CUDA", "use_tf32", FLAG),
    "coreml.compute_units": SessionOption(
        "CoreML", "MLComputeUnits", ("ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine")
    ),
    "qnn.performance_mode": SessionOption("QNN", "htp_performance_mode", ("default", "balanced", "burst")),
}


def unknown_option(provider: str, options: Iterable[tuple[str, str]]) -> str:
    """Return what is wrong with the first session option that is not allowed, as a phrase, or "".

    Args:
        provider: the provider of the variant.
        options: names and values.
    """
    for name, value in options:
        found = SESSION_OPTIONS.get(name)
        if found is None:
            return f"the session option {name!r}, which is none of {', '.join(SESSION_OPTIONS)}"
        if found.provider not in ("", provider):
            return f"the session option {name!r}, which is for the execution provider {found.provider}, not {provider}"
        if value not in found.values:
            return f"the session option {name!r} with {value!r}, which is none of {', '.join(found.values)}"
    return ""


def provider_options(provider: str, options: Iterable[tuple[str, str]], threads: int) -> dict[str, str]:
    """Return the options to pass to a provider.

    Args:
        provider: the provider of the variant.
        options: allowed names and values.
        threads: threads of one run.
    """
    own = {SESSION_OPTIONS[name].target: value for name, value in options if SESSION_OPTIONS[name].provider == provider}
    return {**({THREAD_OPTIONS[provider]: str(threads)} if provider in THREAD_OPTIONS else {}), **own}


def set_session_options(session_options: Any, levels: Any, options: Mapping[str, str]) -> None:
    """Set the options that are not a provider's.

    Args:
        session_options: an `onnxruntime.SessionOptions`.
        levels: `onnxruntime.GraphOptimizationLevel`.
        options: allowed names and values.
    """
    for name, value in options.items():
        found = SESSION_OPTIONS[name]
        if name == GRAPH_OPTIMIZATION:
            session_options.graph_optimization_level = getattr(levels, OPTIMIZATION_LEVELS[value])
        elif not found.provider:
            session_options.add_session_config_entry(found.target, value)
