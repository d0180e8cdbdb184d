"""A model in LiteRT (TensorFlow Lite): load it from memory and run it.

Rules:
1. The model is opened as /proc/self/fd/N of a sealed memfd, as in onnxruntime.
2. Float and integer layers run in the XNNPACK delegate. It asks libcpuinfo about the processor, which reads /proc and
   /sys: `warm_process` does that before the jail closes. Without it, the delegate is left out silently, and runs take
   ten times as long and round differently.
3. An interpreter runs one inference at a time. A run with other sizes resizes the inputs first. A model with free sizes
   may not accept the ones in its file, which are often 1: it loads all the same, and a run with such sizes fails.
4. Streaming models keep variables from run to run. `reset` opens a new interpreter, because the runtime cannot reset
   all kinds of variables.
5. Strings, complex numbers and resources are refused as inputs and outputs.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from bundle.contract import TensorSpec
from bundle.providers import CPU
from bundle.tensor_types import SERVED_TYPES
from bundle.tflite_interface import DELEGATE, STATEFUL_OPERATORS, allocate_tensors, tensor_specs
from device_agent.errors import ContractMismatch, InferenceFailed, ModelDoesNotLoad, RequestInvalid
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.loaded_model import MAX_THREADS, LoadedModel, one_line
from device_agent.runtime.tensors import Array
from device_agent.runtime.warm_model import WARM_MODEL

SERVED_NAMES: Final = frozenset(row.name for row in SERVED_TYPES if row.name != "string")
LITERT_ERRORS: Final = (RuntimeError, ValueError, TypeError, MemoryError, OverflowError)


class LiteRtModel(LoadedModel):
    """One interpreter. `run` and `infer` are thread-safe.

    Args:
        fd: descriptor of the model's file, which belongs to this object from now on.
        name: path of the model, for messages.
        threads: threads of one run.

    Raises:
        ModelDoesNotLoad: LiteRT cannot load the model.
        ContractMismatch: an input or output is not a tensor of a served type.
    """

    def __init__(self, fd: int, name: str, threads: int) -> None:
        self._fd, self._name, self._threads = fd, name, threads
        self._lock = threading.Lock()
        self._interpreter, self._fixed_shapes = self._open()
        self.is_stateful = bool(self._operators() & STATEFUL_OPERATORS)
        self._input_rows = self._interpreter.get_input_details()
        self.inputs = _served_specs(self._input_rows)
        self.outputs = _served_specs(self._interpreter.get_output_details())

    def __del__(self) -> None:
        os.close(self._fd)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one inference with this model.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs to compute; None for all.

        Raises:
            RequestInvalid: an input is missing, unknown, or has another dtype or a shape that the model rejects.
            InferenceFailed: the model failed.
        """
        self._check_inputs(inputs)
        with self._lock:
            self._resize([tuple(inputs[tensor.name].shape) for tensor in self.inputs])
            try:
                for row, tensor in zip(self._input_rows, self.inputs, strict=True):
                    self._interpreter.set_tensor(row["index"], np.ascontiguousarray(inputs[tensor.name]))
                self._interpreter.invoke()
                rows = self._interpreter.get_output_details()
                found = {
                    tensor.name: self._interpreter.get_tensor(row["index"])
                    for tensor, row in zip(self.outputs, rows, strict=True)
                    if outputs is None or tensor.name in outputs
                }
            except LITERT_ERRORS as error:
                raise InferenceFailed(f"inference failed: {one_line(error)}") from error
        missing = sorted(set(outputs or ()) - found.keys())
        if missing:
            raise RequestInvalid(f"the model has no output {missing[0]!r}")
        return found

    def reset(self) -> None:
        """Bring the model into its initial state (rule 4)."""
        if self.is_stateful:
            fresh, shapes = self._open()
            with self._lock:
                self._interpreter, self._fixed_shapes = fresh, shapes

    def in_initial_state(self) -> LoadedModel:
        """Return a copy of a streaming model in its initial state; a model without variables itself."""
        return LiteRtModel(os.dup(self._fd), self._name, self._threads) if self.is_stateful else self

    def process_facts(self) -> dict[str, Any]:
        """Return whether the XNNPACK delegate runs a part of the model."""
        return {"delegate": self.has_delegate, "stateful": self.is_stateful}

    @property
    def has_delegate(self) -> bool:
        """Return whether the XNNPACK delegate runs a part; False before the first run if rule 3 applies."""
        return DELEGATE in self._operators()

    def _operators(self) -> set[str]:
        return {row["op_name"] for row in self._interpreter._get_ops_details()}

    def _open(self) -> tuple[Any, list[tuple[int, ...]] | None]:
        """Return an interpreter, and the shapes that it has memory for; None if those in the file do not work."""
        try:
            interpreter = Interpreter(model_path=f"/proc/self/fd/{self._fd}", num_threads=self._threads)
            return interpreter, allocate_tensors(interpreter)
        except LITERT_ERRORS as error:
            raise ModelDoesNotLoad(f"LiteRT cannot load {self._name!r}: {one_line(error)}") from error

    def _check_inputs(self, inputs: Mapping[str, Array]) -> None:
        names = [tensor.name for tensor in self.inputs]
        if inputs.keys() != set(names):
            raise RequestInvalid(f"inputs: found {', '.join(sorted(inputs))}, expected {', '.join(names)}")
        for tensor in self.inputs:
            array = inputs[tensor.name]
            if array.dtype.name != tensor.dtype:
                raise RequestInvalid(f"input {tensor.name!r} is {array.dtype}, expected {tensor.dtype}")

    def _resize(self, shapes: list[tuple[int, ...]]) -> None:
        if shapes == self._fixed_shapes:
            return
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape) or any(
                isinstance(size, int) and size != found for size, found in zip(tensor.shape, shape, strict=True)
            ):
                raise RequestInvalid(f"input {tensor.name!r} has shape {list(shape)}, expected {list(tensor.shape)}")
        try:
            for row, shape in zip(self._input_rows, shapes, strict=True):
                self._interpreter.resize_tensor_input(row["index"], list(shape))
            self._interpreter.allocate_tensors()
        except LITERT_ERRORS as error:
            self._fixed_shapes = None
            raise InferenceFailed(f"inference failed: {one_line(error)}") from error
        self._fixed_shapes = shapes


