"""The interface of a model, and checks of a sample against it.

1. An `.npz` of inputs has one array for each model input; the first axis counts samples. A sample with the model's own
   rank is fed unchanged. A sample with one axis less, if the input's first axis is free or 1, becomes a batch of one.
2. Names, shapes and dtypes are checked before a model runs; nothing else is cast, reshaped or broadcast.
3. NaN and infinity are allowed: tree models take NaN for a missing value, and attention masks use infinity. A sample
   with NaN whose outputs are NaN is refused (packager.models.missing_values).
4. Strings are arrays of objects; files have them as numpy's fixed-width strings.
5. Types of inputs and outputs are those of bundle.tensor_types; their names have at most MAX_NAME_CHARACTERS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from bundle.contract import TensorSpec
from bundle.errors import Unavailable
from bundle.local_files import check_regular_file, missing_file_hint
from bundle.tensor_types import BY_ONNX, OTHER_KINDS, TENSOR_TYPES
from packager.errors import (
    ExternalDataMissing,
    InputUnsupported,
    ModelUnreadable,
    SampleDtypeMismatch,
    SampleNameMismatch,
    SampleShapeMismatch,
)
from packager.models.tflite_model import is_tflite, read_facts

MAX_NAME_CHARACTERS: Final = 256  # of an input or output (bundle.contract.TensorSpec)
MAX_SHOWN_CHARACTERS: Final = 60  # of a name in messages
OTHER_FORMATS_HINT: Final = "give an ONNX or TFLite model; a file of another format is built with runtime app or none"
RENAME_HINT: Final = "rename it, for example with onnx.compose or the exporter's input_names and output_names"
Sample: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a model.

    Attributes:
        name: name of the input or output.
        dtype: name of the numpy dtype.
        shape: size or symbol of each axis; None if the model names neither.
        is_ranked: False if the model does not even declare the number of axes; `shape` is empty then.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    is_ranked: bool = True

    def __str__(self) -> str:
        if not self.is_ranked:
            return f"{self.name}: {self.dtype} of any shape"
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} [{sizes}]"


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """The inputs to feed and the outputs that come back, in the model's order."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @classmethod
    def from_file(cls, path: Path) -> "ModelInterface":
        """Read the interface of an ONNX file, without its external data, or of a TFLite file.

        Raises:
            ModelUnreadable: the file is neither an ONNX nor a TFLite model.
            InputUnsupported: an input or output has a type that is not served, or a name that requests cannot carry.
            Unavailable: the file cannot be read.
        """
        if is_tflite(path):
            facts = read_facts(path)
            return cls(*(tuple(_tflite_info(tensor) for tensor in side) for side in (facts.inputs, facts.outputs)))
        return cls.from_proto(load_outline(path))

    @classmethod
    def from_proto(cls, model: onnx.ModelProto) -> "ModelInterface":
        """Return the interface of a parsed model.

        Raises:
            InputUnsupported: an input or output has a type that is not served, or a name that requests cannot carry.
        """
        fixed = {tensor.name for tensor in model.graph.initializer}
        return cls(
            tuple(make_tensor_info(value, "input") for value in model.graph.input if value.name not in fixed),
            tuple(make_tensor_info(value, "output") for value in model.graph.output),
        )


def _tflite_info(tensor: TensorSpec) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in tensor.shape)
    return TensorInfo(tensor.name, tensor.dtype, shape)


