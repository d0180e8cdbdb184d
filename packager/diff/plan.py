"""Cuts a bundle into jobs for the typed codec, in the order in which the decoder can write what they make.

Rules:
1. Jobs are ordered by the first byte that they make. A large tensor is a job or several; small tensors of one type
   share one, and so do the bytes between tensors: what a shared job makes ahead of the cursor waits in the decoder.
2. Shared jobs are made small enough that never more than `MAX_PENDING_BYTES` wait.
3. What the base holds already is copied: whole tensors, rows of tensors that changed only here and there, and all of
   what lies between tensors where it lies so in the base, beside one that is copied: so a run of tensors is one range.
4. Tensors of which few elements differ are copied with edits (packager/diff/edits.py).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from bundle.files import BundleDirectory
from bundle.patch.edits import WAITING_BYTES
from bundle.patch.elements import BY_NAME
from bundle.patch.numbers import varint
from bundle.patch.ranges import Copied
from bundle.patch.sections import write_section
from packager.diff.counterpart import addresses, counterpart
from packager.diff.directory import path_of
from packager.diff.edits import (
    WAITING_EDITS,
    Change,
    EditedPiece,
    EditJob,
    compare,
    edit_jobs,
    pieces_of,
    unit_of,
    with_copies,
)
from packager.diff.jobs import BLOCK_ELEMENTS, SLICE_ELEMENTS, Place, Segment, TensorJob, block_elements
from packager.diff.matching import Array, Match, match_arrays
from packager.diff.pack import Effort
from packager.diff.raw import FRAME_BYTES, Piece, RawJob, cut
from packager.regions.find import find_regions
from packager.regions.region import Region

MAX_PENDING_BYTES: Final = 2 << 20
MAX_ITEMS: Final = 4096
MAX_RUNS: Final = 2048  # of rows in one job
SMALL_ELEMENTS: Final = 2048
COPIED_ROWS_SHARE: Final = 0.25  # below this, rows that did not change are cheaper as zeros of the residual
COPIED_ROWS_BYTES: Final = 256  # more than coding all rows takes, copying may cost: it is faster
BLOCK_BYTES: Final = 64  # what a block of rows takes that hardly changed, beside a class for each row
MIN_ROW_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Ranges that the base holds, ascending."""

    ranges: tuple[Copied, ...]

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(length for _, _, length in self.ranges)


Run = tuple[int, int, bool]  # first row, end, did they change
Job = CopyJob | EditJob | RawJob | TensorJob


@dataclass(frozen=True, slots=True)
class Planned:
    """A job and how the report names it."""

    start: int
    job: Job
    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Bundle:
    """Arrays and bytes of one side."""

    def __init__(self, directory: BundleDirectory) -> None:
        self.directory = directory
        self.starts = addresses(directory.files)
        self.regions = find_regions(directory)
        self._maps = {
            file.path: np.memmap(path_of(directory, file), np.uint8, "r") for file in directory.files if file.size
        }

    def arrays(self) -> list[Array]:
        return [
            Array(index, self.starts[file.path] + region.offset, region)
            for index, file in enumerate(self.directory.files)
            for region in self.regions[file.path]
        ]

    def content(self, array: Array) -> memoryview:
        region = array.region
        path = self.directory.files[array.file].path
        return self._maps[path][region.offset : region.offset + region.size].data

    def gaps(self, path: str) -> list[Piece]:
        """What lies between the regions of a file."""
        file = next(file for file in self.directory.files if file.path == path)
        ends = [(0, 0), *((r.offset, r.offset + r.size) for r in self.regions[path]), (file.size, file.size)]
        place, start = path_of(self.directory, file), self.starts[path]
        return [Piece(place, a, start + a, b - a) for (_, a), (b, _) in pairwise(ends) if b > a]

    def held(self, address: int, size: int) -> memoryview | None:
        """Bytes of one file by where they lie in the bundle; None where they are no file's."""
        for file in self.directory.files:
            begin = address - self.starts[file.path]
            if file.size and 0 <= begin <= begin + size <= file.size:
                return self._maps[file.path][begin : begin + size].data
        return None

    def place(self, array: Array, offset: int = 0) -> Place:
        file = self.directory.files[array.file]
        return Place(path_of(self.directory, file), array.region.offset + offset, array.address + offset)


