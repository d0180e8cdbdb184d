"""Send golden inputs through the request parser, as clients would.

1. Each golden input is written as the JSON body and as the body with raw tensors that a client would send, parsed, run,
   and the response is read back and compared with the golden outputs.
2. Inputs of more than MAX_JSON_VALUES numbers, and those of a streaming model, are written as raw tensors only.
3. Without golden vectors, one request is sent and only has to be answered.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from bundle.contract import Contract
from bundle.golden.comparison import GoldenVector, check_outputs
from device_agent.errors import EndpointRefuses, InferenceFailed, RequestInvalid
from device_agent.runtime.comparison import decode_response
from device_agent.runtime.inference import Inference
from device_agent.runtime.loaded_model import LoadedModel
from device_agent.runtime.oip import oip_datatype_name
from device_agent.runtime.tensors import Array, to_bytes, to_json
from device_agent.runtime.wire import NO_JSON

MAX_JSON_VALUES: Final = 1_000_000


def encode_request(inputs: Mapping[str, Array], contract: Contract, *, is_raw: bool) -> tuple[bytes, int]:
    """Return a request body and the length of its JSON part, or NO_JSON.

    Args:
        inputs: an array for each input of the contract.
        contract: the model's contract.
        is_raw: write raw tensors behind the JSON part, and ask for raw outputs; otherwise all is JSON.
    """
    rows: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for spec in contract.inputs:
        array = np.asarray(inputs[spec.name])
        row: dict[str, Any] = {"name": spec.name, "datatype": oip_datatype_name(spec), "shape": list(array.shape)}
        if is_raw:
            raw.append(bytes(to_bytes(array)))
            row["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            row["data"] = to_json(array)
        rows.append(row)
    head = {"inputs": rows, "parameters": {"binary_data_output": True}} if is_raw else {"inputs": rows}
    text = json.dumps(head).encode()
    return b"".join((text, *raw)), len(text) if is_raw else NO_JSON


def ask_golden_requests(
    model: LoadedModel,
    contract: Contract,
    samples: Sequence[GoldenVector],
    other_inputs: Sequence[Mapping[str, Array]],
    tolerance_ppm: int,
) -> int:
    """Answer the golden inputs as requests, and return the number of requests.

    Args:
        model: the loaded model.
        contract: its contract.
        samples: its golden samples.
        other_inputs: inputs to ask if there are no samples.
        tolerance_ppm: maximum relative RMS error of an answer, in parts per million.

    Raises:
        EndpointRefuses: a request was refused, or its answer cannot be read.
        GoldenMismatch: an answer differs by more than the tolerance.
    """
    model = model.in_initial_state()
    inference = Inference(model, contract, "probe", "0", [sample.inputs for sample in samples])
    asked = 0
    for number, inputs in enumerate([sample.inputs for sample in samples] or other_inputs):
        values = sum(np.asarray(array).size for array in inputs.values())
        for is_raw in (True,) if values > MAX_JSON_VALUES or model.is_stateful else (False, True):
            where = f"golden {number} as a request with {'raw tensors' if is_raw else 'JSON'}"
            body, json_bytes = encode_request(inputs, contract, is_raw=is_raw)
            try:
                response = inference.handle_request(memoryview(body), json_bytes)
                text = memoryview(b"".join(response.parts))
                outputs = decode_response(text, response.json_bytes)
            except (RequestInvalid, InferenceFailed) as error:
                raise EndpointRefuses(f"{where}: {error.message}") from error
            asked += 1
            if samples:
                check_outputs(outputs, samples[number], tolerance_ppm=tolerance_ppm, where=where)
    return asked
