"""The bytes of the demo's update, beside other ways to bring the same model."""

import zlib
from pathlib import Path
from typing import Final

GZIP: Final = 16 + zlib.MAX_WBITS  # of zlib: the gzip format


def other_ways(old: Path, new: Path) -> dict[str, int]:
    """Return the bytes of the new model file by "gzip" -9, and of its "bsdiff4" patch from the old one.

    Args:
        old: model file of the installed release.
        new: model file of the next release.
    """
    import bsdiff4

    data = new.read_bytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    packed = len(packer.compress(data)) + len(packer.flush())
    return {"bsdiff4": len(bsdiff4.diff(old.read_bytes(), data)), "gzip": packed}


def size_lines(sizes: dict[str, int]) -> list[str]:
    """Return the table of the update's bytes, or no line without an update.

    Args:
        sizes: DemoReport.update_bytes.
    """
    if not sizes:
        return []
    rows = (
        ("patch", "patch, encrypted, with golden vectors"),
        ("downloaded", "all that the device received, signatures too"),
        ("bsdiff4", "bsdiff4 of the same two model files"),
        ("gzip", "gzip -9 of the new model file"),
        ("full", "full download of the release"),
    )
    return ["", "Bytes of the update to 1.1.0", *(f"  {sizes[key]:>11,}  {text}" for key, text in rows)]
