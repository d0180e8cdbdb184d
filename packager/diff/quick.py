"""Is a typed patch surely smaller than what generic tools would make? Asked before minutes are spent on them."""

from typing import Final

import zstandard

from bundle.files import BundleDirectory
from packager.diff.counterpart import counterpart
from packager.diff.directory import path_of
from packager.regions.find import find_regions, mapped

LEVEL: Final = 1
# How far below a quick generic patch (zstd -1, the base as prefix) a typed one has to be. zstd -19 gains a tenth on
# that; bsdiff up to two thirds where elements are single bytes, a fifth where they are wider.
SHARE_OF_BYTES: Final = 0.35
SHARE_OF_WIDE: Final = 0.75
SHARE_FROM_NOTHING: Final = 0.97  # on floats zstd -19 gains next to nothing on zstd -1
BYTES_SHARE: Final = 0.2
TYPED_SHARE: Final = 0.95
SURE_SHARE_OF_TARGET: Final = 0.01
MAX_PREFIX_BYTES: Final = 128 << 20
_CHUNK_BYTES: Final = 1 << 20


def is_surely_smaller(size: int, base: BundleDirectory | None, target: BundleDirectory) -> bool:
    """May the generic codecs be left untried?

    Args:
        size: bytes of the typed patch.
    """
    total = sum(file.size for file in target.files)
    regions = [region for found in find_regions(target).values() for region in found]
    typed = sum(region.size for region in regions)
    if typed < TYPED_SHARE * total:
        return False
    if base is not None and size < SURE_SHARE_OF_TARGET * total:
        return True
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
            has_prefix = like is not None and like.size <= MAX_PREFIX_BYTES
            prefix = path_of(base, like).read_bytes() if base is not None and like is not None and has_prefix else b""
            with mapped(path_of(target, file)) as data:
                quick += _quick_size(data, prefix)
    return size < share * quick


def _quick_size(data: memoryview, prefix: bytes) -> int:
    window_log = min(27, max(20, (len(data) + len(prefix)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL, source_size=len(data), window_log=window_log, enable_ldm=bool(prefix)
    )
    raw = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(prefix) >= 8 else None
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=raw).compressobj()
    size = sum(len(packer.compress(data[i : i + _CHUNK_BYTES])) for i in range(0, len(data), _CHUNK_BYTES))
    return size + len(packer.flush())
