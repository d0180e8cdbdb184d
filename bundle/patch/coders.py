"""How numbers are packed: pcodec where it is there, byte planes everywhere.

Rules:
1. A part is coder (byte), stored length (varint), then the bytes. Coder 0 is pcodec (a standalone file), coder 1 byte
   planes: a section for each byte of the zigzag numbers, lowest byte first. Both tell how many numbers they hold: at
   least one, and no more than are expected.
2. Nothing is allocated before the count of numbers is known from the frame and within its limit.
3. pcodec is imported when the first of its parts is met; without it a patch that needs it is refused as a whole.
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
    """Fill `out` (signed integers) from the part at the cursor (rule 1).

    Raises:
        PatchCorruptRefused: damaged, or another count of numbers.
        PatchFeatureRefused: pcodec is not installed.
    """
    found = fill_start(cursor, out)
    if found != len(out):
        raise PatchCorrupt(f"{cursor.where}: part of {found} numbers, expected {len(out)}")


def fill_start(cursor: Cursor, out: npt.NDArray[Any]) -> int:
    """Fill the start of `out` from the part at the cursor; how many numbers it held. Raises as `read_part` does."""
    coder = cursor.read_byte()
    stored = cursor.take(cursor.read_varint())
    if coder == PCODEC:
        return _unpack_pcodec(stored, out, cursor.where)
    if coder == PLANES:
        return _unpack_planes(Cursor(stored, cursor.where), out)
    raise PatchCorrupt(f"{cursor.where}: part with coder {coder}, expected 0 or 1")


def read_numbers(cursor: Cursor, count: int) -> npt.NDArray[np.int32]:
    """`count` 32-bit integers in parts of `varint` numbers each."""
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
    """Unsigned integers of `size` bytes from their byte planes."""
    out = np.empty((count, size), np.uint8)
    for byte in range(size):
        out[:, byte] = _read_plane(cursor, byte, count)
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
        raise PatchCorrupt(f"{where}: pcodec gave up on the part") from error
    if not progress.finished or not progress.n_processed:
        raise PatchCorrupt(f"{where}: part of {progress.n_processed} numbers or more, expected 1 to {len(out)}")
    return int(progress.n_processed)
