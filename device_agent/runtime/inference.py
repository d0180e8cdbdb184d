"""An inference request of the Open Inference Protocol v2, from its body to the model's answer.

Sources: the protocol's "Inference", Triton's extensions "binary tensor data" and "compression". Rules:
1. A body is JSON, or JSON of a stated length followed by the raw bytes of the inputs that ask for it, in their order,
   with nothing left over.
2. What the client got wrong is a RequestInvalid (400) that names the input; what the model gets wrong is an
   InferenceUnfit (500) and counts against its health.
3. An output goes as raw bytes where the request asks for it (`binary_data` of the output, else `binary_data_output`),
   as JSON otherwise.
4. An answer is flagged where a float output is not finite, the request's float inputs all are, and no golden answer has
   NaN or infinity in that output.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from bundle.contract import MAX_RANK, Contract, TensorSpec
from device_agent.errors import ContractMismatch, RequestInvalid
from device_agent.runtime.comparison import compare_outputs, decode_response
from device_agent.runtime.oip import oip_datatype_name
from device_agent.runtime.session import LoadedModel
from device_agent.runtime.tensors import (
    DATATYPES,
    Array,
    datatype_name,
    from_bytes,
    from_json,
    has_non_finite,
    is_text,
    to_bytes,
    to_json,
)
from device_agent.runtime.wire import NO_JSON

MAX_ID_CHARACTERS: Final = 256
# zlib's codes for a gzip header, and for its own: HTTP's "deflate" is the zlib format (RFC 9110, 8.4.1.2)
ZLIB_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
COMPRESSION_LEVEL: Final = 1  # a local link: time matters more than bytes


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A parsed request.

    Attributes:
        inputs: arrays by name, each as the contract says.
        outputs: names to compute, and whether each goes as raw bytes.
        id: the client's, or None.
    """

    inputs: dict[str, Array]
    outputs: dict[str, bool]
    id: str | None


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """A response body in parts, and rule 4's flag.

    Attributes:
        parts: to be sent one after the other.
        json_bytes: length of the JSON part where raw bytes follow it, else NO_JSON.
    """

    parts: tuple[bytes | memoryview, ...]
    json_bytes: int
    has_nan: bool

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(len(part) for part in self.parts)


