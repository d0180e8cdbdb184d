"""Search the files below a folder for parts of an unencrypted model.

A part is a window of WINDOW_BYTES with at least MIN_DISTINCT_BYTES distinct values, so that runs of zeros and headers
do not match.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

WINDOW_BYTES: Final = 64
MIN_DISTINCT_BYTES: Final = 32
MAX_WINDOWS: Final = 256


def sample_windows(model: bytes) -> tuple[bytes, ...]:
    """Return up to MAX_WINDOWS windows, evenly spread over the model."""
    step = max(1, len(model) // MAX_WINDOWS)
    found = (model[start : start + WINDOW_BYTES] for start in range(0, len(model) - WINDOW_BYTES + 1, step))
    return tuple(window for window in found if len(set(window)) >= MIN_DISTINCT_BYTES)


def find_plaintext_files(folder: Path, model: bytes) -> Iterator[Path]:
    """Iterate over the files that contain a window of the model.

    Args:
        folder: folder to search, with its subfolders.
        model: contents of the model file.
    """
    windows = sample_windows(model)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if any(window in data for window in windows):
                yield path
