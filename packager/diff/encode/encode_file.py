"""Encode a whole file that is not a model, by the smallest of several encodings.

Rules:
1. The smallest of these is used, so a patch is never larger than zstd, zstd --patch-from or bsdiff by more than the
   frames' heads, up to the sizes below:
   - BYTES with the base's file as dictionary;
   - DELTA, also without matches, because its bzip2 is good at digits;
   - STREAM by zstd and by LZMA, and bsdiff's triples in a STREAM by LZMA;
   - TYPED bytes if both files have the same length: bytes that were edited in place are coded closest to their entropy;
   - EDIT if few bytes differ from those at the same offset, or from those that bsdiff matches, with BYTES for the rest.
2. For files above `EXHAUSTIVE_MAX_BYTES`, a quick zstd estimate decides what is tried: nothing else if EDIT is far
   smaller than it; nothing without the base if the base saves nearly the whole file.
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
MIN_WITH_BASE_SHARE: Final = 0.1  # of the size by zstd -1 without the base; LZMA is never below a tenth of that size
EDITS_MARGIN: Final = (
    0.75  # share of the size by zstd -1; if EDIT is below it, no other encoding of random edits is smaller
)
MAX_NEAR_COPIES: Final = 1 << 12
BYTE_TYPE: Final = ELEMENT_TYPE_BY_NAME["u8"]


def encode_untyped(job: UntypedJob) -> UntypedFrames:
    """Encode the frames that make the job's bytes; runs in any process."""
    target, base = read_ranges(job.target), read_ranges(job.base)
    return encode_file(job, target, base) if job.is_file else encode_with_dictionary(job, target, base)


def encode_file(job: UntypedJob, target: bytes, base: bytes) -> UntypedFrames:
    """Encode a whole file by the smallest of all encodings.

    Args:
        job: the job that covers the file.
        target: the job's target bytes.
        base: the job's base bytes.
    """
    is_in_place = 0 < len(target) == len(base) and len(job.base) == len(job.target) == 1
    choices: list[UntypedFrames] = []
    quick_bytes = len(compress_with_prefix(base, target, ZSTD_LEVEL)) if len(target) > EXHAUSTIVE_MAX_BYTES else 0
    if is_in_place:
        edited = _encode_as_edits(job, target, base, [_NearCopy(0, 0, len(target))])
        if edited is not None and edited.size < EDITS_MARGIN * quick_bytes:
            return edited
        choices += [_encode_in_place(job), *([edited] if edited is not None else [])]
    choices.append(encode_with_dictionary(job, target, base))
    if not quick_bytes or quick_bytes > MIN_WITH_BASE_SHARE * len(compress_with_prefix(b"", target, ZSTD_LEVEL)):
        choices += _encode_without_base(job, target)
    if 0 < len(base) <= MAX_DELTA_BYTES and len(target) <= MAX_DELTA_BYTES:
        matches = find_matches(base, target)
        choices.append(_encode_as_delta(job, target, matches))
        if len(matches.triples) <= max_triples(len(target)):
            choices.append(_encode_as_delta_stream(job, target, matches))
        if len(matches.triples) <= MAX_NEAR_COPIES and not is_in_place:
            edited = _encode_as_edits(job, target, base, _find_near_copies(matches))
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
    frames = encode_delta_frames(matches, target, job.base[0].address if job.base else 0, job.target[0].address)
    features = {"delta", "lzma"} if any(frame.has_lzma for frame in frames) else {"delta"}
    largest = max(frame.target_bytes for frame in frames)
    coder = "bsdiff" if matches.difference else "bzip2, zstd, LZMA"
    return UntypedFrames(tuple(frame.frame for frame in frames), coder, frozenset(features), largest, 0, 0)


def _encode_without_base(job: UntypedJob, target: bytes) -> list[UntypedFrames]:
    choices = [_encode_as_stream(job, target)]
    if len(target) <= MAX_DELTA_BYTES:
        choices.append(_encode_as_lzma(job, target))
        if target:
            choices.append(_encode_as_delta(job, target, make_unmatched_result(target)))
    return choices


@dataclass(frozen=True, slots=True)
class _NearCopy:
    """A run of target bytes that nearly equals a run of the base; bytes between such runs are new.

    Attributes:
        start: bytes from the start of the target file.
        position: bytes from the start of the base file.
        size: size in bytes.
    """

    start: int
    position: int
    size: int


def _find_near_copies(matches: BsdiffResult) -> list[_NearCopy]:
    near_copies = []
    start = 0
    for piece in matches.triples:
        if piece.add:
            near_copies.append(_NearCopy(start, piece.position, piece.add))
        start += piece.add + piece.extra
    return near_copies


def _encode_as_edits(job: UntypedJob, target: bytes, base: bytes, near_copies: list[_NearCopy]) -> UntypedFrames | None:
    """Encode near copies as EDIT frames, each followed by BYTES frames of the new bytes after it.

    Returns None if too many bytes of the near copies differ, or none.
    """
    target_view, base_view, whole = memoryview(target), memoryview(base), job.target[0]
    edits_left = MAX_EDITED_SHARE * sum(run.size for run in near_copies)
    pieces: list[EditedRange] = []
    for run in near_copies:
        target_run, base_run = target_view[run.start :][: run.size], base_view[run.position :][: run.size]
        diff = compare_arrays(target_run, base_run, BYTE_TYPE, edits_left / run.size)
        if diff is None:
            return None
        edits_left -= int(diff.changed_counts.sum())
        pieces += split_edited_array(
            whole.position.shifted_by(run.start),
            job.base[0].position.shifted_by(run.position),
            BYTE_TYPE,
            BYTE_TYPE,
            diff,
        )
    jobs = list(make_edit_jobs(BYTE_TYPE.name, pieces, job.options))
    edit_jobs = [part for part in jobs if isinstance(part, EditJob)]
    if not edit_jobs:
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
        # Encode new bytes like structure: in frames so small that waiting edits fit beside them.
        encoded = encode_with_dictionary(replace(job, target=new_pieces, is_file=False), data, b"")
        frames += encoded.frames
        waiting = max(
            waiting,
            encoded.largest_frame_bytes
            + WAITING_BYTES_PER_EDIT * (part.edit_count if isinstance(part, EditJob) else 0),
        )
    largest_job = max(part.edit_count for part in edit_jobs)
    return UntypedFrames(tuple(frames), "edits", edit_jobs[0].features, 0, 0, 0, largest_job, waiting)


def _new_ranges(whole: ByteRange, near_copies: list[_NearCopy]) -> list[ByteRange]:
    """Return the target ranges between the near copies."""
    ends = [0, *(run.start + run.size for run in near_copies)]
    starts = [*(run.start for run in near_copies), whole.size]
    return [
        ByteRange(whole.source, whole.offset + end, whole.address + end, start - end)
        for end, start in zip(ends, starts, strict=True)
        if start > end
    ]


def _encode_in_place(job: UntypedJob) -> UntypedFrames:
    new, old = job.target[0], job.base[0]
    segment = Segment(new.position, old.position, new.size)
    encoded = encode_tensor_job(TensorJob("u8", (segment,), (), None, False, job.options))
    block = min(block_elements("u8"), new.size)
    return UntypedFrames(
        encoded.frames, f"in place, {encoded.coder}", encoded.features, block, 0, encoded.window_log, block
    )
