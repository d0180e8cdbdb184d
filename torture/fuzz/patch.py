"""The target of patches: every codec, with corrected checksums.

The seeds are the checked-in vectors and the corpus, which the encoder made. A case changes bytes inside the frames or
the header and corrects the checksums, so that the change reaches the code behind them. The decoder must either raise a
PatchRefused, or make files that match the table that it returns, which its caller compares with the signed one. It must
never read outside the base or use much memory.

A case is the number of its base (1 byte), then the patch.
"""

import hashlib
import io
import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from bundle.errors import PatchRefused
from bundle.patch.apply import apply_patch
from bundle.patch.container import MAGIC
from bundle.patch.sections import pack_zstd, unpack_zstd
from packager.quantize.update_aware.fill_template import round_to_steps
from tests.support import model_formats
from tests.support.memory_bundles import Files, MemoryBase, MemoryTarget, make_patch_between
from tests.vectors.patch import generate
from torture.fuzz.mutations import change_bytes
from torture.fuzz.targets import Target

CORPUS: Final = Path(__file__).parents[1] / "corpus" / "patch"


@dataclass(frozen=True, slots=True)
class _PatchTarget(Target):
    """Seeds of two folders, each with the number of its base."""

    def seeds(self) -> list[bytes]:
        vectors = [b"\0" + path.read_bytes() for path in sorted(generate.FOLDER.glob("good*.patch"))]
        return [*vectors, *(b"\1" + path.read_bytes() for path in sorted(CORPUS.glob("*.patch")))]


def read_case(case: bytes) -> str:
    """Apply a case; return whether it makes a known target, or the reason of the refusal."""
    base = sides()[0] if case[:1] == b"\1" else generate.BASE
    sink = MemoryTarget()
    try:
        found = apply_patch(io.BytesIO(case[1:]), MemoryBase(base), sink)
    except PatchRefused as error:
        return error.reason
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in sink.files.items()}
    assert digests == {file.path: file.sha256 for file in found}, "the files differ from the returned table"
    return "applied"


def change_case(case: bytes, dice: random.Random) -> bytes:
    """Change the patch of a case."""
    return case[:1] + change(case[1:], dice)


def change(patch: bytes, dice: random.Random) -> bytes:
    """Make one to four changes to frames, their order, or the header's document; correct the checksums."""
    head, frames = take_apart(patch)
    for _ in range(dice.randint(1, 4)):
        kind = dice.random()
        if kind < 0.1:
            head = change_bytes(head, dice)
        elif kind < 0.2 and len(frames) > 2:
            i, j = dice.randrange(len(frames)), dice.randrange(len(frames))
            frames[i], frames[j] = frames[j], frames[i]
        elif kind < 0.25:
            frames.insert(dice.randrange(len(frames)), dice.choice(frames))
        elif kind < 0.3 and len(frames) > 1:
            frames.pop(dice.randrange(len(frames)))
        else:
            i = dice.randrange(len(frames))
            op, decoded_bytes, crc, payload = frames[i]
            if dice.random() < 0.1:
                op = dice.randrange(10)
            elif dice.random() < 0.1:
                decoded_bytes = dice.choice((0, 1, decoded_bytes ^ 1, decoded_bytes >> 1, 1 << 20, (1 << 32) - 1))
            else:
                payload = change_bytes(payload, dice)
            frames[i] = (op, decoded_bytes, crc, payload)
    return put_together(head, frames)


Frame = tuple[int, int, int, bytes]


def take_apart(patch: bytes) -> tuple[bytes, list[Frame]]:
    """Return the header's document and the frames."""
    stored, json_bytes = struct.unpack_from("<II", patch, 10)
    document = unpack_zstd(patch[22 : 22 + stored], json_bytes, "header")
    frames = []
    position = 22 + stored
    while position < len(patch):
        op, length, decoded_bytes, crc = struct.unpack_from("<BIII", patch, position)
        frames.append((op, decoded_bytes, crc, patch[position + 17 : position + 17 + length]))
        position += 17 + length
    return document, frames


