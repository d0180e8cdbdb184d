"""Pair the arrays of the target with those of the base.

First, an array that has gained or lost rows is cut into the runs of rows that both sides have and the rows between them
(packager/diff/match/align_rows.py). Then these rules apply; the first that fits wins:
1. Same name, type and size. The pair is transposed if rows and columns are exchanged.
2. Same content, under any name.
3. Nearest content on a sample of `SAMPLE_ELEMENTS` elements, among arrays of the same type and size that are not paired
   yet: this finds renamed, reordered and transposed tensors.
4. No pair. A wrong pair costs bytes, never correctness.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, to_ordered
from packager.diff.match.align_rows import RowRun, align_rows
from packager.tensors.region import Region

SAMPLE_ELEMENTS: Final = 256
MAX_COMPARED_PAIRS: Final = 1 << 18  # pairs of arrays compared by rule 3


@dataclass(frozen=True, slots=True)
class Array:
    """A region of a bundle.

    Attributes:
        file: index in the bundle's table.
        address: address of the first byte in the bundle's address space.
        region: type, name, shape and position in the file.
    """

    file: int
    address: int
    region: Region

    @property
    def kind(self) -> tuple[str, int]:
        """Type and size; arrays of one kind can be subtracted element by element."""
        return self.region.dtype, self.region.size


@dataclass(frozen=True, slots=True)
class ArrayMatch:
    """A target array and the base array that it is predicted from.

    Attributes:
        target: the target array.
        base: None if no base array fits.
        is_transposed: True if the base has rows and columns exchanged.
    """

    target: Array
    base: Array | None
    is_transposed: bool


ContentReader = Callable[[Array], memoryview]


def match_arrays(
    targets: Iterable[Array], bases: Iterable[Array], read_target: ContentReader, read_base: ContentReader
) -> list[ArrayMatch]:
    """Match each target array with a base array, in the order of the target arrays.

    Args:
        targets: arrays of the target.
        bases: arrays of the base.
        read_target: returns the bytes of a target array.
        read_base: returns the bytes of a base array.

    Returns:
        One match per array; an array that has gained or lost rows comes in several parts.
    """
    targets, bases = split_resized(list(targets), list(bases), read_target, read_base)
    found: dict[int, ArrayMatch] = {}
    taken: set[int] = set()
    _match_by_name(targets, bases, found, taken)
    _match_by_content(targets, bases, read_target, read_base, found, taken)
    _match_by_sample(targets, bases, read_target, read_base, found, taken)
    return [found.get(array.address, ArrayMatch(array, None, False)) for array in targets]


def split_resized(
    targets: list[Array], bases: list[Array], read_target: ContentReader, read_base: ContentReader
) -> tuple[list[Array], list[Array]]:
    """Cut arrays that have gained or lost rows where the rows of both sides correspond.

    Only arrays with the same name, type and row shape are compared.

    Args:
        targets: arrays of the target.
        bases: arrays of the base.
        read_target: returns the bytes of a target array.
        read_base: returns the bytes of a base array.

    Returns:
        The target's and the base's arrays after the cut; parts that correspond have the same name.
    """
    ours: list[Array] = []
    cut: dict[int, list[Array]] = {}
    for array, base in _pair_by_name_and_type(targets, bases):
        runs = _find_common_rows(array, base, read_target, read_base) if base is not None else []
        if base is None or not runs:
            ours.append(array)
            continue
        ours += _split_at_runs(array, [(run.target, run.target + run.rows) for run in runs])
        cut[base.address] = _split_at_runs(base, [(run.base, run.base + run.rows) for run in runs])
    return ours, [part for base in bases for part in cut.get(base.address, [base])]


def _pair_by_name_and_type(targets: list[Array], bases: list[Array]) -> list[tuple[Array, Array | None]]:
    """Pair arrays of one name and type in their order: first those of equal size, then the rest."""
    pairs: dict[int, Array] = {}
    taken: set[int] = set()
    for is_strict in (True, False):
        free: dict[tuple[str, str], list[Array]] = defaultdict(list)
        for base in bases:
            if base.address not in taken:
                free[base.region.name, base.region.dtype].append(base)
        for array in targets:
            alike = free[array.region.name, array.region.dtype] if array.address not in pairs else []
            other = next((base for base in alike if not is_strict or base.kind == array.kind), None)
            if other is not None:
                alike.remove(other)
                pairs[array.address] = other
                taken.add(other.address)
    return [(array, pairs.get(array.address)) for array in targets]


def _find_common_rows(array: Array, base: Array, read_target: ContentReader, read_base: ContentReader) -> list[RowRun]:
    """Return the runs of rows that both arrays have; empty if the arrays need no cut."""
    shape, other, kind = array.region.shape, base.region.shape, ELEMENT_TYPE_BY_NAME[array.region.dtype]
    if len(shape) < 2 or shape[1:] != other[1:] or min(shape[0], other[0]) == 0:
        return []
    if any(math.prod(one.shape) * kind.size != one.size for one in (array.region, base.region)):
        return []
    target_rows, base_rows = (
        np.frombuffer(content, kind.bits).reshape(rows, -1)
        for content, rows in ((read_target(array), shape[0]), (read_base(base), other[0]))
    )
    runs = align_rows(target_rows, base_rows, kind)
    if runs is None and shape[0] != other[0]:
        return [RowRun(0, 0, min(shape[0], other[0]))]
    return runs or []


def _split_at_runs(array: Array, runs: list[tuple[int, int]]) -> list[Array]:
    """Cut an array into its runs of rows and the rows between them; the nth runs get the same name."""
    region = array.region
    row = region.size // region.shape[0]
    out = []
    done = 0
    for number, (begin, end) in enumerate([*runs, (region.shape[0], region.shape[0])]):
        for name, first, last in (
            (f"{region.name} (between {number})", done, begin),
            (f"{region.name} (part {number})", begin, end),
        ):
            if last > first:
                shape = (last - first, *region.shape[1:])
                part = Region(region.offset + first * row, (last - first) * row, region.dtype, name, shape)
                out.append(Array(array.file, array.address + first * row, part))
        done = end
    return out


def _match_by_name(targets: list[Array], bases: list[Array], found: dict[int, ArrayMatch], taken: set[int]) -> None:
    named: dict[tuple[str, tuple[str, int]], list[Array]] = defaultdict(list)
    for base in bases:
        named[base.region.name, base.kind].append(base)
    for array in targets:
        same = [base for base in named.get((array.region.name, array.kind), []) if base.address not in taken]
        if same:
            _assign_base(array, same[0], found, taken)


def _match_by_content(
    targets: list[Array],
    bases: list[Array],
    read_target: ContentReader,
    read_base: ContentReader,
    found: dict[int, ArrayMatch],
    taken: set[int],
) -> None:
    left = [array for array in targets if array.address not in found]
    kinds = {array.kind for array in left}
    digests = {_digest(read_base(base)): base for base in reversed(bases) if base.kind in kinds}
    for array in left:
        same = digests.get(_digest(read_target(array)))
        if same is not None and same.kind == array.kind:
            found[array.address] = ArrayMatch(array, same, False)
            taken.add(same.address)


def _match_by_sample(
    targets: list[Array],
    bases: list[Array],
    read_target: ContentReader,
    read_base: ContentReader,
    found: dict[int, ArrayMatch],
    taken: set[int],
) -> None:
    free: dict[tuple[str, int], list[Array]] = defaultdict(list)
    for base in bases:
        if base.address not in taken:
            free[base.kind].append(base)
    wanted: dict[tuple[str, int], list[Array]] = defaultdict(list)
    for array in targets:
        if array.address not in found and free.get(array.kind):
            wanted[array.kind].append(array)
    for kind, arrays in wanted.items():
        others = free[kind]
        if len(arrays) * len(others) > MAX_COMPARED_PAIRS:
            continue
        target_samples = [_sample_values(read_target(array), array, None) for array in arrays]
        base_samples = [_sample_values(read_base(base), base, None) for base in others]
        pairs = [
            (_distance(x, y), i, j, False) for i, x in enumerate(target_samples) for j, y in enumerate(base_samples)
        ]
        pairs += _find_transposed_pairs(arrays, others, target_samples, read_base)
        used: set[int] = set()
        for _, i, j, is_transposed in sorted(pairs):
            if arrays[i].address not in found and j not in used:
                used.add(j)
                taken.add(others[j].address)
                found[arrays[i].address] = ArrayMatch(arrays[i], others[j], is_transposed)


def _find_transposed_pairs(
    arrays: list[Array], others: list[Array], target_samples: list[npt.NDArray[np.float64]], read_base: ContentReader
) -> list[tuple[float, int, int, bool]]:
    out = []
    for i, array in enumerate(arrays):
        shape = array.region.shape
        for j, other in enumerate(others):
            if len(shape) == 2 and min(shape) > 1 and other.region.shape == shape[::-1]:
                sample = _sample_values(read_base(other), other, shape)
                out.append((_distance(target_samples[i], sample), i, j, True))
    return out


def _assign_base(array: Array, base: Array, found: dict[int, ArrayMatch], taken: set[int]) -> None:
    shape = array.region.shape
    is_transposed = len(shape) == 2 and base.region.shape == shape[::-1] and shape[0] != shape[1] and min(shape) > 1
    found[array.address] = ArrayMatch(array, base, is_transposed)
    taken.add(base.address)


def _distance(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    return float(np.log2(1 + np.abs(x - y)).mean())


def _digest(content: memoryview) -> bytes:
    return hashlib.sha256(content).digest()


def _sample_values(content: memoryview, array: Array, as_transposed: tuple[int, ...] | None) -> npt.NDArray[np.float64]:
    kind = ELEMENT_TYPE_BY_NAME[array.region.dtype]
    values = np.frombuffer(content, kind.bits)
    index = np.unique(np.linspace(0, len(values) - 1, min(len(values), SAMPLE_ELEMENTS)).astype(np.int64))
    if as_transposed is not None:
        rows, columns = as_transposed
        index = (index % columns) * rows + index // columns
    return to_ordered(np.ascontiguousarray(values[index]), kind).astype(np.float64)
