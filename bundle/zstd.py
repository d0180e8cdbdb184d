"""The zstd module of the standard library, or its copy for Pythons before 3.14, with two rules.

1. A frame is decompressed to a stated size at most, with a window that fits, and nothing may follow it.
2. Frames are made with one set of parameters, so that the same input gives the same bytes.
"""

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
    from compression.zstd import CompressionParameter, DecompressionParameter, ZstdError
else:
    from backports import zstd as zstd
    from backports.zstd import CompressionParameter, DecompressionParameter, ZstdError

__all__ = ["CompressionParameter", "ZstdError", "decompress_exactly", "make_decompressor", "stated_size", "zstd"]

MIN_WINDOW_LOG: Final = 10
MAX_WINDOW_LOG: Final = 27


def stated_size(frame: bytes | memoryview) -> int | None:
    """Return the uncompressed size that a frame states, or None if it states none.

    Raises:
        ZstdError: it is not the start of a zstd frame.
    """
    return zstd.get_frame_info(frame).decompressed_size


def make_decompressor(window_log: int, dictionary: bytes = b"") -> "zstd.ZstdDecompressor":
    """Return a decompressor of one frame.

    Args:
        window_log: base-two logarithm of the largest window, in bytes.
        dictionary: raw content dictionary; empty for none.
    """
    options: dict[int, int] = {DecompressionParameter.window_log_max: max(MIN_WINDOW_LOG, window_log)}
    raw = zstd.ZstdDict(dictionary, is_raw=True).as_prefix if dictionary else None
    return zstd.ZstdDecompressor(zstd_dict=raw, options=options)


def decompress_exactly(frame: bytes | memoryview, size: int, dictionary: bytes = b"") -> bytes:
    """Decompress one frame, and return at most `size` + 1 bytes.

    Args:
        frame: the frame.
        size: the expected uncompressed size.
        dictionary: raw content dictionary; empty for none.

    Raises:
        ZstdError: the frame is damaged, incomplete, needs a larger window, or bytes follow it.
    """
    window_log = min(MAX_WINDOW_LOG, max(size + len(dictionary) - 1, 1).bit_length())
    decompressor = make_decompressor(window_log, dictionary)
    data = decompressor.decompress(frame, max_length=size)
    rest = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    if not rest and not decompressor.eof:
        raise ZstdError("the frame is incomplete")
    if decompressor.unused_data:
        raise ZstdError(f"{len(decompressor.unused_data)} bytes follow the frame")
    return data + rest if rest else data
