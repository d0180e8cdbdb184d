"""Inputs and outputs of a TFLite model as LiteRT reports them, for the packager and the device.

A name that is empty or taken gets the number of the tensor. A free axis is named after its tensor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bundle.contract import TensorSpec

TFLITE_IDENTIFIER: Final = b"TFL3"  # at byte 4 of a file
DELEGATE: Final = "DELEGATE"  # name of an operator that stands for a delegate's part of the graph
MAX_TENSOR_NAME: Final = 200
# operators that keep values from run to run
STATEFUL_OPERATORS: Final = frozenset(
    (
        *("VAR_HANDLE", "ASSIGN_VARIABLE", "SVDF", "RNN", "LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
        *("UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN"),
    )
)


def tensor_specs(rows: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the tensors of `get_input_details` or `get_output_details`; dtypes are numpy's names."""
    out: list[TensorSpec] = []
    for number, row in enumerate(rows):
        name = "".join(c if c.isprintable() else "_" for c in str(row["name"]))[:MAX_TENSOR_NAME] or f"tensor-{number}"
        if any(name == other.name for other in out):
            name = f"{name}#{number}"
        signature = row["shape_signature"] if len(row["shape_signature"]) else row["shape"]
        shape = tuple(int(size) if size >= 0 else f"{name}.{axis}"[-64:] for axis, size in enumerate(signature))
        out.append(TensorSpec(name, row["dtype"].__name__.rstrip("_"), shape))
    return tuple(out)


def allocate_tensors(interpreter: Any) -> list[tuple[int, ...]] | None:
    """Allocate an interpreter's tensors, and return the shapes of its inputs.

    Returns None if a size is free, and the file's own sizes, which are often 1, do not work: others may.

    Raises:
        RuntimeError, ValueError: LiteRT cannot run the model with any sizes.
    """
    rows = interpreter.get_input_details()
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError):
        if not any(size < 0 for row in rows for size in row["shape_signature"]):
            raise
        return None
    return [tuple(map(int, row["shape"])) for row in interpreter.get_input_details()]
