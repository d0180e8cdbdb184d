"""Cuts tensors into jobs: large ones into slices or into runs of rows, small ones of a type together.

Rules:
1. Rows that did not change are copied, where the tables of their runs take less than coding all rows.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np

from bundle.patch.elements import BY_NAME
from bundle.patch.numbers import varint
from bundle.patch.sections import write_section
from packager.diff.encode.copy_job import CopyJob
from packager.diff.encode.entropy import Effort
from packager.diff.encode.tensor_job import SLICE_ELEMENTS, Place, Segment, TensorJob, block_elements
from packager.diff.match.match_arrays import Match
from packager.diff.write.mapped_bundle import Side
from packager.diff.write.planned_job import Planned
from packager.tensors.region import Region

MAX_ITEMS: Final = 4096
MAX_RUNS: Final = 2048  # of rows in one job
COPIED_ROWS_SHARE: Final = 0.25  # below this, rows that did not change are cheaper as zeros of the residual
COPIED_ROWS_BYTES: Final = 256  # more than coding all rows takes, copying may cost: it is faster
BLOCK_BYTES: Final = 64  # what a block of rows takes that hardly changed, beside a class for each row
MIN_ROW_BYTES: Final = 32

Run = tuple[int, int, bool]  # first row, end, did they change


def tensor_jobs(match: Match, new: Side, old: Side | None, effort: Effort) -> Iterator[Planned]:
    """Of a large tensor."""
    region = match.target.region
    path = new.directory.files[match.target.file].path
    runs = _changed_rows(match, new, old) if old is not None and match.base is not None else None
    if runs is None:
        for offset, size, shape in _slices(region):
            base = old.place(match.base, offset) if old is not None and match.base is not None else None
            if match.is_transposed:
                base, offset, size, shape = _whole_transposed(match, old), 0, region.size, region.shape
            segment = Segment(new.place(match.target, offset), base, size)
            job = TensorJob(region.dtype, (segment,), shape, match.is_transposed, base is not None, effort)
            yield Planned(match.target.address + offset, job, path, region.name, region.dtype, shape)
            if match.is_transposed:
                return
        return
    assert old is not None
    for chunk in _chunks(runs, region):
        yield from _rows_jobs(match, chunk, new, old, path, effort)


def _chunks(runs: list[Run], region: Region) -> Iterator[list[Run]]:
    limit = SLICE_ELEMENTS * BY_NAME[region.dtype].size // (region.size // region.shape[0])
    chunk: list[Run] = []
    rows = 0
    for begin, end, is_changed in runs:
        chunk.append((begin, end, is_changed))
        rows += (end - begin) * is_changed
        if len(chunk) == MAX_RUNS or rows >= limit:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk


def _rows_jobs(match: Match, runs: list[Run], new: Side, old: Side, path: str, effort: Effort) -> Iterator[Planned]:
    """Rows that are copied, then those that are coded: so the latter never wait for the former in the decoder."""
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
        yield Planned(start, CopyJob(copied), path, f"{region.name} (unchanged rows)", region.dtype, ())
    changed = [(begin, end) for begin, end, is_changed in runs if is_changed]
    if changed:
        segments = tuple(
            Segment(
                new.place(match.target, begin * row_bytes),
                old.place(match.base, begin * row_bytes),
                (end - begin) * row_bytes,
            )
            for begin, end in changed
        )
        shape = (sum(end - begin for begin, end in changed), *region.shape[1:])
        job = TensorJob(region.dtype, segments, shape, False, True, effort)
        yield Planned(segments[0].target.address, job, path, region.name, region.dtype, shape)


def _whole_transposed(match: Match, old: Side | None) -> Place:
    assert old is not None
    assert match.base is not None
    return old.place(match.base)


def _slices(region: Region) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(offset, bytes, shape) of runs of rows of at most `SLICE_ELEMENTS` elements, where rows are known."""
    size = BY_NAME[region.dtype].size
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


def _changed_rows(match: Match, new: Side, old: Side) -> list[Run] | None:
    """Runs of rows; None where rule 1 does not pay."""
    region = match.target.region
    if match.base is None or match.is_transposed or len(region.shape) < 2 or region.shape[0] < 64:
        return None
    row_bytes = region.size // region.shape[0]
    if row_bytes < MIN_ROW_BYTES:
        return None
    changed = np.zeros(region.shape[0], np.bool_)
    ours = np.frombuffer(new.content(match.target), np.uint8).reshape(-1, row_bytes)
    theirs = np.frombuffer(old.content(match.base), np.uint8).reshape(-1, row_bytes)
    step = max(1, (1 << 22) // row_bytes)
    for begin in range(0, len(changed), step):
        changed[begin : begin + step] = (ours[begin : begin + step] != theirs[begin : begin + step]).any(axis=1)
    if 1 - changed.mean() < COPIED_ROWS_SHARE:
        return None
    edges = [0, *(np.flatnonzero(np.diff(changed)) + 1).tolist(), len(changed)]
    lengths = b"".join(varint((b - a) * row_bytes) for a, b in pairwise(edges))
    # The lengths of all runs are in both tables, that of copies and that of segments, as lengths or as gaps.
    blocks = -(-elements_of(region) // block_elements(region.dtype))
    coded = len(write_section(changed.tobytes())) + BLOCK_BYTES * blocks
    if 2 * len(write_section(lengths)) > coded + COPIED_ROWS_BYTES:
        return None
    return [(a, b, bool(changed[a])) for a, b in pairwise(edges)]


def group_jobs(matches: list[Match], new: Side, old: Side | None, effort: Effort, limit: int) -> Iterator[Planned]:
    """Of small tensors, those of a type together, up to `limit` elements."""
    open_groups: dict[tuple[str, bool], list[Segment]] = defaultdict(list)
    for match in matches:
        region = match.target.region
        key = (region.dtype, match.base is not None)
        base = old.place(match.base) if old is not None and match.base is not None else None
        group = open_groups[key]
        group.append(Segment(new.place(match.target), base, region.size))
        if sum(s.size for s in group) >= limit * BY_NAME[region.dtype].size or len(group) == MAX_ITEMS:
            yield _group(key[0], group, effort)
            open_groups[key] = []
    for (dtype, _), group in open_groups.items():
        if group:
            yield _group(dtype, group, effort)


def _group(dtype: str, segments: list[Segment], effort: Effort) -> Planned:
    job = TensorJob(dtype, tuple(segments), (), False, False, effort)
    return Planned(segments[0].target.address, job, "", f"{len(segments)} small {dtype} tensors", dtype, ())


def elements_of(region: Region) -> int:
    """How many an array has."""
    return region.size // BY_NAME[region.dtype].size
