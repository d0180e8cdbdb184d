"""Cut a bundle into jobs for the typed codec, so that few bytes wait in the decoder.

Symbols: jobs j = 1 … J, each with target ranges [a, a + n) in the address space; a weight per range: n for decoded
bytes, 16 per edit for edited ranges, 0 for copied ranges; the cursor.

Theory of operation. The decoder writes the target forward. A job that makes one range, ordered by its first address, is
written at once. A shared job (small tensors of one type, structure, edits) makes ranges all over the bundle at the time
of its frame; each waits until the cursor reaches it. Sharing makes a patch smaller, because tables of coders are paid
once; waiting takes memory on the device. So the plan starts with groups of BLOCK_ELEMENTS / 2 elements, simulates the
decoder (`max_pending_bytes`: add a job's ranges, advance the cursor over all ranges that it reaches, record the peak of
the weights), and halves the group size until at most `MAX_PENDING_BYTES` wait. The decoder accepts 4 MiB
(docs/format.md section 9.2): the rest is for untyped jobs, whose waiting bytes are known only when they are encoded.

Rules:
1. Jobs are ordered by the first byte that they make; copies come before other jobs at the same address.
2. A large tensor is one job or several. Small tensors of one type share a job, and so do the bytes between tensors.
3. Bytes that the base has are copied: whole tensors, unchanged rows of tensors, and bytes between tensors if they are
   equal in the base next to a copied tensor. So a run of unchanged tensors is one range.
4. Arrays, parts of them and files that repeat earlier ones of the target are copied from there
   (packager/diff/match/find_repeats.py, find_blocks.py). All bytes before a job are written when it begins, since jobs
   are ordered; so what it repeats is written.
5. Tensors of which few elements differ are copied with edits (packager/diff/encode/encode_edits.py).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from bundle.files import BundleDirectory
from bundle.patch.edits import WAITING_BYTES_PER_EDIT
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from bundle.patch.ranges import CopiedRange
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
from packager.diff.encode.tensor_job import BLOCK_ELEMENTS, Exchange, Segment, TensorJob
from packager.diff.match.find_blocks import Block, find_blocks
from packager.diff.match.find_repeats import Repeat, find_repeats
from packager.diff.match.match_arrays import ArrayMatch, match_arrays
from packager.diff.match.match_files import matching_file
from packager.diff.sources import Source
from packager.diff.write.mapped_bundle import MappedBundle
from packager.diff.write.planned_job import PlannedJob
from packager.diff.write.split_blocks import BlockPlan, can_be_cut
from packager.diff.write.split_tensors import (
    LARGE_TENSOR_ELEMENTS,
    MAX_ITEMS,
    count_elements,
    find_changed_rows,
    plan_grouped_jobs,
    plan_tensor_jobs,
)

MAX_PENDING_BYTES: Final = 2 << 20


def plan_jobs(base: BundleDirectory | None, target: BundleDirectory, options: EncoderOptions) -> list[PlannedJob]:
    """Plan the jobs of a patch, in order; every byte of the target is in exactly one job.

    Args:
        base: None for a full download.
        target: the bundle that the patch makes.
        options: encoder settings, such as the zstd level.
    """
    target_bundle = MappedBundle(target)
    base_bundle = MappedBundle(base) if base is not None else None
    origin = target_origin(base)
    copies: list[CopiedRange] = []
    edited: dict[str, list[tuple[ArrayMatch, ArrayDiff]]] = defaultdict(list)
    planned: list[PlannedJob] = []
    small: list[ArrayMatch] = []
    handled = set()
    first_addresses: dict[tuple[int, str], int] = {}
    for file in target.files:
        earlier = first_addresses.setdefault((file.size, file.sha256), target_bundle.file_addresses[file.path])
        counterpart = matching_file(file, base.files) if base is not None else None
        if file.size == 0:
            handled.add(file.path)
        elif (
            base_bundle is not None
            and counterpart is not None
            and (counterpart.size, counterpart.sha256) == (file.size, file.sha256)
        ):
            copies.append(
                (target_bundle.file_addresses[file.path], base_bundle.file_addresses[counterpart.path], file.size)
            )
            handled.add(file.path)
        elif earlier != target_bundle.file_addresses[file.path]:
            copies.append((target_bundle.file_addresses[file.path], origin + earlier, file.size))
            handled.add(file.path)
    arrays = [array for array in target_bundle.arrays() if target.files[array.file].path not in handled]
    repeats = find_repeats(
        arrays,
        base_bundle.arrays() if base_bundle is not None else (),
        target_bundle.array_bytes,
        base_bundle.array_bytes if base_bundle is not None else target_bundle.array_bytes,
    )
    repeated = {repeat.array.address for repeat in repeats}
    arrays = [array for array in arrays if array.address not in repeated]
    copies += [
        (repeat.array.address, origin + repeat.earlier.address, repeat.array.region.size)
        for repeat in repeats
        if not repeat.is_transposed
    ]
    planned += [
        _plan_transposed_repeat(repeat, target_bundle, origin, options) for repeat in repeats if repeat.is_transposed
    ]
    if base_bundle is not None:
        matches = match_arrays(arrays, base_bundle.arrays(), target_bundle.array_bytes, base_bundle.array_bytes)
    else:
        matches = [ArrayMatch(array, None, False) for array in arrays]
    coded: list[ArrayMatch] = []
    for match in matches:
        diff = _diff_arrays(match, target_bundle, base_bundle)
        if diff is not None and match.base is not None and diff.runs == 0:
            copies.append((match.target.address, match.base.address, match.target.region.size))
        elif diff is not None and diff.is_edited:
            edited[match.target.region.dtype].append((match, diff))
        else:
            coded.append(match)
    blocks = _find_blocks_of(matches, coded, target_bundle, base_bundle)
    for match in coded:
        if match.target.address in blocks:
            spans = find_changed_rows(match, target_bundle, base_bundle) if base_bundle is not None else None
            found = blocks[match.target.address]
            cut = BlockPlan(match, found, spans, target_bundle, base_bundle, origin, options)
            copies += cut.copies
            planned += cut.jobs()
        elif count_elements(match.target.region) < LARGE_TENSOR_ELEMENTS and not match.is_transposed:
            small.append(match)
        else:
            planned += plan_tensor_jobs(match, target_bundle, base_bundle, options)
    edits = _split_edited_arrays(edited, target_bundle, base_bundle) if base_bundle is not None else {}
    copied = copies + [(p.target.address, p.base.address, p.size) for made in edits.values() for p in made]
    gaps = {file.path: target_bundle.untyped_ranges(file.path) for file in target.files if file.path not in handled}
    copied_gaps = (
        _find_copied_gaps(copied, [gap for pieces in gaps.values() for gap in pieces], target_bundle, base_bundle)
        if base_bundle is not None
        else {}
    )
    copies += [(gap.address, start, gap.size) for gap, start in copied_gaps.items()]
    for path, pieces in gaps.items():
        planned += _plan_untyped_jobs(
            path,
            [gap for gap in pieces if gap not in copied_gaps],
            {(start, gap.size) for gap, start in copied_gaps.items()},
            target_bundle,
            base_bundle,
            options,
        )
    edits, copies = join_copies(edits, copies)
    for unit, made in edits.items():
        planned += _plan_edit_jobs(unit, made, options, MAX_WAITING_EDITS // len(edits))
    group_elements = BLOCK_ELEMENTS // 2
    while True:
        shared = list(plan_grouped_jobs(small, target_bundle, base_bundle, options, group_elements))
        out = sorted(planned + shared + list(_plan_copy_jobs(copies, origin)), key=_sort_key)
        if group_elements <= 1 or max_pending_bytes(out) <= MAX_PENDING_BYTES:
            return out
        group_elements //= 2


def target_origin(base: BundleDirectory | None) -> int:
    """Return the base address of the target's first byte (bundle.patch.address_space)."""
    return 1 + (sum(file.size for file in base.files) if base is not None else 0)


