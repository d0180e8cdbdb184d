"""Models go to disk in one step, so that nothing half-written is left behind."""

from pathlib import Path
from typing import Final

import onnx

MAX_SINGLE_FILE_BYTES: Final = 1_900_000_000  # protobuf ends at 2 GiB


def save_model(model: onnx.ModelProto, out: Path) -> None:
    """Write a model; above SINGLE_FILE_BYTES its tensors go to `<out>.data` beside it."""
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
    """Bytes of a model file with its external data."""
    total = model.stat().st_size
    for location in external_files(model):
        if (model.parent / location).is_file():
            total += (model.parent / location).stat().st_size
    return total


def external_files(model: Path) -> set[str]:
    """Names of the files beside a model that its tensors lie in, in any graph. Raises ModelUnreadable, Unavailable."""
    from packager.models.graphs import all_tensors
    from packager.models.inputs import load_proto

    tensors = all_tensors(load_proto(model, external_data=False))
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
