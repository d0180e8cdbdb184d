"""Positions and ranges of bytes in a bundle's files and in its address space."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BytePosition:
    """A run of bytes.

    Attributes:
        file: the plain file.
        offset: where in the file.
        address: where in the bundle's line of bytes.
    """

    file: Path
    offset: int
    address: int

    def shifted_by(self, offset: int) -> "BytePosition":
        """So many bytes further on."""
        return BytePosition(self.file, self.offset + offset, self.address + offset)

    def read(self, size: int) -> bytes:
        """The bytes from there on."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(size)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A run of bytes in a file and in the bundle's line of bytes."""

    file: Path
    offset: int
    address: int
    size: int

    @property
    def position(self) -> BytePosition:
        """Where it begins."""
        return BytePosition(self.file, self.offset, self.address)
