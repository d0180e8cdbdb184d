"""Could a generic tool make a smaller patch than the typed codec? Asked before minutes are spent on trying."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bundle.files import BundleDirectory
from packager.diff.bundle_folder import file_path
from packager.diff.encode.zstd_prefix import compress_with_prefix
from packager.diff.match.match_files import matching_file
from packager.tensors.find_regions import find_regions

ZSTD_LEVEL: Final = 1
# How far below a quick generic patch (zstd -1, the base as prefix) a typed one has to be. zstd -19 gains a tenth on
# that; bsdiff up to two thirds where elements are single bytes, a fifth where they are wider.
BYTE_ARRAY_MARGIN: Final = 0.4
WIDE_ARRAY_MARGIN: Final = 0.75
FULL_DOWNLOAD_MARGIN: Final = 0.97  # on floats zstd -19 gains next to nothing on zstd -1
EXHAUSTIVE_MAX_BYTES: Final = 1 << 20  # up to here trying all of them takes a second or two
EXHAUSTIVE_FULL_DOWNLOAD_MAX_BYTES: Final = 16 << 20  # zstd alone is fast
MIN_BYTE_ARRAY_SHARE: Final = 0.2
MIN_TYPED_SHARE: Final = 0.95
SLACK_BYTES: Final = 512  # what a generic patch may be smaller by: half of what users are promised at most
SHARED_RUNS_MAX_RATIO: Final = 0.99
PIECE_BYTES: Final = 24 << 20
PREFIX_BYTES: Final = 48 << 20


def can_skip_generic_codecs(size: int, base: BundleDirectory | None, target: BundleDirectory) -> bool:
    """May the generic codecs be left untried?

    Args:
        size: bytes of the typed patch.
    """
    total = sum(file.size for file in target.files)
    found = find_regions(target)
    if len(target.files) == 1 and not any(found.values()):
        return True  # a file without arrays has been tried with all of them
    if total <= (EXHAUSTIVE_MAX_BYTES if base is not None else EXHAUSTIVE_FULL_DOWNLOAD_MAX_BYTES):
        return False
    regions = [region for inside in found.values() for region in inside]
    typed = sum(region.size for region in regions)
    if typed < MIN_TYPED_SHARE * total:
        return False
    if base is None:
        share = FULL_DOWNLOAD_MARGIN
    else:
        single = sum(region.size for region in regions if region.dtype in ("i8", "u8"))
        share = BYTE_ARRAY_MARGIN if single > MIN_BYTE_ARRAY_SHARE * total else WIDE_ARRAY_MARGIN
    quick = 0
    for file in target.files:
        if not file.size:
            continue
        like = matching_file(file, base.files) if base is not None else None
        if like is None or (like.size, like.sha256) != (file.size, file.sha256):
            alike = file_path(base, like) if base is not None and like is not None else None
            for piece in estimate_sizes(file_path(target, file), alike):
                quick += piece
                if size < share * quick + SLACK_BYTES:
                    return True
    return False


def shares_byte_runs(base: BundleDirectory, target: BundleDirectory) -> bool:
    """Has the target runs of bytes that the base has? Where it has none, a dictionary is of no use."""
    total = sum(file.size for file in target.files)
    if total <= EXHAUSTIVE_MAX_BYTES:
        return True
    after = alone = 0
    for file in target.files:
        like = matching_file(file, base.files)
        if file.size and like is not None:
            place = file_path(target, file)
            after += sum(estimate_sizes(place, file_path(base, like)))
            alone += sum(estimate_sizes(place, None))
    return after < SHARED_RUNS_MAX_RATIO * alone


def estimate_sizes(target_path: Path, base_path: Path | None) -> Iterator[int]:
    """Piece by piece, each with the part of the base that lies where it lies: so memory does not follow the file."""
    total = target_path.stat().st_size
    held = base_path.stat().st_size if base_path is not None else 0
    for start in range(0, total, PIECE_BYTES):
        middle = (start + PIECE_BYTES // 2) * held // total
        begin = max(0, min(middle - PREFIX_BYTES // 2, held - PREFIX_BYTES))
        prefix = _read_range(base_path, begin, PREFIX_BYTES) if base_path is not None else b""
        yield len(compress_with_prefix(prefix, _read_range(target_path, start, PIECE_BYTES), ZSTD_LEVEL))


def _read_range(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(length)