def add_batch_axis(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Return one sample of an input with a batch axis of 1, if it lacks one.

    Args:
        array: one sample.
        info: the input.
    """
    return array[None] if lacks_batch(array.shape, info) else array


def check_sample(sample: Sample, interface: ModelInterface, where: str) -> None:
    """Check names, dtypes and shapes of one sample.

    Args:
        sample: arrays by name.
        interface: inputs and outputs of the model.
        where: the sample's origin, for messages.

    Raises:
        SampleNameMismatch, SampleShapeMismatch, SampleDtypeMismatch: the sample does not fit the model.
    """
    expected = {info.name: info for info in interface.inputs}
    check_names(set(sample), expected, where)
    for name, info in expected.items():
        check_dtype(sample[name].dtype, info, where)
        check_shape(sample[name].shape, info, where)


def load_proto(path: Path, *, external_data: bool = True) -> onnx.ModelProto:
    """Parse an ONNX file.

    Args:
        path: the file.
        external_data: whether to load the tensors of external data files too.

    Raises:
        ModelUnreadable: the file does not exist, is not an ONNX model, a tensor has another size than its shape, or a
            name is not UTF-8.
        FileNotRegular: the path is a FIFO, a device or a socket.
        ExternalDataMissing: an external data file is missing or too short.
        Unavailable: the file cannot be read.
    """

    def parse() -> onnx.ModelProto:
        # the format is named, because onnx would choose it by the name's ending
        return onnx.load(str(path), format="protobuf", load_external_data=False)

    return _load(path, parse, external_data=external_data)


def load_outline(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file for reading only, with its large constants left in the file.

    See packager.models.model_outline.

    Raises:
        ModelUnreadable, FileNotRegular, ExternalDataMissing, Unavailable: as `load_proto`.
    """
    from packager.models.model_outline import parse_outline

    return _load(path, lambda: parse_outline(path), external_data=False)


def _load(path: Path, parse: Callable[[], onnx.ModelProto], *, external_data: bool) -> onnx.ModelProto:
    from packager.models.tensor_sizes import MAX_MODEL_FILE_BYTES, check_tensor_sizes
    from packager.models.text_fields import check_text_fields

    try:
        check_regular_file(path)
        size = path.stat().st_size
        if size > MAX_MODEL_FILE_BYTES:
            raise ModelUnreadable(
                f"{path}: found {size:,} bytes, expected at most {MAX_MODEL_FILE_BYTES:,}, the limit of the format",
                hint="save the model with external data",
            )
        model = parse()
        check_text_fields(model, path)
        check_tensor_sizes(model, path)
        if external_data:
            onnx.load_external_data_for_model(model, str(path.parent))
    except (FileNotFoundError, onnx.checker.ValidationError) as error:
        if path.exists():
            raise ExternalDataMissing(
                f"{path}: its external data cannot be read: {error}", hint="put the data files beside the model"
            ) from error
        raise ModelUnreadable(f"{path}: no such file", hint=missing_file_hint(path)) from error
    except IsADirectoryError as error:
        raise ModelUnreadable(f"{path}: found a folder, expected a model file") from error
    except DecodeError as error:
        raise ModelUnreadable(f"{path}: not an ONNX model: {error}", hint=OTHER_FORMATS_HINT) from error
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror or error}") from error
    except (RuntimeError, ValueError, RecursionError) as error:  # onnx reports damaged fields in several ways
        text = " ".join(str(error).split())[:200]
        raise ModelUnreadable(f"{path}: not an ONNX model: {text}", hint=OTHER_FORMATS_HINT) from error
    if not model.graph.output or not model.opset_import:
        raise ModelUnreadable(
            f"{path}: not an ONNX model: it has no outputs or names no operator set", hint=OTHER_FORMATS_HINT
        )
    return model


def check_names(found: set[str], expected: dict[str, TensorInfo], where: object) -> None:
    """Check that a sample has one array for each input.

    Args:
        found: names of the arrays.
        expected: inputs by name.
        where: the sample's origin, for messages.

    Raises:
        SampleNameMismatch: names are missing or unknown.
    """
    missing, extra = sorted(expected.keys() - found), sorted(found - expected.keys())
    if missing or extra:
        raise SampleNameMismatch(
            f"{where}: found arrays {sorted(found)}, expected {sorted(expected)}",
            hint="name each array like the model input that it feeds",
        )


def check_dtype(found: np.dtype, info: TensorInfo, where: object) -> None:
    """Check the dtype of one array.

    Args:
        found: its dtype.
        info: the input.
        where: the sample's origin, for messages.

    Raises:
        SampleDtypeMismatch: the dtype is not the input's.
    """
    if found != np.dtype(info.dtype) and not (info.dtype == "object" and found.kind == "U"):
        raise SampleDtypeMismatch(
            f"{where}: array {info.name!r} is {found}, expected {info.dtype}",
            hint=f"save it with .astype({'str' if info.dtype == 'object' else info.dtype!r})",
        )


