"""A model in onnxruntime: load it from memory, check it against its contract, run it.

Rules:
1. The model is opened as /proc/self/fd/N of a sealed memfd. If it were passed as bytes, onnxruntime would keep a second
   copy for the life of the session. External data is passed from memory, under the names that the model uses.
2. There is one intra-op thread pool, without spinning, so an idle model uses no processor time. No custom operator
   library is loaded, and no optimized model is written.
3. The session's inputs and outputs must be the contract's: the same names and dtypes, and the same size in every
   dimension that both fix.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from bundle.contract import Contract, TensorSpec
from bundle.golden.comparison import GoldenVector
from bundle.golden.golden_file import read_golden
from bundle.tensor_types import NAME_BY_RUNTIME
from device_agent.errors import AdapterIncompatible, ContractMismatch, InferenceFailed, ModelDoesNotLoad, RequestInvalid
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.tensors import Array

MAX_KNOWN_SHAPES: Final = 16
MAX_THREADS: Final = 4  # with more threads small models get slower, and the device has other work to do
FATAL_LOG_LEVEL: Final = 4  # onnxruntime's severity "fatal"; errors are raised as exceptions anyway

ORT_ERRORS: Final = (
    *(state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
    *(state.ModelLoadCanceled, state.ModelRequiresCompilation, state.NoModel, state.NoSuchFile, state.NotFound),
    *(state.NotImplemented, state.RuntimeException),
)
OUT_OF_MEMORY_WORDS: Final = ("bad_alloc", "bad allocation", "allocate memory")  # in onnxruntime's messages


class LoadedModel:
    """One session. `run` and `infer` are thread-safe.

    Attributes:
        session: the onnxruntime session.
        inputs, outputs: names, dtypes and shapes that the session reports.
        has_adapter: every run uses a personal adapter.
    """

    def __init__(self, session: Any, adapter: Any = None) -> None:
        self.session = session
        self.has_adapter = adapter is not None
        self._adapter = adapter  # kept alive: the run options only point to it
        self._options = None
        if adapter is not None:
            self._options = ort.RunOptions()
            self._options.add_active_adapter(adapter)
        self.inputs = _tensor_specs(session.get_inputs())
        self.outputs = _tensor_specs(session.get_outputs())

    @classmethod
    def load(cls, bundle: BundleFds, *, threads: int = 0) -> "LoadedModel":
        """Create a session of the bundle's model.

        Args:
            bundle: the model's files; the caller still owns them and can close them afterwards.
            threads: intra-op threads; 0 for one per processor, at most MAX_THREADS.

        Raises:
            ModelDoesNotLoad: onnxruntime cannot load the model; the message contains its error.
            AdapterIncompatible: the personal adapter does not load.
            ContractMismatch: an input or output is not a tensor.
        """
        ort.set_default_logger_severity(FATAL_LOG_LEVEL)
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_LOG_LEVEL
        options.intra_op_num_threads = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            with _map_files(bundle.external_names()) as external:
                if external:
                    lengths = [len(view) for view in external.values()]
                    options.add_external_initializers_from_files_in_memory(
                        list(external), list(external.values()), lengths
                    )
                path = f"/proc/self/fd/{bundle.files[bundle.model]}"
                session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return cls(session, None if bundle.adapter is None else _load_adapter(bundle.files[bundle.adapter]))
        except (*ORT_ERRORS, ValueError, MemoryError) as error:  # ValueError: a name is not UTF-8
            raise ModelDoesNotLoad(
                f"onnxruntime {ort.__version__} cannot load {bundle.model!r}: {_one_line(error)}"
            ) from error

    def check_contract(self, contract: Contract) -> None:
        """Check the session's inputs and outputs against a contract (rule 3).

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

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one inference with this model.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names of the outputs to compute; None for all.

        Raises:
            RequestInvalid: onnxruntime rejects the inputs.
            InferenceFailed: the model failed, or an output is not a tensor; see `is_failure_of_inputs`.
        """
        names = [tensor.name for tensor in self.outputs] if outputs is None else list(outputs)
        try:
            values = self.session.run(names, dict(inputs), self._options)
        except state.InvalidArgument as error:
            raise RequestInvalid(f"the model rejects these inputs: {_one_line(error)}") from error
        except (*ORT_ERRORS, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise InferenceFailed(f"inference failed: {_one_line(error)}") from error
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise InferenceFailed(f"output {name!r} is {type(value).__name__}, expected a tensor")
        return dict(zip(names, values, strict=True))


class OutputBinding:
    """Runs a model with outputs in the caller's memory, if their shapes are known from an earlier run.

    Args:
        model: the model to run.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._outputs_by_shapes: dict[object, tuple[tuple[str, Any, tuple[int, ...]], ...]] = {}

    def expected_outputs(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None
    ) -> tuple[tuple[str, Any, tuple[int, ...]], ...] | None:
        """Return name, dtype and shape of each output, as in the last run with inputs of these shapes.

        Returns None if there was no such run.

        Args:
            inputs: the inputs of the next run.
            outputs: names of the outputs to compute; None for all.
        """
        if self._model.has_adapter:
            return None  # onnxruntime ignores adapters in a run with bindings; it only logs a warning
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
        while len(self._outputs_by_shapes) >= MAX_KNOWN_SHAPES:
            del self._outputs_by_shapes[next(iter(self._outputs_by_shapes))]
        rows = tuple((name, array.dtype, array.shape) for name, array in computed.items())
        self._outputs_by_shapes[_shapes_key(inputs, outputs)] = rows

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
        binding = self._model.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array).reshape(array.shape))
        for name, target in targets.items():
            binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
        try:
            self._model.session.run_with_iobinding(binding)
        except ORT_ERRORS as error:
            if "shape" in str(error).lower():
                self._outputs_by_shapes.clear()
                return False
            raise InferenceFailed(f"inference failed: {_one_line(error)}") from error
        return True


