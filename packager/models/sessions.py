"""The one place where the packager makes onnxruntime sessions and runs them.

Rules:
1. Every run has the same settings (threads, optimization level, no spinning), so that two runs can be compared.
2. What onnxruntime raises becomes one error class here; its message is cut to one line.
3. `runs_in_child` tries a model in its own process first: a model that crashes costs the child.
4. A quantized model is judged, and its golden vectors are taken, with `settings_for` it.
"""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_state

from packager.errors import ModelCrashes, ModelDoesNotRun
from packager.models.graphs import quantization_of
from packager.models.inputs import Sample
from packager.models.samples import Samples

DEFAULT_THREADS: Final = 2
SILENT_LOG_LEVEL: Final = 4  # onnxruntime log level "fatal": its warnings are about models, not about us
MAX_MESSAGE_CHARACTERS: Final = 300
MAX_CACHED_BYTES: Final = 64 << 20
CHILD_TIMEOUT_S: Final = 300.0

RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    MemoryError,
    runtime_state.EPFail,
    runtime_state.Fail,
    runtime_state.InvalidArgument,
    runtime_state.InvalidGraph,
    runtime_state.InvalidProtobuf,
    runtime_state.NoModel,
    runtime_state.NoSuchFile,
    runtime_state.NotImplemented,
    runtime_state.RuntimeException,
)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a session runs: intra-op threads, whether graph optimization is on, and whether QDQ nodes become integer
    kernels; where they do not, they give what exact integer kernels would, on every CPU."""

    threads: int = DEFAULT_THREADS
    optimize: bool = True
    integer_kernels: bool = True


DEFAULT_SETTINGS: Final = RunSettings()
EXACT_SETTINGS: Final = RunSettings(integer_kernels=False)
ONE_THREAD_SETTINGS: Final = RunSettings(threads=1)  # where samples run side by side


def open_session(model: Path | bytes, settings: RunSettings = DEFAULT_SETTINGS) -> onnxruntime.InferenceSession:
    """A CPU session. Raises ModelDoesNotRun."""
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
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except RUNTIME_ERRORS as error:
        where = "model" if isinstance(model, bytes) else str(model)
        raise ModelDoesNotRun(
            f"{where}: onnxruntime {onnxruntime.__version__} does not load it: {one_line_message(error)}"
        ) from error


def open_session_of(model: onnx.ModelProto, settings: RunSettings = DEFAULT_SETTINGS) -> onnxruntime.InferenceSession:
    """A session of a model in memory; above protobuf's 2 GiB by way of a folder. Raises ModelDoesNotRun."""
    if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        return open_session(model.SerializeToString(), settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path), save_as_external_data=True)
        return open_session(path, settings)


def settings_for(model: onnx.ModelProto) -> RunSettings:
    """How a model is judged: s8s8 is for other CPUs than this one, whose integer kernels may saturate."""
    return EXACT_SETTINGS if quantization_of(model).endswith("s8s8") else DEFAULT_SETTINGS


class Runnable(Protocol):
    """What can be run: a session, or one that remembers."""

    def get_outputs(self) -> list[Any]:
        """Descriptions of the outputs."""

    def run(self, names: list[str] | None, sample: Sample, /) -> list[Any]:
        """The outputs `names`, or all."""


class CachedSession:
    """A session that remembers its answers, MAX_CACHED_BYTES of them: for a model that others are judged by again and
    again. Threads may share it: at worst an answer is made twice."""

    def __init__(self, running: onnxruntime.InferenceSession) -> None:
        self._running = running
        self._cached_outputs: dict[bytes, list[Any]] = {}
        self._free_bytes = MAX_CACHED_BYTES

    def get_outputs(self) -> list[Any]:
        """Descriptions of the outputs."""
        return list(self._running.get_outputs())

    def run(self, names: list[str] | None, sample: Sample, /) -> list[Any]:
        """The outputs `names`, or all."""
        digest = hashlib.sha256(repr(names).encode())
        for name, array in sample.items():
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).data)
        key = digest.digest()
        if key in self._cached_outputs:
            return self._cached_outputs[key]
        answers = list(self._running.run(names, sample))
        size = sum(np.asarray(answer).nbytes for answer in answers)
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cached_outputs[key] = answers
        return answers


def run_session(
    running: Runnable, sample: Sample, names: list[str] | None = None, *, where: str = "model"
) -> list[np.ndarray]:
    """All outputs (or those of `names`) for one sample. Raises ModelDoesNotRun."""
    try:
        return [np.asarray(value) for value in running.run(names, sample)]
    except RUNTIME_ERRORS as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.items())
        raise ModelDoesNotRun(
            f"{where}: does not run on a sample ({shapes}): {one_line_message(error)}",
            hint="give inputs that the model accepts with --inputs FILE.npz",
        ) from error


def run_in_child(model: Path, samples: Samples) -> None:
    """Run `model` once on one sample in a process of its own. Raises ModelDoesNotRun, ModelCrashes."""
    sample = next(iter(samples.take(1)))
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "sample.npz"
        np.savez(arrays, allow_pickle=False, **{f"input_{i}": array for i, array in enumerate(sample.values())})
        command = [sys.executable, "-m", "packager.models.sessions", str(model), str(arrays), *sample]
        try:
            done = subprocess.run(command, capture_output=True, timeout=CHILD_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ModelCrashes(f"{model}: one run did not end within {CHILD_TIMEOUT_S:.0f} s") from error
    if done.returncode < 0:
        raise ModelCrashes(f"{model}: took its process down (signal {-done.returncode}) when run on a sample")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ModelDoesNotRun(
            lines[-1][:MAX_MESSAGE_CHARACTERS], hint="give inputs that the model accepts with --inputs FILE.npz"
        )


def one_line_message(error: Exception) -> str:
    """The message of a foreign error, without line breaks, cut to a readable length."""
    return " ".join(str(error).split())[:MAX_MESSAGE_CHARACTERS]


def _run_as_child(model: str, arrays: str, names: list[str]) -> int:
    with np.load(arrays) as loaded:
        sample = {name: loaded[f"input_{i}"] for i, name in enumerate(names)}
    try:
        run_session(open_session(Path(model)), sample, where=model)
    except ModelDoesNotRun as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_run_as_child(sys.argv[1], sys.argv[2], sys.argv[3:]))