def lacks_batch(found: tuple[int, ...], info: TensorInfo) -> bool:
    """Return whether a sample's array has the shape of the input without its batch axis.

    Args:
        found: shape of the array.
        info: the input.
    """
    return (
        len(found) + 1 == len(info.shape)
        and info.is_ranked
        and (not isinstance(info.shape[0], int) or info.shape[0] == 1)
    )


def check_shape(found: tuple[int, ...], info: TensorInfo, where: object) -> None:
    """Check the shape of one array, batch axis included.

    Args:
        found: its shape.
        info: the input.
        where: the sample's origin, for messages.

    Raises:
        SampleShapeMismatch: the rank or a fixed size differs.
    """
    fits = not info.is_ranked or (
        len(found) == len(info.shape)
        and all(not isinstance(want, int) or want == size for want, size in zip(info.shape, found, strict=True))
    )
    if not fits:
        raise SampleShapeMismatch(
            f"{where}: one sample of {info.name!r} has shape {list(found)}, expected {info}",
            hint="the first axis counts samples; each sample has the model's own rank, or lacks a batch axis of 1",
        )


def unsupported_type(where: str, kind: str) -> InputUnsupported:
    """Return the error for an input or output of a type that is not served, with the remedy.

    Args:
        where: the input or output, for the message.
        kind: its type as onnxruntime or ONNX names it, for example "tensor(bfloat16)", "BFLOAT16" or "seq(...)".
    """
    row = next((row for row in TENSOR_TYPES if kind in (row.runtime, row.onnx)), None)
    if row is not None:
        return InputUnsupported(f"{where} is {row.name}, which requests cannot carry", hint=row.remedy)
    name = {"seq": "sequence"}.get(kind.partition("(")[0], kind.partition("(")[0])
    return InputUnsupported(f"{where} is a {name}, expected a tensor", hint=OTHER_KINDS.get(name))


def make_tensor_info(value: onnx.ValueInfoProto, role: str) -> TensorInfo:
    """Return one input or output.

    Args:
        value: the input or output.
        role: "input" or "output", for messages.

    Raises:
        InputUnsupported: it has a type that is not served, or a name that requests cannot carry.
    """
    where = f"{role} {value.name[:MAX_SHOWN_CHARACTERS]!r}"
    if len(value.name) > MAX_NAME_CHARACTERS:
        raise InputUnsupported(
            f"{where} has a name of {len(value.name)} characters, at most {MAX_NAME_CHARACTERS} are allowed",
            hint=RENAME_HINT,
        )
    if not value.name.isprintable():
        raise InputUnsupported(
            f"{where} has a name with a control or format character, which requests cannot carry", hint=RENAME_HINT
        )
    kind = value.type.WhichOneof("value")
    if kind not in ("tensor_type", None):
        raise unsupported_type(where, kind.removesuffix("_type"))
    tensor = value.type.tensor_type
    return TensorInfo(
        value.name,
        _dtype_name(tensor.elem_type, where),
        tuple(_axis_size(dim) for dim in tensor.shape.dim),
        tensor.HasField("shape"),
    )


def _dtype_name(elem_type: int, where: str) -> str:
    if elem_type == onnx.TensorProto.UNDEFINED:
        return "float32"  # some exporters write outputs without type; the runtime infers it
    known = onnx.TensorProto.DataType.keys()
    kind = next((name for name in known if onnx.TensorProto.DataType.Value(name) == elem_type), str(elem_type))
    row = BY_ONNX.get(kind)
    if row is None or not row.is_served:
        raise unsupported_type(where, kind)
    return "object" if row.name == "string" else row.name


def _axis_size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value > 0 else None
    name = str(dim.dim_param)
    return None if name in ("", "?") else name  # some exporters call every unknown size "?", though they differ
