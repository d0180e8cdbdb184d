"""Classify a sound with a served model, over HTTP and JSON (Open Inference Protocol v2).

python ask.py http://127.0.0.1:8500 sounds "high tone"
"""

import json
import sys
import time
import urllib.error
import urllib.request

from make_models import LABELS, sounds

WAIT_S = 30.0  # time for the endpoint to start and load its model


def ask(address: str, family: str, label: str) -> tuple[str, float, str]:
    """Send one sound to the endpoint.

    Args:
        address: URL of the endpoint.
        family: name of the model.
        label: kind of sound to send, one of LABELS.

    Returns:
        The label with the highest score, that score, and the version of the release that computed it.
    """
    sound = sounds(LABELS.index(label), 1, seed=7)[0]
    tensor = {"name": "sound", "datatype": "FP32", "shape": list(sound.shape), "data": sound.ravel().tolist()}
    request = urllib.request.Request(  # noqa: S310  # the address is the caller's own
        f"{address}/v2/models/{family}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    response = json.loads(read_response(request))
    scores = response["outputs"][0]["data"]
    best = max(range(len(scores)), key=scores.__getitem__)
    return LABELS[best], scores[best], response["model_version"]


def read_response(request: urllib.request.Request) -> bytes:
    """Return the response body; retry for WAIT_S while the endpoint is not ready."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  # the caller's own address
                return bytes(response.read())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        found, score, version = ask(*sys.argv[1:4])
    except urllib.error.URLError as error:
        sys.exit(f"no response from the endpoint: {error}")
    print(f"{found} ({score:.2f}), says release {version}")
