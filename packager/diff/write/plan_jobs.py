"""Cuts a bundle into jobs for the typed codec, in the order in which the decoder can write what they make.

Rules:
1. Jobs are ordered by the first byte that they make. A large tensor is a job or several; small tensors of one type
   share one, and so do the bytes between tensors: what a shared job makes ahead of the cursor waits in the decoder.
2. Shared jobs are made small enough that never more than `MAX_PENDING_BYTES` wait.
3. What the base holds already is copied: whole tensors, rows of tensors that changed only here and there, and all of
   what lies between tensors where it lies so in the base, beside one that is copied: so a run of tensors is one range.
4. Tensors of which few elements differ are copied with edits (packager/diff/encode/encode_edits.py).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from bundle.files import BundleDirectory
from bundle.patch.edits import WAITING_BYTES_PER_EDIT
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from bundle.patch.ranges import CopiedRange
from packager.diff.bundle_folder import file_path
from packager.diff.byte_range import ByteRange
from packager.diff.encode.copy_job import CopyJob, merge_ranges
from packager.diff.encode.encode_edits import (
    MAX_WAITING_EDITS,
    ArrayDiff,
    EditedRange,
    EditJob,
    choose_edit_type,
    compare_arrays,
    join_copies,
    make_edit_jobs,
    split_edited_array,
)
from packager.diff.encode.encode_untyped import MAX_FRAME_BYTES, UntypedJob, split_ranges
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.tensor_job import BLOCK_ELEMENTS
from packager.diff.match.match_arrays import ArrayMatch, match_arrays
from packager.diff.match.match_files import matching_file
from packager.diff.write.mapped_bundle import MappedBundle
from packager.diff.write.planned_job import PlannedJob
from packager.diff.write.split_tensors import MAX_ITEMS, count_elements, plan_grouped_jobs, plan_tensor_jobs

MAX_PENDING_BYTES: Final = 2 << 20
LARGE_TENSOR_ELEMENTS: Final = 2048


def plan_jobs(base: BundleDirectory | None, target: BundleDirectory, options: EncoderOptions) -> list[PlannedJob]:
    """Every byte of the target in exactly one job, in order (rule 1)."""
    new = MappedBundle(target)
    old = MappedBundle(base) if base is not None else None
    copies: list[CopiedRange] = []
    edited: dict[str, list[tuple[ArrayMatch, ArrayDiff]]] = defaultdict(list)
    planned: list[PlannedJob] = []
    small: list[ArrayMatch] = []
    handled = set()
    for file in target.files:
        like = matching_file(file, base.files) if base is not None else None
        if file.size == 0:
            handled.add(file.path)
        elif old is not None and like is not None and (like.size, like.sha256) == (file.size, file.sha256):
            copies.append((new.file_addresses[file.path], old.file_addresses[like.path], file.size))
            handled.add(file.path)
    arrays = [array for array in new.arrays() if target.files[array.file].path not in handled]
    if old is not None:
        matches = match_arrays(arrays, old.arrays(), new.array_bytes, old.array_bytes)
    else:
        matches = [ArrayMatch(array, None, False) for array in arrays]
    for match in matches:
        change = _diff_arrays(match, new, old)
        if change is not None and match.base is not None and change.runs == 0:
            copies.append((match.target.address, match.base.address, match.target.region.size))
        elif change is not None and change.is_edited:
            edited[match.target.region.dtype].append((match, change))
        elif count_elements(match.target.region) < LARGE_TENSOR_ELEMENTS and not match.is_transposed:
            small.append(match)
        else:
            planned += plan_tensor_jobs(match, new, old, options)
    edits = _split_edited_arrays(edited, new, old) if old is not None else {}
    held = copies + [(p.target.address, p.base.address, p.size) for made in edits.values() for p in made]
    gaps = {file.path: new.untyped_ranges(file.path) for file in target.files if file.path not in handled}
    beside = (
        _find_copied_gaps(held, [gap for pieces in gaps.values() for gap in pieces], new, old)
        if old is not None
        else {}
    )
    copies += [(gap.address, start, gap.size) for gap, start in beside.items()]
    for path, pieces in gaps.items():
        planned += _plan_untyped_jobs(
            path,
            [gap for gap in pieces if gap not in beside],
            {(start, gap.size) for gap, start in beside.items()},
            new,
            old,
            options,
        )
    edits, copies = join_copies(edits, copies)
    for unit, made in edits.items():
        planned += _plan_edit_jobs(unit, made, options, MAX_WAITING_EDITS // len(edits))
    group = BLOCK_ELEMENTS // 2
    while True:
        shared = list(plan_grouped_jobs(small, new, old, options, group))
        out = sorted(planned + shared + list(_plan_copy_jobs(copies)), key=_sort_key)
        if group <= 1 or max_pending_bytes(out) <= MAX_PENDING_BYTES:
            return out
        group //= 2


def _sort_key(planned_job: PlannedJob) -> tuple[int, bool]:
    return planned_job.start, not isinstance(planned_job.job, CopyJob)


def max_pending_bytes(planned_jobs: list[PlannedJob]) -> int:
    """Rule 2: the most bytes that ever wait in the decoder, where every shared job makes all its bytes at once."""
    worst = waiting = cursor = 0
    ahead: dict[int, tuple[int, int]] = {}
    for plan in planned_jobs:
        if isinstance(plan.job, CopyJob):
            ranges = [(start, length, 0) for start, _, length in plan.job.ranges]
        elif isinstance(plan.job, EditJob):
            ranges = [(p.target.address, p.size, WAITING_BYTES_PER_EDIT * p.edit_count) for p in plan.job.edited_ranges]
            worst = max(
                worst, waiting + WAITING_BYTES_PER_EDIT * plan.job.edit_count
            )  # they wait until the frame is read
        elif isinstance(plan.job, UntypedJob):
            ranges = [(piece.address, piece.size, piece.size) for piece in plan.job.target]
        else:
            ranges = [(s.target.address, s.size, s.size) for s in plan.job.segments]
        for start, length, weight in ranges:
            ahead[start] = (length, weight)
            waiting += weight
            while cursor in ahead:
                step, held = ahead.pop(cursor)
                cursor += step
                waiting -= held
            worst = max(worst, waiting)
    return worst


def _find_copied_gaps(
    copies: list[CopiedRange], untyped_ranges: list[ByteRange], target_bundle: MappedBundle, base_bundle: MappedBundle
) -> dict[ByteRange, int]:
    """Rule 3: those gaps that the base holds beside what is copied next to them, and where."""
    starts = {start: base for start, base, _ in copies}
    ends = {start + length: base + length for start, base, length in copies}
    found = {}
    for gap in untyped_ranges:
        after = starts.get(gap.address + gap.size)
        for base in (ends.get(gap.address), None if after is None else after - gap.size):
            if base is not None and base_bundle.bytes_at(base, gap.size) == target_bundle.bytes_at(
                gap.address, gap.size
            ):
                found[gap] = base
                break
    return found


def _plan_untyped_jobs(
    path: str,
    untyped_ranges: list[ByteRange],
    copied: set[tuple[int, int]],
    target_bundle: MappedBundle,
    base_bundle: MappedBundle | None,
    options: EncoderOptions,
) -> Iterator[PlannedJob]:
    file = next(file for file in target_bundle.directory.files if file.path == path)
    like = matching_file(file, base_bundle.directory.files) if base_bundle is not None else None
    held = base_bundle.untyped_ranges(like.path) if base_bundle is not None and like is not None else []
    base = tuple(gap for gap in held if (gap.address, gap.size) not in copied)
    if target_bundle.regions[path]:
        for run in split_ranges(untyped_ranges, MAX_FRAME_BYTES, MAX_ITEMS):
            yield PlannedJob(run[0].address, UntypedJob(run, base, False, options), path, "structure", "", ())
        return
    if not untyped_ranges:
        return
    if like is not None and base_bundle is not None and base_bundle.regions[like.path]:
        whole = file_path(base_bundle.directory, like)
        base = (ByteRange(whole, 0, base_bundle.file_addresses[like.path], like.size),)
    yield PlannedJob(
        target_bundle.file_addresses[path],
        UntypedJob(tuple(untyped_ranges), base, True, options),
        path,
        "whole file",
        "",
        (),
    )


def _plan_copy_jobs(copies: list[CopiedRange]) -> Iterator[PlannedJob]:
    ranges = merge_ranges(sorted(copies))
    for i in range(0, len(ranges), MAX_ITEMS):
        job = CopyJob(tuple(ranges[i : i + MAX_ITEMS]))
        yield PlannedJob(job.ranges[0][0], job, "", f"{len(job.ranges)} unchanged ranges", "", ())


def _diff_arrays(match: ArrayMatch, target_bundle: MappedBundle, base_bundle: MappedBundle | None) -> ArrayDiff | None:
    """None where it has no base, or is not nearly the same."""
    if base_bundle is None or match.base is None or match.is_transposed:
        return None
    return compare_arrays(
        target_bundle.array_bytes(match.target),
        base_bundle.array_bytes(match.base),
        ELEMENT_TYPE_BY_NAME[match.target.region.dtype],
    )


def _split_edited_arrays(
    edited: dict[str, list[tuple[ArrayMatch, ArrayDiff]]], target_bundle: MappedBundle, base_bundle: MappedBundle
) -> dict[str, list[EditedRange]]:
    out: dict[str, list[EditedRange]] = defaultdict(list)
    for dtype, found in edited.items():
        kind = ELEMENT_TYPE_BY_NAME[dtype]
        unit = choose_edit_type(kind, (change for _, change in found))
        for match, change in found:
            assert match.base is not None
            out[unit.name] += split_edited_array(
                target_bundle.array_position(match.target), base_bundle.array_position(match.base), kind, unit, change
            )
    return out


def _plan_edit_jobs(
    unit: str, edited_ranges: list[EditedRange], options: EncoderOptions, max_edits: int
) -> Iterator[PlannedJob]:
    for job in make_edit_jobs(unit, edited_ranges, options, max_edits):
        name = (
            f"{job.edit_count} edits of {unit}" if isinstance(job, EditJob) else f"{len(job.ranges)} unchanged ranges"
        )
        yield PlannedJob(job.ranges[0][0], job, "", name, unit if isinstance(job, EditJob) else "", ())
