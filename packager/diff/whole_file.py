"""Encodes a whole file that is no model, by what makes it smallest.

Rules:
1. It takes the smallest of these, so that it is never worse than zstd, zstd --patch-from or bsdiff by more than the
   frames' heads, up to the sizes below:
   - BYTES with the base's file as dictionary;
   - DELTA, also as if there were no base, for its bzip2, which is good at digits;
   - STREAM by zstd and by LZMA; bsdiff's triples in a STREAM by LZMA;
   - TYPED bytes where both files are equally long: what was edited in place is coded nearest to its entropy so;
   - EDIT where few of these bytes differ, or of those that bsdiff finds kept, with BYTES of what lies between.
2. Of files above `ALWAYS_BYTES` what zstd makes quickly tells what is worth a trial: nothing else where EDIT is far
   below it; nothing that leaves the base out where the base makes nearly all of the file.
"""

from dataclasses import dataclass, replace
from typing import Final

from bundle.patch.container import Op, frame_bytes
from bundle.patch.edits import WAITING_BYTES
from bundle.patch.elements import BY_NAME
from bundle.patch.ranges import write_copied_ranges
from bundle.patch.sections import write_section
from bundle.patch.stream import most_triples
from packager.diff.delta import Found, delta_content, delta_frames, find_pieces, nothing_found
from packager.diff.edits import EditedPiece, compare, edit_jobs, encode_edits, pieces_of
from packager.diff.jobs import Place, Segment, TensorJob, block_elements
from packager.diff.prefix import pack_after
from packager.diff.raw import Piece, RawEncoded, RawJob, content_of, with_dictionary
from packager.diff.stream import delta_stream_frames, lzma_frames, stream_frames, window_log_for
from packager.diff.tensor import encode_job

LZMA_STREAM: Final = frozenset({"lzma", "stream"})
QUICK_LEVEL: Final = 1
ALWAYS_BYTES: Final = 1 << 20  # up to here trying all takes a second or two
BASE_SHARE: Final = 0.1  # of what zstd -1 makes without the base; LZMA never makes a tenth of that
EDITS_SHARE: Final = 0.75  # of what zstd -1 makes; where edits lie at random, others make as much as EDIT and more
MAX_KEPT: Final = 1 << 12
BYTE: Final = BY_NAME["u8"]
DELTA_BYTES: Final = 64 << 20  # bsdiff takes 17 bytes of memory a byte, and minutes above this


def encode_raw(job: RawJob) -> RawEncoded:
    """Frames that make the job's bytes; runs in any process."""
    target, base = content_of(job.target), content_of(job.base)
    return encode_file(job, target, base) if job.is_file else with_dictionary(job, target, base)


def encode_file(job: RawJob, target: bytes, base: bytes) -> RawEncoded:
    """The smallest of all ways; `target` and `base` are the job's bytes."""
    is_in_place = 0 < len(target) == len(base) and len(job.base) == len(job.target) == 1
    choices: list[RawEncoded] = []
    after = len(pack_after(base, target, QUICK_LEVEL)) if len(target) > ALWAYS_BYTES else 0
    if is_in_place:
        edited = _as_edits(job, target, base, [_Kept(0, 0, len(target))]) if _are_few(target, base) else None
        if edited is not None and edited.size < EDITS_SHARE * after:
            return edited
        choices += [_in_place(job), *([edited] if edited is not None else [])]
    choices.append(with_dictionary(job, target, base))
    if not after or after > BASE_SHARE * len(pack_after(b"", target, QUICK_LEVEL)):
        choices += _without_base(job, target)
    if 0 < len(base) <= DELTA_BYTES and len(target) <= DELTA_BYTES:
        found = find_pieces(base, target)
        choices.append(_as_delta(job, target, found))
        if len(found.pieces) <= most_triples(len(target)):
            choices.append(_as_delta_stream(job, target, found))
        is_tried = len(found.pieces) <= MAX_KEPT and _are_few(found.difference, bytes(len(found.difference)))
        edited = _as_edits(job, target, base, _kept(found)) if is_tried and not is_in_place else None
        choices += [edited] if edited is not None else []
    return min(choices, key=lambda choice: choice.size)


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


