"""TFLite models: their interface, and sessions that run them as sessions of onnxruntime do.

1. A file is TFLite if it has the identifier of the format; its name does not matter.
2. `read_facts` opens the model in a subprocess: a damaged file ends only that.
3. With optimization, layers run in the XNNPACK delegate, as on a device; without it, in the interpreter's own kernels.
4. A session of a streaming model begins in the initial state. Its samples are one sequence.

`python -m packager.models.tflite_model MODEL` is the subprocess; it prints the facts.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from bundle.contract import MAX_RANK, MAX_TENSORS, Contract, TensorSpec
from bundle.local_files import open_local_file
from bundle.requirements import Runtime
from bundle.tensor_types import SERVED_TYPES
from bundle.tflite_interface import DELEGATE, STATEFUL_OPERATORS, TFLITE_IDENTIFIER, allocate_tensors, tensor_specs
from packager.errors import InputUnsupported, ModelCrashes, ModelDoesNotRun, ModelUnreadable, RuntimeNotInstalled
from packager.models.child_process import run_child

MODULE: Final = "packager.models.tflite_model"
TIMEOUT_S: Final = 120.0
OLDEST_LITERT: Final = "2.1"  # the oldest that the extra `litert` installs
SIDES: Final = ("inputs", "outputs")
SERVED_NAMES: Final = frozenset(row.name for row in SERVED_TYPES if row.name != "string")


@dataclass(frozen=True, slots=True)
class TfliteFacts:
    """The facts that LiteRT reports of a model.

    Attributes:
        inputs, outputs: its tensors.
        operators: names of its operators, sorted.
        has_delegate: the XNNPACK delegate runs a part of the model.
        is_quantized: an activation has quantization parameters.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[str, ...]
    has_delegate: bool
    is_quantized: bool

    @property
    def is_stateful(self) -> bool:
        """True if a run changes the outputs of later runs."""
        return not STATEFUL_OPERATORS.isdisjoint(self.operators)


def is_tflite(path: Path) -> bool:
    """Return whether a file is a TFLite model.

    Raises:
        FileNotRegular: it is a FIFO, a device or a socket.
    """
    try:
        with open_local_file(path) as stream:
            return stream.read(8)[4:] == TFLITE_IDENTIFIER
    except OSError:
        return False


def read_facts(path: Path) -> TfliteFacts:
    """Return the facts of a TFLite model.

    Raises:
        RuntimeNotInstalled: LiteRT is not installed.
        ModelUnreadable: LiteRT cannot load the file.
        InputUnsupported: an input or output has an unsupported type, or there are too many.
    """
    stat = path.stat()
    return _read_facts(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=16)
def _read_facts(path: Path, _mtime_ns: int, _size: int, _inode: int) -> TfliteFacts:
    _import_interpreter()
    try:
        text = run_child(MODULE, [str(path)], model=path, task="loading it", timeout_s=TIMEOUT_S)
    except (ModelDoesNotRun, ModelCrashes) as error:
        raise ModelUnreadable(f"{path}: not a TFLite model that LiteRT loads: {error.message}") from error
    found = json.loads(text)
    inputs, outputs = (
        tuple(TensorSpec(row["name"], row["dtype"], tuple(row["shape"])) for row in found[side]) for side in SIDES
    )
    out = TfliteFacts(inputs, outputs, tuple(found["operators"]), found["has_delegate"], found["is_quantized"])
    if not 0 < len(out.outputs) <= MAX_TENSORS or len(out.inputs) > MAX_TENSORS:
        raise InputUnsupported(
            f"{path}: found {len(out.inputs)} inputs and {len(out.outputs)} outputs, at most {MAX_TENSORS} are allowed"
        )
    for tensor in (*out.inputs, *out.outputs):
        if tensor.dtype not in SERVED_NAMES or len(tensor.shape) > MAX_RANK:
            raise InputUnsupported(
                f"{path}: {tensor.name!r} is {tensor.dtype}{list(tensor.shape)}, expected numbers or Booleans with at "
                f"most {MAX_RANK} axes",
                hint="export the model with such a tensor there",
            )
    return out


