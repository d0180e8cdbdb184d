"""The model process: one model, no network, no files (device_agent.runtime.model_server).

Its imports take 0.75 s of a small device's processor. So they start after the supervisor has set priority and throttle,
and pause after each module.
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
    """Run the model process until the supervisor stops it."""
    parent, _ = start_worker(_import_all)
    from device_agent.runtime.model_server import ModelServer

    ModelServer(parent).run()


if __name__ == "__main__":
    main()
