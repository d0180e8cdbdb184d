"""Write the test vectors of golden files: `python -m tests.vectors.golden_files`.

The folder `golden` has golden files with one defect each, and valid ones. `expected` (JSON) has the reason of the
expected refusal; of a valid file, the reason of comparing `make_outputs` with it, or null if they pass with a tolerance
of 1,000 ppm. `streams` (JSON) has the first signs and buckets of an output, and the first elements of a noise.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Final

import numpy as np

from bundle.golden.golden_file import MAGIC, describe_outputs, write_golden_file
from bundle.golden.inputs import (
    Array,
    StoredInput,
    draw_noise,
    encode_integers,
    encode_noise,
    encode_place,
    encode_raw,
)
from bundle.golden.sketch import SKETCH_LABEL
from bundle.strict_json import JSON, encode

FOLDER: Final = Path(__file__).parent
PLACE: Final = (3, "bœuf", (2, 20, 33))  # sample, name, shape


def make_outputs(sample: int) -> dict[str, Array]:
    """Return a whole, a sketched, an integer and a string output; integers only make the numbers."""
    places = np.arange(2 * 20 * 33).reshape(2, 20, 33)
    signal = ((places * 7919 + sample * 104_729) % 1009 - 504) * (1 + places % 33) / 64
    return {
        "scores": np.array([1 + sample, -2, 0.5], np.float32),
        "map": signal.astype(np.float32),
        "best": np.array([sample, 5], np.int64),
        "label": np.array(["cat", "bœuf"], object),
    }


def make_good() -> bytes:
    """Return a valid file of two samples that uses every input code."""
    image = np.zeros((1, 16, 16), np.float32)
    levels = np.arange(256).reshape(image.shape)
    first = {
        "image": encode_integers(image, levels, "u8", (-1.0, 2 / 255)),
        "ids": encode_integers(np.zeros(3, np.int64), np.array([-1, 0, 7]), "i8", None),
        "mask": encode_raw(np.ones(9, np.int64)),
        "noise": encode_noise(np.array([[-1, 3]] * 20, np.float32)),
        "raw": encode_raw(np.array([np.nan, 1])),
    }
    second = {**first, "image": StoredInput("float32", image.shape, "same", b"")}
    outputs = [make_outputs(0), make_outputs(1)]
    return write_golden_file([first, second], outputs, describe_outputs(outputs))


def change_header(change: dict[str, JSON]) -> bytes:
    """Return the valid file with other fields in its header."""
    good = make_good()
    start = len(MAGIC) + 4
    (length,) = struct.unpack_from("<I", good, len(MAGIC))
    head = encode({**json.loads(good[start : start + length]), **change})
    return MAGIC + struct.pack("<I", len(head)) + head + good[start + length :]


def make_vectors() -> dict[str, tuple[bytes, str | None]]:
    """Return each file by its name, with its expected reason."""
    good = make_good()
    other = bytearray(good)
    other[-1] ^= 0x20  # a bucket of the last sample's sketch
    digest = hashlib.sha256(np.array([1, 5], "<i8").tobytes()).digest()
    scale_at = good.index(hashlib.sha256(np.array([0, 5], "<i8").tobytes()).digest()) - 10 - 14
    huge: JSON = [{"inputs": [{"code": "noise", "dtype": "float64", "name": "x", "shape": [2**30]}], "outputs": []}]
    return {
        "good": (good, None),
        "bucket-changed": (bytes(other), "golden-mismatch"),
        "digest-changed": (good.replace(digest, bytes(32)), "golden-mismatch"),
        "empty": (b"", "malformed"),
        "magic-of-another": (b"x" + good[1:], "malformed"),
        "header-too-long": (MAGIC + b"\xff\xff\xff\x7f" + good[len(MAGIC) + 4 :], "too-large"),
        "byte-added": (good + b"\0", "malformed"),
        "last-byte-missing": (good[:-1], "malformed"),
        "no-samples": (change_header({"samples": []}), "malformed"),
        "unknown-field": (change_header({"seed": 1}), "malformed"),
        "inputs-too-large": (change_header({"samples": huge, "outputs": []}), "too-large"),
        "output-twice": (change_header({"outputs": [{"dtype": "bool", "name": "a"}] * 2}), "malformed"),
        "scale-not-finite": (good[:scale_at] + b"\xff" * 4 + good[scale_at + 4 :], "malformed"),
    }


def make_streams() -> dict[str, JSON]:
    """Return the start of the streams of PLACE."""
    seed = SKETCH_LABEL + encode_place(*PLACE) + struct.pack("<I", 0)
    drawn = hashlib.shake_128(seed).digest(16)
    return {
        "sample": PLACE[0],
        "name": PLACE[1],
        "shape": list(PLACE[2]),
        "seed": seed.hex(),
        "buckets": [byte & 63 for byte in drawn],
        "signs": [-1 if byte & 128 else 1 for byte in drawn],
        "noise": [int(value) for value in draw_noise(*PLACE).reshape(-1)[:16]],
    }


def main() -> None:
    """Write all files of the folder."""
    vectors = make_vectors()
    folder = FOLDER / "golden"
    for path in folder.glob("*.bin"):
        path.unlink()
    for name, (data, _) in vectors.items():
        (folder / f"{name}.bin").write_bytes(data)
    expected = {name: outcome for name, (_, outcome) in sorted(vectors.items())}
    (folder / "expected").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "streams").write_text(json.dumps(make_streams(), indent=1) + "\n")


if __name__ == "__main__":
    main()
