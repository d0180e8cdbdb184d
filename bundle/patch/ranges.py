"""Tables of ranges in the payloads of COPY, BYTES and EDIT (docs/format.md section 9.4).

Rules:
1. Target ranges ascend: each is (gap from the end of the previous range, length).
2. Base ranges may be in any order: each is (signed distance from the end of the previous range, length).
3. Copied ranges are (gap, signed distance, length), as in rules 1 and 2.
4. A table has at most `max_items` ranges, and none is empty. Their lengths add up to at most the caller's limit, except
   for copied ranges.
"""

from collections.abc import Sequence

from bundle.errors import PatchCorrupt, PatchLimitExceeded
from bundle.patch.address_space import BaseBytes, Range
from bundle.patch.numbers import Cursor, encode_signed_varint, encode_varint

CopiedRange = tuple[int, int, int]  # target address, base address, length (bytes)


def write_target_ranges(ranges: Sequence[Range]) -> bytes:
    """Encode target ranges, which ascend."""
    out = [encode_varint(len(ranges))]
    end = 0
    for start, length in ranges:
        out += [encode_varint(start - end), encode_varint(length)]
        end = start + length
    return b"".join(out)


def read_target_ranges(cursor: Cursor, max_items: int, limit: int) -> list[Range]:
    """Decode target ranges; whether they lie inside the target is checked when they are written.

    Args:
        cursor: positioned at the table.
        max_items: maximum number of ranges.
        limit: maximum total size of all ranges, in bytes.

    Raises:
        PatchCorrupt: a range is empty or the table is damaged.
        PatchLimitExceeded: too many ranges or bytes.
    """
    out: list[Range] = []
    end = total = 0
    for _ in range(read_count(cursor, max_items)):
        start = end + cursor.read_varint()
        length = cursor.read_varint()
        total = _add_length(cursor, total, length, limit)
        end = start + length
        out.append((start, length))
    return out


def write_base_ranges(ranges: Sequence[Range]) -> bytes:
    """Encode base ranges, in any order."""
    out = [encode_varint(len(ranges))]
    end = 0
    for start, length in ranges:
        out += [encode_signed_varint(start - end), encode_varint(length)]
        end = start + length
    return b"".join(out)


def read_base_ranges(cursor: Cursor, base: BaseBytes, max_items: int, limit: int) -> list[Range]:
    """Decode base ranges, and check that each lies inside the base.

    Args:
        cursor: positioned at the table.
        base: the base's address space.
        max_items: maximum number of ranges.
        limit: maximum total size of all ranges, in bytes.

    Raises:
        PatchCorrupt: a range is empty or the table is damaged.
        PatchLimitExceeded: too many ranges or bytes.
        PatchRangeInvalid: a range is outside the base.
    """
    out: list[Range] = []
    end = total = 0
    for _ in range(read_count(cursor, max_items)):
        start = end + cursor.read_signed_varint()
        length = cursor.read_varint()
        total = _add_length(cursor, total, length, limit)
        base.check_range(start, length, cursor.where)
        end = start + length
        out.append((start, length))
    return out


def write_copied_ranges(ranges: Sequence[CopiedRange]) -> bytes:
    """Encode copied ranges, whose target addresses ascend."""
    out = [encode_varint(len(ranges))]
    end = base_end = 0
    for start, base, length in ranges:
        out += [encode_varint(start - end), encode_signed_varint(base - base_end), encode_varint(length)]
        end, base_end = start + length, base + length
    return b"".join(out)


def read_copied_ranges(cursor: Cursor, max_items: int) -> list[CopiedRange]:
    """Decode copied ranges up to the cursor's end; their bounds are checked when they are copied.

    Args:
        cursor: positioned at the table; nothing may follow it.
        max_items: maximum number of ranges.

    Raises:
        PatchCorrupt: a range is empty, the table is damaged, or bytes follow it.
        PatchLimitExceeded: too many ranges.
    """
    out: list[CopiedRange] = []
    end = base_end = 0
    for _ in range(read_count(cursor, max_items)):
        start = end + cursor.read_varint()
        base = base_end + cursor.read_signed_varint()
        length = cursor.read_varint()
        if length == 0:
            raise PatchCorrupt(f"{cursor.where}: empty range")
        end, base_end = start + length, base + length
        out.append((start, base, length))
    cursor.check_end()
    return out


def read_count(cursor: Cursor, max_items: int) -> int:
    """Read the number of entries that follow.

    Args:
        cursor: positioned at the count.
        max_items: maximum number of entries.

    Raises:
        PatchLimitExceeded: the table has more entries.
    """
    count = cursor.read_varint()
    if count > max_items:
        raise PatchLimitExceeded(f"{cursor.where}: {count} ranges, at most {max_items} are allowed")
    return count


def _add_length(cursor: Cursor, total: int, length: int, limit: int) -> int:
    if length == 0:
        raise PatchCorrupt(f"{cursor.where}: empty range")
    if total + length > limit:
        raise PatchLimitExceeded(f"{cursor.where}: ranges of {total + length} bytes, at most {limit} are allowed")
    return total + length
