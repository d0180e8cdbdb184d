"""Cut tensors into jobs: large ones into slices or runs of rows, small ones of a type together.

Unchanged rows are copied if the tables of their runs take less than coding all rows (docs/benchmarks.md, row "rows that
did not change").
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from bundle.patch.numbers import encode_varint
from bundle.patch.sections import write_section
from packager.diff.byte_range import BytePosition
from packager.diff.encode.copy_job import CopyJob
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.tensor_job import SLICE_ELEMENTS, Exchange, Segment, TensorJob, block_elements
from packager.diff.match.match_arrays import ArrayMatch
from packager.diff.write.mapped_bundle import MappedBundle
from packager.diff.write.planned_job import PlannedJob
from packager.tensors.region import Region

MAX_ITEMS: Final = 4096
LARGE_TENSOR_ELEMENTS: Final = 2048  # smaller tensors share jobs
MAX_RUNS: Final = 2048  # runs of rows in one job
MIN_COPIED_ROWS_SHARE: Final = 0.25  # with fewer unchanged rows, zero residuals are cheaper than copies
COPIED_ROWS_BYTES: Final = 256  # copying may cost this much more than coding all rows, because it is faster
BLOCK_OVERHEAD_BYTES: Final = 64  # size of a block of rows that hardly changed, beside a class for each row
MIN_ROW_BYTES: Final = 32

RowSpan = tuple[int, int, bool]  # first row, row after the last one, whether the rows changed


def plan_tensor_jobs(
    match: ArrayMatch, target_bundle: MappedBundle, base_bundle: MappedBundle | None, options: EncoderOptions
) -> Iterator[PlannedJob]:
    """Plan the jobs of one large tensor.

    Args:
        match: the tensor and its base.
        target_bundle: bundle that contains the tensor.
        base_bundle: None for a full download.
        options: encoder settings, such as the zstd level.
    """
    region = match.target.region
    path = target_bundle.directory.files[match.target.file].path
    runs = (
        find_changed_rows(match, target_bundle, base_bundle)
        if base_bundle is not None and match.base is not None
        else None
    )
    if runs is None:
        for offset, size, shape in _split_into_slices(region):
            base = (
                base_bundle.array_position(match.base, offset)
                if base_bundle is not None and match.base is not None
                else None
            )
            exchange = None
            if match.is_transposed:
                base, offset, size, shape = _transposed_base(match, base_bundle), 0, region.size, region.shape
                exchange = Exchange(*shape)
            segment = Segment(target_bundle.array_position(match.target, offset), base, size)
            job = TensorJob(region.dtype, (segment,), shape, exchange, base is not None, options)
            yield PlannedJob(match.target.address + offset, job, path, region.name, region.dtype, shape)
            if match.is_transposed:
                return
        return
    assert base_bundle is not None
    for chunk in _split_runs(runs, region):
        yield from _plan_row_jobs(match, chunk, target_bundle, base_bundle, path, options)


def _split_runs(runs: list[RowSpan], region: Region) -> Iterator[list[RowSpan]]:
    limit = SLICE_ELEMENTS * ELEMENT_TYPE_BY_NAME[region.dtype].size // (region.size // region.shape[0])
    chunk: list[RowSpan] = []
    rows = 0
    for begin, end, is_changed in runs:
        chunk.append((begin, end, is_changed))
        rows += (end - begin) * is_changed
        if len(chunk) == MAX_RUNS or rows >= limit:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk


def _plan_row_jobs(
    match: ArrayMatch,
    runs: list[RowSpan],
    target_bundle: MappedBundle,
    base_bundle: MappedBundle,
    path: str,
    options: EncoderOptions,
) -> Iterator[PlannedJob]:
    """Plan copied rows before coded rows, so that no coded row waits in the decoder for a copied one."""
    assert match.base is not None
    region = match.target.region
    row_bytes = region.size // region.shape[0]
    start = match.target.address + runs[0][0] * row_bytes
    copied = tuple(
        (match.target.address + begin * row_bytes, match.base.address + begin * row_bytes, (end - begin) * row_bytes)
        for begin, end, is_changed in runs
        if not is_changed
    )
    if copied:
        yield PlannedJob(start, CopyJob(copied), path, f"{region.name} (unchanged rows)", region.dtype, ())
    changed = [(begin, end) for begin, end, is_changed in runs if is_changed]
    if changed:
        segments = tuple(
            Segment(
                target_bundle.array_position(match.target, begin * row_bytes),
                base_bundle.array_position(match.base, begin * row_bytes),
                (end - begin) * row_bytes,
            )
            for begin, end in changed
        )
        shape = (sum(end - begin for begin, end in changed), *region.shape[1:])
        job = TensorJob(region.dtype, segments, shape, None, True, options)
        yield PlannedJob(segments[0].target.address, job, path, region.name, region.dtype, shape)


def _transposed_base(match: ArrayMatch, base_bundle: MappedBundle | None) -> BytePosition:
    assert base_bundle is not None
    assert match.base is not None
    return base_bundle.array_position(match.base)


def _split_into_slices(region: Region) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield (offset, bytes, shape) of runs of rows, or of elements, of at most `SLICE_ELEMENTS` elements."""
    size = ELEMENT_TYPE_BY_NAME[region.dtype].size
    elements = region.size // size
    if elements <= SLICE_ELEMENTS:
        yield 0, region.size, region.shape
        return
    longer = [dimension for dimension in region.shape if dimension > 1]
    row = elements // longer[0] if len(longer) > 1 and elements // longer[0] <= SLICE_ELEMENTS else 1
    step = max(1, SLICE_ELEMENTS // row)
    for begin in range(0, elements // row, step):
        rows = min(step, elements // row - begin)
        yield begin * row * size, rows * row * size, (rows, *longer[1:]) if row > 1 else ()


def find_changed_rows(
    match: ArrayMatch, target_bundle: MappedBundle, base_bundle: MappedBundle
) -> list[RowSpan] | None:
    """Return runs of changed and unchanged rows; None if copying rows does not pay.

    Args:
        match: a tensor and its base.
        target_bundle: bundle that contains the tensor.
        base_bundle: bundle that contains its base.
    """
    region = match.target.region
    if match.base is None or match.is_transposed or len(region.shape) < 2 or region.shape[0] < 64:
        return None
    row_bytes = region.size // region.shape[0]
    if row_bytes < MIN_ROW_BYTES:
        return None
    changed = np.zeros(region.shape[0], np.bool_)
    target_rows = np.frombuffer(target_bundle.array_bytes(match.target), np.uint8).reshape(-1, row_bytes)
    base_rows = np.frombuffer(base_bundle.array_bytes(match.base), np.uint8).reshape(-1, row_bytes)
    step = max(1, (1 << 22) // row_bytes)
    for begin in range(0, len(changed), step):
        changed[begin : begin + step] = (target_rows[begin : begin + step] != base_rows[begin : begin + step]).any(
            axis=1
        )
    if 1 - changed.mean() < MIN_COPIED_ROWS_SHARE:
        return None
    edges = [0, *(np.flatnonzero(np.diff(changed)) + 1).tolist(), len(changed)]
    lengths = b"".join(encode_varint((b - a) * row_bytes) for a, b in pairwise(edges))
    # Both the table of copies and that of segments contain the lengths of all runs, as lengths or as gaps.
    blocks = -(-count_elements(region) // block_elements(region.dtype))
    coded = len(write_section(changed.tobytes())) + BLOCK_OVERHEAD_BYTES * blocks
    if 2 * len(write_section(lengths)) > coded + COPIED_ROWS_BYTES:
        return None
    return [(a, b, bool(changed[a])) for a, b in pairwise(edges)]


def plan_grouped_jobs(
    matches: list[ArrayMatch],
    target_bundle: MappedBundle,
    base_bundle: MappedBundle | None,
    options: EncoderOptions,
    limit: int,
) -> Iterator[PlannedJob]:
    """Plan shared jobs for small tensors: those of one type together.

    Args:
        matches: small tensors and their bases, in target order.
        target_bundle: bundle that contains the tensors.
        base_bundle: None for a full download.
        options: encoder settings, such as the zstd level.
        limit: maximum number of elements in a job, without its last tensor.
    """
    open_groups: dict[tuple[str, bool], list[Segment]] = defaultdict(list)
    for match in matches:
        region = match.target.region
        key = (region.dtype, match.base is not None)
        base = base_bundle.array_position(match.base) if base_bundle is not None and match.base is not None else None
        group = open_groups[key]
        group.append(Segment(target_bundle.array_position(match.target), base, region.size))
        if sum(s.size for s in group) >= limit * ELEMENT_TYPE_BY_NAME[region.dtype].size or len(group) == MAX_ITEMS:
            yield _make_group_job(key[0], group, options)
            open_groups[key] = []
    for (dtype, _), group in open_groups.items():
        if group:
            yield _make_group_job(dtype, group, options)


def _make_group_job(dtype: str, segments: list[Segment], options: EncoderOptions) -> PlannedJob:
    job = TensorJob(dtype, tuple(segments), (), None, False, options)
    return PlannedJob(segments[0].target.address, job, "", f"{len(segments)} small {dtype} tensors", dtype, ())


def count_elements(region: Region) -> int:
    """Return the number of elements of an array."""
    return region.size // ELEMENT_TYPE_BY_NAME[region.dtype].size
