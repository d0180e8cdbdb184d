"""Could a generic tool make a smaller patch than the typed codec? Asked before minutes are spent on trying."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bundle.files import BundleDirectory
from packager.diff.bundle_folder import path_of
from packager.diff.encode.zstd_prefix import pack_after
from packager.diff.match.match_files import counterpart
from packager.tensors.find_regions import find_regions

LEVEL: Final = 1
# How far below a quick generic patch (zstd -1, the base as prefix) a typed one has to be. zstd -19 gains a tenth on
# that; bsdiff up to two thirds where elements are single bytes, a fifth where they are wider.
SHARE_OF_BYTES: Final = 0.4
SHARE_OF_WIDE: Final = 0.75
SHARE_FROM_NOTHING: Final = 0.97  # on floats zstd -19 gains next to nothing on zstd -1
ALWAYS_BYTES: Final = 1 << 20  # up to here trying all of them takes a second or two
ALWAYS_FROM_NOTHING_BYTES: Final = 16 << 20  # zstd alone is fast
BYTES_SHARE: Final = 0.2
TYPED_SHARE: Final = 0.95
SLACK_BYTES: Final = 512  # what a generic patch may be smaller by: half of what users are promised at most
FOUND_SHARE: Final = 0.99
PIECE_BYTES: Final = 24 << 20
PREFIX_BYTES: Final = 48 << 20


def is_surely_smaller(size: int, base: BundleDirectory | None, target: BundleDirectory) -> bool:
    """May the generic codecs be left untried?

    Args:
        size: bytes of the typed patch.
    """
    total = sum(file.size for file in target.files)
    found = find_regions(target)
    if len(target.files) == 1 and not any(found.values()):
        return True  # a file without arrays has been tried with all of them
    if total <= (ALWAYS_BYTES if base is not None else ALWAYS_FROM_NOTHING_BYTES):
        return False
    regions = [region for inside in found.values() for region in inside]
    typed = sum(region.size for region in regions)
    if typed < TYPED_SHARE * total:
        return False
    if base is None:
        share = SHARE_FROM_NOTHING
    else:
        single = sum(region.size for region in regions if region.dtype in ("i8", "u8"))
        share = SHARE_OF_BYTES if single > BYTES_SHARE * total else SHARE_OF_WIDE
    quick = 0
    for file in target.files:
        if not file.size:
            continue
        like = counterpart(file, base.files) if base is not None else None
        if like is None or (like.size, like.sha256) != (file.size, file.sha256):
            alike = path_of(base, like) if base is not None and like is not None else None
            for piece in quick_sizes(path_of(target, file), alike):
                quick += piece
                if size < share * quick + SLACK_BYTES:
                    return True
    return False


def is_found_again(base: BundleDirectory, target: BundleDirectory) -> bool:
    """Has the target runs of bytes that the base has? Where it has none, a dictionary is of no use."""
    total = sum(file.size for file in target.files)
    if total <= ALWAYS_BYTES:
        return True
    after = alone = 0
    for file in target.files:
        like = counterpart(file, base.files)
        if file.size and like is not None:
            place = path_of(target, file)
            after += sum(quick_sizes(place, path_of(base, like)))
            alone += sum(quick_sizes(place, None))
    return after < FOUND_SHARE * alone


def quick_sizes(place: Path, alike: Path | None) -> Iterator[int]:
    """Piece by piece, each with the part of the base that lies where it lies: so memory does not follow the file."""
    total = place.stat().st_size
    held = alike.stat().st_size if alike is not None else 0
    for start in range(0, total, PIECE_BYTES):
        middle = (start + PIECE_BYTES // 2) * held // total
        begin = max(0, min(middle - PREFIX_BYTES // 2, held - PREFIX_BYTES))
        prefix = _read(alike, begin, PREFIX_BYTES) if alike is not None else b""
        yield len(pack_after(prefix, _read(place, start, PIECE_BYTES), LEVEL))


def _read(place: Path, start: int, length: int) -> bytes:
    with place.open("rb") as stream:
        stream.seek(start)
        return stream.read(length)
