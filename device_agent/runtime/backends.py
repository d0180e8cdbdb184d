"""What runs one loaded model for an app: a session in its process, or a jailed child, started again at its death.

Rules: 3 of device_agent.runtime.model_runtime.
"""

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from bundle.contract import Contract
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.model_handle import GenerationSpec, ModelProcess
from device_agent.runtime.session import LoadedModel
from device_agent.runtime.tensor_channel import TensorClient
from device_agent.runtime.tensors import Array
from device_agent.runtime.wire import WireError


class Backend(Protocol):
    """One loaded model."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]: ...

    def close(self) -> None: ...


class InProcessBackend:
    """A session here."""

    def __init__(self, model: LoadedModel) -> None:
        self._model: LoadedModel | None = model

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        assert self._model is not None
        return self._model.run(inputs, outputs)

    def close(self) -> None:
        self._model = None


class WorkerBackend:
    """A jailed child."""

    def __init__(self, bundle: BundleFds, contract: Contract | None, threads: int, *, in_background: bool) -> None:
        self._spec = GenerationSpec("app", 1, "0.0", "app", contract, threads=threads)
        self._bundle = _duplicate_fds(bundle)
        self._restart_lock = threading.Lock()
        self._start(in_background=in_background)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        client = self._client
        try:
            return client.run(inputs, outputs)
        except (WireError, OSError):
            with self._restart_lock:
                if self._client is client:
                    self._process.kill()
                    client.close()
                    self._start(in_background=False)
            return self._client.run(inputs, outputs)

    def close(self) -> None:
        self._client.close()
        self._process.stop()
        self._bundle.close()

    def _start(self, *, in_background: bool) -> None:
        self._process = ModelProcess.start(self._bundle, self._spec, in_background=in_background)
        self._client = TensorClient(self._process.channel)


def _duplicate_fds(bundle: BundleFds) -> BundleFds:
    return dataclasses.replace(bundle, files={path: os.dup(fd) for path, fd in bundle.files.items()})
