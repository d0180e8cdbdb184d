"""Find the arrays of a bundle's files, by their content rather than by their names.

Rules:
1. A file's format is determined by its first bytes. A file that no parser accepts has no regions.
2. External data of an ONNX model is located by its path relative to the model, inside the bundle only.
"""

import mmap
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bundle.files import BundleDirectory
from packager.tensors.flat_files import find_gguf, find_npy, find_npz, find_safetensors
from packager.tensors.onnx_wire import ExternalRegion, find_onnx
from packager.tensors.region import MalformedFile, Region, keep_valid_regions
from packager.tensors.tflite import find_tflite

MIN_FILE_BYTES: Final = 64


def find_regions(directory: BundleDirectory) -> dict[str, list[Region]]:
    """Find the regions of all files of a bundle.

    Returns:
        Regions by path, sorted by offset, inside the file and not overlapping; every file has an entry.
    """
    sizes = {file.path: file.size for file in directory.files}
    found: dict[str, list[Region]] = {file.path: [] for file in directory.files}
    for file in directory.files:
        disk_path = directory.root if directory.root.is_file() else directory.root / file.path
        if file.size < MIN_FILE_BYTES:
            continue
        regions, external = find_file_regions(disk_path)
        found[file.path] += regions
        for entry in external:
            location = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), entry.location))
            if location in found:
                found[location].append(entry.region)
    return {path: keep_valid_regions(regions, sizes[path]) for path, regions in found.items()}


def find_file_regions(path: Path) -> tuple[list[Region], list[ExternalRegion]]:
    """Find the regions of one file, and those that it says are in other files; none if it does not parse."""
    with map_file(path) as data:
        try:
            return _parse_regions(data)
        except MalformedFile:
            return [], []


@contextmanager
def map_file(path: Path) -> Iterator[memoryview]:
    """Map a file into memory, as a context manager."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as pages:
        with memoryview(pages) as data:
            yield data


def _parse_regions(data: memoryview) -> tuple[list[Region], list[ExternalRegion]]:
    head = bytes(data[:16])
    if head[4:8] == b"TFL3":
        return find_tflite(data), []
    if head[:4] == b"GGUF":
        return find_gguf(data), []
    if head[:4] == b"PK\x03\x04":
        return find_npz(data), []
    if head[:6] == b"\x93NUMPY":
        return find_npy(data), []
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < len(data):
        return find_safetensors(data), []
    return find_onnx(data)
