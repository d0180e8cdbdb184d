"""Results of jobs as bytes: a closed format, because a worker's pickle could run code.

A result is JSON: its kind and its fields, bytes in Base64. Only the types of KINDS are read, and each field must have
the type that the class declares.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final

from packager.diff.encode.encode_tensor import EncodedTensor
from packager.diff.encode.encode_untyped import UntypedFrames
from packager.diff.write.patch_job import CreatedPatch
from packager.diff.write.patch_report import PatchRow
from packager.executors.errors import WorkerLost

KINDS: Final[dict[str, type[EncodedTensor] | type[UntypedFrames] | type[CreatedPatch]]] = {
    "tensor": EncodedTensor,
    "untyped": UntypedFrames,
    "patch": CreatedPatch,
}


def encode_result(result: object) -> bytes:
    """Return a result as bytes.

    Raises:
        TypeError: it is no result of a job.
    """
    if result is None:
        return json.dumps({"kind": "none"}).encode()
    if isinstance(result, bytes | int):
        value = _to_json(result)
        return json.dumps({"kind": "bytes" if isinstance(result, bytes) else "number", "value": value}).encode()
    for kind, cls in KINDS.items():
        if type(result) is cls:
            values = {one.name: _to_json(getattr(result, one.name)) for one in fields(cls)}
            return json.dumps({"kind": kind, "fields": values}).encode()
    raise TypeError(f"{type(result).__name__} is no result of a job")


def decode_result(data: bytes) -> object:
    """Return the result that bytes contain.

    Raises:
        WorkerLost: they contain something else.
    """
    try:
        value: dict[str, Any] = json.loads(data)
        kind = value["kind"]
        if kind == "none":
            return None
        if kind == "number":
            return int(value["value"])
        if kind == "bytes":
            return base64.b64decode(value["value"], validate=True)
        build: Any = KINDS[kind]
        return build(**{one.name: _from_json(one.type, value["fields"][one.name]) for one in fields(build)})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WorkerLost("a worker returned something that is no result") from error


def _to_json(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [_to_json(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, PatchRow):
        return [_to_json(getattr(value, one.name)) for one in fields(PatchRow)]
    return value


def _from_json(declared: object, value: Any) -> object:
    if declared == tuple[PatchRow, ...] and isinstance(value, list):
        return tuple(_read_row(one) for one in value)
    text = declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))
    match str(declared) if "[" in str(declared) else text:
        case "int" if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        case "str" if isinstance(value, str):
            return value
        case "bytes" if isinstance(value, str):
            return base64.b64decode(value, validate=True)
        case "tuple[int, ...]" if isinstance(value, list):
            return tuple(_from_json("int", one) for one in value)
        case "tuple[bytes, ...]" if isinstance(value, list):
            return tuple(base64.b64decode(one, validate=True) for one in value)
        case "frozenset[str]" if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return frozenset(value)
    raise TypeError(f"a field is no {text}")


def _read_row(value: object) -> PatchRow:
    names = fields(PatchRow)
    if not isinstance(value, list):
        raise TypeError("a row is no list")
    build: Callable[..., PatchRow] = PatchRow
    return build(*(_from_json(one.type, item) for one, item in zip(names, value, strict=True)))
