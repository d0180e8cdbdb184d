"""Copied ranges, as a job that becomes a COPY frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bundle.patch.container import Op, encode_frame
from bundle.patch.ranges import CopiedRange, write_copied_ranges
from bundle.patch.sections import write_section


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Ranges of the target that equal ranges of the base.

    Attributes:
        ranges: (target address, base address, bytes), ascending by target address.
    """

    ranges: tuple[CopiedRange, ...]

    @property
    def size(self) -> int:
        """Bytes of the target."""
        return sum(length for _, _, length in self.ranges)


def merge_ranges(ranges: Iterable[CopiedRange], origin: int | None = None) -> list[CopiedRange]:
    """Merge ranges that follow each other on both sides.

    Args:
        ranges: ascending by target address.
        origin: base address of the target's first byte, if ranges may repeat the target: no merged range begins before
            the end of what it repeats.
    """
    out: list[CopiedRange] = []
    for start, base, length in ranges:
        first, source, size = out[-1] if out else (0, 0, 0)
        follows = out and first + size == start and source + size == base
        if follows and (origin is None or base < origin or base + length <= origin + first):
            out[-1] = (first, source, size + length)
        else:
            out.append((start, base, length))
    return out


def encode_copy_frame(ranges: Sequence[CopiedRange]) -> bytes:
    """Encode ranges, ascending by target address, as a COPY frame."""
    table = write_copied_ranges(ranges)
    return encode_frame(Op.COPY, write_section(table), table)