class Inference:
    """Answers requests with one model.

    Args:
        model: loaded.
        contract: checked already.
        family, version: as the answers name them.
        nan_is_right: outputs that rule 4 leaves out.
    """

    def __init__(
        self,
        model: LoadedModel,
        contract: Contract,
        family: str,
        version: str,
        outputs_with_nan: frozenset[str] = frozenset(),
    ) -> None:
        self._model = model
        self._inputs = {tensor.name: tensor for tensor in contract.inputs}
        self._outputs = tuple(tensor.name for tensor in contract.outputs)
        self._names = {"model_name": family, "model_version": version}
        self._outputs_with_nan = outputs_with_nan

    def handle_request(self, body: memoryview, json_bytes: int) -> InferenceResponse:
        """Parse, run, encode.

        Args:
            body: of the request, decompressed.
            json_bytes: length of its JSON part, or NO_JSON.

        Raises:
            RequestInvalid, InferenceUnfit.
        """
        request = self.parse_request(body, json_bytes)
        outputs = self._model.run(request.inputs, tuple(request.outputs))
        return self._encode(request, outputs)

    def compare_with_live(
        self, body: memoryview, json_bytes: int, live: memoryview, live_json: int, limit_ppm: int
    ) -> InferenceResponse:
        """Run a request that the live model has answered, and tell only whether this model agrees.

        Args:
            body, json_bytes: the request, as for `answer`.
            live, live_json: the live model's answer.
            limit_ppm: of device_agent.runtime.comparison.

        Raises:
            RequestInvalid, InferenceUnfit.
        """
        request = self.parse_request(body, json_bytes)
        outputs = self._model.run(request.inputs, tuple(request.outputs))
        agrees, ppm = compare_outputs(outputs, decode_response(live, live_json), limit_ppm)
        text = json.dumps({"agrees": agrees, "relative_rms_ppm": ppm}).encode()
        return InferenceResponse((text,), NO_JSON, self._has_nan(request, outputs))

    def parse_request(self, body: memoryview, json_bytes: int) -> InferenceRequest:
        """Rule 1. Raises RequestInvalid."""
        if json_bytes == NO_JSON:
            json_bytes = len(body)
        elif json_bytes > len(body):
            raise RequestInvalid(f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes")
        head = _parse_object(body[:json_bytes])
        raw = body[json_bytes:]
        inputs: dict[str, Array] = {}
        for item in _object_list(head, "inputs"):
            array, raw = self._parse_input(item, raw)
            inputs[item["name"]] = array
        if raw:
            raise RequestInvalid(f"{len(raw)} bytes of binary data follow the last input")
        if len(inputs) != len(self._inputs):
            missing = [name for name in self._inputs if name not in inputs]
            raise RequestInvalid(f"inputs: {', '.join(missing) or 'one of them'} missing or given twice")
        return InferenceRequest(inputs, self._requested_outputs(head), _parse_id(head))

    def _parse_input(self, item: Mapping[str, Any], raw: memoryview) -> tuple[Array, memoryview]:
        name, datatype, shape = item.get("name"), item.get("datatype"), item.get("shape")
        spec = self._inputs.get(name) if isinstance(name, str) else None
        if spec is None:
            raise RequestInvalid(f"input {str(name)[:80]!r} is unknown, expected {', '.join(self._inputs) or 'none'}")
        if datatype != (expected := oip_datatype_name(spec)):
            raise RequestInvalid(f"input {name!r}: datatype is {str(datatype)[:20]!r}, expected {expected!r}")
        sizes = _check_shape(shape, spec)
        parameters = _object_or_empty(item, "parameters")
        if "shared_memory_region" in parameters:
            raise RequestInvalid(f"input {name!r}: shared memory is not offered to clients")
        length = parameters.get("binary_data_size")
        if length is None:
            return from_json(item.get("data"), expected, sizes, spec.name), raw
        if "data" in item:
            raise RequestInvalid(f"input {name!r}: both data and binary_data_size are given")
        if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= len(raw):
            raise RequestInvalid(
                f"input {name!r}: binary_data_size is {str(length)[:20]}, {len(raw)} bytes are left in the body"
            )
        return from_bytes(raw[:length], expected, sizes, spec.name), raw[length:]

    def _requested_outputs(self, head: Mapping[str, Any]) -> dict[str, bool]:
        default = _parse_boolean(_object_or_empty(head, "parameters"), "binary_data_output", default=False)
        if "outputs" not in head or head["outputs"] == []:
            return dict.fromkeys(self._outputs, default)
        wanted: dict[str, bool] = {}
        for item in _object_list(head, "outputs"):
            name = item.get("name")
            if name not in self._outputs:
                raise RequestInvalid(
                    f"output {str(name)[:80]!r} is unknown, expected one of {', '.join(self._outputs)}"
                )
            parameters = _object_or_empty(item, "parameters")
            if parameters.get("classification") or "shared_memory_region" in parameters:
                raise RequestInvalid(f"output {name!r}: classification and shared memory are not offered")
            wanted[name] = _parse_boolean(parameters, "binary_data", default=default)
        return wanted

    def _encode(self, request: InferenceRequest, outputs: Mapping[str, Array]) -> InferenceResponse:
        rows: list[dict[str, Any]] = []
        raw: list[memoryview] = []
        for name, as_bytes in request.outputs.items():
            array = outputs[name]
            row: dict[str, Any] = {"name": name, "datatype": datatype_name(array.dtype), "shape": list(array.shape)}
            if as_bytes:
                data = to_bytes(array)
                raw.append(data)
                row["parameters"] = {"binary_data_size": len(data)}
            else:
                row["data"] = to_json(array)
            rows.append(row)
        head: dict[str, Any] = dict(self._names)
        if request.id is not None:
            head["id"] = request.id
        head["outputs"] = rows
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        return InferenceResponse((text, *raw), len(text) if raw else NO_JSON, self._has_nan(request, outputs))

    def _has_nan(self, request: InferenceRequest, outputs: Mapping[str, Array]) -> bool:
        bad = any(has_non_finite(array) for name, array in outputs.items() if name not in self._outputs_with_nan)
        return bad and not any(has_non_finite(array) for array in request.inputs.values())


def check_servable(contract: Contract) -> None:
    """Raises ContractUnfit for a contract with a dtype that requests cannot carry."""
    for tensor in (*contract.inputs, *contract.outputs):
        if oip_datatype_name(tensor) not in DATATYPES:
            raise ContractMismatch(f"tensor {tensor.name!r} is {tensor.dtype}, which requests cannot carry")


def decompress(body: memoryview, encoding: str, max_bytes: int) -> memoryview:
    """The body of a request with a Content-Encoding of WINDOWS. Raises RequestInvalid, also past `max_bytes`."""
    engine = zlib.decompressobj(ZLIB_WINDOW_BITS[encoding])
    try:
        plain = engine.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestInvalid(f"body is not {encoding}: {error}") from error
    if len(plain) > max_bytes or engine.unconsumed_tail:
        raise RequestInvalid(f"body is more than {max_bytes} bytes once decompressed")
    if not engine.eof or engine.unused_data:
        raise RequestInvalid("body is cut, or something follows its compressed stream")
    return memoryview(plain)


def compress(parts: Sequence[bytes | memoryview], encoding: str) -> bytes:
    """A body with a Content-Encoding of WINDOWS."""
    engine = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, ZLIB_WINDOW_BITS[encoding])
    return b"".join([*(engine.compress(part) for part in parts), engine.flush()])


