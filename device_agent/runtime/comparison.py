"""Decide whether two models' outputs for one request agree; used in shadow mode.

Rules:
1. An output agrees only if its dtype and shape are those of the live model's output. A float output then agrees if the
   relative RMS difference is at most the limit, or if the largest element of each last axis is at the same index, which
   is the decision of a classifier. Integer, Boolean and string outputs agree if they are equal.
2. Two responses agree if all their outputs do. A float output of the live model that has NaN or infinity cannot be
   compared and counts as agreeing.
"""

import json
from collections.abc import Mapping

import numpy as np

from bundle.golden.relative_error import relative_rms
from device_agent.errors import InferenceFailed
from device_agent.runtime.tensors import DATATYPES, Array, from_bytes, from_json, has_non_finite
from device_agent.runtime.wire import NO_JSON

MAX_ERROR_PPM = 10**9  # reported for outputs of another dtype or shape, and the upper bound of all others


def decode_response(body: memoryview, json_bytes: int) -> dict[str, Array]:
    """Return the outputs in a response that device_agent.runtime.inference created.

    Args:
        body: the response body, uncompressed.
        json_bytes: length of its JSON part; NO_JSON if all of it is JSON.

    Raises:
        InferenceFailed: the response has another form.
    """
    json_end = len(body) if json_bytes == NO_JSON else json_bytes
    raw = body[json_end:]
    out: dict[str, Array] = {}
    try:
        for row in json.loads(bytes(body[:json_end]))["outputs"]:
            name, datatype, shape = row["name"], row["datatype"], row["shape"]
            if "data" in row:
                data = [float("nan") if value is None else value for value in row["data"]]
                array = np.array(data, DATATYPES[datatype]) if None in row["data"] else None
                out[name] = (
                    from_json(row["data"], datatype, shape, name) if array is None else array.reshape(tuple(shape))
                )
            else:
                size = row["parameters"]["binary_data_size"]
                out[name] = from_bytes(raw[:size], datatype, shape, name)
                raw = raw[size:]
    except (ValueError, KeyError, TypeError) as error:
        raise InferenceFailed("cannot read the live model's response") from error
    return out


def compare_outputs(
    outputs: Mapping[str, Array], live_outputs: Mapping[str, Array], limit_ppm: int
) -> tuple[bool, int]:
    """Compare a candidate's outputs with the live model's (rules 1 and 2).

    Args:
        outputs: outputs of the candidate, by name.
        live_outputs: outputs of the live model, by name.
        limit_ppm: relative RMS difference up to which float outputs agree, in parts per million.

    Returns:
        Whether they agree, and the largest relative RMS difference in parts per million, at most MAX_ERROR_PPM.
    """
    agrees, worst = True, 0
    for name, live in live_outputs.items():
        output = outputs.get(name)
        if output is None or output.dtype != live.dtype or output.shape != live.shape:
            return False, MAX_ERROR_PPM
        if live.dtype.kind != "f":
            agrees = agrees and bool(np.array_equal(output, live))
            continue
        if not live.size or has_non_finite(live):
            continue
        if has_non_finite(output):
            return False, MAX_ERROR_PPM
        ppm = min(round(relative_rms(output, live) * 1e6), MAX_ERROR_PPM)
        worst = max(worst, ppm)
        agrees = agrees and (ppm <= limit_ppm or _is_same_decision(output, live))
    return agrees, worst


def _is_same_decision(output: Array, live: Array) -> bool:
    if not live.ndim or live.shape[-1] < 2:
        return False
    return bool(np.array_equal(output.argmax(axis=-1), live.argmax(axis=-1)))