def plan_jobs(base: BundleDirectory | None, target: BundleDirectory, effort: Effort) -> list[Planned]:
    """Every byte of the target in exactly one job, in order (rule 1)."""
    new = _Bundle(target)
    old = _Bundle(base) if base is not None else None
    copies: list[Copied] = []
    edited: dict[str, list[tuple[Match, Change]]] = defaultdict(list)
    planned: list[Planned] = []
    small: list[Match] = []
    handled = set()
    for file in target.files:
        like = counterpart(file, base.files) if base is not None else None
        if file.size == 0:
            handled.add(file.path)
        elif old is not None and like is not None and (like.size, like.sha256) == (file.size, file.sha256):
            copies.append((new.starts[file.path], old.starts[like.path], file.size))
            handled.add(file.path)
    arrays = [array for array in new.arrays() if target.files[array.file].path not in handled]
    if old is not None:
        matches = match_arrays(arrays, old.arrays(), new.content, old.content)
    else:
        matches = [Match(array, None, False) for array in arrays]
    for match in matches:
        change = _change(match, new, old)
        if change is not None and match.base is not None and change.runs == 0:
            copies.append((match.target.address, match.base.address, match.target.region.size))
        elif change is not None and change.is_edited:
            edited[match.target.region.dtype].append((match, change))
        elif _elements(match.target.region) < SMALL_ELEMENTS and not match.is_transposed:
            small.append(match)
        else:
            planned += _tensor_jobs(match, new, old, effort)
    edits = _edited_pieces(edited, new, old) if old is not None else {}
    held = copies + [(p.target.address, p.base.address, p.size) for made in edits.values() for p in made]
    gaps = {file.path: new.gaps(file.path) for file in target.files if file.path not in handled}
    beside = (
        _copied_gaps(held, [gap for pieces in gaps.values() for gap in pieces], new, old) if old is not None else {}
    )
    copies += [(gap.address, start, gap.size) for gap, start in beside.items()]
    for path, pieces in gaps.items():
        planned += _raw_jobs(
            path,
            [gap for gap in pieces if gap not in beside],
            {(start, gap.size) for gap, start in beside.items()},
            new,
            old,
            effort,
        )
    edits, copies = with_copies(edits, copies)
    for unit, made in edits.items():
        planned += _edit_jobs(unit, made, effort, WAITING_EDITS // len(edits))
    group = BLOCK_ELEMENTS // 2
    while True:
        shared = list(_group_jobs(small, new, old, effort, group))
        out = sorted(
            planned + shared + list(_copy_jobs(copies)),
            key=lambda plan: (plan.start, not isinstance(plan.job, CopyJob)),
        )
        if group <= 1 or pending_bytes(out) <= MAX_PENDING_BYTES:
            return out
        group //= 2


def _order(plan: Planned) -> tuple[int, bool]:
    return plan.start, not isinstance(plan.job, CopyJob)


def pending_bytes(plans: list[Planned]) -> int:
    """Rule 2: the most bytes that ever wait in the decoder, where every shared job makes all its bytes at once."""
    worst = waiting = cursor = 0
    ahead: dict[int, tuple[int, int]] = {}
    for plan in plans:
        if isinstance(plan.job, CopyJob):
            ranges = [(start, length, 0) for start, _, length in plan.job.ranges]
        elif isinstance(plan.job, EditJob):
            ranges = [(p.target.address, p.size, WAITING_BYTES * p.edits) for p in plan.job.pieces]
            worst = max(worst, waiting + WAITING_BYTES * plan.job.edits)  # they wait until the frame is read
        elif isinstance(plan.job, RawJob):
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


def _tensor_jobs(match: Match, new: _Bundle, old: _Bundle | None, effort: Effort) -> Iterator[Planned]:
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


def _rows_jobs(
    match: Match, runs: list[Run], new: _Bundle, old: _Bundle, path: str, effort: Effort
) -> Iterator[Planned]:
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


def _whole_transposed(match: Match, old: _Bundle | None) -> Place:
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


def _changed_rows(match: Match, new: _Bundle, old: _Bundle) -> list[Run] | None:
    """Runs of rows; None where rule 3 does not pay."""
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
    blocks = -(-_elements(region) // block_elements(region.dtype))
    coded = len(write_section(changed.tobytes())) + BLOCK_BYTES * blocks
    if 2 * len(write_section(lengths)) > coded + COPIED_ROWS_BYTES:
        return None
    return [(a, b, bool(changed[a])) for a, b in pairwise(edges)]


def _group_jobs(
    matches: list[Match], new: _Bundle, old: _Bundle | None, effort: Effort, limit: int
) -> Iterator[Planned]:
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


def _copied_gaps(copies: list[Copied], gaps: list[Piece], new: _Bundle, old: _Bundle) -> dict[Piece, int]:
    """Rule 3: those gaps that the base holds beside what is copied next to them, and where."""
    starts = {start: base for start, base, _ in copies}
    ends = {start + length: base + length for start, base, length in copies}
    found = {}
    for gap in gaps:
        after = starts.get(gap.address + gap.size)
        for base in (ends.get(gap.address), None if after is None else after - gap.size):
            if base is not None and old.held(base, gap.size) == new.held(gap.address, gap.size):
                found[gap] = base
                break
    return found


def _raw_jobs(
    path: str, gaps: list[Piece], copied: set[tuple[int, int]], new: _Bundle, old: _Bundle | None, effort: Effort
) -> Iterator[Planned]:
    file = next(file for file in new.directory.files if file.path == path)
    like = counterpart(file, old.directory.files) if old is not None else None
    held = old.gaps(like.path) if old is not None and like is not None else []
    base = tuple(gap for gap in held if (gap.address, gap.size) not in copied)
    if new.regions[path]:
        for run in cut(gaps, FRAME_BYTES, MAX_ITEMS):
            yield Planned(run[0].address, RawJob(run, base, False, effort), path, "structure", "", ())
        return
    if not gaps:
        return
    if like is not None and old is not None and old.regions[like.path]:
        whole = path_of(old.directory, like)
        base = (Piece(whole, 0, old.starts[like.path], like.size),)
    yield Planned(new.starts[path], RawJob(tuple(gaps), base, True, effort), path, "whole file", "", ())


def _copy_jobs(copies: list[Copied]) -> Iterator[Planned]:
    merged: list[Copied] = []
    for start, base, length in sorted(copies):
        if merged and merged[-1][0] + merged[-1][2] == start and merged[-1][1] + merged[-1][2] == base:
            merged[-1] = (merged[-1][0], merged[-1][1], merged[-1][2] + length)
        else:
            merged.append((start, base, length))
    for i in range(0, len(merged), MAX_ITEMS):
        ranges = tuple(merged[i : i + MAX_ITEMS])
        yield Planned(ranges[0][0], CopyJob(ranges), "", f"{len(ranges)} unchanged ranges", "", ())


def _change(match: Match, new: _Bundle, old: _Bundle | None) -> Change | None:
    """None where it has no base, or is not nearly the same."""
    if old is None or match.base is None or match.is_transposed:
        return None
    return compare(new.content(match.target), old.content(match.base), BY_NAME[match.target.region.dtype])


def _edited_pieces(
    edited: dict[str, list[tuple[Match, Change]]], new: _Bundle, old: _Bundle
) -> dict[str, list[EditedPiece]]:
    out: dict[str, list[EditedPiece]] = defaultdict(list)
    for dtype, found in edited.items():
        kind = BY_NAME[dtype]
        unit = unit_of(kind, (change for _, change in found))
        for match, change in found:
            assert match.base is not None
            out[unit.name] += pieces_of(new.place(match.target), old.place(match.base), kind, unit, change)
    return out


def _edit_jobs(unit: str, pieces: list[EditedPiece], effort: Effort, most_edits: int) -> Iterator[Planned]:
    for job in edit_jobs(unit, pieces, effort, most_edits):
        start = job.pieces[0].target.address
        if job.edits:
            yield Planned(start, job, "", f"{job.edits} edits of {unit}", unit, ())
        else:
            yield Planned(start, CopyJob(tuple(job.ranges())), "", "unchanged ranges", "", ())


def _elements(region: Region) -> int:
    return region.size // BY_NAME[region.dtype].size
