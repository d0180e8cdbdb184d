"""Make onnxruntime sessions and run them; nothing else in the packager does.

1. All sessions have the same settings (threads, optimization level, no spinning), so that two runs can be compared.
2. Errors of onnxruntime become ModelDoesNotRun, with a message of one line.
3. `onnx` and the runtimes are imported only by functions that need them: the subprocess that measures a model's memory
   imports this module, and may have no more than the model's runtime.
4. A quantized model is judged, and its golden vectors are made, with the settings of `settings_for`.
"""

import hashlib
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from packager.errors import ModelDoesNotRun
from packager.models.child_process import shorten_middle
from packager.models.provider_session import ON_CPU, Provider, create_session
from packager.models.tflite_model import TfliteSession, is_tflite

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from packager.models.inputs import Sample

DEFAULT_THREADS: Final = 2
SILENT_LOG_LEVEL: Final = 4  # onnxruntime's log level "fatal": its warnings are about the user's model
MAX_CACHED_BYTES: Final = 64 << 20  # outputs of a CachedSession
NOT_LOADED: Final = "does not load it"  # in the message of a model that cannot be loaded

ONNXRUNTIME_ERRORS: Final = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Settings of a session.

    Attributes:
        threads: intra-op threads.
        optimize: whether graph optimization is on.
        integer_kernels: whether QDQ nodes become integer kernels; if not, they compute what exact integer kernels
            would, on every CPU.
        provider: execution provider and session options.
    """

    threads: int = DEFAULT_THREADS
    optimize: bool = True
    integer_kernels: bool = True
    provider: Provider = ON_CPU

    def as_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object for a subprocess."""
        return {**asdict(self), "provider": self.provider.to_json()}

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> "RunSettings":
        """Parse what `as_json` returned."""
        return cls(**{**fields, "provider": Provider.from_json(fields["provider"])})


DEFAULT_SETTINGS: Final = RunSettings()
EXACT_SETTINGS: Final = RunSettings(integer_kernels=False)
ONE_THREAD_SETTINGS: Final = RunSettings(threads=1)  # for samples that run side by side


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a session raises: those of Python, and of onnxruntime if it is loaded."""
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    own = () if state is None else tuple(getattr(state, name) for name in ONNXRUNTIME_ERRORS)
    return (RuntimeError, ValueError, MemoryError, *own)


def open_session(model: Path | bytes, settings: RunSettings = DEFAULT_SETTINGS) -> Any:
    """Open a session of onnxruntime, or of LiteRT, which runs like one (packager.models.tflite_model).

    Args:
        model: an ONNX or TFLite file, or the bytes of an ONNX file.
        settings: threads and optimization of the session.

    Raises:
        ModelDoesNotRun: the runtime does not load the model.
        RuntimeNotInstalled: LiteRT is not installed.
        ProviderNotInstalled: the execution provider does not run here.
    """
    if isinstance(model, Path) and is_tflite(model):
        try:
            return TfliteSession(model, threads=settings.threads, optimize=settings.optimize)
        except runtime_errors() as error:
            raise ModelDoesNotRun(f"{model}: LiteRT does not load it: {one_line_message(error)}") from error
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT_LOG_LEVEL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not settings.integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not settings.optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return create_session(model if isinstance(model, bytes) else str(model), options, settings.provider)
    except runtime_errors() as error:
        where = "model" if isinstance(model, bytes) else str(model)
        raise ModelDoesNotRun(
            f"{where}: onnxruntime {onnxruntime.__version__} {NOT_LOADED}: {one_line_message(error)}"
        ) from error


def open_session_of(
    model: "onnx.ModelProto", settings: RunSettings = DEFAULT_SETTINGS
) -> "onnxruntime.InferenceSession":
    """Open a session of a model in memory; above protobuf's 2 GiB through a temporary folder.

    Args:
        model: the model to load.
        settings: threads and optimization of the session.

    Raises:
        ModelDoesNotRun: onnxruntime does not load the model.
    """
    import onnx

    if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        return open_session(model.SerializeToString(), settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path), save_as_external_data=True)
        return open_session(path, settings)


def settings_for(model: "onnx.ModelProto") -> RunSettings:
    """Return the settings with which a model is judged.
    s8s8 models run without integer kernels, which may saturate on x86.
    """
    from packager.models.graphs import quantization_of

    return EXACT_SETTINGS if quantization_of(model).endswith("s8s8") else DEFAULT_SETTINGS


class Runnable(Protocol):
    """A session, or an object that runs like one."""

    def get_outputs(self) -> list[Any]:
        """Return the descriptions of the outputs."""

    def run(self, names: list[str] | None, sample: "Sample", /) -> list[Any]:
        """Return the outputs `names`, or all of them.

        Args:
            names: names of the wanted outputs; None for all.
            sample: arrays by input name.
        """


class CachedSession:
    """A session that caches up to MAX_CACHED_BYTES of outputs.
    It is for a reference model that often runs on the same samples.

    Threads may share it; at worst an output is computed twice.
    """

    def __init__(self, running: Runnable) -> None:
        self._running = running
        self._cached_outputs: dict[bytes, list[Any]] = {}
        self._free_bytes = MAX_CACHED_BYTES

    def get_outputs(self) -> list[Any]:
        """Return the descriptions of the outputs."""
        return list(self._running.get_outputs())

    def run(self, names: list[str] | None, sample: "Sample", /) -> list[Any]:
        """Return the outputs `names`, or all of them, from the cache if the sample was run before.

        Args:
            names: names of the wanted outputs; None for all.
            sample: arrays by input name.
        """
        digest = hashlib.sha256(repr(names).encode())
        for name, array in sample.items():
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).data)
        key = digest.digest()
        if key in self._cached_outputs:
            return self._cached_outputs[key]
        outputs = list(self._running.run(names, sample))
        size = sum(np.asarray(output).nbytes for output in outputs)
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cached_outputs[key] = outputs
        return outputs


def run_session(
    running: Runnable, sample: "Sample", names: list[str] | None = None, *, where: str = "model"
) -> list[np.ndarray]:
    """Return the outputs of one sample, in the order of `names` or of the model.

    Args:
        running: the session.
        sample: arrays by input name.
        names: names of the wanted outputs; None for all.
        where: the model's name, for messages.

    Raises:
        ModelDoesNotRun: the model does not run on the sample.
    """
    try:
        return [np.asarray(value) for value in running.run(names, sample)]
    except runtime_errors() as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
        raise ModelDoesNotRun(
            f"{where}: does not run on a sample ({shapes}): {one_line_message(error)}",
            hint="give inputs that the model accepts with --inputs FILE.npz",
        ) from error


def one_line_message(error: Exception) -> str:
    """Return a foreign error's message without line breaks.

    Of a long one, the middle is left out: onnxruntime puts the place first and the cause last.
    """
    return shorten_middle(" ".join(str(error).split()))
