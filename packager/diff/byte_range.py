"""Byte positions and byte ranges in a bundle's files and in its address space."""

from dataclasses import dataclass

from packager.diff.sources import Source, read_source


@dataclass(frozen=True, slots=True)
class BytePosition:
    """The position of a byte.

    Attributes:
        source: the file's content.
        offset: bytes from the start of the file.
        address: bytes from the start of the bundle's address space.
    """

    source: Source
    offset: int
    address: int

    def shifted_by(self, offset: int) -> "BytePosition":
        """Return the position `offset` bytes after this one."""
        return BytePosition(self.source, self.offset + offset, self.address + offset)

    def read(self, size: int) -> bytes:
        """Read `size` bytes from this position on."""
        return read_source(self.source, self.offset, size)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Consecutive bytes of a file.

    Attributes:
        source: the file's content.
        offset: bytes from the start of the file.
        address: bytes from the start of the bundle's address space.
        size: size in bytes.
    """

    source: Source
    offset: int
    address: int
    size: int

    @property
    def position(self) -> BytePosition:
        """The position of the first byte."""
        return BytePosition(self.source, self.offset, self.address)
