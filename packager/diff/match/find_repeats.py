"""Find arrays of the target that repeat earlier ones: tied weights, layers that share weights.

Rules:
1. An array repeats an earlier one of the target if its bytes are equal, under any name, type and shape; or if it is the
   earlier one with rows and columns exchanged.
2. What the base has as a whole is copied from there, because such copies join with those of its neighbors.
3. Repeats of fewer than MIN_REPEAT_BYTES are left to the coder of small tensors: a range costs some bytes, too.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from packager.diff.match.match_arrays import Array, ContentReader
from packager.tensors.region import Region

MIN_REPEAT_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Repeat:
    """An array that repeats an earlier one of the same bundle.

    Attributes:
        array: the array.
        earlier: the array that it repeats.
        shape: rows and columns of the array if the earlier one has them exchanged; () if the bytes are equal.
    """

    array: Array
    earlier: Array
    shape: tuple[int, ...]

    @property
    def is_transposed(self) -> bool:
        """True if rows and columns are exchanged."""
        return bool(self.shape)


def find_repeats(
    arrays: Sequence[Array], bases: Sequence[Array], read: ContentReader, read_base: ContentReader
) -> list[Repeat]:
    """Return the arrays that repeat an earlier one, in their order.

    Args:
        arrays: arrays of the target, in the order of its address space.
        bases: arrays of the base.
        read: returns the bytes of an array of the target.
        read_base: returns the bytes of an array of the base.
    """
    out: list[Repeat] = []
    first: dict[tuple[int, bytes], Array] = {}
    shapes: set[tuple[str, tuple[int, ...]]] = set()  # type and squeezed shape of each array in `first`
    for array in arrays:
        if array.region.size < MIN_REPEAT_BYTES:
            continue
        content, shape = read(array), _squeezed(array.region)
        key = (array.region.size, hashlib.sha256(content).digest())
        if key in first:
            out.append(Repeat(array, first[key], ()))
            continue
        if len(shape) == 2 and (array.region.dtype, shape[::-1]) in shapes:
            kind = ELEMENT_TYPE_BY_NAME[array.region.dtype]
            exchanged = np.frombuffer(content, kind.bits).reshape(shape).T.tobytes()
            earlier = first.get((array.region.size, hashlib.sha256(exchanged).digest()))
            if earlier is not None and _squeezed(earlier.region) == shape[::-1]:
                out.append(Repeat(array, earlier, shape))
                continue
        first[key] = array
        shapes.add((array.region.dtype, shape))
    return out if not out else _without_copies(out, bases, read, read_base)


def _without_copies(
    repeats: list[Repeat], bases: Sequence[Array], read: ContentReader, read_base: Callable[[Array], memoryview]
) -> list[Repeat]:
    sizes = {repeat.array.region.size for repeat in repeats}
    known = {hashlib.sha256(read_base(base)).digest() for base in bases if base.region.size in sizes}
    return [repeat for repeat in repeats if hashlib.sha256(read(repeat.array)).digest() not in known]


def _squeezed(region: Region) -> tuple[int, ...]:
    """Return the shape without axes of one element, if it is that of the region."""
    size = ELEMENT_TYPE_BY_NAME[region.dtype].size
    shape = tuple(side for side in region.shape if side > 1)
    return shape if np.prod(shape, dtype=np.int64) * size == region.size else ()
