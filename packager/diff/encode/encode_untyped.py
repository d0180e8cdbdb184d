"""Encode bytes without a type: the structure between a model's arrays, after the base's structure.

Rules:
1. Structure becomes BYTES frames with the base's structure as dictionary.
2. A whole file that is not a model takes the smallest of several encodings (packager/diff/encode/encode_file.py).
"""

from dataclasses import dataclass
from typing import Final

from bundle.patch.address_space import Range
from bundle.patch.container import Op, encode_frame
from bundle.patch.ranges import write_base_ranges, write_target_ranges
from bundle.patch.sections import write_section
from packager.diff.byte_range import ByteRange
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.zstd_prefix import compress_with_prefix

ZSTD_LEVEL: Final = 22
MAX_FRAME_BYTES: Final = 1 << 20
MAX_FILE_FRAME_BYTES: Final = 4 << 20
MAX_DICTIONARY_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class UntypedJob:
    """Untyped bytes to encode.

    Attributes:
        target: ascending; structure has at most `MAX_FRAME_BYTES` in one job.
        base: ranges of similar bytes.
        is_file: True for a whole file (rule 2), False for structure (rule 1).
        options: encoder settings for frames TYPED and EDIT.
    """

    target: tuple[ByteRange, ...]
    base: tuple[ByteRange, ...]
    is_file: bool
    options: EncoderOptions

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(piece.size for piece in self.target)


@dataclass(frozen=True, slots=True)
class UntypedFrames:
    """The frames of an untyped job.

    Attributes:
        frames: encoded frames, in order.
        coder: name for the report.
        features: decoder features that the frames need.
        largest_frame_bytes: target bytes of the largest frame.
        dictionary_bytes, window_log, block_elements: limits that the frames need.
        waiting_bytes: maximum number of bytes that wait in the decoder, without those of other jobs.
    """

    frames: tuple[bytes, ...]
    coder: str
    features: frozenset[str]
    largest_frame_bytes: int
    dictionary_bytes: int
    window_log: int
    block_elements: int = 0
    waiting_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes of the frames."""
        return sum(map(len, self.frames))


def split_ranges(ranges: list[ByteRange], limit: int, items: int) -> list[tuple[ByteRange, ...]]:
    """Group ranges into runs of bounded size; long ranges are cut.

    Args:
        ranges: ranges to group, in order.
        limit: maximum size of a run, in bytes.
        items: maximum number of ranges in a run.
    """
    out: list[tuple[ByteRange, ...]] = []
    run: list[ByteRange] = []
    room = limit
    for whole in ranges:
        piece = whole
        while piece.size:
            now = min(piece.size, room)
            run.append(ByteRange(piece.source, piece.offset, piece.address, now))
            piece = ByteRange(piece.source, piece.offset + now, piece.address + now, piece.size - now)
            room -= now
            if not room or len(run) == items:
                out.append(tuple(run))
                run, room = [], limit
    if run:
        out.append(tuple(run))
    return out


def encode_with_dictionary(job: UntypedJob, target: bytes, base: bytes) -> UntypedFrames:
    """Encode BYTES frames with base bytes as dictionary.

    Args:
        job: the ranges.
        target: the job's target bytes.
        base: the job's base bytes; empty for no dictionary.
    """
    frames = []
    done = largest = dictionary_bytes = 0
    for run in split_ranges(list(job.target), MAX_FILE_FRAME_BYTES if job.is_file else MAX_FRAME_BYTES, 1 << 12):
        size = sum(piece.size for piece in run)
        ranges, dictionary = _select_dictionary(job.base, base, done, len(target))
        table = write_target_ranges([(piece.address, piece.size) for piece in run]) + write_base_ranges(ranges)
        data = target[done : done + size]
        body = compress_with_prefix(dictionary, data, ZSTD_LEVEL)
        frames.append(encode_frame(Op.BYTES, write_section(table) + body, data))
        done += size
        largest, dictionary_bytes = max(largest, size), max(dictionary_bytes, len(dictionary))
    return UntypedFrames(
        tuple(frames), "zstd with dictionary" if base else "zstd", frozenset(), largest, dictionary_bytes, 0
    )


def _select_dictionary(
    target_ranges: tuple[ByteRange, ...], base: bytes, done: int, total: int
) -> tuple[list[Range], bytes]:
    """Return all base bytes or, if there are too many, those at about the same relative position."""
    start = 0
    if len(base) > MAX_DICTIONARY_BYTES:
        middle = done * len(base) // max(1, total)
        start = max(0, min(middle - MAX_DICTIONARY_BYTES // 4, len(base) - MAX_DICTIONARY_BYTES))
    end = min(len(base), start + MAX_DICTIONARY_BYTES)
    ranges = []
    position = 0
    for piece in target_ranges:
        low, high = max(start, position), min(end, position + piece.size)
        if low < high:
            ranges.append((piece.address + low - position, high - low))
        position += piece.size
    return ranges, base[start:end]


def read_ranges(ranges: tuple[ByteRange, ...]) -> bytes:
    """Read and join the bytes of ranges."""
    return b"".join(piece.position.read(piece.size) for piece in ranges)