def _are_few(new: bytes, old: bytes) -> bool:
    return compare(memoryview(new), memoryview(old), BYTE) is not None


def _without_base(job: RawJob, target: bytes) -> list[RawEncoded]:
    choices = [_as_stream(job, target)]
    if len(target) <= DELTA_BYTES:
        choices.append(_as_lzma(job, target))
        if target:
            choices.append(_as_delta(job, target, nothing_found(target)))
    return choices


@dataclass(frozen=True, slots=True)
class _Kept:
    """A run of the target that the base has nearly so; all that lies between them is new."""

    start: int
    position: int
    size: int


def _kept(found: Found) -> list[_Kept]:
    kept = []
    start = 0
    for piece in found.pieces:
        if piece.add:
            kept.append(_Kept(start, piece.position, piece.add))
        start += piece.add + piece.extra
    return kept


def _as_edits(job: RawJob, target: bytes, base: bytes, kept: list[_Kept]) -> RawEncoded | None:
    """An EDIT frame of what is kept, then BYTES of what lies between, and so on; None where no byte of it differs."""
    ours, theirs, whole = memoryview(target), memoryview(base), job.target[0]
    pieces: list[EditedPiece] = []
    for run in kept:
        old = theirs[run.position : run.position + run.size]
        change = compare(ours[run.start : run.start + run.size], old, BYTE, 1.0)
        assert change is not None
        pieces += pieces_of(_place(whole, run.start), _place(job.base[0], run.position), BYTE, BYTE, change)
    jobs = list(edit_jobs(BYTE.name, pieces, job.effort))
    if not any(part.edits for part in jobs):
        return None
    frames: list[bytes] = []
    waiting = 0
    between = _between(whole, kept)
    for part, until in zip([None, *jobs], [*(part.pieces[0].target.address for part in jobs), None], strict=True):
        if part is not None:
            table = write_copied_ranges(part.ranges())
            frames.append(encode_edits(part) if part.edits else frame_bytes(Op.COPY, write_section(table), table))
        new = [piece for piece in between if until is None or piece.address < until]
        between = between[len(new) :]
        data = b"".join(target[piece.offset - whole.offset :][: piece.size] for piece in new)
        made = with_dictionary(replace(job, target=tuple(new), is_file=False), data, b"")
        frames += made.frames
        waiting = max(waiting, made.largest_frame + WAITING_BYTES * (part.edits if part is not None else 0))
    features = {"edit", "pcodec"} if job.effort.with_pcodec else {"edit"}
    most = max(part.edits for part in jobs)
    return RawEncoded(tuple(frames), "edits", frozenset(features), 0, 0, 0, most, waiting)


def _between(whole: Piece, kept: list[_Kept]) -> list[Piece]:
    """What is new."""
    ends = [0, *(run.start + run.size for run in kept)]
    starts = [*(run.start for run in kept), whole.size]
    return [
        Piece(whole.file, whole.offset + end, whole.address + end, start - end)
        for end, start in zip(ends, starts, strict=True)
        if start > end
    ]


def _place(piece: Piece, offset: int) -> Place:
    return Place(piece.file, piece.offset + offset, piece.address + offset)


def _in_place(job: RawJob) -> RawEncoded:
    new, old = job.target[0], job.base[0]
    segment = Segment(Place(new.file, new.offset, new.address), Place(old.file, old.offset, old.address), new.size)
    made = encode_job(TensorJob("u8", (segment,), (), False, False, job.effort))
    block = min(block_elements("u8"), new.size)
    return RawEncoded(made.frames, f"in place, {made.coder}", made.features, block, 0, made.window_log, block)
