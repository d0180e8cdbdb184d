"""One side of a patch: the mapped files of a bundle, its arrays and the bytes between them."""

from itertools import pairwise

import numpy as np

from bundle.files import BundleDirectory
from packager.diff.bundle_folder import file_path
from packager.diff.byte_range import BytePosition, ByteRange
from packager.diff.match.match_arrays import Array
from packager.diff.match.match_files import file_addresses
from packager.diff.sources import Source, remember_source
from packager.tensors.find_regions import find_regions


class MappedBundle:
    """A bundle whose files are memory-mapped and whose arrays are known.

    Attributes:
        directory: the bundle.
        file_addresses: address of each file's first byte, by path.
        regions: arrays of each file, by path.
    """

    def __init__(self, directory: BundleDirectory) -> None:
        self.directory = directory
        self.file_addresses = file_addresses(directory.files)
        self.regions = find_regions(directory)
        for file in directory.files:
            remember_source(Source(file.sha256, file.size), file_path(directory, file))
        self._maps = {
            file.path: np.memmap(file_path(directory, file), np.uint8, "r") for file in directory.files if file.size
        }

    def arrays(self) -> list[Array]:
        """Return all arrays in the order of the bundle's address space."""
        return [
            Array(index, self.file_addresses[file.path] + region.offset, region)
            for index, file in enumerate(self.directory.files)
            for region in self.regions[file.path]
        ]

    def array_bytes(self, array: Array) -> memoryview:
        """Return the bytes of an array without copying them."""
        region = array.region
        path = self.directory.files[array.file].path
        return self._maps[path][region.offset : region.offset + region.size].data

    def untyped_ranges(self, path: str) -> list[ByteRange]:
        """Return the ranges between the arrays of a file."""
        file = next(file for file in self.directory.files if file.path == path)
        ends = [(0, 0), *((r.offset, r.offset + r.size) for r in self.regions[path]), (file.size, file.size)]
        source, start = Source(file.sha256, file.size), self.file_addresses[path]
        return [ByteRange(source, a, start + a, b - a) for (_, a), (b, _) in pairwise(ends) if b > a]

    def bytes_at(self, address: int, size: int) -> memoryview | None:
        """Return bytes of the address space, or None if they do not lie in one file.

        Args:
            address: address of the first byte.
            size: size in bytes.
        """
        for file in self.directory.files:
            begin = address - self.file_addresses[file.path]
            if file.size and 0 <= begin <= begin + size <= file.size:
                return self._maps[file.path][begin : begin + size].data
        return None

    def position_at(self, address: int) -> BytePosition:
        """Return the position of a byte by its address.

        Args:
            address: an address of this bundle.
        """
        file = next(
            file for file in reversed(self.directory.files) if file.size and self.file_addresses[file.path] <= address
        )
        return BytePosition(Source(file.sha256, file.size), address - self.file_addresses[file.path], address)

    def array_position(self, array: Array, offset: int = 0) -> BytePosition:
        """Return the position of a byte of an array.

        Args:
            array: an array of this bundle.
            offset: bytes from the start of the array.
        """
        file = self.directory.files[array.file]
        return BytePosition(Source(file.sha256, file.size), array.region.offset + offset, array.address + offset)
