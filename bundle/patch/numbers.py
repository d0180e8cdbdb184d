"""Integers of a payload, and the cursor that reads them.

Integers are little-endian base 128: seven bits a byte, the high bit set on all but the last byte.

Rules (docs/format.md section 9):
1. A varint has at most 63 bits, so at most nine bytes. Its last byte is zero only if it is the only one, so each number
   has one encoding.
2. A signed varint stores n as 2n if n >= 0, else as -2n - 1.
3. A `Cursor` never reads beyond its bytes and never copies them.
"""

from typing import Final

from bundle.errors import PatchCorrupt

MAX_VARINT_BYTES: Final = 9


def encode_varint(number: int) -> bytes:
    """Encode an integer of 0 to 2^63 - 1."""
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{number} does not fit 63 bits")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_signed_varint(number: int) -> bytes:
    """Encode a signed integer as a varint of 2n or -2n - 1."""
    return encode_varint(number << 1 if number >= 0 else (-number << 1) - 1)


class Cursor:
    """Reads a payload from its start to its end.

    Args:
        data: the whole payload.
        where: its name in errors, for example "frame 7".
    """

    __slots__ = ("data", "position", "where")

    def __init__(self, data: bytes | memoryview, where: str) -> None:
        self.data = memoryview(data)
        self.position = 0
        self.where = where

    def read_byte(self) -> int:
        """Read one byte, 0 to 255.

        Raises:
            PatchCorrupt: the payload ends here.
        """
        if self.position >= len(self.data):
            raise PatchCorrupt(f"{self.where}: payload ends at byte {self.position}, expected one more")
        self.position += 1
        return self.data[self.position - 1]

    def read_varint(self) -> int:
        """Read an integer of 0 to 2^63 - 1.

        Raises:
            PatchCorrupt: the payload ends inside it, it is longer than nine bytes, or it has a leading zero.
        """
        if self.position < len(self.data) and self.data[self.position] < 0x80:
            self.position += 1
            return self.data[self.position - 1]
        number = shift = 0
        for _ in range(MAX_VARINT_BYTES):
            byte = self.read_byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise PatchCorrupt(f"{self.where}: number with a leading zero at byte {self.position}")
                return number
            shift += 7
        raise PatchCorrupt(f"{self.where}: number of more than 63 bits at byte {self.position}")

    def read_signed_varint(self) -> int:
        """Read a signed integer; raise PatchCorrupt as `read_varint` does."""
        number = self.read_varint()
        return -(number + 1 >> 1) if number & 1 else number >> 1

    def take(self, length: int) -> memoryview:
        """Return the next `length` bytes without copying them.

        Raises:
            PatchCorrupt: fewer bytes are left.
        """
        if length > len(self.data) - self.position:
            raise PatchCorrupt(
                f"{self.where}: found {len(self.data) - self.position} bytes at byte {self.position}, expected {length}"
            )
        self.position += length
        return self.data[self.position - length : self.position]

    def take_rest(self) -> memoryview:
        """Return all unread bytes without copying them."""
        return self.take(len(self.data) - self.position)

    def remaining_bytes(self) -> int:
        """Return the number of unread bytes."""
        return len(self.data) - self.position

    def check_end(self) -> None:
        """Refuse a payload with unread bytes.

        Raises:
            PatchCorrupt: bytes are left.
        """
        if self.remaining_bytes():
            raise PatchCorrupt(f"{self.where}: {self.remaining_bytes()} bytes after the end of the payload")