def _find_blocks_of(
    matches: list[ArrayMatch], coded: list[ArrayMatch], target_bundle: MappedBundle, base_bundle: MappedBundle | None
) -> dict[int, list[Block]]:
    """Return the blocks of each array that they cut, by the array's address."""
    wanted = {
        match.target.address: base_bundle.array_bytes(match.base)
        if base_bundle is not None and match.base is not None and not match.is_transposed
        else None
        for match in coded
    }
    by_address = {match.target.address: match for match in coded}
    found = find_blocks([match.target for match in matches], wanted, target_bundle.array_bytes)
    return {address: blocks for address, blocks in found.items() if can_be_cut(by_address[address], blocks)}


def _plan_transposed_repeat(
    repeat: Repeat, target_bundle: MappedBundle, origin: int, options: EncoderOptions
) -> PlannedJob:
    array, source = repeat.array, target_bundle.array_position(repeat.earlier)
    segment = Segment(
        target_bundle.array_position(array), replace(source, address=origin + source.address), array.region.size
    )
    job = TensorJob(array.region.dtype, (segment,), repeat.shape, Exchange(*repeat.shape), False, options)
    path = target_bundle.directory.files[array.file].path
    return PlannedJob(array.address, job, path, array.region.name, array.region.dtype, repeat.shape)


