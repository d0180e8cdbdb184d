"""The load process of the demo: sends requests at a steady rate.

    python -m packager.demo.load_generator ADDRESS FAMILY INPUTS RATE

Rules:
- Open loop: request k is due at start + k / rate, whatever happened before. Its latency counts from that time, so a
  stall shows in every request that it delayed.
- The process stops when its standard input ends. It then prints one JSON object:
  `{"requests": [[due_s, latency_s, is_answered, is_finite, version], …]}`, with times of the monotonic clock in
  seconds.
"""

import json
import select
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from packager.demo.inference_client import InferenceClient, InferenceUnavailable

MAX_REQUESTS: Final = 100_000


def main(address: str, family: str, inputs: Path, rate: float) -> None:
    """Send requests until standard input ends, then print them.

    Args:
        address: endpoint of the device.
        family: name of the model.
        inputs: `.npz` with the samples to send, first axis = sample.
        rate: requests per second.
    """
    with np.load(inputs, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    samples = len(next(iter(arrays.values())))
    client = InferenceClient(address, family)
    rows: list[tuple[float, float, bool, bool, str]] = []
    start = time.monotonic()
    for number in range(MAX_REQUESTS):
        due = start + number / rate
        if _has_input_ended(max(0.0, due - time.monotonic())):
            break
        ok = finite = True
        version = ""
        try:
            response = client.infer({name: array[number % samples] for name, array in arrays.items()})
            version = response.version
            finite = all(np.isfinite(out).all() for out in response.outputs.values() if out.dtype.kind == "f")
        except InferenceUnavailable:
            ok = False
        rows.append((due, time.monotonic() - due, ok, bool(finite), version))
    json.dump({"requests": rows}, sys.stdout)


def _has_input_ended(wait_s: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))
