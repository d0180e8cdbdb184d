"""A loaded model of any runtime: inputs, outputs, contract, golden samples, outputs in given memory.

Rules:
1. The model's inputs and outputs must be the contract's: the same names and dtypes, and the same size in every
   dimension that both fix.
2. A model whose runs change its state is in its initial state after `reset`. Golden samples are then one sequence: they
   run in their order on a model in its initial state (`in_initial_state`).
"""

import contextlib
import ctypes
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from bundle.contract import Contract, TensorSpec
from bundle.golden.comparison import GoldenVector
from bundle.golden.golden_file import read_golden
from device_agent.errors import ContractMismatch, InferenceFailed, RequestInvalid
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.tensors import Array

MAX_ERROR_CHARACTERS: Final = 400
MAX_KNOWN_SHAPES: Final = 16
MAX_THREADS: Final = 4  # with more threads small models get slower, and the device has other work to do
OUT_OF_MEMORY_WORDS: Final = ("bad_alloc", "bad allocation", "allocate memory")  # in messages of runtimes
UNIMPLEMENTED: Final = "NotImplemented"  # name of onnxruntime's exception for an operator that it lacks


class LoadedModel(ABC):
    """One loaded model. `run` and `infer` are thread-safe.

    Attributes:
        inputs, outputs: names, dtypes and shapes that the runtime reports.
        has_adapter: every run uses a personal adapter.
        is_stateful: a run changes the outputs of later runs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    has_adapter = False
    is_stateful = False

    @abstractmethod
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one inference with this model.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs to compute; None for all.

        Raises:
            RequestInvalid: the runtime rejects the inputs.
            InferenceFailed: the model failed, or an output is not a tensor; see `is_failure_of_inputs`.
        """

    def run_into(self, inputs: Mapping[str, Array], targets: Mapping[str, Array]) -> bool:
        """Run one inference and write the outputs into `targets`.

        Args:
            inputs: an array for each of the model's inputs.
            targets: an array of the expected dtype and shape for each output.

        Returns:
            False if the outputs have other shapes this time; the content of the targets is then undefined.

        Raises:
            InferenceFailed: the model failed.
        """
        for name, array in self.run(inputs, list(targets)).items():
            if array.shape != targets[name].shape:
                return False
            np.copyto(targets[name], array)
        return True

    def reset(self) -> None:
        """Bring the model into its initial state."""
        return

    def in_initial_state(self) -> "LoadedModel":
        """Return a model in its initial state: this one, or a copy if runs change its state."""
        return self

    def process_facts(self) -> dict[str, Any]:
        """Return what the runtime really uses, for `status` and tests."""
        return {}

    def check_contract(self, contract: Contract) -> None:
        """Check the model's inputs and outputs against a contract (rule 1).

        Raises:
            ContractMismatch: a name, dtype or fixed size differs.
        """
        for side, promised, found in (
            ("inputs", contract.inputs, self.inputs),
            ("outputs", contract.outputs, self.outputs),
        ):
            names, found_names = [t.name for t in promised], [t.name for t in found]
            if sorted(names) != sorted(found_names):
                raise ContractMismatch(f"model {side}: found {', '.join(found_names)}, expected {', '.join(names)}")
            by_name = {tensor.name: tensor for tensor in found}
            for tensor in promised:
                actual = by_name[tensor.name]
                if actual.dtype != tensor.dtype or not _shapes_agree(actual.shape, tensor.shape):
                    raise ContractMismatch(
                        f"model {side}: {tensor.name!r} is {actual.dtype}{list(actual.shape)}, "
                        f"expected {tensor.dtype}{list(tensor.shape)}"
                    )

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one inference on inputs that the contract allows, and compute all outputs.

        Raises:
            InferenceFailed: for any error, because the inputs are known to be right.
        """
        try:
            return self.run(inputs)
        except RequestInvalid as error:
            raise InferenceFailed(f"inference failed: {error.message}") from error


class OutputBinding:
    """Runs a model with outputs in the caller's memory, if their shapes are known from an earlier run.

    Shapes that depend on the inputs' values are never known: after the first run that shows it, nothing is bound.

    Args:
        model: the model to run.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._outputs_by_shapes: dict[object, tuple[tuple[str, Any, tuple[int, ...]], ...]] = {}
        self._is_bound = not model.has_adapter  # a runtime may ignore adapters in such runs

    def expected_outputs(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None
    ) -> tuple[tuple[str, Any, tuple[int, ...]], ...] | None:
        """Return name, dtype and shape of each output, as in the last run with inputs of these shapes.

        Returns None if there was no such run, or its shapes say nothing about the next one's.

        Args:
            inputs: the inputs of the next run.
            outputs: names of the outputs to compute; None for all.
        """
        if not self._is_bound:
            return None
        return self._outputs_by_shapes.get(_shapes_key(inputs, outputs))

    def record_outputs(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, computed: Mapping[str, Array]
    ) -> None:
        """Record the output shapes of a run, for `expected_outputs`.

        The last MAX_KNOWN_SHAPES combinations are kept.

        Args:
            inputs: the inputs of the run.
            outputs: the requested names; None for all.
            computed: the outputs.
        """
        if not self._is_bound:
            return
        while len(self._outputs_by_shapes) >= MAX_KNOWN_SHAPES:
            del self._outputs_by_shapes[next(iter(self._outputs_by_shapes))]
        rows = tuple((name, array.dtype, array.shape) for name, array in computed.items())
        self._outputs_by_shapes[_shapes_key(inputs, outputs)] = rows

    def run_into(self, inputs: Mapping[str, Array], targets: Mapping[str, Array]) -> bool:
        """Run one inference and write the outputs into `targets` (`LoadedModel.run_into`).

        Args:
            inputs: an array for each of the model's inputs.
            targets: an array of the expected dtype and shape for each output.

        Raises:
            InferenceFailed: the model failed.
        """
        if self._model.run_into(inputs, targets):
            return True
        self._is_bound = False
        self._outputs_by_shapes.clear()
        return False


