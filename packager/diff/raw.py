"""Encodes bytes without a type: the structure between a model's arrays, and whole files that are no model.

Rules:
1. Structure goes into BYTES frames with the base's structure as dictionary.
2. A whole file takes the smallest of these, so that it is never worse than zstd, zstd --patch-from or bsdiff by more
   than the frames' heads, up to the sizes below:
   - BYTES with the base's file as dictionary;
   - DELTA, also as if there were no base, for its bzip2, which is good at digits;
   - STREAM by zstd and by LZMA; bsdiff's triples in a STREAM by LZMA;
   - TYPED bytes where both files are equally long: what was edited in place is coded nearest to its entropy so;
   - EDIT where few of these bytes differ. Where that is far below what zstd makes quickly, nothing else is tried.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.patch.container import Op, frame_bytes
from bundle.patch.edits import WAITING_BYTES
from bundle.patch.elements import BY_NAME
from bundle.patch.layout import Range
from bundle.patch.ranges import write_base_ranges, write_copied_ranges, write_target_ranges
from bundle.patch.sections import write_section
from bundle.patch.stream import most_triples
from packager.diff.delta import Found, delta_content, delta_frames, find_pieces, nothing_found
from packager.diff.edits import compare, edit_jobs, encode_edits, pieces_of
from packager.diff.jobs import Place, Segment, TensorJob, block_elements
from packager.diff.pack import Effort
from packager.diff.prefix import pack_after
from packager.diff.stream import delta_stream_frames, lzma_frames, stream_frames, window_log_for
from packager.diff.tensor import encode_job

LEVEL: Final = 22
FRAME_BYTES: Final = 1 << 20
FILE_FRAME_BYTES: Final = 4 << 20
DICTIONARY_BYTES: Final = 8 << 20
LZMA_STREAM: Final = frozenset({"lzma", "stream"})
QUICK_LEVEL: Final = 1
ALWAYS_BYTES: Final = 1 << 20  # up to here trying all takes a second or two
EDITS_SHARE: Final = 0.5  # of what zstd -1 makes; bsdiff makes two fifths and more of it of edits at random places
BYTE: Final = BY_NAME["u8"]
DELTA_BYTES: Final = 64 << 20  # bsdiff takes 17 bytes of memory a byte, and minutes above this


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes in a file and in the bundle's line of bytes."""

    file: Path
    offset: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class RawJob:
    """Bytes to encode.

    Attributes:
        target: ascending; together at most `FRAME_BYTES` for structure.
        base: where similar bytes are.
        is_file: rule 2 rather than rule 1.
        effort: how hard to pack what is TYPED.
    """

    target: tuple[Piece, ...]
    base: tuple[Piece, ...]
    is_file: bool
    effort: Effort

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(piece.size for piece in self.target)


@dataclass(frozen=True, slots=True)
class RawEncoded:
    """Frames of a job.

    Attributes:
        coder: for the report.
        largest_frame: most bytes of a frame that wait in the decoder.
        dictionary_bytes, window_log, block_elements: what the decoder needs for it.
    """

    frames: tuple[bytes, ...]
    coder: str
    features: frozenset[str]
    largest_frame: int
    dictionary_bytes: int
    window_log: int
    block_elements: int = 0


def encode_raw(job: RawJob) -> RawEncoded:
    """Frames that make the job's bytes; runs in any process."""
    target, base = _read(job.target), _read(job.base)
    edited = _as_edits(job, target, base) if job.is_file else None
    if edited is not None and _is_far_smaller(edited, target, base):
        return edited
    choices = [with_dictionary(job, target, base), *([edited] if edited is not None else [])]
    if job.is_file:
        choices.append(_as_stream(job, target))
        if len(target) <= DELTA_BYTES:
            choices.append(_as_lzma(job, target))
            if target:
                choices.append(_as_delta(job, target, nothing_found(target)))
            if 0 < len(base) <= DELTA_BYTES:
                found = find_pieces(base, target)
                choices.append(_as_delta(job, target, found))
                if len(found.pieces) <= most_triples(len(target)):
                    choices.append(_as_delta_stream(job, target, found))
        if _is_in_place(job, target, base):
            choices.append(_in_place(job))
    return min(choices, key=lambda choice: sum(map(len, choice.frames)))


def cut(pieces: list[Piece], limit: int, items: int) -> list[tuple[Piece, ...]]:
    """Runs of pieces of at most `limit` bytes and `items` pieces each; long pieces are cut."""
    out: list[tuple[Piece, ...]] = []
    run: list[Piece] = []
    room = limit
    for whole in pieces:
        piece = whole
        while piece.size:
            now = min(piece.size, room)
            run.append(Piece(piece.file, piece.offset, piece.address, now))
            piece = Piece(piece.file, piece.offset + now, piece.address + now, piece.size - now)
            room -= now
            if not room or len(run) == items:
                out.append(tuple(run))
                run, room = [], limit
    if run:
        out.append(tuple(run))
    return out


