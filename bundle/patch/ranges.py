"""Tables of ranges, as frames write them.

Rules:
1. Target ranges ascend and do not touch what was before them: each is (gap from the end of the one before, length).
2. Base ranges may go anywhere: each is (signed distance from the end of the one before, length).
3. Ranges that are copied are (gap, signed distance, length), as in rules 1 and 2.
4. A table has at most `items` entries, none of them empty; its lengths sum up to at most the caller's limit, but for
   ranges that are copied.
"""

from collections.abc import Sequence

from bundle.errors import PatchCorrupt, PatchLimitExceeded
from bundle.patch.address_space import BaseBytes, Range
from bundle.patch.numbers import Cursor, encode_signed_varint, encode_varint

CopiedRange = tuple[int, int, int]  # target address, base address, length (bytes)


def write_target_ranges(ranges: Sequence[Range]) -> bytes:
    """Rule 1."""
    out = [encode_varint(len(ranges))]
    end = 0
    for start, length in ranges:
        out += [encode_varint(start - end), encode_varint(length)]
        end = start + length
    return b"".join(out)


def read_target_ranges(cursor: Cursor, max_items: int, limit: int) -> list[Range]:
    """Rules 1 and 4; that they lie inside the target is checked where they are placed."""
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
    """Rule 2."""
    out = [encode_varint(len(ranges))]
    end = 0
    for start, length in ranges:
        out += [encode_signed_varint(start - end), encode_varint(length)]
        end = start + length
    return b"".join(out)


def read_base_ranges(cursor: Cursor, base: BaseBytes, max_items: int, limit: int) -> list[Range]:
    """Rules 2 and 4; each lies inside the base."""
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
    """Rule 3; target addresses ascend."""
    out = [encode_varint(len(ranges))]
    end = base_end = 0
    for start, base, length in ranges:
        out += [encode_varint(start - end), encode_signed_varint(base - base_end), encode_varint(length)]
        end, base_end = start + length, base + length
    return b"".join(out)


def read_copied_ranges(cursor: Cursor, max_items: int) -> list[CopiedRange]:
    """Rules 3 and 4, to the cursor's end; that they lie inside target and base is checked where they are copied."""
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
    """The number of entries that follow."""
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
