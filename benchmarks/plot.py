"""A scatter plot as PNG, drawn with numpy alone: latency of every request over time, swap windows shaded.

The x axis is time, a tick each 5 s; the y axis is latency on a logarithmic scale, a line each decade of milliseconds.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, MARGIN = 1400, 420, 20
WHITE, GREY, SHADE, INK = (255, 255, 255), (205, 205, 205), (255, 236, 205), (28, 78, 128)


def draw_latencies(path: Path, requests: list[tuple[float, float]], windows: list[tuple[float, float]]) -> None:
    """Write the plot.

    Args:
        path: of the PNG.
        requests: start and latency, seconds.
        windows: start and end of each swap, seconds.
    """
    image = np.full((HEIGHT, WIDTH, 3), WHITE, np.uint8)
    times = np.array([start for start, _ in requests])
    millis = np.maximum(np.array([latency for _, latency in requests]) * 1e3, 1e-3)
    low, high = np.floor(np.log10(millis.min())), np.ceil(np.log10(millis.max()))
    end = float(times.max()) or 1.0

    def column(seconds: float) -> int:
        return int(np.clip(MARGIN + seconds / end * (WIDTH - 2 * MARGIN), MARGIN, WIDTH - MARGIN))

    def row(log_ms: float) -> int:
        return int(HEIGHT - MARGIN - (log_ms - low) / max(high - low, 1) * (HEIGHT - 2 * MARGIN))

    for start, stop in windows:
        image[MARGIN : HEIGHT - MARGIN, column(start) : column(stop) + 1] = SHADE
    for decade in range(int(low), int(high) + 1):
        image[row(decade), MARGIN : WIDTH - MARGIN] = GREY
    for second in range(0, int(end) + 1, 5):
        image[HEIGHT - MARGIN : HEIGHT - MARGIN + 6, column(second)] = INK
    for seconds, log_ms in zip(times, np.log10(millis), strict=True):
        x, y = column(seconds), row(log_ms)
        image[max(y - 1, 0) : y + 1, x - 1 : x + 1] = INK
    path.write_bytes(_png(image))


def _png(image: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in image)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
