"""The model process: one model, no network, no files (device_agent.runtime.model_server).

Its imports take 0.75 s of a small device's processor. So they start after the supervisor has set priority and throttle,
and pause after each module.
"""

import os
from contextlib import suppress
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
    statm: list[int] = []

    def prepare(throttle: Throttle) -> None:
        with suppress(OSError):  # without /proc, requests have no limit of memory
            statm.append(os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC))
        _import_all(throttle)

    parent, _ = start_worker(prepare)
    from device_agent.runtime.model_server import ModelServer

    ModelServer(parent, statm[0] if statm else None).run()


if __name__ == "__main__":
    main()
