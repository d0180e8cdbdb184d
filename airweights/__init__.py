"""The public API for applications that run models in their own process.

    from airweights import ModelRuntime, bundle_from_files

    with ModelRuntime() as runtime:
        runtime.swap(bundle_from_files(Path("model.onnx")))
        outputs = runtime.run({"x": x})

Names are loaded when they are first used: `import airweights` loads neither numpy nor onnxruntime.
docs/endpoint.md describes the library and its guarantees.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bundle.errors import AirweightsError
    from device_agent.runtime.bundle_fds import BundleFds
    from device_agent.runtime.model_runtime import Lease, ModelRuntime, NoModelLoaded, SwapReport, bundle_from_files

__all__ = [
    "AirweightsError",
    "BundleFds",
    "Lease",
    "ModelRuntime",
    "NoModelLoaded",
    "SwapReport",
    "bundle_from_files",
]

_MODULE_OF_NAME: Final = {
    "AirweightsError": "bundle.errors",
    "BundleFds": "device_agent.runtime.bundle_fds",
    **dict.fromkeys(
        ("Lease", "ModelRuntime", "NoModelLoaded", "SwapReport", "bundle_from_files"),
        "device_agent.runtime.model_runtime",
    ),
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF_NAME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
