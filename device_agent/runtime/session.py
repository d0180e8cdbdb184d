"""A model in onnxruntime: load it from memory and run it.

Rules:
1. The model is opened as /proc/self/fd/N of a sealed memfd. If it were passed as bytes, onnxruntime would keep a second
   copy for the life of the session. External data is passed from memory, under the names that the model uses.
2. There is one intra-op thread pool, without spinning, so an idle model uses no processor time. No custom operator
   library is loaded, and no optimized model is written.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from bundle.contract import TensorSpec
from bundle.providers import CPU
from bundle.tensor_types import NAME_BY_RUNTIME
from device_agent.errors import AdapterIncompatible, ContractMismatch, InferenceFailed, ModelDoesNotLoad, RequestInvalid
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.execution_provider import create_session, taken_provider, warm_provider
from device_agent.runtime.loaded_model import MAX_THREADS, LoadedModel, map_files, one_line
from device_agent.runtime.tensors import Array

FATAL_LOG_LEVEL: Final = 4  # onnxruntime's severity "fatal"; errors are raised as exceptions anyway

ORT_ERRORS: Final = (
    *(state.EPFail, state.EngineError, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
    *(state.ModelLoadCanceled, state.ModelRequiresCompilation, state.NoModel, state.NoSuchFile, state.NotFound),
    *(state.NotImplemented, state.RuntimeException),
)


class OnnxModel(LoadedModel):
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
    def load(cls, bundle: BundleFds, *, threads: int = 0) -> "OnnxModel":
        """Create a session of the bundle's model.

        Args:
            bundle: the model's files; the caller still owns them and can close them afterwards.
            threads: intra-op threads; 0 for one per processor, at most MAX_THREADS.

        Raises:
            ModelDoesNotLoad: onnxruntime cannot load the model; the message contains its error.
            AdapterIncompatible: the personal adapter does not load.
            ContractMismatch: an input or output is not a tensor.
            ProviderMissing, ProviderUnused: the session is not on the bundle's execution provider.
        """
        ort.set_default_logger_severity(FATAL_LOG_LEVEL)
        options = ort.SessionOptions()
        options.log_severity_level = FATAL_LOG_LEVEL
        options.intra_op_num_threads = threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            with map_files(bundle.external_names()) as external:
                if external:
                    lengths = [len(view) for view in external.values()]
                    options.add_external_initializers_from_files_in_memory(
                        list(external), list(external.values()), lengths
                    )
                path = f"/proc/self/fd/{bundle.files[bundle.model]}"
                session = create_session(
                    path, options, bundle.provider, bundle.options, threads=options.intra_op_num_threads
                )
            return cls(session, None if bundle.adapter is None else _load_adapter(bundle.files[bundle.adapter]))
        except (*ORT_ERRORS, ValueError, MemoryError) as error:  # ValueError: a name is not UTF-8
            raise ModelDoesNotLoad(
                f"onnxruntime {ort.__version__} cannot load {bundle.model!r}: {one_line(error)}"
            ) from error

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
            raise RequestInvalid(f"the model rejects these inputs: {one_line(error)}") from error
        except (*ORT_ERRORS, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise InferenceFailed(f"inference failed: {one_line(error)}") from error
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, np.ndarray):
                raise InferenceFailed(f"output {name!r} is {type(value).__name__}, expected a tensor")
        return dict(zip(names, values, strict=True))

    def process_facts(self) -> dict[str, Any]:
        """Return the session's provider and, unless it is the CPU, the nodes that each provider took."""
        provider = taken_provider(self.session)
        if provider == CPU:
            return {"provider": provider}
        nodes: dict[str, int] = {}
        for part in self.session.get_provider_graph_assignment_info():
            nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
        return {"provider": provider, "nodes": nodes}

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
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array).reshape(array.shape))
        for name, target in targets.items():
            binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
        try:
            self.session.run_with_iobinding(binding)
        except (*ORT_ERRORS, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            # bound outputs raise a plain RuntimeError (onnxruntime 1.32)
            if "shape" in str(error).lower():
                return False
            raise InferenceFailed(f"inference failed: {one_line(error)}") from error
        return True


def _load_adapter(fd: int) -> Any:
    adapter = ort.LoraAdapter()
    try:
        adapter.Load(f"/proc/self/fd/{fd}")
    except (*ORT_ERRORS, RuntimeError, ValueError, MemoryError) as error:
        raise AdapterIncompatible(
            f"onnxruntime {ort.__version__} cannot load the adapter: {one_line(error)}"
        ) from error
    return adapter


def _tensor_specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    out = []
    for value in values:
        dtype = NAME_BY_RUNTIME.get(value.type)
        if dtype is None:
            raise ContractMismatch(f"{value.name!r} is {value.type}, expected a tensor")
        shape = tuple(size if isinstance(size, int) and size >= 0 else str(size or "?") for size in value.shape)
        out.append(TensorSpec(value.name, dtype, shape))
    return tuple(out)


class OnnxRuntime:
    """The backend of ONNX Runtime (device_agent.runtime.model_backends)."""

    name = "onnxruntime"

    def warm_process(self, provider: str = CPU, library: str = "") -> tuple[str, ...]:
        """Map the libraries of a provider; the CPU's are a part of the runtime (`warm_provider`).

        Args:
            provider: the execution provider that the models are for.
            library: path of the provider's plug-in, or "".

        Returns:
            The folders of libraries that it opens again in the jail.

        Raises:
            ProviderMissing: this device lacks the provider.
        """
        ort.set_default_logger_severity(FATAL_LOG_LEVEL)
        return warm_provider(provider, library)

    def load(self, bundle: BundleFds, *, threads: int = 0) -> LoadedModel:
        """Load a model (`OnnxModel.load`).

        Args:
            bundle: the model's files; the caller still owns them.
            threads: intra-op threads; 0 for one per processor, at most MAX_THREADS.

        Raises:
            ModelDoesNotLoad, AdapterIncompatible, ContractMismatch, ProviderMissing, ProviderUnused: as
                `OnnxModel.load`.
        """
        return OnnxModel.load(bundle, threads=threads)


BACKEND: Final = OnnxRuntime()
