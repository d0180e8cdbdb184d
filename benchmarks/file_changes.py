"""Changes of files: each function gets the old bytes and a seed, and returns the new bytes."""

import random
from collections.abc import Callable
from typing import Final

Change = Callable[[bytes, int], bytes]


def _edit_bytes(data: bytes, seed: int, share: float) -> bytes:
    """Overwrite single random bytes: `share` of all, at least one."""
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(max(1, int(len(out) * share)) if out else 0):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _overwrite_runs(data: bytes, seed: int) -> bytes:
    """Overwrite runs of 16 bytes, one run per 10,000 bytes."""
    rng, out = random.Random(seed), bytearray(data)
    for _ in range(len(out) // 10_000 + 1):
        at = rng.randrange(max(1, len(out) - 15))
        out[at : at + 16] = rng.randbytes(min(16, len(out) - at))
    return bytes(out)


def _edit_and_insert(data: bytes, seed: int) -> bytes:
    """Overwrite a few single bytes, and insert 50 bytes in the middle."""
    edited = _edit_bytes(data, seed, 0.0005)
    middle = len(data) // 2
    return edited[:middle] + random.Random(seed).randbytes(50) + edited[middle:]


def _increment_some_bytes(data: bytes, _seed: int) -> bytes:
    """Increment every thousandth byte, like counters in records."""
    return bytes((byte + (i % 1000 == 7)) & 255 for i, byte in enumerate(data))


def _insert_runs(data: bytes, seed: int) -> bytes:
    """Insert ten short runs of bytes, which moves all bytes after them."""
    rng, out = random.Random(seed), data
    for _ in range(10):
        at = rng.randrange(len(out) + 1)
        out = out[:at] + rng.randbytes(rng.randrange(1, 40)) + out[at:]
    return out


def _shuffle_blocks(data: bytes, seed: int) -> bytes:
    """Shuffle blocks of 1 to 8 KiB."""
    rng, blocks, at = random.Random(seed), [], 0
    while at < len(data):
        size = rng.randrange(1024, 8192)
        blocks.append(data[at : at + size])
        at += size
    rng.shuffle(blocks)
    return b"".join(blocks)


def _increment_all_bytes(data: bytes, _seed: int) -> bytes:
    """Increment every byte, like counters and indices."""
    return bytes((byte + 1) & 255 for byte in data)


def _move_lines(data: bytes, seed: int) -> bytes:
    """Remove, duplicate and replace random lines."""
    rng, lines = random.Random(seed), data.split(b"\n")
    for _ in range(max(1, len(lines) // 50)):
        at = rng.randrange(len(lines))
        lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[rng.randrange(len(lines))]]))
        lines = lines or [b""]
    return b"\n".join(lines)


CHANGES: Final[dict[str, Change]] = {
    "the same": lambda data, _seed: data,
    "one byte edited": lambda data, seed: _edit_bytes(data, seed, 0.0),
    "0.1 % of bytes edited": lambda data, seed: _edit_bytes(data, seed, 0.001),
    "1 % of bytes edited": lambda data, seed: _edit_bytes(data, seed, 0.01),
    "20 % of bytes edited": lambda data, seed: _edit_bytes(data, seed, 0.2),
    "runs of 16 bytes overwritten": _overwrite_runs,
    "every thousandth byte one higher": _increment_some_bytes,
    "few bytes edited, some inserted": _edit_and_insert,
    "insertions": _insert_runs,
    "blocks shuffled": _shuffle_blocks,
    "lines moved": _move_lines,
    "cut to half": lambda data, _seed: data[: len(data) // 2],
    "a head in front": lambda data, seed: random.Random(seed).randbytes(37) + data,
    "twice": lambda data, _seed: data * 2,
    "every byte one higher": _increment_all_bytes,
    "nothing": lambda _data, _seed: b"",
}