def _load_adapter(fd: int) -> Any:
    adapter = ort.LoraAdapter()
    try:
        adapter.Load(f"/proc/self/fd/{fd}")
    except (*ORT_ERRORS, RuntimeError, ValueError, MemoryError) as error:
        raise AdapterIncompatible(
            f"onnxruntime {ort.__version__} cannot load the adapter: {_one_line(error)}"
        ) from error
    return adapter


def _shapes_key(inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> object:
    return tuple((name, array.shape) for name, array in inputs.items()), None if outputs is None else tuple(outputs)


def read_golden_samples(bundle: BundleFds) -> tuple[GoldenVector, ...]:
    """Read the bundle's golden samples; () if it has none.

    Raises:
        Malformed, TooLarge: the golden vectors are not readable.
    """
    if bundle.golden is None:
        return ()
    with _map_files({"golden": bundle.files[bundle.golden]}) as views:
        # a copy: samples are views into the data, and the mapping ends here
        data = bytes(views["golden"])
    return read_golden(data)


def trim_heap() -> None:
    """Return freed memory to the system (glibc only)."""
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _map_files(fds: Mapping[str, int]) -> Iterator[dict[str, memoryview]]:
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


def _tensor_specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    out = []
    for value in values:
        dtype = NAME_BY_RUNTIME.get(value.type)
        if dtype is None:
            raise ContractMismatch(f"{value.name!r} is {value.type}, expected a tensor")
        shape = tuple(size if isinstance(size, int) and size >= 0 else str(size or "?") for size in value.shape)
        out.append(TensorSpec(value.name, dtype, shape))
    return tuple(out)


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
    if cause is None or isinstance(cause, state.NotImplemented):
        return False
    text = str(cause).lower()
    is_out_of_memory = isinstance(cause, MemoryError) or any(words in text for words in OUT_OF_MEMORY_WORDS)
    return not (is_out_of_memory and has_fixed_sizes)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
