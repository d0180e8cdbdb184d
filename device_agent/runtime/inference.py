"""Inference requests of the Open Inference Protocol v2: from the request body to the response body.

Sources: the protocol's "Inference", Triton's extensions "binary tensor data" and "compression". Rules:
1. A body is JSON, or JSON of a stated length followed by the raw bytes of the inputs that have `binary_data_size`, in
   their order. Nothing may follow the last one.
2. A mistake of the client is RequestInvalid (400) and names the input. Dimensions of one name in the contract have the
   same size in a request, unless the golden inputs show otherwise.
3. An output is encoded as raw bytes if the request asks for it (`binary_data` of the output, else
   `binary_data_output`), and as JSON otherwise.
4. A parameter that asks for what this server does not offer (sequences, priorities, timeouts) is refused.
5. A response is flagged if it has a float output that is not finite, and all float inputs of the request are finite.
6. A run that fails is InputsRejected (400), since the model has run on other inputs. Its message names the inputs with
   a free dimension, or all inputs. InferenceFailed (500) is for failures that no input causes: a missing kernel, an
   output that is not a tensor, and a lack of memory for a model whose sizes are all fixed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bundle.contract import MAX_RANK, Contract, TensorSpec
from bundle.errors import AirweightsError
from device_agent.errors import ContractMismatch, InferenceFailed, InputsRejected, RequestInvalid
from device_agent.runtime.comparison import compare_outputs, decode_response
from device_agent.runtime.json_body import NumberList, parse_json
from device_agent.runtime.loaded_model import LoadedModel, is_failure_of_inputs
from device_agent.runtime.oip import oip_datatype_name
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
UNNAMED_DIMENSION: Final = "?"  # device_agent.runtime.session writes it where a model gives no name
VALUES_PER_PIECE: Final = 2**15  # 10 ms
_NO_STATE: Final = "this server keeps no state between requests"
_NO_SCHEDULE: Final = "requests are computed in the order of arrival, and the server's own deadline applies"
REFUSED_PARAMETERS: Final = {
    **dict.fromkeys(("sequence_id", "sequence_start", "sequence_end"), _NO_STATE),
    **dict.fromkeys(("priority", "timeout"), _NO_SCHEDULE),
    "triton_enable_empty_final_response": "a request has exactly one response",
}


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request that was parsed and checked.

    Attributes:
        inputs: arrays by name, with the contract's dtypes and shapes.
        outputs: names of the outputs to compute, each with True if it is encoded as raw bytes.
        id: the client's id, or None.
    """

    inputs: dict[str, Array]
    outputs: dict[str, bool]
    id: str | None


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """A response body in parts, and the flag of rule 5.

    Attributes:
        parts: the body's parts, in order.
        json_bytes: length of the JSON part if raw bytes follow it, else NO_JSON.
        has_nan: an output has NaN or infinity.
    """

    parts: tuple[bytes | memoryview, ...]
    json_bytes: int
    has_nan: bool

    @property
    def size(self) -> int:
        """Size of the body, in bytes."""
        return sum(len(part) for part in self.parts)