def put_together(document: bytes, frames: list[Frame]) -> bytes:
    """Return a patch with correct checksums."""
    stored = pack_zstd(document, 3)
    prefix = struct.pack("<8sHII", MAGIC, 1, len(stored), len(document))
    out = [prefix, struct.pack("<I", zlib.crc32(stored, zlib.crc32(prefix))), stored]
    for op, decoded_bytes, crc, payload in frames:
        head = struct.pack("<BIII", op, len(payload), decoded_bytes, crc)
        out += [head, struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))), payload]
    return b"".join(out)


@cache
def sides() -> tuple[Files, Files]:
    """Return the base and target of the corpus: small arrays that need every predictor and coder."""
    rng = np.random.default_rng(5)
    arrays: model_formats.Arrays = {
        "dense": rng.normal(0, 0.05, (64, 52)).astype(np.float32),
        "half": rng.normal(0, 0.05, (60, 90)).astype(np.float16),
        "levels": np.clip(np.rint(rng.normal(0, 30, (50, 60))), -127, 127).astype(np.int8),
        "bias": rng.normal(0, 1, 40).astype(np.float32),
        "stepped": rng.normal(0, 0.1, 1200).astype(np.float32),
    }
    new: model_formats.Arrays = {
        "dense": (arrays["dense"] + rng.normal(0, 1e-4, (64, 52))).astype(np.float32),
        "half": (arrays["half"].astype(np.float64) * rng.uniform(0.9, 1.1, (60, 1))).astype(np.float16),
        "levels": np.clip(arrays["levels"] + (rng.random((50, 60)) < 0.1), -127, 127).astype(np.int8),
        "bias": arrays["bias"] + np.float32(1e-3),
        "stepped": round_to_steps(
            arrays["stepped"], (arrays["stepped"] + rng.normal(0, 1e-3, 1200)).astype(np.float32)
        ),
    }
    text = b"some text that stays, " * 20
    return {"m": model_formats.to_safetensors(arrays), "t": text}, {
        "m": model_formats.to_safetensors(new),
        "t": text + b"and some new",
    }


def edited(base: Files) -> Files:
    """Return the base with a few numbers and bytes changed at random positions."""
    rng = np.random.default_rng(6)
    model, text = bytearray(base["m"]), bytearray(base["t"])
    for position in rng.integers(len(model) // 2, len(model), 40).tolist():
        model[position] ^= 1 << int(rng.integers(0, 8))
    text[100] ^= 1
    return {"m": bytes(model), "t": bytes(text)}


def target_of(path: Path) -> Files:
    """Return the files that a patch of the corpus makes."""
    base, target = sides()
    return edited(base) if path.stem.endswith("-edits") else target


def write_corpus() -> None:
    """Write patches by each codec: with the base, without it, and of a few edits."""
    import tempfile

    CORPUS.mkdir(parents=True, exist_ok=True)
    base, target = sides()
    for codec in ("typed", "planes", "unfitted", "bsdiff4", "zstd"):
        with tempfile.TemporaryDirectory() as folder:
            patch, _ = make_patch_between(Path(folder), base, target, codec)
        (CORPUS / f"{codec}.patch").write_bytes(patch)
    for codec in ("typed", "planes"):
        with tempfile.TemporaryDirectory() as folder:
            patch, _ = make_patch_between(Path(folder), None, target, codec)
        (CORPUS / f"{codec}-from-nothing.patch").write_bytes(patch)
    for codec in ("typed", "planes"):
        with tempfile.TemporaryDirectory() as folder:
            patch, _ = make_patch_between(Path(folder), base, edited(base), codec)
        (CORPUS / f"{codec}-edits.patch").write_bytes(patch)


PATCHES: Final = _PatchTarget(read_case, change_case, CORPUS, "*.patch")
