"""Search files for pieces of a model's plaintext."""

WINDOW_BYTES = 64
MIN_DISTINCT = 32  # windows of zeros or of one repeated value are in every file


def distinctive_windows(data: bytes) -> set[bytes]:
    """Return the windows of a plain model with enough distinct bytes, every WINDOW_BYTES."""
    cut = (data[start : start + WINDOW_BYTES] for start in range(0, len(data) - WINDOW_BYTES, WINDOW_BYTES))
    return {window for window in cut if len(set(window)) >= MIN_DISTINCT}


def contains_any(data: bytes, windows: set[bytes]) -> bool:
    """Return whether a window occurs in `data` at any offset."""
    heads = {window[:8] for window in windows}
    for start in range(len(data) - WINDOW_BYTES + 1):
        if data[start : start + 8] in heads and data[start : start + WINDOW_BYTES] in windows:
            return True
    return False
