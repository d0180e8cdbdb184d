"""Decode runs of integers: pcodec, or byte planes for devices without pcodec.

The format is docs/format.md section 9.6, "Numbers".

A part packs n >= 1 signed integers of w bytes each (w is 1, 2, 4 or 8):

    part = coder (byte), stored length (varint), stored bytes

    coder 0  pcodec: a standalone file of the n integers. pcodec models the distribution of all numbers of a part with
        one set of tables, so a part should contain numbers of one distribution.
    coder 1  byte planes: the zigzag map makes small magnitudes small unsigned integers (0, -1, 1, -2 become 0, 1, 2,
        3); plane b, uint8 [n], contains byte b of each, lowest first; each plane is a section. High planes are nearly
        all zeros, which zstd removes.

Rules:
1. Both coders store n. It is at least one and at most what the caller expects.
2. Nothing is allocated before the count is known from the frame and compared with its limit.
3. pcodec is imported at the first part that uses it. A patch that needs it is refused as a whole if it is missing.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorrupt, PatchFeatureUnsupported
from bundle.patch.elements import Signed
from bundle.patch.numbers import Cursor
from bundle.patch.sections import read_section

PCODEC: Final = 0
PLANES: Final = 1


def read_part(cursor: Cursor, out: npt.NDArray[Any]) -> None:
    """Fill `out` from the part at the cursor.

    Args:
        cursor: positioned at the start of a part.
        out: signed integers [count]; the part must contain exactly as many.

    Raises:
        PatchCorrupt: the part is damaged, or contains another count of integers.
        PatchFeatureUnsupported: the part needs pcodec, which is not installed.
    """
    found = fill_start(cursor, out)
    if found != len(out):
        raise PatchCorrupt(f"{cursor.where}: part of {found} numbers, expected {len(out)}")


def fill_start(cursor: Cursor, out: npt.NDArray[Any]) -> int:
    """Fill the start of `out` from the part at the cursor, and return how many integers it contained.

    Args:
        cursor: positioned at the start of a part.
        out: signed integers [count], at least as many as the part contains.

    Raises:
        PatchCorrupt: the part is damaged, or contains none or too many integers.
        PatchFeatureUnsupported: the part needs pcodec, which is not installed.
    """
    coder = cursor.read_byte()
    stored = cursor.take(cursor.read_varint())
    if coder == PCODEC:
        return _unpack_pcodec(stored, out, cursor.where)
    if coder == PLANES:
        return _unpack_planes(Cursor(stored, cursor.where), out)
    raise PatchCorrupt(f"{cursor.where}: part with coder {coder}, expected 0 or 1")


def read_numbers(cursor: Cursor, count: int) -> npt.NDArray[np.int32]:
    """Read `count` 32-bit integers, stored as runs of a length (varint) and a part.

    Args:
        cursor: positioned at the first run.
        count: integers in all runs together.

    Returns:
        int32 [count].

    Raises:
        PatchCorrupt: a run is empty, longer than the rest, or damaged.
    """
    out = np.empty(count, np.int32)
    done = 0
    while done < count:
        length = cursor.read_varint()
        if not 0 < length <= count - done:
            raise PatchCorrupt(f"{cursor.where}: part of {length} numbers, {count - done} are left")
        read_part(cursor, out[done : done + length])
        done += length
    return out


def read_planes(cursor: Cursor, count: int, size: int) -> npt.NDArray[Any]:
    """Read unsigned integers from their byte planes.

    Args:
        cursor: positioned at the section of the lowest plane.
        count: number of integers.
        size: bytes of one integer.

    Returns:
        Unsigned integers of `size` bytes [count].

    Raises:
        PatchCorrupt: a plane has another length than `count`.
    """
    out = np.empty((count, size), np.uint8)
    for byte in range(size):
        out[:, byte] = _read_plane(cursor, byte, count)
    return out.reshape(-1).view(f"<u{size}")


def unzigzag(numbers: npt.NDArray[Any], signed: np.dtype[Any]) -> Signed:
    """Map 0, 1, 2, 3, … to 0, -1, 1, -2, ….

    Args:
        numbers: unsigned integers.
        signed: the signed type of the same width.
    """
    one = numbers.dtype.type(1)
    restored: Signed = ((numbers >> one) ^ (~(numbers & one) + one)).view(signed)
    return restored


def zigzag(numbers: Signed) -> npt.NDArray[Any]:
    """Map 0, -1, 1, -2, 2, … to 0, 1, 2, 3, 4, …: the inverse of `unzigzag`."""
    width = 8 * numbers.dtype.itemsize
    return ((numbers << 1) ^ (numbers >> (width - 1))).view(f"<u{numbers.dtype.itemsize}")


def _unpack_planes(stored: Cursor, out: npt.NDArray[Any]) -> int:
    size = out.dtype.itemsize
    lowest = read_section(stored, len(out), "plane 0")
    count = len(lowest)
    if not count:
        raise PatchCorrupt(f"{stored.where}: part without numbers")
    planes = np.empty((count, size), np.uint8)
    planes[:, 0] = np.frombuffer(lowest, np.uint8)
    for byte in range(1, size):
        planes[:, byte] = _read_plane(stored, byte, count)
    stored.check_end()
    out[:count] = unzigzag(planes.reshape(-1).view(f"<u{size}"), out.dtype)
    return count


def _read_plane(cursor: Cursor, byte: int, count: int) -> npt.NDArray[np.uint8]:
    plane = read_section(cursor, count, f"plane {byte}")
    if len(plane) != count:
        raise PatchCorrupt(f"{cursor.where}: plane {byte} of {len(plane)} bytes, expected {count}")
    return np.frombuffer(plane, np.uint8)


def _unpack_pcodec(stored: memoryview, out: npt.NDArray[Any], where: str) -> int:
    try:
        from pcodec import standalone
    except ImportError as error:
        raise PatchFeatureUnsupported(
            "patch needs the decoder feature 'pcodec', which is not installed here"
        ) from error
    try:
        progress = standalone.simple_decompress_into(bytes(stored), out)
    except (RuntimeError, ValueError, TypeError) as error:
        raise PatchCorrupt(f"{where}: {error}") from error
    except BaseException as error:
        # A panic inside the library arrives as a BaseException of a type that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise PatchCorrupt(f"{where}: pcodec cannot decode the part") from error
    if not progress.finished or not progress.n_processed:
        raise PatchCorrupt(f"{where}: part of {progress.n_processed} numbers or more, expected 1 to {len(out)}")
    return int(progress.n_processed)
