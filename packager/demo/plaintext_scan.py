"""Is there a plain model on a disk? Looks for windows of it in every file below a folder.

Rule: a window is 64 bytes with at least 32 distinct values, so that runs of zeros and headers are not taken for a find.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

WINDOW_BYTES: Final = 64
MIN_DISTINCT_BYTES: Final = 32
MAX_WINDOWS: Final = 256


def sample_windows(model: bytes) -> tuple[bytes, ...]:
    """Up to WINDOWS windows, evenly spread over the model."""
    step = max(1, len(model) // MAX_WINDOWS)
    found = (model[start : start + WINDOW_BYTES] for start in range(0, len(model) - WINDOW_BYTES + 1, step))
    return tuple(window for window in found if len(set(window)) >= MIN_DISTINCT_BYTES)


def find_plaintext_files(folder: Path, model: bytes) -> Iterator[Path]:
    """The files below `folder` that hold any of the model's windows."""
    windows = sample_windows(model)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if any(window in data for window in windows):
                yield path
