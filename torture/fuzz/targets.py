"""The fuzz targets: one for each parser of untrusted bytes, except for patches (patch.py)."""

import json
import random
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from bundle.archive import decode_archive, encode_archive
from bundle.device_report import parse_report
from bundle.enrollment import parse_enrollment
from bundle.envelope_shard import decode_shard, encode_shard
from bundle.errors import AirweightsError, GoldenMismatch, Refused
from bundle.fleet import parse_fleet
from bundle.golden.golden_file import read_golden
from bundle.manifest import parse_manifest
from bundle.rollout import parse_rollout
from bundle.vital import parse_vital
from device_agent.errors import InputsRejected, RequestInvalid
from device_agent.runtime import content_coding
from device_agent.runtime.wire import NO_JSON
from packager.errors import ExternalDataMissing, InputFileMissing, ModelUnreadable, ReleaseFileInvalid
from packager.models.inputs import load_proto
from packager.release.release_file import parse_release_file, plan_from_document
from packager.tensors.find_regions import find_file_regions
from packager.tensors.flat_files import find_gguf, find_npy, find_npz, find_safetensors
from packager.tensors.onnx_wire import find_onnx
from packager.tensors.region import MalformedFile, Region, keep_valid_regions
from packager.tensors.tflite import find_tflite
from torture.fuzz.mutations import change_bytes, change_integers, change_json, change_lines, change_value

VECTORS: Final = Path(__file__).parents[2] / "tests" / "vectors"
CORPUS: Final = Path(__file__).parents[1] / "corpus"
MAX_BODY_BYTES: Final = 1 << 20

Read = Callable[[bytes], str]
Change = Callable[[bytes, random.Random], bytes]
FindRegions = Callable[[memoryview], list[Region]]


@dataclass(frozen=True, slots=True)
class Target:
    """One parser of untrusted bytes, with its seeds.

    Attributes:
        read: parse the bytes; returns "accepted" or the reason of an expected refusal.
        change: makes a case from a seed.
        folder: contains the seeds.
        pattern: matches the seeds' file names.
        max_growth_bytes: memory that a run may take above the process before it.
    """

    read: Read
    change: Change
    folder: Path
    pattern: str = "*"
    max_growth_bytes: int = 96 << 20

    def seeds(self) -> list[bytes]:
        """Return the seeds, sorted by file name."""
        return [path.read_bytes() for path in sorted(self.folder.glob(self.pattern)) if path.suffix != ".py"]


def _document(kind: str, parse: Callable[[bytes], Any]) -> Target:
    """Return the target of a signed document; whatever is accepted is written back as the same document."""

    def read(data: bytes) -> str:
        try:
            parsed = parse(data)
        except Refused as error:
            _check_message(error)
            return error.reason
        if hasattr(parsed, "as_bytes"):
            assert parse(parsed.as_bytes()) == parsed
        return "accepted"

    return Target(read, change_json, VECTORS / kind, "good*.json")


def _shard(data: bytes) -> str:
    try:
        envelopes = decode_shard(data)
    except Refused as error:
        _check_message(error)
        return error.reason
    assert encode_shard(envelopes) == data
    return "accepted"


def _golden(data: bytes) -> str:
    try:
        read_golden(data)
    except (Refused, GoldenMismatch) as error:
        _check_message(error)
        return error.reason
    return "accepted"


def _archive(data: bytes) -> str:
    try:
        members = decode_archive(data, MAX_BODY_BYTES)
    except Refused as error:
        _check_message(error)
        return error.reason
    assert sum(map(len, members.values())) <= MAX_BODY_BYTES
    assert decode_archive(encode_archive(members)) == members
    return "accepted"


# endpoint bodies: the length of the JSON part (4 bytes, little-endian; NO_JSON: all), then the body


@cache
def _inference() -> Any:
    """Return an inference handler of a small model with three inputs; it stays loaded."""
    from onnx import helper

    from device_agent.runtime.inference import Inference
    from device_agent.runtime.session import OnnxModel
    from tests.support.memfd_bundles import create_memfd_bundle, make_graph_model

    kinds: dict[str, tuple[str, list[int | str]]] = {
        "x": ("float32", ["n", 2]),
        "ids": ("int64", ["n"]),
        "words": ("string", ["m"]),
    }
    nodes = [
        helper.make_node("Identity", [a], [b])
        for name in kinds
        for a, b in ((name, f"{name}1"), (f"{name}1", f"{name}2"))
    ]
    inputs = [(name, dtype, shape) for name, (dtype, shape) in kinds.items()]
    outputs = [(f"{name}2", dtype, shape) for name, (dtype, shape) in kinds.items()]
    with create_memfd_bundle(make_graph_model(nodes, inputs, outputs)) as bundle:
        loaded = OnnxModel.load(bundle.fds, threads=1)
        return Inference(loaded, bundle.contract, "toy", "1.0.0", max_response_bytes=MAX_BODY_BYTES)


