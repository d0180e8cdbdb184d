"""Ask a served model what sound this is, as any program would: HTTP, Open Inference Protocol v2, JSON.

python ask.py http://127.0.0.1:8500 sounds "high tone"
"""

import json
import sys
import time
import urllib.error
import urllib.request

from make_models import LABELS, sounds

WAIT_S = 30.0  # for a model that is being loaded


def ask(address: str, family: str, label: str) -> tuple[str, float, str]:
    """The answer's label and score, and the release that gave it, for a sound of kind `label`."""
    sound = sounds(LABELS.index(label), 1, seed=7)[0]
    tensor = {"name": "sound", "datatype": "FP32", "shape": list(sound.shape), "data": sound.ravel().tolist()}
    request = urllib.request.Request(  # noqa: S310  # the address is the caller's own
        f"{address}/v2/models/{family}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    answer = json.loads(answered(request))
    scores = answer["outputs"][0]["data"]
    best = max(range(len(scores)), key=scores.__getitem__)
    return LABELS[best], scores[best], answer["model_version"]


def answered(request: urllib.request.Request) -> bytes:
    """The body of the answer; while nobody listens or nothing is loaded, it is asked again for WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310  # as above
                return bytes(response.read())
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


if __name__ == "__main__":
    try:
        found, score, version = ask(*sys.argv[1:4])
    except urllib.error.URLError as error:
        sys.exit(f"no answer: {error}")
    print(f"{found} ({score:.2f}), says release {version}")