def _served_specs(rows: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    out = tensor_specs(rows)
    for tensor in out:
        if tensor.dtype not in SERVED_NAMES:
            raise ContractMismatch(f"{tensor.name!r} is {tensor.dtype}, expected a tensor of numbers or Booleans")
    return out


@contextmanager
def _silence_stderr() -> Iterator[None]:
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


class LiteRt:
    """The backend of LiteRT (device_agent.runtime.model_backends)."""

    name = "litert"

    def warm_process(self, provider: str = CPU, library: str = "") -> tuple[str, ...]:  # noqa: ARG002  # it has none
        """Load a tiny model in one thread, so that libcpuinfo knows the processor (rule 2).

        Args:
            provider: not used: delegates are no execution providers.
            library: not used.

        Returns:
            Nothing: it opens no library again.
        """
        with _silence_stderr():  # LiteRT says once in a process that it has the delegate
            Interpreter(model_content=WARM_MODEL, num_threads=1).allocate_tensors()
        return ()

    def load(self, bundle: BundleFds, *, threads: int = 0) -> LoadedModel:
        """Load a bundle's model into an interpreter.

        Args:
            bundle: the model's files; the caller still owns them.
            threads: threads of one run; 0 for one per processor, at most MAX_THREADS.

        Raises:
            ModelDoesNotLoad: LiteRT cannot load the model.
            ContractMismatch: an input or output is not a tensor of a served type.
        """
        count = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
        return LiteRtModel(os.dup(bundle.files[bundle.model]), bundle.model, count)


BACKEND: Final = LiteRt()
