"""Whether two models' answers to one request agree; used by a candidate that runs in the shadow of the live model.

Rules:
1. An output agrees if dtype and shape are the live answer's and, for floats, the relative RMS difference is within the
   limit or the largest element of each last axis is at the same place (a classifier's decision is what its app sees).
   Integers, booleans and strings agree if they are equal.
2. Answers agree if all their outputs do. A live answer with NaN or infinity has nothing to compare with: it agrees.
"""

import json
from collections.abc import Mapping

import numpy as np

from bundle.golden import relative_rms
from device_agent.errors import InferenceFailed
from device_agent.runtime.tensors import DATATYPES, Array, from_bytes, from_json, has_non_finite
from device_agent.runtime.wire import NO_JSON

MAX_ERROR_PPM = 10**9  # reported for answers of another dtype or shape, and as a ceiling


def decode_response(body: memoryview, json_bytes: int) -> dict[str, Array]:
    """The outputs of an answer that device_agent.runtime.inference made. Raises InferenceUnfit."""
    length = len(body) if json_bytes == NO_JSON else json_bytes
    raw = body[length:]
    out: dict[str, Array] = {}
    try:
        for row in json.loads(bytes(body[:length]))["outputs"]:
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
        raise InferenceFailed("the live answer cannot be read") from error
    return out


def compare_outputs(
    answers: Mapping[str, Array], live_answers: Mapping[str, Array], limit_ppm: int
) -> tuple[bool, int]:
    """Rules 1 and 2.

    Returns:
        whether they agree, and the largest relative RMS difference in parts per million.
    """
    agrees, worst = True, 0
    for name, theirs in live_answers.items():
        mine = answers.get(name)
        if mine is None or mine.dtype != theirs.dtype or mine.shape != theirs.shape:
            return False, MAX_ERROR_PPM
        if theirs.dtype.kind != "f":
            agrees = agrees and bool(np.array_equal(mine, theirs))
            continue
        if not theirs.size or has_non_finite(theirs):
            continue
        if has_non_finite(mine):
            return False, MAX_ERROR_PPM
        ppm = min(round(relative_rms(mine, theirs) * 1e6), MAX_ERROR_PPM)
        worst = max(worst, ppm)
        agrees = agrees and (ppm <= limit_ppm or _is_same_decision(mine, theirs))
    return agrees, worst


def _is_same_decision(mine: Array, theirs: Array) -> bool:
    if not theirs.ndim or theirs.shape[-1] < 2:
        return False
    return bool(np.array_equal(mine.argmax(axis=-1), theirs.argmax(axis=-1)))
