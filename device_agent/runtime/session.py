"""A model in onnxruntime: loaded from memory only, held to its contract, run.

Rules:
1. The model is opened as /proc/self/fd/N of a sealed memfd; from bytes, onnxruntime would keep a second copy for the
   session's life. External data is given from memory, by the names that the model calls it.
2. One intra-op pool without spinning: an idle model costs no processor time. No custom operator library is ever loaded,
   no optimized model written.
3. The session's inputs and outputs must be the contract's: names, dtypes, and every size that both fix.
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
from bundle.golden import GoldenSample, read_golden
from device_agent.errors import AdapterIncompatible, ContractMismatch, InferenceFailed, ModelDoesNotLoad, RequestInvalid
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.tensors import Array, has_non_finite

MAX_KNOWN_SHAPES: Final = 16
MAX_THREADS: Final = 4  # beyond it small models get slower, and a device has other work to do
FATAL_LOG_LEVEL: Final = 4  # onnxruntime's severity "fatal": what matters comes back as an exception

# onnxruntime's type names
DTYPES: Final = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bfloat16)": "bfloat16",
    "tensor(string)": "string",
}
ORT_ERRORS: Final = (
    *(state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
    *(state.ModelLoadCanceled, state.ModelRequiresCompilation, state.NoModel, state.NoSuchFile, state.NotFound),
    *(state.NotImplemented, state.RuntimeException),
)


class LoadedModel:
    """One session. Its `run` may be called from several threads.

    Attributes:
        inputs, outputs: what the session says of itself.
        has_adapter: every run is with a personal adapter.
    """

    def __init__(self, session: Any, adapter: Any = None) -> None:
        self.session = session
        self.has_adapter = adapter is not None
        self._adapter = adapter  # the run options only point to it
        self._options = None
        if adapter is not None:
            self._options = ort.RunOptions()
            self._options.add_active_adapter(adapter)
        self.inputs = _tensor_specs(session.get_inputs())
        self.outputs = _tensor_specs(session.get_outputs())

    @classmethod
    def load(cls, bundle: BundleFds, *, threads: int = 0) -> "LoadedModel":
        """Make a session of the bundle's model.

        Args:
            bundle: its descriptors are not closed here, and not needed afterwards.
            threads: of the intra-op pool; 0: one a processor, at most MAX_THREADS.

        Raises:
            ModelUnfit: with onnxruntime's reason.
            ContractUnfit: an input or output is no tensor.
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
        except (*ORT_ERRORS, ValueError, MemoryError) as error:  # a ValueError: names that are not UTF-8
            raise ModelDoesNotLoad(
                f"onnxruntime {ort.__version__} does not load {bundle.model!r}: {_one_line(error)}"
            ) from error

    def check_contract(self, contract: Contract) -> None:
        """Rule 3. Raises ContractUnfit."""
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
        """One inference on inputs that the contract allows, all outputs: whatever is wrong then is the model's fault.
        Raises InferenceUnfit."""
        try:
            return self.run(inputs)
        except RequestInvalid as error:
            raise InferenceFailed(f"inference failed: {error.message}") from error

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """One inference.

        Args:
            inputs: an array for each of the model's inputs.
            outputs: names to compute; None: all.

        Raises:
            RequestInvalid: onnxruntime says that the inputs are wrong.
            InferenceUnfit: it failed.
        """
        names = [tensor.name for tensor in self.outputs] if outputs is None else list(outputs)
        try:
            values = self.session.run(names, dict(inputs), self._options)
        except state.InvalidArgument as error:
            raise RequestInvalid(f"the model does not take these inputs: {_one_line(error)}") from error
        except (*ORT_ERRORS, ValueError, RuntimeError, MemoryError) as error:
            raise InferenceFailed(f"inference failed: {_one_line(error)}") from error
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise InferenceFailed(f"output {name!r} is {type(value).__name__}, expected a tensor")
        return dict(zip(names, values, strict=True))


class OutputBinding:
    """Runs whose outputs land in memory of the caller's: no copy, where shapes are known from an earlier run.

    Args:
        model: to run.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._outputs_by_shapes: dict[object, tuple[tuple[str, Any, tuple[int, ...]], ...]] = {}

    def expected_outputs(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None
    ) -> tuple[tuple[str, Any, tuple[int, ...]], ...] | None:
        """Name, dtype and shape of each output as the last run with inputs of these shapes gave them, or None."""
        if self._model.has_adapter:
            return None  # onnxruntime leaves adapters out of a run with bindings, with no more than a warning
        return self._outputs_by_shapes.get(_shapes_key(inputs, outputs))

    def record_outputs(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, computed: Mapping[str, Array]
    ) -> None:
        """After a run by other means. A few kinds of requests are kept, the last ones."""
        while len(self._outputs_by_shapes) >= MAX_KNOWN_SHAPES:
            del self._outputs_by_shapes[next(iter(self._outputs_by_shapes))]
        rows = tuple((name, array.dtype, array.shape) for name, array in computed.items())
        self._outputs_by_shapes[_shapes_key(inputs, outputs)] = rows

    def run_into(self, inputs: Mapping[str, Array], targets: Mapping[str, Array]) -> bool:
        """One inference into `targets`, each of the expected dtype and shape.

        Returns:
            False where the model gave other shapes this time; the targets are undefined then.

        Raises:
            InferenceUnfit.
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
            f"onnxruntime {ort.__version__} does not load the adapter: {_one_line(error)}"
        ) from error
    return adapter


def _shapes_key(inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> object:
    return tuple((name, array.shape) for name, array in inputs.items()), None if outputs is None else tuple(outputs)


def read_golden_samples(bundle: BundleFds) -> tuple[GoldenSample, ...]:
    """The bundle's golden samples, () where it has none. Raises MalformedRefused, TooLargeRefused."""
    if bundle.golden is None:
        return ()
    with _map_files({"golden": bundle.files[bundle.golden]}) as views:
        # samples are views into the file; a copy outlives the mapping
        data = bytes(views["golden"])
    return read_golden(data)


def outputs_with_non_finite(samples: Sequence[GoldenSample]) -> frozenset[str]:
    """Outputs for which NaN or infinity is a right answer: some golden one has it."""
    return frozenset(
        name for sample in samples for name, array in sample.outputs.items() if has_non_finite(np.asarray(array))
    )


def trim_heap() -> None:
    """Give freed memory back to the system."""
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
        dtype = DTYPES.get(value.type)
        if dtype is None:
            raise ContractMismatch(f"{value.name!r} is {value.type}, expected a tensor")
        shape = tuple(size if isinstance(size, int) and size >= 0 else str(size or "?") for size in value.shape)
        out.append(TensorSpec(value.name, dtype, shape))
    return tuple(out)


def _shapes_agree(found: tuple[int | str, ...], declared: tuple[int | str, ...]) -> bool:
    # onnxruntime gives an unknown rank as no dimensions
    if not found:
        return True
    return len(found) == len(declared) and all(
        a == b for a, b in zip(found, declared, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
