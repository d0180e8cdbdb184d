"""Byte positions and byte ranges in a bundle's files and in its address space."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BytePosition:
    """The position of a byte.

    Attributes:
        file: the file on this machine.
        offset: bytes from the start of the file.
        address: bytes from the start of the bundle's address space.
    """

    file: Path
    offset: int
    address: int

    def shifted_by(self, offset: int) -> "BytePosition":
        """Return the position `offset` bytes after this one."""
        return BytePosition(self.file, self.offset + offset, self.address + offset)

    def read(self, size: int) -> bytes:
        """Read `size` bytes from this position on."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(size)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Consecutive bytes of a file.

    Attributes:
        file: the file on this machine.
        offset: bytes from the start of the file.
        address: bytes from the start of the bundle's address space.
        size: size in bytes.
    """

    file: Path
    offset: int
    address: int
    size: int

    @property
    def position(self) -> BytePosition:
        """The position of the first byte."""
        return BytePosition(self.file, self.offset, self.address)
