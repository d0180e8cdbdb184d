"""A damaged patch is refused with a reason, and none of its output is accepted."""

import io
from pathlib import Path

import pytest

from bundle.errors import PatchRefused, PatchTruncated, PatchVersionUnsupported
from bundle.patch.apply import apply_patch
from tests.support import model_formats
from tests.support.memory_bundles import Files, MemoryBase, MemoryTarget, make_patch_between

OLD: Files = {"a": bytes(range(256)) * 8, "b": b"text " * 300, "m": model_formats.make_tiny_file(1), "same": b"s" * 400}
NEW: Files = {
    "a": bytes(range(255)) * 8,
    "b": b"text " * 290 + b"more",
    "m": model_formats.make_tiny_file(2),
    "same": b"s" * 400,
}


@pytest.fixture(scope="module", params=["bsdiff4", "zstd", "typed", "planes"])
def patch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_patch_between(Path(tmp_path_factory.mktemp("patch")), OLD, NEW, request.param)[0]


def _apply(patch: bytes) -> None:
    apply_patch(io.BytesIO(patch), MemoryBase(OLD), MemoryTarget())


def test_every_cut_is_refused(patch: bytes) -> None:
    for length in range(len(patch)):
        with pytest.raises(PatchTruncated):
            _apply(patch[:length])


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(patch: bytes, flip: int) -> None:
    for position in range(len(patch)):
        damaged = bytearray(patch)
        damaged[position] ^= flip
        with pytest.raises(PatchRefused):
            _apply(bytes(damaged))


def test_bytes_after_the_end_are_refused(patch: bytes) -> None:
    with pytest.raises(PatchRefused, match="after the end of the patch"):
        _apply(patch + b"\0")


def test_what_is_not_a_patch_is_refused_as_such() -> None:
    for data in (b"\x08\x09\x12\x07pytorch" * 10, b"PK\x03\x04", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with pytest.raises(PatchVersionUnsupported):
            _apply(data)
