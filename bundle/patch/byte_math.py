"""Sums of bytes and words, with numpy or without it: the operations that every patch may need.

A device without numpy applies patches of the codecs zstd and bsdiff4.
"""

import sys
from array import array
from typing import Final

try:
    import numpy as np
except ImportError:  # the extra `typed` is not installed
    np = None  # type: ignore[assignment]

HAS_NUMPY: Final = np is not None
_WORD_TYPE: Final = "I" if array("I").itemsize == 4 else "L"


def add_bytes(first: bytes | memoryview, second: bytes | memoryview) -> memoryview:
    """Return the sums of two runs of bytes, byte by byte, modulo 256.

    Args:
        first: bytes.
        second: as many bytes.
    """
    if HAS_NUMPY:
        return np.add(np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8)).data
    # bytes without their high bits cannot carry into each other; the high bits are added by an exclusive or
    size = len(first)
    low = int.from_bytes(b"\x7f" * size, "little")
    a, b = int.from_bytes(first, "little"), int.from_bytes(second, "little")
    return memoryview((((a & low) + (b & low)) ^ ((a ^ b) & ~low)).to_bytes(size, "little"))


def sum_words(data: bytes | memoryview) -> int:
    """Return the sum of little-endian 32-bit words modulo 2^32; the length is a multiple of 4."""
    if HAS_NUMPY:
        return int(np.frombuffer(data, "<u4").sum(dtype=np.uint32))
    words = array(_WORD_TYPE, bytes(data))
    if sys.byteorder == "big":
        words.byteswap()
    return sum(words) & 0xFFFFFFFF
