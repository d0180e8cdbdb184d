"""One loaded model after the other: sessions, requests, and the processes that hold them.

`ModelRuntime` and `bundle_of` are here for apps; they load onnxruntime when they are first named, so that the
supervisor, which imports other modules of this package, stays without it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_agent.runtime.model_runtime import ModelRuntime, bundle_from_files

__all__ = ["ModelRuntime", "bundle_from_files"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from device_agent.runtime import model_runtime

        return getattr(model_runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
