"""Write model files in one step, so that no partial file remains, and find their external data."""

from pathlib import Path
from typing import Final

import onnx

MAX_SINGLE_FILE_BYTES: Final = 1_900_000_000  # protobuf is limited to 2 GiB


def save_model(model: onnx.ModelProto, out: Path) -> None:
    """Write a model; above MAX_SINGLE_FILE_BYTES its tensors go to `<out>.data` beside it.

    Args:
        model: the model to write.
        out: the file to write.
    """
    part = out.with_name(out.name + ".part")
    try:
        if model.ByteSize() < MAX_SINGLE_FILE_BYTES:
            part.write_bytes(model.SerializeToString(deterministic=True))
        else:
            data = out.with_name(out.name + ".data")
            data.unlink(missing_ok=True)
            onnx.save(model, str(part), save_as_external_data=True, location=data.name)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def model_bytes(model: Path) -> int:
    """Return the bytes of a model file with its external data."""
    total = model.stat().st_size
    for location in external_files(model):
        if (model.parent / location).is_file():
            total += (model.parent / location).stat().st_size
    return total


def external_files(model: Path) -> set[str]:
    """Return the names of the files beside a model in which its tensors are stored, in any graph.

    Raises:
        ModelUnreadable: the file is not an ONNX model.
        Unavailable: the file cannot be read.
    """
    from packager.models.graphs import all_tensors
    from packager.models.inputs import load_outline
    from packager.models.tflite_model import is_tflite

    if is_tflite(model):
        return set()

    tensors = all_tensors(load_outline(model))
    named = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return named - {model.name}  # the outline leaves large constants in the model's own file
