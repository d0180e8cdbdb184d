"""Runners of ModelRuntime: one loaded model in a session of the app's process, or in a worker.

A worker that ends is started again from the same memfds, and the call is sent once more.
"""

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from bundle.contract import Contract
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.loaded_model import LoadedModel
from device_agent.runtime.model_handle import GenerationSpec, ModelProcess
from device_agent.runtime.tensor_channel import TensorClient
from device_agent.runtime.tensors import Array
from device_agent.runtime.wire import WireError


class Runner(Protocol):
    """Runs one loaded model, for one generation of device_agent.runtime.model_runtime."""

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker; None if the model runs in this process."""
        ...

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        """Run one inference. Thread-safe.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs to compute; None for all.

        Raises:
            RequestInvalid: the inputs do not fit the model.
            InferenceFailed: the model failed.
        """
        ...

    def reset(self) -> None:
        """Bring a model whose runs change its state into its initial state."""

    def close(self) -> None:
        """Free the model. No `run` may be in progress."""
        ...


class InProcessRunner:
    """Runs a model in a session of this process."""

    worker_pid = None

    def __init__(self, model: LoadedModel) -> None:
        self._model: LoadedModel | None = model

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        """Run one inference; see `Runner.run`.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs to compute; None for all.
        """
        assert self._model is not None
        return self._model.run(inputs, outputs)

    def reset(self) -> None:
        """Bring a model whose runs change its state into its initial state."""
        assert self._model is not None
        self._model.reset()

    def close(self) -> None:
        """Free the session, once no other thread uses it."""
        self._model = None


class WorkerRunner:
    """Runs a model in a jailed worker, which is started again if it ends.

    Args:
        bundle: duplicated here; the caller still owns its descriptors.
        contract: checked when the model loads; None to accept the model's own.
        threads: intra-op threads; 0 for one per processor, at most 4.
        in_background: load the model in steps, with pauses between them.

    Raises:
        Unfit: the model does not load, breaks its contract, or crashes.
        Refused: the golden vectors are malformed.
        Unavailable: no worker can be started.
    """

    def __init__(self, bundle: BundleFds, contract: Contract | None, threads: int, *, in_background: bool) -> None:
        self._spec = GenerationSpec("app", 1, "0.0", "app", contract, threads=threads, request_memory_bytes=0)
        self._bundle = _duplicate_fds(bundle)
        self._restart_lock = threading.Lock()
        self._start(in_background=in_background)

    @property
    def worker_pid(self) -> int:
        """Process id of the worker; it changes when the worker is started again."""
        return self._process.pid

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> dict[str, Array]:
        """Run one inference; restart the worker and run once more if it ends meanwhile. See `Runner.run`.

        Args:
            inputs: an array for each of the model's inputs; strings cannot be sent to a worker.
            outputs: names of the outputs to compute; None for all.

        Raises:
            WireError: the worker ended twice.
        """
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

    def reset(self) -> None:
        """Bring a model whose runs change its state into its initial state."""
        self._process.reset()

    def close(self) -> None:
        """End the worker and close the duplicated descriptors; results in shared memory stay valid."""
        self._client.close()
        self._process.stop()
        self._bundle.close()

    def _start(self, *, in_background: bool) -> None:
        self._process = ModelProcess.start(self._bundle, self._spec, in_background=in_background)
        self._client = TensorClient(self._process.channel)


def _duplicate_fds(bundle: BundleFds) -> BundleFds:
    return dataclasses.replace(bundle, files={path: os.dup(fd) for path, fd in bundle.files.items()})