class Inference:
    """Handles inference requests with one model.

    Args:
        model: the loaded model.
        contract: its contract, checked already.
        family, version: written into each response.
        golden_inputs: inputs of golden samples, for rule 2.
        max_response_bytes: largest response body; None for no limit.
        on_pause: called from time to time while a large body is parsed or written; it can handle other requests.
    """

    def __init__(
        self,
        model: LoadedModel,
        contract: Contract,
        family: str,
        version: str,
        golden_inputs: Sequence[Mapping[str, Array]] = (),
        max_response_bytes: int | None = None,
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._inputs = {tensor.name: tensor for tensor in contract.inputs}
        self._outputs = tuple(tensor.name for tensor in contract.outputs)
        self._names = {"model_name": family, "model_version": version}
        self._max_response_bytes = max_response_bytes
        self._on_pause = on_pause
        self._dimension_names = {
            size
            for tensor in contract.inputs
            for size in tensor.shape
            if isinstance(size, str) and size != UNNAMED_DIMENSION
        }
        for sample in golden_inputs:
            self._dimension_names -= set(self._unequal_dimensions(sample))
        self._varying_inputs = [
            tensor.name for tensor in contract.inputs if any(isinstance(size, str) for size in tensor.shape)
        ]
        self._has_fixed_sizes = not self._varying_inputs and all(
            tensor.dtype.startswith("float") for tensor in contract.inputs
        )

    def handle_request(self, body: memoryview, json_bytes: int) -> InferenceResponse:
        """Parse a request, run the model, and encode the response.

        Args:
            body: the request body, decompressed.
            json_bytes: length of its JSON part, or NO_JSON.

        Raises:
            RequestInvalid: the request is malformed or does not fit the contract.
            InputsRejected: the model cannot run on its inputs (rule 6), or the response would be too large.
            InferenceFailed: the model failed.
        """
        request = self.parse_request(body, json_bytes)
        outputs = self._run(request)
        try:
            response = self._encode(request, outputs)
        except MemoryError as error:
            raise self._reject_inputs(request, "not enough memory for the response") from error
        if self._max_response_bytes is not None and response.size > self._max_response_bytes:
            detail = f"the response has {response.size} bytes, at most {self._max_response_bytes} are allowed"
            raise self._reject_inputs(request, detail)
        return response

    def compare_with_live(
        self, body: memoryview, json_bytes: int, live: memoryview, live_json: int, limit_ppm: int
    ) -> InferenceResponse:
        """Run a mirrored request and return only whether this model agrees with the live one.

        Args:
            body, json_bytes: the request, as for `handle_request`.
            live, live_json: the live model's response, and the length of its JSON part.
            limit_ppm: relative RMS difference up to which outputs agree, in parts per million.

        Returns:
            A response with the JSON object {"agrees", "relative_rms_ppm"}.

        Raises:
            RequestInvalid: the request is malformed or does not fit the contract.
            InputsRejected, InferenceFailed: as `handle_request`.
        """
        request = self.parse_request(body, json_bytes)
        outputs = self._run(request)
        agrees, ppm = compare_outputs(outputs, decode_response(live, live_json), limit_ppm)
        text = json.dumps({"agrees": agrees, "relative_rms_ppm": ppm}).encode()
        return InferenceResponse((text,), NO_JSON, self._has_nan(request, outputs))

    def parse_request(self, body: memoryview, json_bytes: int) -> InferenceRequest:
        """Parse a request body (rule 1).

        Args:
            body: the request body, decompressed.
            json_bytes: length of its JSON part, or NO_JSON.

        Raises:
            RequestInvalid: the request is malformed or does not fit the contract.
        """
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
            raise RequestInvalid(f"inputs: {', '.join(missing) or 'one input'} missing or given twice")
        for dimension, ((first, size), (other, other_size)) in self._unequal_dimensions(inputs).items():
            if dimension in self._dimension_names:
                raise RequestInvalid(
                    f"input {other!r}: dimension {dimension!r} has size {other_size},"
                    f" but size {size} in input {first!r}"
                )
        return InferenceRequest(inputs, self._requested_outputs(head), _parse_id(head))

    def _unequal_dimensions(self, inputs: Mapping[str, Array]) -> dict[str, tuple[tuple[str, int], tuple[str, int]]]:
        """Return the named dimensions with two sizes, each with two inputs and their sizes."""
        found: dict[str, tuple[str, int]] = {}
        unequal: dict[str, tuple[tuple[str, int], tuple[str, int]]] = {}
        for name, array in inputs.items():
            for dimension, size in zip(self._inputs[name].shape, array.shape, strict=False):
                if isinstance(dimension, str):
                    first = found.setdefault(dimension, (name, size))
                    if first[1] != size:
                        unequal.setdefault(dimension, (first, (name, size)))
        return unequal

    def _run(self, request: InferenceRequest) -> dict[str, Array]:
        try:
            return self._model.run(request.inputs, tuple(request.outputs))
        except RequestInvalid as error:
            raise self._reject_inputs(request, error.message) from error
        except InferenceFailed as error:
            if not is_failure_of_inputs(error, has_fixed_sizes=self._has_fixed_sizes):
                raise
            raise self._reject_inputs(request, error.message) from error

    def _reject_inputs(self, request: InferenceRequest, detail: str) -> AirweightsError:
        names = self._varying_inputs or list(self._inputs)
        if not names:
            return InferenceFailed(detail)
        shapes = ", ".join(f"{name!r} of shape {list(request.inputs[name].shape)}" for name in names[:4])
        cause = detail.removeprefix("inference failed: ").removeprefix("the model rejects these inputs: ")
        return InputsRejected(f"the model cannot run on input {shapes}: {cause}")

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
            raise RequestInvalid(f"input {name!r}: shared memory is not supported")
        length = parameters.get("binary_data_size")
        if length is None:
            data = item.get("data")
            if isinstance(data, NumberList):
                return data.to_array(expected, sizes, spec.name, self._on_pause), raw
            return from_json(data, expected, sizes, spec.name), raw
        if "data" in item:
            raise RequestInvalid(f"input {name!r}: both data and binary_data_size are given")
        if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= len(raw):
            raise RequestInvalid(
                f"input {name!r}: binary_data_size is {repr(length)[:20]}, {len(raw)} bytes are left in the body"
            )
        return from_bytes(raw[:length], expected, sizes, spec.name), raw[length:]

    def _requested_outputs(self, head: Mapping[str, Any]) -> dict[str, bool]:
        default = _parse_boolean(_object_or_empty(head, "parameters"), "binary_data_output", default=False)
        if not head.get("outputs") and head.get("outputs") in (None, []):
            return dict.fromkeys(self._outputs, default)
        requested: dict[str, bool] = {}
        for item in _object_list(head, "outputs"):
            name = item.get("name")
            if name not in self._outputs:
                raise RequestInvalid(
                    f"output {str(name)[:80]!r} is unknown, expected one of {', '.join(self._outputs)}"
                )
            parameters = _object_or_empty(item, "parameters")
            if parameters.get("classification") or "shared_memory_region" in parameters:
                raise RequestInvalid(f"output {name!r}: classification and shared memory are not supported")
            requested[name] = _parse_boolean(parameters, "binary_data", default=default)
        return requested

    def _encode(self, request: InferenceRequest, outputs: Mapping[str, Array]) -> InferenceResponse:
        has_nan = self._has_nan(request, outputs)  # before a pause: another request may overwrite the inputs
        rows: list[dict[str, Any]] = []
        raw: list[memoryview] = []
        lists: list[Array] = []
        for name, as_bytes in request.outputs.items():
            array = outputs[name]
            row: dict[str, Any] = {"name": name, "datatype": datatype_name(array.dtype), "shape": list(array.shape)}
            if as_bytes:
                data = to_bytes(array)
                raw.append(data)
                row["parameters"] = {"binary_data_size": len(data)}
            else:
                row["data"] = []
                lists.append(array)
            rows.append(row)
        head: dict[str, Any] = dict(self._names)
        if request.id is not None:
            head["id"] = request.id
        head["outputs"] = rows
        text = self._insert_lists(_dump(head), lists)
        return InferenceResponse((text, *raw), len(text) if raw else NO_JSON, has_nan)

    def _insert_lists(self, head: bytes, lists: Sequence[Array]) -> bytes:
        """Write `lists` into the empty lists of "data", in pieces, because Python objects are large."""
        if not lists:
            return head
        # names are quoted, so this sequence of bytes is in no string
        first, *rest = head.split(b'"data":[]')
        parts = [first]
        for array, text in zip(lists, rest, strict=True):
            flat = array.reshape(-1)
            parts.append(b'"data":[')
            for start in range(0, flat.size, VALUES_PER_PIECE):
                if start:
                    parts.append(b",")
                    self._on_pause()
                parts.append(_dump(to_json(flat[start : start + VALUES_PER_PIECE]))[1:-1])
            parts += [b"]", text]
        return b"".join(parts)

    def _has_nan(self, request: InferenceRequest, outputs: Mapping[str, Array]) -> bool:
        is_found = any(has_non_finite(array) for array in outputs.values())
        return is_found and not any(has_non_finite(array) for array in request.inputs.values())


def check_servable(contract: Contract) -> None:
    """Check that requests can carry all tensors of a contract.

    Raises:
        ContractMismatch: a tensor has a dtype without an encoding, for example bfloat16.
    """
    for tensor in (*contract.inputs, *contract.outputs):
        if oip_datatype_name(tensor) not in DATATYPES:
            raise ContractMismatch(f"tensor {tensor.name!r} is {tensor.dtype}, which requests cannot carry")


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _parse_object(text: memoryview) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise RequestInvalid("body is not a JSON object")
    return value


def _object_list(head: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = head.get(key)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RequestInvalid(f"{key}: expected a list of objects")
    names = [item.get("name") for item in value]
    if len(names) != len({str(name) for name in names}):
        raise RequestInvalid(f"{key}: a name is given twice")
    return value


def _object_or_empty(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise RequestInvalid(f"{key}: expected an object")
    if key == "parameters" and (refused := [name for name in REFUSED_PARAMETERS if name in found]):
        raise RequestInvalid(f"parameter {refused[0]!r} is not supported: {REFUSED_PARAMETERS[refused[0]]}")
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
            raise RequestInvalid(
                f"input {spec.name!r}: shape {str(shape)[:80]} has a size that is not a whole number of at least 0"
            )
    fits = len(shape) == len(spec.shape) and all(
        expected == size for size, expected in zip(shape, spec.shape, strict=False) if isinstance(expected, int)
    )
    if not fits:
        raise RequestInvalid(f"input {spec.name!r}: shape is {shape}, expected {list(spec.shape)}")
    return shape