def _shapes_key(inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> object:
    return tuple((name, array.shape) for name, array in inputs.items()), None if outputs is None else tuple(outputs)


def read_golden_samples(bundle: BundleFds) -> tuple[GoldenVector, ...]:
    """Read the bundle's golden samples; () if it has none.

    Raises:
        Malformed, TooLarge: the golden vectors are not readable.
    """
    if bundle.golden is None:
        return ()
    with map_files({"golden": bundle.files[bundle.golden]}) as views:
        # a copy: samples are views into the data, and the mapping ends here
        data = bytes(views["golden"])
    return read_golden(data)


def trim_heap() -> None:
    """Return freed memory to the system (glibc only)."""
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def map_files(fds: Mapping[str, int]) -> Iterator[dict[str, memoryview]]:
    """Map files read-only in the `with` block; yield a view of each, by name."""
    views: dict[str, memoryview] = {}
    mappings = []
    try:
        for name, fd in fds.items():
            size = os.fstat(fd).st_size
            if not size:
                views[name] = memoryview(b"")
                continue
            mapping = mmap.mmap(fd, size, prot=mmap.PROT_READ)
            mappings.append(mapping)
            views[name] = memoryview(mapping)
        yield views
    finally:
        for view in views.values():
            view.release()
        for mapping in mappings:
            mapping.close()


def _shapes_agree(found: tuple[int | str, ...], declared: tuple[int | str, ...]) -> bool:
    # onnxruntime reports an unknown rank as no dimensions
    if not found:
        return True
    return len(found) == len(declared) and all(
        a == b for a, b in zip(found, declared, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def is_failure_of_inputs(error: InferenceFailed, *, has_fixed_sizes: bool) -> bool:
    """Return whether a failed run can be due to its inputs, because the model runs on others.

    Args:
        error: raised by `LoadedModel.run`.
        has_fixed_sizes: all sizes in the run are fixed, so that a lack of memory is not due to the inputs.
    """
    cause = error.__cause__
    if cause is None or type(cause).__name__ == UNIMPLEMENTED:
        return False
    text = str(cause).lower()
    is_out_of_memory = isinstance(cause, MemoryError) or any(words in text for words in OUT_OF_MEMORY_WORDS)
    return not (is_out_of_memory and has_fixed_sizes)


def one_line(error: BaseException) -> str:
    """Return the message of a runtime's error in one line.

    Of a long one the middle is left out: a runtime puts the place first and the cause last.
    """
    text = " ".join(str(error).split())
    half = MAX_ERROR_CHARACTERS // 2
    return (text if len(text) <= 2 * half else f"{text[:half]} … {text[-half:]}") or type(error).__name__
