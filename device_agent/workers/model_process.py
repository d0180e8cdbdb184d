"""The model process: one model, one loop, no network, no files (device_agent.runtime.model_server).

Its imports are three quarters of a second of a small device's processor, so they come after the supervisor has said at
which priority and pace they are to run, one after the other with rests between.
"""

from importlib import import_module
from typing import Final

from device_agent.process.throttle import Throttle
from device_agent.process.worker import start_worker

PRELOADED_MODULES: Final = (
    *("json", "numpy", "onnxruntime", "bundle.manifest"),
    *("device_agent.runtime.session", "device_agent.runtime.inference", "device_agent.runtime.model_server"),
)


def _import_all(throttle: Throttle) -> None:
    for name in PRELOADED_MODULES:
        import_module(name)
        throttle.wait()


def main() -> None:
    """The process."""
    parent, _ = start_worker(_import_all)
    from device_agent.runtime.model_server import ModelServer

    ModelServer(parent).run()


if __name__ == "__main__":
    main()