def _endpoint(data: bytes) -> str:
    json_bytes, body = int.from_bytes(data[:4], "little"), data[4:]
    try:
        response = _inference().handle_request(memoryview(body), json_bytes)
    except (RequestInvalid, InputsRejected) as error:
        _check_message(error)
        return error.reason
    text = b"".join(response.parts)
    json.loads(text if response.json_bytes == NO_JSON else text[: response.json_bytes])
    return "accepted"


def _change_body(data: bytes, dice: random.Random) -> bytes:
    json_bytes, body = int.from_bytes(data[:4], "little"), data[4:]
    is_all = json_bytes == NO_JSON
    head, raw = (body, b"") if is_all else (body[:json_bytes], body[json_bytes:])
    if raw and dice.random() < 0.3:
        raw = change_bytes(raw, dice)
    else:
        head = change_json(head, dice)
    length = NO_JSON if is_all else len(head)
    if dice.random() < 0.05:
        length = dice.choice((0, 1, len(head) - 1, len(head) + 1, 1 << 31, NO_JSON)) % (1 << 32)
    return length.to_bytes(4, "little") + head + raw


def _coding(data: bytes) -> str:
    encoding = "gzip" if data[:1] == b"g" else "deflate"
    try:
        assert len(content_coding.decompress(memoryview(data)[1:], encoding, MAX_BODY_BYTES)) <= MAX_BODY_BYTES
    except RequestInvalid as error:
        return error.reason
    return "accepted"


# release files


@cache
def _release_folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="fuzz-release-")
    for name in ("model.onnx", "inputs.npz", "labels.txt"):
        (Path(folder.name) / name).write_bytes(b"")
    return folder


def _release_file(data: bytes) -> str:
    folder = Path(_release_folder().name)
    place = folder / "release.toml"
    place.write_bytes(data)
    try:
        parse_release_file(place)
    except (ReleaseFileInvalid, InputFileMissing) as error:
        _check_message(error)
        return error.reason
    return "accepted"


def _release_document(data: bytes) -> str:
    """Read what the TOML parser would return, changed by value; JSON stands for it."""
    try:
        document = json.loads(data)
    except ValueError:
        return "not JSON"
    if not isinstance(document, dict):
        return "not a table"
    try:
        plan_from_document(document, Path(_release_folder().name), where="release.toml")
    except (ReleaseFileInvalid, InputFileMissing) as error:
        _check_message(error)
        return error.reason
    return "accepted"


def _change_release_document(data: bytes, dice: random.Random) -> bytes:
    document = tomllib.loads(data.decode())
    for _ in range(dice.randint(1, 3)):
        document = change_value(document, dice)
    return json.dumps(document).encode()


# headers of model files


def _regions(name: str, find: FindRegions) -> Target:
    def read(data: bytes) -> str:
        try:
            found = find(memoryview(data))
        except MalformedFile:
            return "malformed"
        end = 0
        for region in keep_valid_regions(found, len(data)):
            assert end <= region.offset <= region.offset + region.size <= len(data), region
            end = region.offset + region.size
        return "accepted"

    return Target(read, change_integers, CORPUS / name)


def _onnx_regions(data: memoryview) -> list[Region]:
    regions, external = find_onnx(data)
    keep_valid_regions([entry.region for entry in external], len(data))
    return regions


def _onnx_file(data: bytes) -> str:
    place = Path(_release_folder().name) / "fuzzed.onnx"
    place.write_bytes(data)
    if data:
        find_file_regions(place)
    try:
        load_proto(place)
    except (ModelUnreadable, ExternalDataMissing) as error:
        _check_message(error)
        return error.reason
    return "accepted"


def _check_message(error: AirweightsError) -> None:
    """Check that the message can be encoded; a lone surrogate of a JSON escape could not be printed."""
    error.message.encode()


