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
from bundle.patch.edits import WAITING_BYTES
from bundle.patch.elements import BY_NAME
from bundle.patch.ranges import Copied
from packager.diff.bundle_folder import path_of
from packager.diff.encode.copy_job import CopyJob, merged
from packager.diff.encode.encode_edits import (
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
from packager.diff.encode.encode_untyped import FRAME_BYTES, Piece, RawJob, cut
from packager.diff.encode.entropy import Effort
from packager.diff.encode.tensor_job import BLOCK_ELEMENTS
from packager.diff.match.match_arrays import Match, match_arrays
from packager.diff.match.match_files import counterpart
from packager.diff.write.mapped_bundle import Side
from packager.diff.write.planned_job import Planned
from packager.diff.write.split_tensors import MAX_ITEMS, elements_of, group_jobs, tensor_jobs

MAX_PENDING_BYTES: Final = 2 << 20
SMALL_ELEMENTS: Final = 2048


def plan_jobs(base: BundleDirectory | None, target: BundleDirectory, effort: Effort) -> list[Planned]:
    """Every byte of the target in exactly one job, in order (rule 1)."""
    new = Side(target)
    old = Side(base) if base is not None else None
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
        elif elements_of(match.target.region) < SMALL_ELEMENTS and not match.is_transposed:
            small.append(match)
        else:
            planned += tensor_jobs(match, new, old, effort)
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
        shared = list(group_jobs(small, new, old, effort, group))
        out = sorted(planned + shared + list(_copy_jobs(copies)), key=_order)
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


def _copied_gaps(copies: list[Copied], gaps: list[Piece], new: Side, old: Side) -> dict[Piece, int]:
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
    path: str, gaps: list[Piece], copied: set[tuple[int, int]], new: Side, old: Side | None, effort: Effort
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
    ranges = merged(sorted(copies))
    for i in range(0, len(ranges), MAX_ITEMS):
        job = CopyJob(tuple(ranges[i : i + MAX_ITEMS]))
        yield Planned(job.ranges[0][0], job, "", f"{len(job.ranges)} unchanged ranges", "", ())


def _change(match: Match, new: Side, old: Side | None) -> Change | None:
    """None where it has no base, or is not nearly the same."""
    if old is None or match.base is None or match.is_transposed:
        return None
    return compare(new.content(match.target), old.content(match.base), BY_NAME[match.target.region.dtype])


def _edited_pieces(edited: dict[str, list[tuple[Match, Change]]], new: Side, old: Side) -> dict[str, list[EditedPiece]]:
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
        name = f"{job.edits} edits of {unit}" if isinstance(job, EditJob) else f"{len(job.ranges)} unchanged ranges"
        yield Planned(job.ranges[0][0], job, "", name, unit if isinstance(job, EditJob) else "", ())
