"""Estimate quickly whether a generic tool could make a smaller patch than the typed codec.

The estimate is zstd at level 1 with the base before the data. It takes seconds; trying all generic codecs takes
minutes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bundle.files import BundleDirectory
from packager.diff.bundle_folder import file_path
from packager.diff.encode.zstd_prefix import compress_with_prefix
from packager.diff.match.match_files import matching_file
from packager.tensors.find_regions import find_regions

ZSTD_LEVEL: Final = 1
# A typed patch is taken without trials if it is below this share of the quick estimate. zstd -19 is a tenth smaller
# than the estimate; bsdiff is up to two thirds smaller for arrays of single bytes, and a fifth for wider elements.
BYTE_ARRAY_MARGIN: Final = 0.4
WIDE_ARRAY_MARGIN: Final = 0.75
FULL_DOWNLOAD_MARGIN: Final = 0.97  # on floats zstd -19 gains next to nothing on zstd -1
EXHAUSTIVE_MAX_BYTES: Final = 1 << 20  # up to this size trying all codecs takes a second or two
EXHAUSTIVE_FULL_DOWNLOAD_MAX_BYTES: Final = 16 << 20  # zstd alone is fast
MIN_BYTE_ARRAY_SHARE: Final = 0.2
MIN_TYPED_SHARE: Final = 0.95
SLACK_BYTES: Final = 512  # a generic patch may be smaller by half of the 1 KiB that docs/benchmarks.md promises
SHARED_RUNS_MAX_RATIO: Final = 0.99
PIECE_BYTES: Final = 24 << 20
PREFIX_BYTES: Final = 48 << 20


def can_skip_generic_codecs(size: int, base: BundleDirectory | None, target: BundleDirectory) -> bool:
    """Return whether no generic codec can be smaller than the typed patch by more than `SLACK_BYTES`.

    Args:
        size: bytes of the typed patch.
        base: None for a full download.
        target: the bundle that the patch makes.
    """
    total = sum(file.size for file in target.files)
    regions_by_path = find_regions(target)
    if len(target.files) == 1 and not any(regions_by_path.values()):
        return True  # a file without arrays has been tried with all of them
    if total <= (EXHAUSTIVE_MAX_BYTES if base is not None else EXHAUSTIVE_FULL_DOWNLOAD_MAX_BYTES):
        return False
    regions = [region for inside in regions_by_path.values() for region in inside]
    typed_bytes = sum(region.size for region in regions)
    if typed_bytes < MIN_TYPED_SHARE * total:
        return False
    if base is None:
        margin = FULL_DOWNLOAD_MARGIN
    else:
        byte_array_bytes = sum(region.size for region in regions if region.dtype in ("i8", "u8"))
        margin = BYTE_ARRAY_MARGIN if byte_array_bytes > MIN_BYTE_ARRAY_SHARE * total else WIDE_ARRAY_MARGIN
    quick_bytes = 0
    for file in target.files:
        if not file.size:
            continue
        counterpart = matching_file(file, base.files) if base is not None else None
        if counterpart is None or (counterpart.size, counterpart.sha256) != (file.size, file.sha256):
            base_path = file_path(base, counterpart) if base is not None and counterpart is not None else None
            for piece_bytes in estimate_sizes(file_path(target, file), base_path):
                quick_bytes += piece_bytes
                if size < margin * quick_bytes + SLACK_BYTES:
                    return True
    return False


def shares_byte_runs(base: BundleDirectory, target: BundleDirectory) -> bool:
    """Return whether target and base share runs of bytes; otherwise a dictionary is useless.

    Args:
        base: the base bundle.
        target: the target bundle.
    """
    total = sum(file.size for file in target.files)
    if total <= EXHAUSTIVE_MAX_BYTES:
        return True
    with_base_bytes = without_base_bytes = 0
    for file in target.files:
        counterpart = matching_file(file, base.files)
        if file.size and counterpart is not None:
            path = file_path(target, file)
            with_base_bytes += sum(estimate_sizes(path, file_path(base, counterpart)))
            without_base_bytes += sum(estimate_sizes(path, None))
    return with_base_bytes < SHARED_RUNS_MAX_RATIO * without_base_bytes


def estimate_sizes(target_path: Path, base_path: Path | None) -> Iterator[int]:
    """Yield the compressed size of each piece of a file.

    Each piece is compressed after the part of the base file at the same relative position, so that memory does not grow
    with the file.

    Args:
        target_path: the file to compress.
        base_path: None for no base.
    """
    target_bytes = target_path.stat().st_size
    base_bytes = base_path.stat().st_size if base_path is not None else 0
    for start in range(0, target_bytes, PIECE_BYTES):
        middle = (start + PIECE_BYTES // 2) * base_bytes // target_bytes
        begin = max(0, min(middle - PREFIX_BYTES // 2, base_bytes - PREFIX_BYTES))
        prefix = _read_range(base_path, begin, PREFIX_BYTES) if base_path is not None else b""
        yield len(compress_with_prefix(prefix, _read_range(target_path, start, PIECE_BYTES), ZSTD_LEVEL))


def _read_range(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(length)