def tflite_contract(path: Path) -> Contract:
    """Return the inputs and outputs of a TFLite model. Raises as `read_facts`."""
    facts = read_facts(path)
    return Contract(facts.inputs, facts.outputs)


def tflite_runtime() -> Runtime:
    """Return the runtime of TFLite models, with the oldest version that agents install."""
    return Runtime("litert", OLDEST_LITERT)


@dataclass(frozen=True, slots=True)
class TensorName:
    """An input or output of a session, as callers of onnxruntime's sessions read it."""

    name: str


class TfliteSession:
    """A model in an interpreter of this process.

    Args:
        model: the file.
        threads: threads of one run.
        optimize: run layers in the XNNPACK delegate.

    Raises:
        RuntimeNotInstalled: LiteRT is not installed.
        RuntimeError, ValueError: LiteRT cannot load the file.
    """

    def __init__(self, model: Path, *, threads: int, optimize: bool) -> None:
        module = _import_interpreter()
        kinds = module.OpResolverType
        resolver = kinds.AUTO if optimize else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter = module.Interpreter(
            model_path=str(model), num_threads=threads, experimental_op_resolver_type=resolver
        )
        self._shapes = allocate_tensors(self._interpreter)
        self._rows = self._interpreter.get_input_details()
        self.inputs, self.outputs = tensor_specs(self._rows), tensor_specs(self._interpreter.get_output_details())

    def get_inputs(self) -> list[TensorName]:
        """Return the descriptions of the inputs."""
        return [TensorName(tensor.name) for tensor in self.inputs]

    def get_outputs(self) -> list[TensorName]:
        """Return the descriptions of the outputs."""
        return [TensorName(tensor.name) for tensor in self.outputs]

    def run(self, names: Sequence[str] | None, sample: dict[str, np.ndarray], /) -> list[np.ndarray]:
        """Return the outputs `names`, or all of them.

        Args:
            names: names of the wanted outputs; None for all.
            sample: arrays by input name.
        """
        shapes = [tuple(sample[tensor.name].shape) for tensor in self.inputs]
        if shapes != self._shapes:
            self._shapes = None
            for row, shape in zip(self._rows, shapes, strict=True):
                self._interpreter.resize_tensor_input(row["index"], list(shape))
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for row, tensor in zip(self._rows, self.inputs, strict=True):
            self._interpreter.set_tensor(row["index"], np.ascontiguousarray(sample[tensor.name]))
        self._interpreter.invoke()
        rows = self._interpreter.get_output_details()
        found = {t.name: self._interpreter.get_tensor(row["index"]) for t, row in zip(self.outputs, rows, strict=True)}
        return [found[name] for name in (found if names is None else names)]

    def facts(self) -> dict[str, Any]:
        """Return the fields of TfliteFacts as plain values.

        Before a model with free sizes has memory, the delegate counts as there.
        """
        details = self._interpreter._get_ops_details()
        names = [row["op_name"] for row in details if row["op_name"] != DELEGATE]
        tensors = self._interpreter.get_tensor_details()
        return {
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs],
            "operators": sorted(set(names)),
            "has_delegate": len(names) < len(details) or self._shapes is None,
            "is_quantized": any(np.dtype(row["dtype"]).kind in "iu" and row["quantization"][0] for row in tensors),
        }


def _import_interpreter() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise RuntimeNotInstalled(
            "LiteRT is not installed, which runs TFLite models", hint="pip install 'airweights[litert]'"
        ) from error
    return interpreter


def _print_facts(model: Path) -> int:
    try:
        session = TfliteSession(model, threads=1, optimize=True)
    except (RuntimeError, ValueError) as error:
        print(" ".join(str(error).split())[:300], file=sys.stderr)
        return 1
    print(json.dumps(session.facts()), flush=True)
    os._exit(0)  # the interpreter's destructors take time and report nothing


if __name__ == "__main__":
    sys.exit(_print_facts(Path(sys.argv[1])))
