"""`Region`: an array of numbers in a file, and the checks that every parser's result goes through.

Rules:
1. Model files are untrusted. Whatever a parser reports is reduced to regions that lie inside the file, contain whole
   elements and do not overlap. A wrong region costs bytes, never correctness.
2. A file that does not parse has no regions; that is a result, not an error.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MIN_REGION_BYTES: Final = 64  # below this size a table entry costs more than typing saves
MAX_REGIONS: Final = 1 << 20


class MalformedFile(Exception):
    """The file is not what its first bytes suggest; this exception never leaves the package."""


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """One array of a file.

    Attributes:
        offset: bytes from the start of the file.
        size: size in bytes.
        dtype: name of a type in `bundle.patch.elements`.
        name: unique in most files; pairs the arrays of two versions.
        shape: dimensions; () if unknown.
    """

    offset: int
    size: int
    dtype: str
    name: str
    shape: tuple[int, ...]


ELEMENT_BYTES: Final = {
    "f32": 4, "f16": 2, "bf16": 2, "f64": 8, "u8": 1, "i8": 1, "u16": 2, "i16": 2, "u32": 4, "i32": 4,
    "u64": 8, "i64": 8,
}  # fmt: skip


def keep_valid_regions(regions: Iterable[Region], file_bytes: int) -> list[Region]:
    """Return the regions that follow rule 1, sorted by offset.

    Args:
        regions: regions that a parser reported.
        file_bytes: size of the file.
    """
    out: list[Region] = []
    end = 0
    for region in sorted(regions):
        size = region.size - region.size % ELEMENT_BYTES[region.dtype]
        if size < MIN_REGION_BYTES or region.offset < end or region.offset + size > file_bytes:
            continue
        count = 1
        for dimension in region.shape:
            count *= dimension
        shape = region.shape if count * ELEMENT_BYTES[region.dtype] == size else ()
        out.append(Region(region.offset, size, region.dtype, region.name, shape))
        end = region.offset + size
        if len(out) == MAX_REGIONS:
            break
    return out
