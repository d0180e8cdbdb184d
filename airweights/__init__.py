"""The public API for applications that run models in their own process.

    from airweights import ModelRuntime, bundle_from_files

    bundle = bundle_from_files(Path("model.onnx"))
    with ModelRuntime() as runtime:
        runtime.swap(bundle)
        bundle.close()
        outputs = runtime.run({"x": x})  # x: a numpy array with the dtype and shape that the model declares

Names:
    ModelRuntime       the current model and the previous one; thread-safe
    Lease              keeps one generation loaded, from `ModelRuntime.lease`
    SwapReport         durations of a swap
    BundleFds          the plain files of a model, in memory
    bundle_from_files  reads a BundleFds from files
    NoModelLoaded      raised before the first swap
    AppClient          a connection to a running agent: borrow files of a release, watch swaps (docs/apps.md)
    AgentRuntime       a ModelRuntime that follows the swaps and rollbacks of the agent
    BorrowedBundle     borrowed files of one release
    open_bundle        borrows the files of a family's serving release
    AirweightsError    base class of all errors; `reason` is stable, the message is for people

A name is loaded when it is first used: `import airweights` loads neither numpy nor onnxruntime.
docs/endpoint.md describes the library and its guarantees.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bundle.errors import AirweightsError
    from device_agent.apps.agent_runtime import AgentRuntime
    from device_agent.apps.client import AppClient, BorrowedBundle, open_bundle
    from device_agent.runtime.bundle_fds import BundleFds
    from device_agent.runtime.model_runtime import Lease, ModelRuntime, NoModelLoaded, SwapReport, bundle_from_files

__all__ = [
    "AgentRuntime",
    "AirweightsError",
    "AppClient",
    "BorrowedBundle",
    "BundleFds",
    "Lease",
    "ModelRuntime",
    "NoModelLoaded",
    "SwapReport",
    "bundle_from_files",
    "open_bundle",
]

_MODULE_OF_NAME: Final = {
    "AgentRuntime": "device_agent.apps.agent_runtime",
    "AirweightsError": "bundle.errors",
    "BundleFds": "device_agent.runtime.bundle_fds",
    **dict.fromkeys(("AppClient", "BorrowedBundle", "open_bundle"), "device_agent.apps.client"),
    **dict.fromkeys(
        ("Lease", "ModelRuntime", "NoModelLoaded", "SwapReport", "bundle_from_files"),
        "device_agent.runtime.model_runtime",
    ),
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used.

    Raises:
        AttributeError: this package has no such name.
    """
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF_NAME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