def with_dictionary(job: RawJob, target: bytes, base: bytes) -> RawEncoded:
    """BYTES frames of `target`, with `base` as dictionary; they are the job's bytes."""
    frames = []
    done = largest = words = 0
    for run in cut(list(job.target), FILE_FRAME_BYTES if job.is_file else FRAME_BYTES, 1 << 12):
        size = sum(piece.size for piece in run)
        ranges, dictionary = _dictionary(job.base, base, done, len(target))
        table = write_target_ranges([(piece.address, piece.size) for piece in run]) + write_base_ranges(ranges)
        data = target[done : done + size]
        body = pack_after(dictionary, data, LEVEL)
        frames.append(frame_bytes(Op.BYTES, write_section(table) + body, data))
        done += size
        largest, words = max(largest, size), max(words, len(dictionary))
    return RawEncoded(tuple(frames), "zstd with dictionary" if base else "zstd", frozenset(), largest, words, 0)


def _dictionary(pieces: tuple[Piece, ...], base: bytes, done: int, total: int) -> tuple[list[Range], bytes]:
    """All of the base's bytes, or where they are too many the part that lies where the target's bytes lie."""
    start = 0
    if len(base) > DICTIONARY_BYTES:
        middle = done * len(base) // max(1, total)
        start = max(0, min(middle - DICTIONARY_BYTES // 4, len(base) - DICTIONARY_BYTES))
    end = min(len(base), start + DICTIONARY_BYTES)
    ranges = []
    position = 0
    for piece in pieces:
        low, high = max(start, position), min(end, position + piece.size)
        if low < high:
            ranges.append((piece.address + low - position, high - low))
        position += piece.size
    return ranges, base[start:end]


def _as_stream(job: RawJob, target: bytes) -> RawEncoded:
    frames = tuple(stream_frames([target], job.target[0].address, len(target)))
    return RawEncoded(frames, "zstd", frozenset({"stream"}), 0, 0, window_log_for(len(target)))


def _as_lzma(job: RawJob, target: bytes) -> RawEncoded:
    frames = tuple(lzma_frames(target, job.target[0].address))
    return RawEncoded(frames, "LZMA", LZMA_STREAM, 0, 0, window_log_for(len(target)))


def _as_delta_stream(job: RawJob, target: bytes, found: Found) -> RawEncoded:
    content = delta_content(found)
    position = job.base[0].address + found.pieces[0].position
    frames = delta_stream_frames(content, position, job.target[0].address, len(target))
    return RawEncoded(tuple(frames), "bsdiff, LZMA", LZMA_STREAM, 0, 0, window_log_for(len(content)))


def _as_delta(job: RawJob, target: bytes, found: Found) -> RawEncoded:
    made = delta_frames(found, target, job.base[0].address if job.base else 0, job.target[0].address)
    features = {"delta", "lzma"} if any(frame.has_lzma for frame in made) else {"delta"}
    largest = max(frame.made for frame in made)
    coder = "bsdiff" if found.difference else "bzip2, zstd, LZMA"
    return RawEncoded(tuple(frame.frame for frame in made), coder, frozenset(features), largest, 0, 0)


def _is_in_place(job: RawJob, target: bytes, base: bytes) -> bool:
    return 0 < len(target) == len(base) and len(job.base) == len(job.target) == 1


def _as_edits(job: RawJob, target: bytes, base: bytes) -> RawEncoded | None:
    """None where too many bytes differ."""
    change = compare(memoryview(target), memoryview(base), BYTE) if _is_in_place(job, target, base) else None
    if change is None or change.runs == 0:
        return None
    new, old = (Place(piece.file, piece.offset, piece.address) for piece in (job.target[0], job.base[0]))
    jobs = list(edit_jobs(BYTE.name, list(pieces_of(new, old, BYTE, BYTE, change)), job.effort))
    frames = tuple(
        encode_edits(part) if part.edits else frame_bytes(Op.COPY, write_section(table), table)
        for part in jobs
        for table in [write_copied_ranges(part.ranges())]
    )
    features = {"edit", "pcodec"} if job.effort.with_pcodec else {"edit"}
    most = max(part.edits for part in jobs)
    return RawEncoded(frames, "in place, edits", frozenset(features), WAITING_BYTES * most, 0, 0, most)


def _is_far_smaller(edited: RawEncoded, target: bytes, base: bytes) -> bool:
    if len(target) < ALWAYS_BYTES:
        return False
    return sum(map(len, edited.frames)) < EDITS_SHARE * len(pack_after(base, target, QUICK_LEVEL))


def _in_place(job: RawJob) -> RawEncoded:
    new, old = job.target[0], job.base[0]
    segment = Segment(Place(new.file, new.offset, new.address), Place(old.file, old.offset, old.address), new.size)
    made = encode_job(TensorJob("u8", (segment,), (), False, False, job.effort))
    block = min(block_elements("u8"), new.size)
    return RawEncoded(made.frames, f"in place, {made.coder}", made.features, block, 0, made.window_log, block)


def _read(pieces: tuple[Piece, ...]) -> bytes:
    parts = []
    for piece in pieces:
        with piece.file.open("rb") as stream:
            stream.seek(piece.offset)
            parts.append(stream.read(piece.size))
    return b"".join(parts)
