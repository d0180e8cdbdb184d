"""One side of a patch: the arrays and the bytes of a bundle."""

from itertools import pairwise

import numpy as np

from bundle.files import BundleDirectory
from packager.diff.bundle_folder import file_path
from packager.diff.byte_range import BytePosition, ByteRange
from packager.diff.match.match_arrays import Array
from packager.diff.match.match_files import file_addresses
from packager.tensors.find_regions import find_regions


class MappedBundle:
    """A bundle whose files are mapped, and whose arrays are known."""

    def __init__(self, directory: BundleDirectory) -> None:
        self.directory = directory
        self.file_addresses = file_addresses(directory.files)
        self.regions = find_regions(directory)
        self._maps = {
            file.path: np.memmap(file_path(directory, file), np.uint8, "r") for file in directory.files if file.size
        }

    def arrays(self) -> list[Array]:
        """In the order of the bundle's line of bytes."""
        return [
            Array(index, self.file_addresses[file.path] + region.offset, region)
            for index, file in enumerate(self.directory.files)
            for region in self.regions[file.path]
        ]

    def array_bytes(self, array: Array) -> memoryview:
        """The array's bytes."""
        region = array.region
        path = self.directory.files[array.file].path
        return self._maps[path][region.offset : region.offset + region.size].data

    def untyped_ranges(self, path: str) -> list[ByteRange]:
        """What lies between the regions of a file."""
        file = next(file for file in self.directory.files if file.path == path)
        ends = [(0, 0), *((r.offset, r.offset + r.size) for r in self.regions[path]), (file.size, file.size)]
        place, start = file_path(self.directory, file), self.file_addresses[path]
        return [ByteRange(place, a, start + a, b - a) for (_, a), (b, _) in pairwise(ends) if b > a]

    def bytes_at(self, address: int, size: int) -> memoryview | None:
        """Bytes of one file by where they lie in the bundle; None where they are no file's."""
        for file in self.directory.files:
            begin = address - self.file_addresses[file.path]
            if file.size and 0 <= begin <= begin + size <= file.size:
                return self._maps[file.path][begin : begin + size].data
        return None

    def array_position(self, array: Array, offset: int = 0) -> BytePosition:
        """Where the array is, from byte `offset` of it on."""
        file = self.directory.files[array.file]
        return BytePosition(file_path(self.directory, file), array.region.offset + offset, array.address + offset)
