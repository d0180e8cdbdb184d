"""Draw a scatter plot as PNG with numpy only: the latency of every request over time, with shaded swap windows.

The x axis is time in seconds; the y axis is latency in milliseconds, logarithmic. A dot is a request. A black mark
below the axis is the end of a swap.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 1400, 460
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 20, 60
WHITE, GREY, SHADE, INK, BLACK = (255, 255, 255), (215, 215, 215), (255, 240, 215), (28, 78, 128), (40, 40, 40)
SCALE = 2  # pixels per dot of a glyph
# five rows of three dots, one bit per dot
_ROWS = {
    "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7),
    "2": (7, 1, 7, 4, 7),
    "3": (7, 1, 7, 1, 7),
    "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7),
    "6": (7, 4, 7, 5, 7),
    "7": (7, 1, 1, 1, 1),
    "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7),
    ".": (0, 0, 0, 0, 2),
}

Image = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def draw_latencies(path: Path, requests: list[tuple[float, float]], windows: list[tuple[float, float]]) -> None:
    """Write the plot as PNG.

    Args:
        path: file to write.
        requests: start and latency of each request, in seconds.
        windows: start and end of each swap, in seconds.
    """
    image = np.full((HEIGHT, WIDTH, 3), WHITE, np.uint8)
    times = np.array([start for start, _ in requests])
    millis = np.maximum(np.array([latency for _, latency in requests]) * 1e3, 1e-3)
    low, high = np.floor(np.log10(millis.min())), np.ceil(np.log10(millis.max()))
    end_s = float(times.max()) or 1.0
    floor = HEIGHT - BOTTOM

    def column(seconds: float) -> int:
        return int(np.clip(LEFT + seconds / end_s * (WIDTH - LEFT - RIGHT), LEFT, WIDTH - RIGHT))

    def row(log_ms: float) -> int:
        return int(floor - (log_ms - low) / max(high - low, 1) * (floor - TOP))

    for start, stop in windows:
        image[TOP:floor, column(start) : column(stop) + 1] = SHADE
        image[floor + 2 : floor + 8, column(stop) - 1 : column(stop) + 1] = BLACK
    for decade in range(int(low), int(high) + 1):
        image[row(decade), LEFT : WIDTH - RIGHT] = GREY
        _draw_text(image, f"{10.0**decade:g}", row(decade) - 5, 40)
    step_s = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if end_s / step <= 14), 500)
    for second in range(0, int(end_s) + 1, step_s):
        image[floor : floor + 5, column(second)] = GREY
        _draw_text(image, str(second), floor + 14, column(second) - 4)
    for seconds, log_ms in zip(times, np.log10(millis), strict=True):
        x, y = column(seconds), row(log_ms)
        image[max(y - 1, 0) : y + 1, x - 1 : x + 1] = INK
    path.write_bytes(encode_png(image))


def _draw_text(image: Image, text: str, top: int, left: int) -> None:
    for number, character in enumerate(text):
        for y, bits in enumerate(_ROWS[character]):
            for x in range(3):
                if bits >> (2 - x) & 1:
                    at = left + (4 * number + x) * SCALE
                    image[top + y * SCALE : top + (y + 1) * SCALE, at : at + SCALE] = BLACK


def encode_png(image: Image) -> bytes:
    """Return a PNG file of an RGB image, uint8 [height, width, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in image)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
