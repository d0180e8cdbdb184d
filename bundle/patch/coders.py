"""How numbers are packed: pcodec where it is there, byte planes everywhere.

Rules:
1. A part is coder (byte), stored length (varint), then the bytes. Coder 0 is pcodec (a standalone file of exactly as
   many numbers as are expected), coder 1 byte planes: a section for each byte of the zigzag numbers, lowest byte first.
2. Nothing is allocated before the count of numbers is known from the frame and within its limit.
3. pcodec is imported when the first of its parts is met; without it a patch that needs it is refused as a whole.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bundle.errors import PatchCorruptRefused, PatchFeatureRefused
from bundle.patch.elements import Signed
from bundle.patch.numbers import Cursor
from bundle.patch.sections import read_section

PCODEC: Final = 0
PLANES: Final = 1


def read_part(cursor: Cursor, out: npt.NDArray[Any]) -> None:
    """Fill `out` (signed integers) from the part at the cursor (rule 1).

    Raises:
        PatchCorruptRefused: damaged, or another count of numbers.
        PatchFeatureRefused: pcodec is not installed.
    """
    coder = cursor.byte()
    stored = Cursor(cursor.take(cursor.varint()), cursor.where)
    if coder == PCODEC:
        _unpack_pcodec(stored.rest(), out, cursor.where)
    elif coder == PLANES:
        out[:] = unzigzag(read_planes(stored, len(out), out.dtype.itemsize), out.dtype)
        stored.end()
    else:
        raise PatchCorruptRefused(f"{cursor.where}: part with coder {coder}, expected 0 or 1")


def read_numbers(cursor: Cursor, count: int) -> npt.NDArray[np.int32]:
    """`count` 32-bit integers in parts of `varint` numbers each."""
    out = np.empty(count, np.int32)
    done = 0
    while done < count:
        length = cursor.varint()
        if not 0 < length <= count - done:
            raise PatchCorruptRefused(f"{cursor.where}: part of {length} numbers, {count - done} are left")
        read_part(cursor, out[done : done + length])
        done += length
    return out


def read_planes(cursor: Cursor, count: int, size: int) -> npt.NDArray[Any]:
    """Unsigned integers of `size` bytes from their byte planes."""
    out = np.empty((count, size), np.uint8)
    for byte in range(size):
        plane = read_section(cursor, count, f"plane {byte}")
        if len(plane) != count:
            raise PatchCorruptRefused(f"{cursor.where}: plane {byte} of {len(plane)} bytes, expected {count}")
        out[:, byte] = np.frombuffer(plane, np.uint8)
    return out.reshape(-1).view(f"<u{size}")


def unzigzag(numbers: npt.NDArray[Any], signed: np.dtype[Any]) -> Signed:
    """0, 1, 2, 3, … to 0, -1, 1, -2, …"""
    one = numbers.dtype.type(1)
    restored: Signed = ((numbers >> one) ^ (~(numbers & one) + one)).view(signed)
    return restored


def zigzag(numbers: Signed) -> npt.NDArray[Any]:
    """The inverse of `unzigzag`."""
    width = 8 * numbers.dtype.itemsize
    return ((numbers << 1) ^ (numbers >> (width - 1))).view(f"<u{numbers.dtype.itemsize}")


def _unpack_pcodec(stored: memoryview, out: npt.NDArray[Any], where: str) -> None:
    try:
        from pcodec import standalone
    except ImportError as error:
        raise PatchFeatureRefused("patch needs the decoder feature 'pcodec', which is not installed here") from error
    try:
        progress = standalone.simple_decompress_into(bytes(stored), out)
    except (RuntimeError, ValueError, TypeError) as error:
        raise PatchCorruptRefused(f"{where}: {error}") from error
    except BaseException as error:
        # A panic inside the library arrives as a BaseException of a type that can not be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise PatchCorruptRefused(f"{where}: pcodec gave up on the part") from error
    if progress.n_processed != len(out) or not progress.finished:
        raise PatchCorruptRefused(f"{where}: part of {progress.n_processed} numbers or more, expected {len(out)}")
