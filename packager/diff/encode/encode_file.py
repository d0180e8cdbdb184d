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

from bundle.patch.edits import WAITING_BYTES_PER_EDIT
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from bundle.patch.stream import max_triples
from packager.diff.byte_range import ByteRange
from packager.diff.encode.copy_job import encode_copy_frame
from packager.diff.encode.encode_delta import (
    MAX_DELTA_BYTES,
    BsdiffResult,
    encode_delta_content,
    encode_delta_frames,
    find_matches,
    make_unmatched_result,
)
from packager.diff.encode.encode_edits import (
    MAX_EDITED_SHARE,
    EditedRange,
    EditJob,
    compare_arrays,
    encode_edits,
    make_edit_jobs,
    split_edited_array,
)
from packager.diff.encode.encode_stream import (
    choose_window_log,
    encode_delta_stream_frames,
    encode_lzma_frames,
    encode_stream_frames,
)
from packager.diff.encode.encode_tensor import encode_tensor_job
from packager.diff.encode.encode_untyped import UntypedFrames, UntypedJob, encode_with_dictionary, read_ranges
from packager.diff.encode.size_estimate import EXHAUSTIVE_MAX_BYTES, ZSTD_LEVEL
from packager.diff.encode.tensor_job import Segment, TensorJob, block_elements
from packager.diff.encode.zstd_prefix import compress_with_prefix

LZMA_STREAM_FEATURES: Final = frozenset({"lzma", "stream"})
MIN_WITH_BASE_SHARE: Final = 0.1  # of what zstd -1 makes without the base; LZMA never makes a tenth of that
EDITS_MARGIN: Final = 0.75  # of what zstd -1 makes; where edits lie at random, others make as much as EDIT and more
MAX_NEAR_COPIES: Final = 1 << 12
BYTE_TYPE: Final = ELEMENT_TYPE_BY_NAME["u8"]


def encode_untyped(job: UntypedJob) -> UntypedFrames:
    """Frames that make the job's bytes; runs in any process."""
    target, base = read_ranges(job.target), read_ranges(job.base)
    return encode_file(job, target, base) if job.is_file else encode_with_dictionary(job, target, base)


def encode_file(job: UntypedJob, target: bytes, base: bytes) -> UntypedFrames:
    """The smallest of all ways; `target` and `base` are the job's bytes."""
    is_in_place = 0 < len(target) == len(base) and len(job.base) == len(job.target) == 1
    choices: list[UntypedFrames] = []
    after = len(compress_with_prefix(base, target, ZSTD_LEVEL)) if len(target) > EXHAUSTIVE_MAX_BYTES else 0
    if is_in_place:
        edited = _encode_as_edits(job, target, base, [_NearCopy(0, 0, len(target))])
        if edited is not None and edited.size < EDITS_MARGIN * after:
            return edited
        choices += [_encode_in_place(job), *([edited] if edited is not None else [])]
    choices.append(encode_with_dictionary(job, target, base))
    if not after or after > MIN_WITH_BASE_SHARE * len(compress_with_prefix(b"", target, ZSTD_LEVEL)):
        choices += _encode_without_base(job, target)
    if 0 < len(base) <= MAX_DELTA_BYTES and len(target) <= MAX_DELTA_BYTES:
        found = find_matches(base, target)
        choices.append(_encode_as_delta(job, target, found))
        if len(found.triples) <= max_triples(len(target)):
            choices.append(_encode_as_delta_stream(job, target, found))
        if len(found.triples) <= MAX_NEAR_COPIES and not is_in_place:
            edited = _encode_as_edits(job, target, base, _find_near_copies(found))
            choices += [edited] if edited is not None else []
    return min(choices, key=lambda choice: choice.size)


def _encode_as_stream(job: UntypedJob, target: bytes) -> UntypedFrames:
    frames = tuple(encode_stream_frames([target], job.target[0].address, len(target)))
    return UntypedFrames(frames, "zstd", frozenset({"stream"}), 0, 0, choose_window_log(len(target)))


def _encode_as_lzma(job: UntypedJob, target: bytes) -> UntypedFrames:
    frames = tuple(encode_lzma_frames(target, job.target[0].address))
    return UntypedFrames(frames, "LZMA", LZMA_STREAM_FEATURES, 0, 0, choose_window_log(len(target)))


def _encode_as_delta_stream(job: UntypedJob, target: bytes, matches: BsdiffResult) -> UntypedFrames:
    content = encode_delta_content(matches)
    position = job.base[0].address + matches.triples[0].position
    frames = encode_delta_stream_frames(content, position, job.target[0].address, len(target))
    return UntypedFrames(tuple(frames), "bsdiff, LZMA", LZMA_STREAM_FEATURES, 0, 0, choose_window_log(len(content)))


