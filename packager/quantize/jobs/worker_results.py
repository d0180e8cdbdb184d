"""Results of quantization jobs as bytes: a closed format, because a worker's pickle could run code.

Rules:
1. A result is JSON. It is read by the declared types of the dataclasses of a `WorkerQuantization`, and of no other.
2. Models in a report are not sent; an empty one is read instead.
"""

import base64
import json
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import onnx

from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.update_aware.quantize_update import UpdateReport


@dataclass(frozen=True, slots=True)
class WorkerQuantization:
    """An update that a worker found, or the candidate to build.

    Attributes:
        cpu: name of its processor.
        update: report of the update; None if the model is quantized from scratch.
        model: the updated model; empty if there is no update.
        failure: why the model is not an update of the base; "" if there is no base.
        report: report of the quantization from scratch, or None.
        sha256: SHA-256 of the model that the worker had in the end.
    """

    cpu: str
    update: UpdateReport | None
    model: bytes
    failure: str
    report: QuantizationReport | None
    sha256: str


def encode_quantization(found: WorkerQuantization) -> bytes:
    """Return a result as bytes."""
    return json.dumps(_to_json(found)).encode()


def decode_quantization(data: bytes) -> WorkerQuantization:
    """Return the result that bytes contain.

    Raises:
        ValueError: they contain something else.
    """
    try:
        found: WorkerQuantization = _from_json(WorkerQuantization, json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("a worker returned something that is no quantization") from error
    return found


def _to_json(value: object) -> object:
    if isinstance(value, onnx.ModelProto):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _to_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple | list):
        return [_to_json(one) for one in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return _to_json(value.item())  # type: ignore[attr-defined]  # a number of numpy


def _from_json(declared: Any, value: Any) -> Any:
    if declared is onnx.ModelProto:
        return onnx.ModelProto()
    if is_dataclass(declared):
        types = get_type_hints(declared)
        build: Any = declared
        if not isinstance(value, dict) or set(value) != set(types):
            raise TypeError(f"no {build.__name__}")
        return build(**{name: _from_json(kind, value[name]) for name, kind in types.items()})
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        found = None if value is None else next(kind for kind in inner if kind is not NoneType)
        if value is None and NoneType not in inner:
            raise TypeError("null where a value is expected")
        return None if found is None else _from_json(found, value)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(inner[0], one) for one in value)
    if origin is Literal and value in inner:
        return value
    if declared is bytes and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if declared is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if declared in (str, int, bool) and type(value) is declared:
        return value
    raise TypeError(f"no {declared}")
