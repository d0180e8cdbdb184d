"""Measure the peak memory of a model: a subprocess loads it, runs samples on it, and reports its peak.

1. The subprocess imports the same as a device's model process, numpy and onnxruntime; `onnx` would add 40 MB.
2. The peak is the whole `VmHWM` of the subprocess; `ru_maxrss` is inherited from the parent and wrong.
3. A model that crashes ends only the subprocess (packager.models.child_process).
"""

import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from packager.errors import ModelDoesNotRun
from packager.models.child_process import run_child
from packager.models.tflite_model import TfliteSession, is_tflite

if TYPE_CHECKING:
    from packager.models.samples import Samples

MODULE: Final = "packager.models.peak_memory"
MEASURED_SAMPLES: Final = 3
MEASURED_THREADS: Final = 2  # the same as packager.models.sessions.DEFAULT_THREADS
CHILD_TIMEOUT_S: Final = 600.0


def measure_peak_memory(model: Path, samples: "Samples") -> int:
    """Return the peak resident memory, in bytes, of a process that runs the model on a few samples.

    Args:
        model: an ONNX file.
        samples: inputs; MEASURED_SAMPLES of them are used.

    Raises:
        ModelDoesNotRun: the model does not load, or does not run on a sample.
        ModelCrashes: the model crashed its process, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        names: list[str] = []
        for number, sample in enumerate(samples.take(MEASURED_SAMPLES)):
            names = list(sample)
            arrays = {
                f"input_{i}": array.astype(str) if array.dtype == object else array
                for i, array in enumerate(sample.values())
            }
            np.savez(Path(folder) / f"{number}.npz", allow_pickle=False, **arrays)
        task = f"measuring the memory of {MEASURED_SAMPLES} runs"
        return int(run_child(MODULE, [str(model), folder, *names], model=model, task=task, timeout_s=CHILD_TIMEOUT_S))


def measure_load_memory(model: Path) -> int:
    """Return the peak memory above that of an empty process, in bytes, while a process loads the model.

    Args:
        model: an ONNX file.

    Raises:
        ModelDoesNotRun: the model does not load.
        ModelCrashes: the model crashed its process, or took too long.
    """
    return int(run_child(MODULE, [str(model)], model=model, task="loading it", timeout_s=CHILD_TIMEOUT_S))


def own_peak_bytes() -> int:
    """Return the peak resident memory of this process, in bytes.

    Raises:
        ModelDoesNotRun: the kernel does not report it.
    """
    return _own_memory_bytes("VmHWM")


def _own_memory_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise ModelDoesNotRun(f"found no {field} in /proc/self/status, expected a Linux kernel that reports it")


def _measure_loading_in_child(model: str) -> int:
    # `before` has the memory of the library itself
    import_module("ai_edge_litert.interpreter" if is_tflite(Path(model)) else "onnxruntime")

    before = _own_memory_bytes("VmRSS")
    running = _load(model)
    after = own_peak_bytes()
    del running
    return max(0, after - before)


def _measure_in_child(model: str, folder: Path, names: list[str]) -> int:
    running = _load(model)
    for path in sorted(folder.iterdir()):
        with np.load(path) as arrays:
            stored = {name: arrays[f"input_{i}"] for i, name in enumerate(names)}
            running.run(None, {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in stored.items()})
    return own_peak_bytes()


def _load(model: str) -> Any:
    if is_tflite(Path(model)):
        return TfliteSession(Path(model), threads=MEASURED_THREADS, optimize=True)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = MEASURED_THREADS, 1, 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(_measure_loading_in_child(sys.argv[1]))
    else:
        print(_measure_in_child(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
