"""Patches that expand, count or announce without measure are refused within the memory that they announce."""

import bz2
import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from bundle.errors import PatchLimitExceeded, PatchRefused
from bundle.patch.apply import apply_patch
from bundle.patch.container import Op, encode_frame, encode_header, read_header
from bundle.patch.limits import DEFAULT_LIMITS, PatchLimits
from bundle.patch.numbers import encode_signed_varint, encode_varint
from bundle.patch.sections import pack_lzma, write_section
from tests.support import model_formats
from tests.support.memory_bundles import Files, MemoryBase, MemoryTarget, make_patch_between
from tests.support.patch_peak import measure
from tests.vectors.patch import generate

SLACK_BYTES = 4 << 20  # allocator, page granularity, first use of a library
BOMB_BYTES = 48 << 20
HUGE = (0, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
CODECS = ("typed", "planes", "bsdiff4", "zstd")


def make_sides() -> tuple[Files, Files]:
    rng = np.random.default_rng(11)
    old = rng.normal(0, 0.05, (200, 300)).astype(np.float32)
    new = (old + rng.normal(0, 1e-4, old.shape)).astype(np.float32)
    text = rng.integers(97, 123, 60_000, np.uint8).tobytes()
    return {"m": model_formats.to_safetensors({"w": old}), "t": text}, {
        "m": model_formats.to_safetensors({"w": new}),
        "t": text[:30_000] + b"inserted" + text[30_000:],
    }


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    base, target = make_sides()
    return {codec: make_patch_between(tmp_path_factory.mktemp(codec), base, target, codec)[0] for codec in CODECS}


def announce(patch: bytes, **changes: int) -> bytes:
    """Return the patch with other announced limits."""
    stream = io.BytesIO(patch)
    header = read_header(stream, DEFAULT_LIMITS)
    return encode_header(replace(header, declared_limits=replace(header.declared_limits, **changes))) + stream.read()


def test_measured_memory_is_at_most_what_is_announced_and_a_smaller_announcement_is_refused(
    patches: dict[str, bytes], tmp_path: Path
) -> None:
    """A patch that needs more than its header says is refused before it takes more than the header says."""
    cases: dict[str, bytes] = dict(patches)
    for codec, patch in patches.items():
        limits = read_header(io.BytesIO(patch), DEFAULT_LIMITS).declared_limits
        for field in ("payload_bytes", "pending_bytes", "dictionary_bytes", "parameter_bytes", "block_elements"):
            if value := getattr(limits, field):
                cases[f"{codec}-{field}"] = announce(patch, **{field: value // 2})
        if limits.window_log:
            cases[f"{codec}-window_log"] = announce(patch, window_log=limits.window_log - 1)
    found = measure(tmp_path / "peaks", make_sides()[0], cases)
    assert set(found) == set(cases)
    assert len(cases) > 12
    for name, (reason, peak) in found.items():
        assert reason == (None if name in patches else "patch-limit-exceeded"), name
        announced = read_header(io.BytesIO(cases[name]), DEFAULT_LIMITS).declared_limits.memory_bound_bytes()
        assert peak <= announced + SLACK_BYTES, (name, peak, announced)


@pytest.mark.parametrize("codec", CODECS)
def test_a_patch_that_needs_more_memory_than_the_manifest_says_is_refused(
    patches: dict[str, bytes], codec: str
) -> None:
    needed = read_header(io.BytesIO(patches[codec]), DEFAULT_LIMITS).declared_limits.memory_bound_bytes()
    sink = MemoryTarget()
    with pytest.raises(PatchLimitExceeded, match=f"{needed} bytes of memory, {needed - 1} are allowed"):
        apply_patch(io.BytesIO(patches[codec]), MemoryBase(make_sides()[0]), sink, PatchLimits(memory_bytes=needed - 1))
    assert sink.files == {}
    apply_patch(
        io.BytesIO(patches[codec]), MemoryBase(make_sides()[0]), MemoryTarget(), PatchLimits(memory_bytes=needed)
    )


def make_zstd(data: bytes, window_log: int, *, has_size: bool = False) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=has_size)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def make_stream(content: bytes, coder: int, *, length: int = generate.B, window_log: int = 12) -> bytes:
    head = encode_varint(generate.A) + encode_varint(length) + bytes([coder, window_log, 0])
    return encode_frame(Op.STREAM, head + b"\x01" + content)


def make_section(coder: int, stored: bytes, stated: int) -> bytes:
    return bytes([coder]) + encode_varint(stated) + encode_varint(len(stored)) + stored


def make_bombs() -> dict[str, bytes]:
    """Return frames after which a decoder without limits would take hundreds of megabytes, by name."""
    zeros = bytes(BOMB_BYTES)
    zstd, lzma, bzip2 = make_zstd(zeros, 12), pack_lzma(bytes(BOMB_BYTES // 2), 12), bz2.compress(zeros, 9)
    table = write_section(encode_varint(1) + encode_varint(generate.A) + encode_varint(generate.B) + b"\0")
    control = write_section(encode_varint(generate.B) + b"\0" + encode_signed_varint(0))
    at = encode_varint(generate.A) * 2
    wide = make_zstd(np.random.default_rng(0).bytes(1 << 20) + bytes(1 << 23), 23)
    plain = generate.TARGET["b"]
    bombs = {
        "stream-content-zstd": make_stream(zstd, 1),
        "stream-content-lzma": make_stream(lzma, 3),
        "stream-window-of-the-frame": make_stream(wide, 1),
        "stream-length": make_stream(zstd, 1, length=BOMB_BYTES),
        "stream-window-log": make_stream(zstd, 1, window_log=63),
        "bytes-zstd": encode_frame(Op.BYTES, table + zstd, plain),
        "bytes-zstd-stated": encode_frame(Op.BYTES, table + make_zstd(zeros, 12, has_size=True), plain),
    }
    for coder, stored in ((1, zstd), (2, bzip2), (3, lzma)):
        for stated in (generate.B, BOMB_BYTES // 8):
            section = make_section(coder, stored, stated)
            bombs[f"delta-difference-{coder}-{stated}"] = encode_frame(
                Op.DELTA, at + control + section + write_section(b""), plain
            )
            bombs[f"delta-control-{coder}-{stated}"] = encode_frame(Op.DELTA, at + section, plain)
            bombs[f"copy-table-{coder}-{stated}"] = encode_frame(Op.COPY, section, plain)
            bombs[f"typed-segments-{coder}-{stated}"] = encode_frame(Op.TYPED, bytes(4) + section, plain)
    for number in HUGE:
        count = encode_varint(number)
        segment = encode_varint(1) + encode_varint(generate.A) + count
        for op, rows in (("copy", count), ("copy-length", encode_varint(1) + b"\0\0" + count)):
            bombs[f"{op}-{number}"] = encode_frame(Op.COPY, write_section(rows), rows)
        bombs[f"bytes-{number}"] = encode_frame(Op.BYTES, write_section(count) + zstd, plain)
        bombs[f"delta-start-{number}"] = encode_frame(Op.DELTA, count * 2 + control, plain)
        bombs[f"edit-{number}"] = encode_frame(Op.EDIT, write_section(count) + count, b"")
        for flags in range(8):
            bombs[f"typed-{flags}-{number}"] = encode_frame(
                Op.TYPED, bytes([0, flags, 0, 0]) + write_section(segment), plain
            )
            bombs[f"param-{flags}-{number}"] = encode_frame(Op.PARAM, bytes([flags]) + count * 3)
    return bombs


def test_bombs_of_windows_contents_and_counts_are_refused_in_little_memory(tmp_path: Path) -> None:
    bombs = {name: generate.make_patch(generate.COPY_A, frame) for name, frame in make_bombs().items()}
    assert all(len(patch) < 1 << 21 for patch in bombs.values())
    found = measure(tmp_path / "peaks", generate.BASE, bombs)
    assert {name for name, (reason, _) in found.items() if reason is None} == set()
    assert {name: peak for name, (_, peak) in found.items() if peak > 16 << 20} == {}


@pytest.mark.parametrize("decoded", [2**20, 2**32 - 1])
@pytest.mark.parametrize("op", [Op.BYTES, Op.DELTA, Op.TYPED, Op.COPY, Op.EDIT, Op.PARAM])
def test_a_frame_that_states_gigabytes_is_refused(op: Op, decoded: int) -> None:
    import struct
    import zlib

    payload = gzip.compress(b"", mtime=0)
    head = struct.pack("<BIII", op, len(payload), decoded, 0)
    frame = head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload
    with pytest.raises(PatchRefused):
        apply_patch(io.BytesIO(generate.make_patch(generate.COPY_A, frame)), MemoryBase(generate.BASE), MemoryTarget())
