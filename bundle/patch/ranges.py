"""Tables of ranges, as frames write them.

Rules:
1. Target ranges ascend and do not touch what was before them: each is (gap from the end of the one before, length).
2. Base ranges may go anywhere: each is (signed distance from the end of the one before, length).
3. A table has at most `items` entries and its lengths sum up to at most the caller's limit; none is empty.
"""

from collections.abc import Sequence

from bundle.errors import PatchCorruptRefused, PatchLimitRefused
from bundle.patch.layout import BaseLine, Range
from bundle.patch.numbers import Cursor, signed_varint, varint


def write_target_ranges(ranges: Sequence[Range]) -> bytes:
    """Rule 1."""
    out = [varint(len(ranges))]
    end = 0
    for start, length in ranges:
        out += [varint(start - end), varint(length)]
        end = start + length
    return b"".join(out)


def read_target_ranges(cursor: Cursor, items: int, limit: int) -> list[Range]:
    """Rules 1 and 3; that they lie inside the target is checked where they are placed."""
    out: list[Range] = []
    end = total = 0
    for _ in range(read_count(cursor, items)):
        start = end + cursor.varint()
        length = cursor.varint()
        total = _add(cursor, total, length, limit)
        end = start + length
        out.append((start, length))
    return out


def write_base_ranges(ranges: Sequence[Range]) -> bytes:
    """Rule 2."""
    out = [varint(len(ranges))]
    end = 0
    for start, length in ranges:
        out += [signed_varint(start - end), varint(length)]
        end = start + length
    return b"".join(out)


def read_base_ranges(cursor: Cursor, base: BaseLine, items: int, limit: int) -> list[Range]:
    """Rules 2 and 3; each lies inside the base."""
    out: list[Range] = []
    end = total = 0
    for _ in range(read_count(cursor, items)):
        start = end + cursor.signed_varint()
        length = cursor.varint()
        total = _add(cursor, total, length, limit)
        base.check(start, length, cursor.where)
        end = start + length
        out.append((start, length))
    return out


def read_count(cursor: Cursor, items: int) -> int:
    """The number of entries that follow."""
    count = cursor.varint()
    if count > items:
        raise PatchLimitRefused(f"{cursor.where}: {count} ranges, at most {items} are allowed")
    return count


def _add(cursor: Cursor, total: int, length: int, limit: int) -> int:
    if length == 0:
        raise PatchCorruptRefused(f"{cursor.where}: empty range")
    if total + length > limit:
        raise PatchLimitRefused(f"{cursor.where}: ranges of {total + length} bytes, at most {limit} are allowed")
    return total + length
