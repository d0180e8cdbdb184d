"""Create files of many kinds, each with a plausible next version: (kind, bytes, bytes of the next version)."""

import base64
import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import struct
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.published_pairs import make_safetensors
from benchmarks.scatter_plot import encode_png

ELEMENTS: Final = 40_000
Array = np.ndarray[Any, Any]
File = tuple[str, bytes, bytes]


def generate_file_pairs(seed: int) -> Iterator[File]:
    """Yield a pair of files of every kind."""
    rng = np.random.default_rng(seed)
    yield from _generate_texts(rng)
    yield from _generate_binaries(rng)
    yield from _generate_archives(rng)
    yield from _generate_tensor_files(rng)


def _as_pair(sides: Iterable[bytes]) -> tuple[bytes, bytes]:
    first, second = sides
    return first, second


def _read_sources(rng: np.random.Generator, count: int) -> list[bytes]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [files[i].read_bytes() for i in rng.choice(len(files), count, replace=False)]


def _make_table(rng: np.random.Generator, rows: int) -> list[tuple[int, str, float]]:
    words = ["on", "off", "stale", "fresh", "calibrating"]
    return [(i, words[rng.integers(5)], round(float(rng.normal()), 4)) for i in range(rows)]


def _generate_texts(rng: np.random.Generator) -> Iterator[File]:
    one, two = b"".join(_read_sources(rng, 4)), b"".join(_read_sources(rng, 4))
    yield "source code", one, two
    yield (
        "UTF-16 text",
        one.decode("utf-8", "replace").encode("utf-16"),
        two.decode("utf-8", "replace").encode("utf-16"),
    )
    table = _make_table(rng, 4000)
    later = [(i, word, round(x + 0.01 * float(rng.normal()), 4)) for i, word, x in table]
    rows = ["\n".join(f"{i},{word},{x}" for i, word, x in t).encode() for t in (table, later)]
    yield "CSV", rows[0], rows[1]
    yield "JSON", json.dumps(table).encode(), json.dumps(later).encode()
    yield "JSON, then indented", json.dumps(table).encode(), json.dumps(table, indent=2).encode()
    pieces = sorted({word for word in one.decode("utf-8", "replace").split() if len(word) < 20})
    vocabularies = [
        {word: i for i, word in enumerate(words)} for words in (pieces, [*pieces[:50], "new", *pieces[50:]])
    ]
    yield (
        "tokenizer JSON, ids moved",
        *_as_pair(json.dumps({"model": {"vocab": v}}, indent=1).encode() for v in vocabularies),
    )
    weights = rng.normal(0, 0.02, ELEMENTS // 4).astype(np.float32)
    tuned = weights + rng.normal(0, 1e-4, weights.size).astype(np.float32)
    yield "base64 of weights", base64.b64encode(weights.tobytes()), base64.b64encode(tuned.tobytes())
    yield "weights as text", *_as_pair("\n".join(f"{x:.6g}" for x in w).encode() for w in (weights, tuned))
    yield "a few bytes", b"version = 1\n", b"version = 2\n"


def _generate_binaries(rng: np.random.Generator) -> Iterator[File]:
    random = rng.bytes(150_000)
    yield "random bytes", random, random[60_000:] + random[:60_000]
    yield "zeros", bytes(200_000), bytes(100_000) + b"\1" + bytes(99_999)
    yield "a short pattern", b"airweights\0" * 15_000, b"airweights\1" * 15_000
    libraries = sorted(Path(np.__file__).parent.rglob("*.so"), key=lambda path: path.stat().st_size)
    yield "shared library", libraries[len(libraries) // 2].read_bytes(), libraries[len(libraries) // 2 - 1].read_bytes()
    interpreter = Path(sys.executable).resolve().read_bytes()[:300_000]
    yield "executable", interpreter, interpreter[:100_000] + rng.bytes(24) + interpreter[100_008:]
    yield "pickle", *_as_pair(pickle.dumps(_make_table(rng, rows)) for rows in (2000, 2100))
    yield "sqlite", _make_sqlite(_make_table(rng, 3000)), _make_sqlite(_make_table(rng, 3300))
    ramp = np.add.outer(np.arange(240), np.arange(320))[:, :, None] * np.array([1, 2, 3])
    noisy = [((ramp + rng.integers(0, 9, ramp.shape)) & 255).astype(np.uint8) for _ in range(2)]
    yield "PNG", encode_png(noisy[0]), encode_png(noisy[1])
    yield "bitmap", noisy[0].tobytes(), noisy[1].tobytes()
    sound = np.cumsum(rng.normal(0, 50, ELEMENTS)).astype(np.int16)
    yield "16-bit sound", sound.tobytes(), np.roll(sound, 441).tobytes()
    stamps = np.cumsum(rng.integers(1, 90, ELEMENTS // 2)).astype(np.int64)
    yield "sorted int64", stamps.tobytes(), (stamps + 3600).tobytes()


def _make_sqlite(rows: list[tuple[int, str, float]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "readings.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE readings (id INTEGER PRIMARY KEY, state TEXT, value REAL)")
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?)", rows)
        connection.commit()
        connection.close()
        return path.read_bytes()


def _generate_archives(rng: np.random.Generator) -> Iterator[File]:
    files = {f"m{i}.py": data for i, data in enumerate(_read_sources(rng, 8))}
    later = {**files, "m3.py": files["m3.py"].replace(b"self", b"this"), "new.py": _read_sources(rng, 1)[0]}
    tars = [_make_tar(files), _make_tar(later)]
    yield "tar", tars[0], tars[1]
    yield "tar.gz", *_as_pair(gzip.compress(tar, mtime=0) for tar in tars)
    yield "tar.bz2", *_as_pair(bz2.compress(tar) for tar in tars)
    yield "tar.xz", *_as_pair(lzma.compress(tar) for tar in tars)
    yield "zip", _make_zip(files, zipfile.ZIP_DEFLATED), _make_zip(later, zipfile.ZIP_DEFLATED)
    yield "zip, stored", _make_zip(files, zipfile.ZIP_STORED), _make_zip(later, zipfile.ZIP_STORED)


def _make_tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _make_zip(files: dict[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def _generate_tensor_files(rng: np.random.Generator) -> Iterator[File]:
    old = rng.normal(0, 0.02, (200, ELEMENTS // 200)).astype(np.float32)
    new = old + rng.normal(0, 1e-4, old.shape).astype(np.float32)
    half = [a.astype(np.float16) for a in (old, new)]
    level = [np.clip(np.rint(a / 6e-4), -127, 127).astype(np.int8) for a in (old, new)]
    makers: dict[str, Callable[[Array], bytes]] = {
        "raw": lambda a: a.tobytes(),
        "npy": lambda a: _make_npy(a),
        "npz": lambda a: _make_npz(a, np.savez),
        "npz, compressed": lambda a: _make_npz(a, np.savez_compressed),
        "safetensors": lambda a: make_safetensors({"w": a}),
        "GGUF": _make_gguf,
        "ONNX": _make_onnx,
    }
    for name, make in makers.items():
        for sides in ((old, new), half, level):
            yield f"{name} of {sides[0].dtype.name}", make(sides[0]), make(sides[1])
        yield f"{name}, float32 to float16", make(old), make(half[1])
        yield f"{name}, float32 to int8", make(old), make(level[1])
    for dtype in ("float64", "int16", "int32", "int64", "uint8", "bool"):
        sides = [(a > 0 if dtype == "bool" else a * 3e4).astype(dtype) for a in (old, new)]
        yield f"npz of {dtype}", _make_npz(sides[0], np.savez), _make_npz(sides[1], np.savez)
        yield f"ONNX of {dtype}", _make_onnx(sides[0]), _make_onnx(sides[1])
    for block in ("Q8_0", "Q4_0"):
        yield f"GGUF of {block}", _make_gguf_blocks(old, block), _make_gguf_blocks(new, block)
    one_more = make_safetensors({"w": old, "b": rng.normal(size=50).astype(np.float32)})
    yield "safetensors, a tensor more", make_safetensors({"w": old}), one_more
    yield "safetensors, transposed", make_safetensors({"w": old}), make_safetensors({"w": np.ascontiguousarray(new.T)})
    yield "ONNX to safetensors", _make_onnx(old), make_safetensors({"w": new})
    yield "ONNX, damaged", _make_onnx(old), _make_onnx(new)[:-100]
    f8 = [_make_f8_safetensors(a) for a in (old, new)]
    yield "safetensors of F8", f8[0], f8[1]
    large = rng.normal(0, 0.02, (3000, 200)).astype(np.float32)
    grown = np.insert(large, 1700, rng.normal(0, 0.02, (2, 200)), axis=0).astype(np.float32)
    yield "ONNX of a vocabulary that grew", _make_onnx(large), _make_onnx(grown)
    yield "large ONNX", _make_onnx(large), _make_onnx(large + rng.normal(0, 1e-4, large.shape).astype(np.float32))


def _make_npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _make_npz(array: Array, save: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    save(stream, w=array, labels=np.arange(10))
    return stream.getvalue()


def _make_f8_safetensors(array: Array) -> bytes:
    bits = (array.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8)  # E5M2 is the upper half of float16
    header = json.dumps(
        {"w": {"dtype": "F8_E5M2", "shape": list(bits.shape), "data_offsets": [0, bits.nbytes]}}
    ).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bits.tobytes()


def _make_onnx(array: Array) -> bytes:
    from onnx import helper, numpy_helper

    value = helper.make_tensor_value_info("x", 1, [1])
    tensor = numpy_helper.from_array(array, "w")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [value], [value], [tensor])
    )
    out: bytes = model.SerializeToString()
    return out


GGUF_TYPES: Final = {"float32": 0, "float16": 1, "int8": 24, "Q4_0": 2, "Q8_0": 8}
GGUF_ALIGNMENT: Final = 32


def _make_gguf(array: Array) -> bytes:
    return _make_gguf_file(array.shape, GGUF_TYPES[array.dtype.name], array.tobytes())


def _make_gguf_blocks(array: Array, block: str) -> bytes:
    """Return a GGUF file whose blocks are a float16 scale followed by 32 elements of one row."""
    rows = array.reshape(-1, 32)
    levels = 127 if block == "Q8_0" else 7
    scale = (np.abs(rows).max(1, keepdims=True) / levels).astype(np.float16)
    found = np.rint(rows / np.maximum(scale.astype(np.float32), 1e-8)).astype(np.int8)
    packed = found.view(np.uint8) if block == "Q8_0" else _pack_nibbles(found)
    data = np.concatenate([scale.view(np.uint8), packed], 1).tobytes()
    return _make_gguf_file(array.shape, GGUF_TYPES[block], data)


def _pack_nibbles(levels: Array) -> Array:
    raised = np.clip(levels + 8, 0, 15).astype(np.uint8)
    out: Array = raised[:, :16] | (raised[:, 16:] << 4)
    return out


def _make_gguf_file(shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.architecture") + struct.pack("<I", 8) + text("made")
    head += text("w") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
    head += struct.pack("<IQ", kind, 0)
    return head + bytes(-len(head) % GGUF_ALIGNMENT) + data


if __name__ == "__main__":
    for kind, one, two in generate_file_pairs(0):
        print(f"{kind}: {len(one):,} and {len(two):,} bytes")