def _sort_key(planned_job: PlannedJob) -> tuple[int, bool]:
    return planned_job.start, not isinstance(planned_job.job, CopyJob)


def max_pending_bytes(planned_jobs: list[PlannedJob]) -> int:
    """Return the maximum number of bytes that wait in the decoder if each job makes all its bytes at once."""
    peak = waiting = cursor = 0
    pending_ranges: dict[int, tuple[int, int]] = {}
    for plan in planned_jobs:
        if isinstance(plan.job, CopyJob):
            ranges = [(start, length, 0) for start, _, length in plan.job.ranges]
        elif isinstance(plan.job, EditJob):
            ranges = [(p.target.address, p.size, WAITING_BYTES_PER_EDIT * p.edit_count) for p in plan.job.edited_ranges]
            peak = max(
                peak, waiting + WAITING_BYTES_PER_EDIT * plan.job.edit_count
            )  # all edits of a frame wait until it has been read
        elif isinstance(plan.job, UntypedJob):
            ranges = [(piece.address, piece.size, piece.size) for piece in plan.job.target]
        else:
            ranges = [(s.target.address, s.size, s.size) for s in plan.job.segments]
        for start, length, weight in ranges:
            pending_ranges[start] = (length, weight)
            waiting += weight
            while cursor in pending_ranges:
                written_bytes, written_weight = pending_ranges.pop(cursor)
                cursor += written_bytes
                waiting -= written_weight
            peak = max(peak, waiting)
    return peak


def _find_copied_gaps(
    copies: list[CopiedRange], untyped_ranges: list[ByteRange], target_bundle: MappedBundle, base_bundle: MappedBundle
) -> dict[ByteRange, int]:
    """Return the gaps that the base has next to a copied range, each with its base address (rule 3)."""
    starts = {start: base for start, base, _ in copies}
    ends = {start + length: base + length for start, base, length in copies}
    found = {}
    for gap in untyped_ranges:
        after = starts.get(gap.address + gap.size)
        base_after = None if after is None else after - gap.size
        for base in (ends.get(gap.address), base_after):
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
    counterpart = matching_file(file, base_bundle.directory.files) if base_bundle is not None else None
    base_gaps = (
        base_bundle.untyped_ranges(counterpart.path) if base_bundle is not None and counterpart is not None else []
    )
    base = tuple(gap for gap in base_gaps if (gap.address, gap.size) not in copied)
    if target_bundle.regions[path]:
        for run in split_ranges(untyped_ranges, MAX_FRAME_BYTES, MAX_ITEMS):
            yield PlannedJob(run[0].address, UntypedJob(run, base, False, options), path, "structure", "", ())
        return
    if not untyped_ranges:
        return
    if counterpart is not None and base_bundle is not None and base_bundle.regions[counterpart.path]:
        whole = Source(counterpart.sha256, counterpart.size)
        base = (ByteRange(whole, 0, base_bundle.file_addresses[counterpart.path], counterpart.size),)
    yield PlannedJob(
        target_bundle.file_addresses[path],
        UntypedJob(tuple(untyped_ranges), base, True, options),
        path,
        "whole file",
        "",
        (),
    )


def _plan_copy_jobs(copies: list[CopiedRange], origin: int) -> Iterator[PlannedJob]:
    ranges = merge_ranges(sorted(copies), origin)
    for i in range(0, len(ranges), MAX_ITEMS):
        job = CopyJob(tuple(ranges[i : i + MAX_ITEMS]))
        yield PlannedJob(job.ranges[0][0], job, "", f"{len(job.ranges)} unchanged ranges", "", ())


def _diff_arrays(match: ArrayMatch, target_bundle: MappedBundle, base_bundle: MappedBundle | None) -> ArrayDiff | None:
    """Compare an array with its base; None without a base, or if many elements differ."""
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
        unit = choose_edit_type(kind, (diff for _, diff in found))
        for match, diff in found:
            assert match.base is not None
            out[unit.name] += split_edited_array(
                target_bundle.array_position(match.target), base_bundle.array_position(match.base), kind, unit, diff
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
