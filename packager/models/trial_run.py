"""Run a model in a process of its own before anything else does, and measure its memory there.

1. A model that crashes ends only the subprocess (packager.models.child_process).
2. One subprocess does both, since its start takes longer than the runs of a small model.
3. It imports the same libraries as a device's model process, numpy and the model's runtime; `onnx` would add 40 MB.
4. The peak is the whole `VmHWM` of the subprocess; `ru_maxrss` is inherited from the parent and wrong.

`python -m packager.models.trial_run PROVIDER MODEL FOLDER NAMES...` is the subprocess. FOLDER has `N.npz` of each
sample, NAMES are those of the inputs; it prints the fields of MemoryUse.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packager.errors import ModelDoesNotRun
from packager.models.child_process import run_child
from packager.models.provider_session import ON_CPU, Provider
from packager.models.sample_files import from_stored, load_arrays, save_arrays
from packager.models.sessions import NOT_LOADED, RunSettings, open_session, run_session
from packager.models.tflite_model import is_tflite

if TYPE_CHECKING:
    from packager.models.samples import Samples

MODULE: Final = "packager.models.trial_run"
TRIAL_SAMPLES: Final = 3
CHILD_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory of a process that runs a model.

    Attributes:
        load_bytes: peak above the process with its libraries, in bytes, while the model was loaded.
        peak_bytes: peak of the whole process, in bytes, after it ran TRIAL_SAMPLES samples.
    """

    load_bytes: int
    peak_bytes: int


def run_trial(model: Path, samples: "Samples", provider: Provider = ON_CPU) -> MemoryUse:
    """Run a model on a few samples in a process of its own, and return the memory of that process.

    Args:
        model: an ONNX or TFLite file, with its external data beside it.
        samples: inputs; TRIAL_SAMPLES of them are used.
        provider: execution provider and session options.

    Raises:
        ModelDoesNotRun: the model does not load, or does not run on a sample.
        ModelCrashes: the model crashed its process, or took longer than CHILD_TIMEOUT_S.
    """
    with tempfile.TemporaryDirectory() as folder:
        names: list[str] = []
        for number, sample in enumerate(samples.take(TRIAL_SAMPLES)):
            names = list(sample)
            save_arrays(Path(folder) / f"{number}.npz", sample.values())
        try:
            printed = run_child(
                MODULE,
                [provider.to_json(), str(model), folder, *names],
                model=model,
                task=f"a trial of {TRIAL_SAMPLES} runs",
                timeout_s=CHILD_TIMEOUT_S,
                hint="give inputs that the model accepts with --inputs FILE.npz",
            )
        except ModelDoesNotRun as error:
            if NOT_LOADED not in error.message:
                raise
            hint = "provide what the message names on this machine, or export the model again for this runtime"
            raise ModelDoesNotRun(error.message, hint=hint) from error
        return MemoryUse(**json.loads(printed))


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


def _run_as_child(provider: Provider, model: Path, folder: Path, names: list[str]) -> int:
    import_module("ai_edge_litert.interpreter" if is_tflite(model) else "onnxruntime")
    try:
        before_bytes = _own_memory_bytes("VmRSS")  # of the libraries alone
        running = open_session(model, RunSettings(provider=provider))
        load_bytes = max(0, own_peak_bytes() - before_bytes)
        for path in sorted(folder.iterdir()):
            sample = dict(zip(names, map(from_stored, load_arrays(path)), strict=True))
            run_session(running, sample, where=str(model))
        print(json.dumps(asdict(MemoryUse(load_bytes, own_peak_bytes()))))
    except ModelDoesNotRun as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_run_as_child(Provider.from_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
