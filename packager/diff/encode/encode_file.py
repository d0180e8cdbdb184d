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

from bundle.patch.edits import WAITING_BYTES
from bundle.patch.elements import BY_NAME
from bundle.patch.stream import most_triples
from packager.diff.encode.encode_delta import (
    DELTA_BYTES,
    Found,
    delta_content,
    delta_frames,
    find_pieces,
    nothing_found,
)
from packager.diff.encode.encode_edits import (
    EDITED_SHARE,
    EditedPiece,
    EditJob,
    compare,
    edit_jobs,
    encode_edits,
    pieces_of,
)
from packager.diff.encode.encode_stream import delta_stream_frames, lzma_frames, stream_frames, window_log_for
from packager.diff.encode.encode_tensor import encode_job
from packager.diff.encode.encode_untyped import Piece, RawEncoded, RawJob, content_of, with_dictionary
from packager.diff.encode.size_estimate import ALWAYS_BYTES, LEVEL
from packager.diff.encode.tensor_job import Segment, TensorJob, block_elements
from packager.diff.encode.zstd_prefix import pack_after
from packager.diff.write.generic_codecs import copy_frame

LZMA_STREAM: Final = frozenset({"lzma", "stream"})
BASE_SHARE: Final = 0.1  # of what zstd -1 makes without the base; LZMA never makes a tenth of that
EDITS_SHARE: Final = 0.75  # of what zstd -1 makes; where edits lie at random, others make as much as EDIT and more
MAX_KEPT: Final = 1 << 12
BYTE: Final = BY_NAME["u8"]


def encode_raw(job: RawJob) -> RawEncoded:
    """Frames that make the job's bytes; runs in any process."""
    target, base = content_of(job.target), content_of(job.base)
    return encode_file(job, target, base) if job.is_file else with_dictionary(job, target, base)


def encode_file(job: RawJob, target: bytes, base: bytes) -> RawEncoded:
    """The smallest of all ways; `target` and `base` are the job's bytes."""
    is_in_place = 0 < len(target) == len(base) and len(job.base) == len(job.target) == 1
    choices: list[RawEncoded] = []
    after = len(pack_after(base, target, LEVEL)) if len(target) > ALWAYS_BYTES else 0
    if is_in_place:
        edited = _as_edits(job, target, base, [_Kept(0, 0, len(target))])
        if edited is not None and edited.size < EDITS_SHARE * after:
            return edited
        choices += [_in_place(job), *([edited] if edited is not None else [])]
    choices.append(with_dictionary(job, target, base))
    if not after or after > BASE_SHARE * len(pack_after(b"", target, LEVEL)):
        choices += _without_base(job, target)
    if 0 < len(base) <= DELTA_BYTES and len(target) <= DELTA_BYTES:
        found = find_pieces(base, target)
        choices.append(_as_delta(job, target, found))
        if len(found.pieces) <= most_triples(len(target)):
            choices.append(_as_delta_stream(job, target, found))
        if len(found.pieces) <= MAX_KEPT and not is_in_place:
            edited = _as_edits(job, target, base, _kept(found))
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
    """An EDIT frame of what is kept, then BYTES of what lies between, and so on.

    None where too much of what is kept differs, or nothing.
    """
    ours, theirs, whole = memoryview(target), memoryview(base), job.target[0]
    most = EDITED_SHARE * sum(run.size for run in kept)
    pieces: list[EditedPiece] = []
    for run in kept:
        new, old = ours[run.start :][: run.size], theirs[run.position :][: run.size]
        change = compare(new, old, BYTE, most / run.size)
        if change is None:
            return None
        most -= int(change.changed.sum())
        pieces += pieces_of(whole.place.moved(run.start), job.base[0].place.moved(run.position), BYTE, BYTE, change)
    jobs = list(edit_jobs(BYTE.name, pieces, job.effort))
    editing = [part for part in jobs if isinstance(part, EditJob)]
    if not editing:
        return None
    between = _between(whole, kept)
    ends = [*(part.ranges[0][0] for part in jobs), whole.address + whole.size]
    frames: list[bytes] = []
    waiting = 0
    for part, end in zip([None, *jobs], ends, strict=True):
        if part is not None:
            frames.append(encode_edits(part) if isinstance(part, EditJob) else copy_frame(part.ranges))
        new_pieces = tuple(piece for piece in between if piece.address < end)
        between = between[len(new_pieces) :]
        data = b"".join(target[piece.offset - whole.offset :][: piece.size] for piece in new_pieces)
        # Like structure: in frames so small that those of edits may wait beside them.
        made = with_dictionary(replace(job, target=new_pieces, is_file=False), data, b"")
        frames += made.frames
        waiting = max(waiting, made.largest_frame + WAITING_BYTES * (part.edits if isinstance(part, EditJob) else 0))
    most_edits = max(part.edits for part in editing)
    return RawEncoded(tuple(frames), "edits", editing[0].features, 0, 0, 0, most_edits, waiting)


def _between(whole: Piece, kept: list[_Kept]) -> list[Piece]:
    """What is new."""
    ends = [0, *(run.start + run.size for run in kept)]
    starts = [*(run.start for run in kept), whole.size]
    return [
        Piece(whole.file, whole.offset + end, whole.address + end, start - end)
        for end, start in zip(ends, starts, strict=True)
        if start > end
    ]


def _in_place(job: RawJob) -> RawEncoded:
    new, old = job.target[0], job.base[0]
    segment = Segment(new.place, old.place, new.size)
    made = encode_job(TensorJob("u8", (segment,), (), False, False, job.effort))
    block = min(block_elements("u8"), new.size)
    return RawEncoded(made.frames, f"in place, {made.coder}", made.features, block, 0, made.window_log, block)
