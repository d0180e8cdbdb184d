"""Encrypted frames: reads and writes of any size give the same bytes, and every change is refused."""

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import Malformed, NotAuthentic, Refused
from bundle.frames import (
    BLOB_LABEL,
    HEADER_BYTES,
    MIN_FRAME_BYTES,
    STORE_LABEL,
    TAG_BYTES,
    FrameContext,
    FrameRandomReader,
    FrameReader,
    FrameWriter,
    Secret,
    sealed_size,
)

KEY = Secret(bytes(range(32)))
CONTEXT = FrameContext(BLOB_LABEL, "kws", 7, "int8")
STEP = MIN_FRAME_BYTES + TAG_BYTES


def seal(plain: bytes, *, chunks: int = 1 << 20) -> bytes:
    out = io.BytesIO()
    writer = FrameWriter(out, KEY, CONTEXT, frame_bytes=MIN_FRAME_BYTES)
    for start in range(0, len(plain), chunks):
        writer.write(plain[start : start + chunks])
    writer.close()
    return out.getvalue()


def open_frames(data: bytes, key: Secret = KEY, context: FrameContext = CONTEXT) -> bytes:
    return FrameReader(io.BytesIO(data), key, context).read(1 << 30)


def open_random_reader(data: bytes) -> FrameRandomReader:
    return FrameRandomReader(lambda length, offset: data[offset : offset + length], len(data), KEY, CONTEXT)


@given(st.integers(0, 3 * MIN_FRAME_BYTES + 1), st.integers(1, 9000), st.integers(1, 9000))
@settings(max_examples=40, deadline=None)
def test_any_chunking_in_and_out_gives_the_same_bytes(size: int, chunk_in: int, chunk_out: int) -> None:
    plain = os.urandom(size)
    data = seal(plain, chunks=chunk_in)
    assert len(data) == sealed_size(size, MIN_FRAME_BYTES)
    reader = FrameReader(io.BytesIO(data), KEY, CONTEXT)
    parts = iter(lambda: reader.read(chunk_out), b"")
    assert b"".join(parts) == plain
    assert open_random_reader(data).pread(size, 0) == plain


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_range_reads_the_same_bytes(data: st.DataObject) -> None:
    plain = os.urandom(2 * MIN_FRAME_BYTES + 17)
    reader = open_random_reader(seal(plain))
    start = data.draw(st.integers(0, len(plain)))
    length = data.draw(st.integers(0, len(plain) - start))
    assert reader.pread(length, start) == plain[start : start + length]
    with pytest.raises(Malformed):
        reader.pread(len(plain) - start + 1, start)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_single_flipped_bit_is_refused(data: st.DataObject) -> None:
    whole = bytearray(seal(b"model" * 2000))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Refused):
        open_frames(bytes(whole))


@pytest.mark.parametrize("size", [0, 1, MIN_FRAME_BYTES, 2 * MIN_FRAME_BYTES, 2 * MIN_FRAME_BYTES + 5])
def test_a_file_cut_anywhere_near_a_frame_edge_is_refused(size: int) -> None:
    whole = seal(os.urandom(size))
    edges = {0, 1, HEADER_BYTES - 1, HEADER_BYTES, *(HEADER_BYTES + n * STEP for n in range(4)), len(whole) - 1}
    for cut in sorted(edge for edge in edges if edge < len(whole)):
        with pytest.raises(Refused):
            open_frames(whole[:cut])
        with pytest.raises(Refused):
            open_random_reader(whole[:cut]).pread(0, 0)


def test_frames_swapped_repeated_or_added_are_refused() -> None:
    whole = seal(os.urandom(3 * MIN_FRAME_BYTES))
    head, frames = whole[:HEADER_BYTES], [whole[HEADER_BYTES + n * STEP :][:STEP] for n in range(3)]
    for order in ([1, 0, 2], [0, 0, 1, 2], [0, 2], [0, 1, 2, 2], [0, 1]):
        with pytest.raises(NotAuthentic):
            open_frames(head + b"".join(frames[n] for n in order))


@pytest.mark.parametrize(
    "context",
    [
        FrameContext(STORE_LABEL, "kws", 7, "int8"),
        FrameContext(BLOB_LABEL, "kwt", 7, "int8"),
        FrameContext(BLOB_LABEL, "kws", 8, "int8"),
        FrameContext(BLOB_LABEL, "kws", 7, "int4"),
        FrameContext(BLOB_LABEL, "kws", 7, "int8", "ab"),
    ],
)
def test_a_file_for_another_use_does_not_open(context: FrameContext) -> None:
    with pytest.raises(NotAuthentic):
        open_frames(seal(b"x"), context=context)


def test_a_wrong_key_reads_like_a_changed_file() -> None:
    whole = seal(b"x")
    with pytest.raises(NotAuthentic) as wrong_key:
        open_frames(whole, key=Secret(bytes(32)))
    with pytest.raises(NotAuthentic) as changed:
        open_frames(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert wrong_key.value.message == changed.value.message


def test_a_frame_size_out_of_range_is_refused_before_memory_is_taken() -> None:
    whole = seal(b"x")
    with pytest.raises(Malformed, match="frame size 4294967295, expected 4096 to 1048576"):
        open_frames(whole[:8] + b"\xff\xff\xff\xff" + whole[12:])


def test_secrets_do_not_print() -> None:
    assert "00" not in repr(Secret(bytes(32)))
    assert repr(Secret(b"abc")) == "Secret(<3 bytes>)"


@given(st.lists(st.integers(1, 2 * MIN_FRAME_BYTES), min_size=1, max_size=10), st.data())
@settings(max_examples=60, deadline=None)
def test_what_was_written_reads_the_same_while_a_file_is_written(steps: list[int], data: st.DataObject) -> None:
    plain = bytes(n % 251 for n in range(sum(steps)))
    out = io.BytesIO()
    writer = FrameWriter(out, KEY, CONTEXT, frame_bytes=MIN_FRAME_BYTES)
    written = 0
    for step in steps:
        writer.write(plain[written : written + step])
        written += step
        start = data.draw(st.integers(0, written))
        length = data.draw(st.integers(0, written - start))
        found = writer.read_back(length, start, lambda n, at: out.getvalue()[at : at + n])
        assert found == plain[start : start + length]