TARGETS: Final[Mapping[str, Target]] = {
    "manifest": _document("manifest", parse_manifest),
    "rollout": _document("rollout", parse_rollout),
    "fleet": _document("fleet", parse_fleet),
    "enrollment": _document("enrollment", parse_enrollment),
    "report": _document("report", parse_report),
    "vital": _document("vital", parse_vital),
    "shard": Target(_shard, change_integers, VECTORS / "shard", "*.bin"),
    "golden": Target(_golden, change_integers, VECTORS / "golden", "good*.bin"),
    "archive": Target(_archive, change_integers, CORPUS / "archive"),
    "endpoint": Target(_endpoint, _change_body, CORPUS / "endpoint"),
    "endpoint-coding": Target(_coding, change_bytes, CORPUS / "endpoint-coding"),
    "release-file": Target(_release_file, change_lines, CORPUS / "release-file"),
    "release-document": Target(_release_document, _change_release_document, CORPUS / "release-file"),
    "onnx": Target(_onnx_file, change_integers, CORPUS / "onnx"),
    "onnx-regions": _regions("onnx", _onnx_regions),
    "tflite": _regions("tflite", find_tflite),
    "safetensors": _regions("safetensors", find_safetensors),
    "gguf": _regions("gguf", find_gguf),
    "npz": _regions("npz", find_npz),
    "npy": _regions("npy", find_npy),
}


def write_corpus() -> None:
    """Write the corpora of TARGETS that are not test vectors; failures that were added stay."""
    import gzip
    import io
    import zlib

    from tests.support import model_formats
    from tests.support.release_texts import SMALL, WHOLE

    rng = np.random.default_rng(3)
    arrays: model_formats.Arrays = {
        "w": rng.normal(0, 1, (6, 8)).astype(np.float32),
        "h": rng.normal(0, 1, (5, 9)).astype(np.float16),
        "b": np.arange(70, dtype=np.int8),
    }
    files = {f"{name}/weights": write(arrays) for name, write in model_formats.FORMATS.items()}
    files["onnx/branches"] = _branching_model()
    stream = io.BytesIO()
    np.save(stream, arrays["w"])
    files["npy/weights"] = stream.getvalue()
    for name, head, raw in _bodies():
        text = json.dumps(head).encode()
        files[f"endpoint/{name}"] = (len(text) if raw else NO_JSON).to_bytes(4, "little") + text + raw
    files["endpoint-coding/gzip"] = b"g" + gzip.compress(bytes(2000) + b"text" * 9, mtime=0)
    files["endpoint-coding/deflate"] = b"d" + zlib.compress(bytes(2000) + b"text" * 9)
    files["endpoint-coding/bomb"] = b"g" + gzip.compress(bytes(MAX_BODY_BYTES * 8), mtime=0)
    files["archive/three"] = encode_archive({"1.root.json": b"{}" * 40, "2.root.json": b"", "a/b": bytes(3000)})
    files["release-file/small"] = SMALL.encode()
    files["release-file/whole"] = WHOLE.encode()
    for name, data in files.items():
        (CORPUS / name).parent.mkdir(parents=True, exist_ok=True)
        (CORPUS / name).write_bytes(data)


def _bodies() -> list[tuple[str, Any, bytes]]:
    x = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    ids = {"name": "ids", "datatype": "INT64", "shape": [2]}
    words = {"name": "words", "datatype": "BYTES", "shape": [1]}
    plain = [x | {"data": [[1, 2.5], [None, -1e-3]]}, ids | {"data": [1, -9]}, words | {"data": ["é"]}]
    sized = [entry | {"parameters": {"binary_data_size": size}} for entry, size in ((x, 16), (ids, 16), (words, 5))]
    raw = np.arange(4, dtype=np.float32).tobytes() + np.arange(2, dtype=np.int64).tobytes() + b"\1\0\0\0a"
    outputs = [{"name": "x2", "parameters": {"binary_data": True}}, {"name": "words2"}]
    flat = [x | {"data": [1, 2, 3, 4]}, ids | {"data": [0, 2**63 - 1]}, words | {"data": [["b"]]}]
    return [
        ("plain", {"inputs": plain, "id": "1"}, b""),
        ("flat", {"inputs": flat, "parameters": {"binary_data_output": False}}, b""),
        ("binary", {"inputs": sized, "outputs": outputs}, raw),
    ]


def _branching_model() -> bytes:
    """Return a model with a branch, a sparse tensor and external data."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [20])
    constant = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(20, np.float32)))
    branch = helper.make_graph([constant], "branch", [], [value])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    outside = TensorProto(name="outside", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        outside.external_data.add(key=key, value=text)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(2, np.float32), "s"), numpy_helper.from_array(np.array([0, 3])), [8]
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [value], [outside],
        sparse_initializer=[sparse],
    )  # fmt: skip
    return bytes(helper.make_model(graph).SerializeToString())
