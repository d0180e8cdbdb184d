"""The model process: one model, no network, no files (device_agent.runtime.model_server).

Its imports take 0.75 s of a small device's processor. So they start after the supervisor has set priority and throttle,
and pause after each module.
"""

import os
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Final

from device_agent.process.jail import JailPolicy
from device_agent.process.throttle import Throttle
from device_agent.process.worker import start_worker
from device_agent.runtime.bundle_fds import DEFAULT_RUNTIME

PRELOADED_MODULES: Final = (
    *("json", "numpy", "bundle.manifest"),
    *("device_agent.runtime.model_backends", "device_agent.runtime.inference", "device_agent.runtime.model_server"),
)


def _import_all(throttle: Throttle, policy: JailPolicy) -> JailPolicy:
    for name in PRELOADED_MODULES:
        import_module(name)
        throttle.wait()
    backend = import_module("device_agent.runtime.model_backends").backend_of(policy.runtime or DEFAULT_RUNTIME)
    folders = backend.warm_process(policy.provider, policy.provider_library)
    throttle.wait()
    return replace(policy, read=(*policy.read, *folders))


def main() -> None:
    """Run the model process until the supervisor stops it."""
    statm: list[int] = []

    def prepare(throttle: Throttle, policy: JailPolicy) -> JailPolicy:
        with suppress(OSError):  # without /proc, requests have no limit of memory
            statm.append(os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC))
        return _import_all(throttle, policy)

    parent, _ = start_worker(prepare)
    from device_agent.runtime.model_server import ModelServer

    ModelServer(parent, statm[0] if statm else None).run()


if __name__ == "__main__":
    main()