def _parse_object(text: memoryview) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise RequestInvalid(f"body: {constant} is not JSON")

    try:
        value = json.loads(str(text, "utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestInvalid(f"body is not JSON{where}") from error
    if not isinstance(value, dict):
        raise RequestInvalid("body is not a JSON object")
    return value


def _object_list(head: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = head.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RequestInvalid(f"{key}: expected a list of objects")
    names = [item.get("name") for item in value]
    if len(names) != len({str(name) for name in names}):
        raise RequestInvalid(f"{key}: a name is given twice")
    return value


def _object_or_empty(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise RequestInvalid(f"{key}: expected an object")
    return found


def _parse_boolean(value: Mapping[str, Any], key: str, *, default: bool) -> bool:
    found = value.get(key, default)
    if not isinstance(found, bool):
        raise RequestInvalid(f"{key}: found {str(found)[:20]}, expected true or false")
    return found


def _parse_id(head: Mapping[str, Any]) -> str | None:
    found = head.get("id")
    if found is not None and (not isinstance(found, str) or len(found) > MAX_ID_CHARACTERS or not is_text(found)):
        raise RequestInvalid(f"id: expected a string of at most {MAX_ID_CHARACTERS} characters")
    return found


def _check_shape(shape: object, spec: TensorSpec) -> list[int]:
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise RequestInvalid(f"input {spec.name!r}: shape is not a list of at most {MAX_RANK} sizes")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise RequestInvalid(f"input {spec.name!r}: shape {str(shape)[:80]} has a size that is none")
    fits = len(shape) == len(spec.shape) and all(
        expected == size for size, expected in zip(shape, spec.shape, strict=False) if isinstance(expected, int)
    )
    if not fits:
        raise RequestInvalid(f"input {spec.name!r}: shape is {shape}, expected {list(spec.shape)}")
    return shape
