"""Fuzz the patch decoder: `python -m torture.fuzz_patch [--runs N] [--seed S]`.

The seeds are the checked-in vectors and the corpus beside this file, which the encoder made. A run changes bytes inside
the frames or the header and corrects the checksums, so that the change reaches the code behind them. The decoder must
either raise a PatchRefused, or make files that match the table that it returns, which its caller compares with the
signed one. It must never read outside the base or use much memory.

`--write-corpus` writes the corpus again.
"""

import argparse
import hashlib
import io
import random
import struct
import sys
import zlib
from collections import Counter
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

CORPUS: Final = Path(__file__).parent / "corpus" / "patch"
MAX_GROWTH_BYTES: Final = 96 << 20
CRITICAL_BYTES: Final = (b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff" * 8 + b"\x7f", b"\x80\x80\x80\x80\x04")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write-corpus", action="store_true")
    arguments = parser.parse_args()
    if arguments.write_corpus:
        write_corpus()
        return
    print(f"seed {arguments.seed}")
    outcome = fuzz(arguments.runs, arguments.seed)
    for reason, count in sorted(outcome.items()):
        print(f"{reason:16} {count}")


def fuzz(runs: int, seed: int) -> Counter[str]:
    """Count how often each reason came out of `runs` changed patches."""
    dice = random.Random(seed)
    seeds = [
        (path.read_bytes(), generate.BASE, generate.TARGET) for path in sorted(generate.FOLDER.glob("good*.patch"))
    ]
    seeds += [(path.read_bytes(), sides()[0], target_of(path)) for path in sorted(CORPUS.glob("*.patch"))]
    assert len(seeds) > 8, f"no corpus in {CORPUS}"
    outcome: Counter[str] = Counter()
    before = peak_bytes()
    for run in range(runs):
        patch, base, target = seeds[run % len(seeds)]
        changed = change(patch, dice)
        sink = MemoryTarget()
        try:
            found = apply_patch(io.BytesIO(changed), MemoryBase(base), sink)
        except PatchRefused as error:
            outcome[error.reason] += 1
        except BaseException:
            (CORPUS / "failure.patch").write_bytes(changed)
            print(f"run {run}: {CORPUS / 'failure.patch'}", file=sys.stderr)
            raise
        else:
            digests = {path: hashlib.sha256(data).hexdigest() for path, data in sink.files.items()}
            assert digests == {file.path: file.sha256 for file in found}, (
                f"run {run}: files differ from the returned table"
            )
            outcome["applied" if sink.files == target else "another table"] += 1
    grown = peak_bytes() - before
    assert grown < MAX_GROWTH_BYTES, f"memory grew by {grown} bytes"
    return outcome


def change(patch: bytes, dice: random.Random) -> bytes:
    """Make one to four changes to frames, their order, or the header's document; correct the checksums."""
    head, frames = take_apart(patch)
    for _ in range(dice.randint(1, 4)):
        kind = dice.random()
        if kind < 0.1:
            head = changed_bytes(head, dice)
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
                payload = changed_bytes(payload, dice)
            frames[i] = (op, decoded_bytes, crc, payload)
    return put_together(head, frames)


def changed_bytes(data: bytes, dice: random.Random) -> bytes:
    """Flip a bit, insert a critical number, cut or repeat a piece; most often near the start."""
    if not data:
        return dice.choice(CRITICAL_BYTES)
    span = len(data) if dice.random() < 0.4 else min(len(data), 24)
    at = dice.randrange(span)
    match dice.randrange(5):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        case 1:
            number = dice.choice(CRITICAL_BYTES)
            return data[:at] + number + data[at + len(number) :]
        case 2:
            return data[:at] + dice.choice(CRITICAL_BYTES) + data[at:]
        case 3:
            return data[:at] + data[at + dice.randint(1, 8) :]
        case _:
            return data[:at] + data[at : at + dice.randint(1, 40)] + data[at:]


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


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


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


if __name__ == "__main__":
    main()