def _encode_as_delta(job: UntypedJob, target: bytes, matches: BsdiffResult) -> UntypedFrames:
    made = encode_delta_frames(matches, target, job.base[0].address if job.base else 0, job.target[0].address)
    features = {"delta", "lzma"} if any(frame.has_lzma for frame in made) else {"delta"}
    largest = max(frame.target_bytes for frame in made)
    coder = "bsdiff" if matches.difference else "bzip2, zstd, LZMA"
    return UntypedFrames(tuple(frame.frame for frame in made), coder, frozenset(features), largest, 0, 0)


def _encode_without_base(job: UntypedJob, target: bytes) -> list[UntypedFrames]:
    choices = [_encode_as_stream(job, target)]
    if len(target) <= MAX_DELTA_BYTES:
        choices.append(_encode_as_lzma(job, target))
        if target:
            choices.append(_encode_as_delta(job, target, make_unmatched_result(target)))
    return choices


@dataclass(frozen=True, slots=True)
class _NearCopy:
    """A run of the target that the base has nearly so; all that lies between them is new."""

    start: int
    position: int
    size: int


def _find_near_copies(matches: BsdiffResult) -> list[_NearCopy]:
    kept = []
    start = 0
    for piece in matches.triples:
        if piece.add:
            kept.append(_NearCopy(start, piece.position, piece.add))
        start += piece.add + piece.extra
    return kept


def _encode_as_edits(job: UntypedJob, target: bytes, base: bytes, near_copies: list[_NearCopy]) -> UntypedFrames | None:
    """An EDIT frame of what is kept, then BYTES of what lies between, and so on.

    None where too much of what is kept differs, or nothing.
    """
    ours, theirs, whole = memoryview(target), memoryview(base), job.target[0]
    most = MAX_EDITED_SHARE * sum(run.size for run in near_copies)
    pieces: list[EditedRange] = []
    for run in near_copies:
        new, old = ours[run.start :][: run.size], theirs[run.position :][: run.size]
        change = compare_arrays(new, old, BYTE_TYPE, most / run.size)
        if change is None:
            return None
        most -= int(change.changed_counts.sum())
        pieces += split_edited_array(
            whole.position.shifted_by(run.start),
            job.base[0].position.shifted_by(run.position),
            BYTE_TYPE,
            BYTE_TYPE,
            change,
        )
    jobs = list(make_edit_jobs(BYTE_TYPE.name, pieces, job.options))
    editing = [part for part in jobs if isinstance(part, EditJob)]
    if not editing:
        return None
    between = _new_ranges(whole, near_copies)
    ends = [*(part.ranges[0][0] for part in jobs), whole.address + whole.size]
    frames: list[bytes] = []
    waiting = 0
    for part, end in zip([None, *jobs], ends, strict=True):
        if part is not None:
            frames.append(encode_edits(part) if isinstance(part, EditJob) else encode_copy_frame(part.ranges))
        new_pieces = tuple(piece for piece in between if piece.address < end)
        between = between[len(new_pieces) :]
        data = b"".join(target[piece.offset - whole.offset :][: piece.size] for piece in new_pieces)
        # Like structure: in frames so small that those of edits may wait beside them.
        made = encode_with_dictionary(replace(job, target=new_pieces, is_file=False), data, b"")
        frames += made.frames
        waiting = max(
            waiting,
            made.largest_frame_bytes + WAITING_BYTES_PER_EDIT * (part.edit_count if isinstance(part, EditJob) else 0),
        )
    most_edits = max(part.edit_count for part in editing)
    return UntypedFrames(tuple(frames), "edits", editing[0].features, 0, 0, 0, most_edits, waiting)


def _new_ranges(whole: ByteRange, near_copies: list[_NearCopy]) -> list[ByteRange]:
    """What is new."""
    ends = [0, *(run.start + run.size for run in near_copies)]
    starts = [*(run.start for run in near_copies), whole.size]
    return [
        ByteRange(whole.file, whole.offset + end, whole.address + end, start - end)
        for end, start in zip(ends, starts, strict=True)
        if start > end
    ]


def _encode_in_place(job: UntypedJob) -> UntypedFrames:
    new, old = job.target[0], job.base[0]
    segment = Segment(new.position, old.position, new.size)
    made = encode_tensor_job(TensorJob("u8", (segment,), (), False, False, job.options))
    block = min(block_elements("u8"), new.size)
    return UntypedFrames(made.frames, f"in place, {made.coder}", made.features, block, 0, made.window_log, block)
